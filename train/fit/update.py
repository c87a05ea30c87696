"""What a configuration makes of a network's weights: the state that training starts from, and the update."""

import jax
from flax import nnx
from jax.sharding import Sharding

from train.data import Dataset
from train.data.augment import augment
from train.data.mixing import mix
from train.fit.config import TrainConfig
from train.fit.optim import learning_rate, lps_temperature, optimizer, scaled
from train.fit.step import (
    Mix,
    Prepare,
    StepOptions,
    TrainState,
    TrainStep,
    Tree,
    initial_state,
    make_train_step,
    split_model,
)


class Update:
    """The optimiser of a run, and what it takes part in.

    Args:
        config: the run; its seed, its epochs, and the peak and the warm-up of its learning rate may be traced.
        steps_per_epoch: updates in an epoch.
    """

    def __init__(self, config: TrainConfig, steps_per_epoch: int):
        self._config = config
        optim = scaled(config.optim, config.batch)
        self._rate = learning_rate(optim, epochs=config.epochs, steps_per_epoch=steps_per_epoch)
        self._temperature = lps_temperature(config.optim, steps_per_epoch=steps_per_epoch)
        self._optimizer = optimizer(optim, self._rate, frozen_norms=config.net.frozen_bn)

    def start(self, params: Tree, stats: Tree) -> TrainState:
        """The state before the first update."""
        return initial_state(params, stats, self._optimizer, ema=self._config.optim.ema is not None)

    def form(self, model: nnx.Module, sharding: Sharding) -> TrainState:
        """Shapes, dtypes and places of the state: what a checkpoint is read into.

        Args:
            model: the network, which may be abstract.
            sharding: where each array shall be.
        """
        shapes = jax.eval_shape(self.start, *split_model(model)[1:])
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)

    def step(self, model: nnx.Module, dataset: Dataset) -> TrainStep:
        """The update `(state, batch) -> (state, metrics)`, pure and traceable.

        Args:
            model: the network, which may be abstract.
            dataset: says how images are varied and normalised.
        """
        config = self._config
        options = StepOptions(
            seed=config.seed,
            accumulate=config.accumulate,
            label_smoothing=config.optim.label_smoothing,
            loss=config.optim.loss,
            bce_threshold=config.optim.bce_threshold,
            mix=mixing(config, dataset) if dataset.augmentation.mixes else None,
            ema=config.optim.ema,
            temperature=self._temperature if config.net.has_temperature else None,
            remat=config.remat,
        )
        graphdef = split_model(model)[0]
        return make_train_step(graphdef, self._optimizer, self._rate, preparation(config, dataset), options)


def preparation(config: TrainConfig, dataset: Dataset) -> Prepare:
    """What happens to a batch of images on the devices."""

    def prepare(images: jax.Array, step: jax.Array) -> jax.Array:
        return augment(
            images,
            seed=config.seed,
            step=step,
            augmentation=dataset.augmentation,
            preprocessing=dataset.preprocessing,
        )

    return prepare


def mixing(config: TrainConfig, dataset: Dataset) -> Mix:
    """How the images of a batch, and their labels, are mixed with one another on the devices."""

    def with_neighbours(images: jax.Array, labels: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        return mix(
            images,
            labels,
            seed=config.seed,
            step=step,
            augmentation=dataset.augmentation,
            num_classes=dataset.num_classes,
        )

    return with_neighbours
