"""Many runs in one process: those that differ only in numbers share a program, all share the images on the devices.

`fit` compiles a program for every run, which takes minutes on a GPU. Here seed, length and rates are its arguments.
Runs are short: nothing is saved on the way, and weights are measured when asked for.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable
from contextlib import closing
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.tree_util import Partial

from train.data import DataConfig, Dataset, open_dataset, steps_per_epoch
from train.fit.config import TrainConfig, validate
from train.fit.distributed import Placement, check_batch
from train.fit.feed import Feed, open_feed
from train.fit.loop import IN_FLIGHT
from train.fit.network import abstract_network, initial_network
from train.fit.recalibrate import settle_statistics
from train.fit.step import Batch, Metrics, TrainState, Tree, split_model
from train.fit.update import Update, preparation
from train.fit.validation import Validator

log = logging.getLogger(__name__)


class Numbers(NamedTuple):
    """In what the runs of one program may differ: fields of `TrainConfig` and `OptimConfig`, which may be traced."""

    seed: Any
    epochs: Any
    lr: Any
    warmup_epochs: Any

    @classmethod
    def of(cls, config: TrainConfig) -> "Numbers":
        """Those of a run."""
        floats = (config.epochs, config.optim.lr, config.optim.warmup_epochs)
        return cls(np.int32(config.seed), *map(np.float32, floats))

    def put_into(self, config: TrainConfig) -> TrainConfig:
        """A configuration with these numbers."""
        optim = dataclasses.replace(config.optim, lr=self.lr, warmup_epochs=self.warmup_epochs)
        return dataclasses.replace(config, seed=self.seed, epochs=self.epochs, optim=optim)


class Program:
    """A network, its update and its measurement.

    Args:
        config: any run of it.
        dataset: its data.

    Attributes:
        dataset: its data.
        per_epoch: updates in an epoch.
    """

    def __init__(self, config: TrainConfig, dataset: Dataset):
        check_batch(config.batch, config.accumulate, jax.device_count())
        self.dataset, self.per_epoch = dataset, steps_per_epoch(dataset, config.batch)
        self._config, self._model = config, abstract_network(config, dataset.num_classes)
        validator = Validator(self._model, dataset, batch=config.batch // config.accumulate)
        self.measure = functools.partial(validator, progress=lambda share: None)

    def update(self, numbers: Numbers, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """One update of the run with these numbers."""
        update = Update(numbers.put_into(self._config), self.per_epoch)
        return update.step(self._model, self.dataset)(state, batch)

    def network(self, params: Tree, stats: Tree) -> nnx.Module:
        """The network with weights, in evaluation mode."""
        model = nnx.merge(split_model(self._model)[0], params, stats)
        model.eval()
        return model


class Sweep:
    """Makes runs, one after the other.

    Args:
        open_data: finds the data of a configuration.
    """

    def __init__(self, open_data: Callable[[DataConfig], Dataset] = open_dataset):
        self._open_data = open_data
        self._placement = Placement.of_all_devices()
        self._programs: dict[TrainConfig, Program] = {}
        self._feeds: dict[tuple[DataConfig, int], Feed] = {}

    def program(self, config: TrainConfig) -> Program:
        """The program that a run shares with others.

        Raises:
            CommandError: a configuration that cannot be, or a batch that the devices cannot share.
        """
        validate(config)
        key = Numbers(0, 1, 1, 0).put_into(config)
        if key not in self._programs:
            self._programs[key] = Program(config, self._open_data(config.data))
        return self._programs[key]

    def train(
        self,
        config: TrainConfig,
        start: TrainState | None = None,
        progress: Callable[[int], None] = lambda made: None,
    ) -> tuple[TrainState, float]:
        """Makes a run.

        Args:
            config: the run.
            start: whose weights to start from, instead of the run's own.
            progress: called with the updates that the devices have made so far, now and then; may raise to give up.

        Returns:
            The last state, and the mean loss of the last epoch.
        """
        program = self.program(config)
        state, feed = self._begin(config, program, start)
        step, losses, made = 0, [], 0
        with closing(feed):
            while step < program.per_epoch * config.epochs:
                state, metrics, count = feed.advance(state, step, program.per_epoch)
                step += count
                losses.append(jnp.atleast_1d(metrics["loss"])[:count])
                if len(losses) > IN_FLIGHT:
                    ready = jax.block_until_ready(losses[-1 - IN_FLIGHT])
                    made += len(ready)
                    progress(made)
        return state, float(jnp.concatenate(losses)[-program.per_epoch :].mean())

    def compile(self, config: TrainConfig) -> TrainState:
        """Compiles the program of a run with its images on the devices, and makes no update.

        Threads may compile several programs at a time once one call has come back, which has put the images there.

        Returns:
            The state before the first update.
        """
        state, feed = self._begin(config, self.program(config))
        return feed.advance(state, 0, 0)[0]

    def _begin(self, config: TrainConfig, program: Program, start: TrainState | None = None) -> tuple[TrainState, Feed]:
        """The first state, and where its batches come from."""
        first = self._first_weights(config, program.dataset) if start is None else (start.params, start.stats)
        state = self._placement.everywhere(Update(config, program.per_epoch).start(*first))
        update = Partial(program.update, Numbers.of(config))
        # How images are varied is the update's affair.
        alike = dataclasses.replace(config.data, augment="none", random_erase=0.0, mixup=0.0, cutmix=0.0)
        images = alike, config.batch
        feed = open_feed(config, update, program.dataset, self._placement, like=self._feeds.get(images))
        self._feeds[images] = feed
        return state, feed

    def _first_weights(self, config: TrainConfig, dataset: Dataset) -> tuple[Tree, Tree]:
        network = initial_network(config, dataset)
        settle_statistics(network, config, dataset, self._placement, preparation(config, dataset), log.warning)
        _, params, stats = split_model(network)
        return params, stats
