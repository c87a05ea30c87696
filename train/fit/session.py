"""Puts a run together from its configuration: network, update, state, feed, logs."""

import dataclasses
import functools
import json
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from optax import GradientTransformation

from train.data import Dataset, steps_per_epoch
from train.data.augment import augment
from train.data.balance import remarks
from train.errors import CommandError
from train.fit.agreement import require_same, together
from train.fit.checkpoint import Checkpoints, describe
from train.fit.config import TrainConfig
from train.fit.display import Display
from train.fit.distributed import Placement, is_lead
from train.fit.feed import open_feed
from train.fit.inputs import describe_dataset
from train.fit.interrupt import Interrupt
from train.fit.loop import Surroundings, Training
from train.fit.network import abstract_network, initial_network
from train.fit.optim import learning_rate, sgd
from train.fit.recalibrate import settle_statistics
from train.fit.record import plain
from train.fit.rundir import CHECKPOINTS, leave_record, may_continue, restore_record
from train.fit.runlog import RunLog, read_scores
from train.fit.step import Prepare, StepOptions, TrainState, TrainStep, initial_state, make_train_step, split_model
from train.fit.symptoms import statistics_of_one_image
from train.fit.validation import Validator


@dataclasses.dataclass(frozen=True)
class Session:
    """A run ready to go.

    Attributes:
        training: the loop.
        around: what it works with.
    """

    training: Training
    around: Surroundings

    def close(self) -> None:
        """Ends what runs in the background and closes files; the last save is waited for."""
        # Whatever one of them raises, the others are closed as well.
        with ExitStack() as stack:
            for part in (self.around.checkpoints, self.around.log, self.around.feed):
                stack.callback(part.close)


def optimizer_of(config: TrainConfig, per_epoch: int) -> GradientTransformation:
    """The optimiser of a run."""
    rate = learning_rate(config.optim, epochs=config.epochs, steps_per_epoch=per_epoch)
    return sgd(config.optim, rate, frozen_norms=config.net.frozen_bn)


def abstract_state(config: TrainConfig, model: nnx.Module, optimizer: GradientTransformation) -> TrainState:
    """Shapes and dtypes of the training state of a network, which may itself be abstract."""
    _, params, stats = split_model(model)
    build = functools.partial(initial_state, optimizer=optimizer, ema=config.optim.ema is not None)
    return jax.eval_shape(build, params, stats)


def train_step_of(config: TrainConfig, dataset: Dataset, model: nnx.Module, per_epoch: int) -> TrainStep:
    """The update of a run.

    Args:
        config: the run; its seed, its epochs, and the peak and the warm-up of its learning rate may be traced.
        dataset: says how images are varied and normalised.
        model: the network, which may be abstract.
        per_epoch: updates in an epoch.
    """
    options = StepOptions(
        seed=config.seed,
        accumulate=config.accumulate,
        label_smoothing=config.optim.label_smoothing,
        ema=config.optim.ema,
        remat=config.remat,
    )
    rate = learning_rate(config.optim, epochs=config.epochs, steps_per_epoch=per_epoch)
    optimizer, prepare = optimizer_of(config, per_epoch), _prepare(config, dataset)
    return make_train_step(split_model(model)[0], optimizer, rate, prepare, options)


def _prepare(config: TrainConfig, dataset: Dataset) -> Prepare:
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


def _try_one_image(config: TrainConfig, dataset: Dataset, train_step: TrainStep, state: TrainState, say: Any) -> None:
    """Says what is odd about BatchNorm over one image, and refuses it where that is a single value a channel.

    Raises:
        CommandError: the network's last maps are a single pixel.
    """
    side = dataset.preprocessing.crop
    batch = {
        "image": jax.ShapeDtypeStruct((config.batch, side, side, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((config.batch,), jnp.int32),
    }
    try:
        jax.eval_shape(train_step, state, batch)
    except ValueError as error:
        raise CommandError(f"BatchNorm over one image (--batch, --accumulate, --bn-group): {error}") from error
    say(
        "BatchNorm takes its statistics from one image at a time (--batch, --accumulate, --bn-group), and from all of "
        "them in evaluation: take more images, or --net.frozen-bn with --init"
    )


def _starting_state(
    config: TrainConfig, dataset: Dataset, placement: Placement, checkpoints: Checkpoints, model: nnx.Module, say: Any
) -> tuple[TrainState, int]:
    """The newest sound checkpoint, or the initial weights; and how many updates were made."""
    optimizer = optimizer_of(config, steps_per_epoch(dataset, config.batch))
    shapes = abstract_state(config, model, optimizer)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placement.replicated), shapes)
    require_same(
        {"the list of checkpoints": checkpoints.steps()},
        "Their --run-dir must be the same directory, seen at once by all",
    )
    restored = checkpoints.restore(like)
    if restored is not None:
        for line in restored.damaged:
            say(f"{line}; set aside")
        say(f"continuing from step {restored.step:,}")
        return restored.state, restored.step
    network = together(lambda: initial_network(config, dataset))
    if jax.process_count() > 1:
        crc = zlib.crc32(json.dumps([describe(x) for x in jax.tree.leaves(split_model(network)[1:])]).encode())
        require_same({"the checksum of the initial weights": f"{crc:08x}"}, "Give all of them the same --init")
    settle_statistics(network, config, dataset, placement, _prepare(config, dataset), say)
    _, params, stats = split_model(network)
    state = initial_state(params, stats, optimizer, ema=config.optim.ema is not None)
    return placement.everywhere(state), 0


def open_session(
    config: TrainConfig,
    run_dir: Path,
    dataset: Dataset,
    placement: Placement,
    display: Display,
    interrupt: Interrupt,
) -> Session:
    """Prepares a run, new or continued.

    Args:
        config: what to train; checked.
        run_dir: where it lives; claimed.
        dataset: the data.
        placement: the devices.
        display: where to tell about it.
        interrupt: requests to stop.

    Raises:
        CommandError: the directory's run may not be continued, its checkpoints are all damaged, or given weights do
            not fit.
        OSError: the run's directory cannot be written to.
    """
    facts = describe_dataset(dataset)
    for line in together(lambda: may_continue(run_dir, config, facts)):
        display.say(f"changed: {line}")
    per_epoch = steps_per_epoch(dataset, config.batch)
    scores = {step: values["accuracy"] for step, values in together(lambda: read_scores(run_dir)).items()}
    checkpoints = Checkpoints(run_dir / CHECKPOINTS, scores=scores)
    model = abstract_network(config, dataset.num_classes)
    state, step = _starting_state(config, dataset, placement, checkpoints, model, display.say)
    train_step = train_step_of(config, dataset, model, per_epoch)
    if statistics_of_one_image(config, model):
        _try_one_image(config, dataset, train_step, state, display.say)
    feed = open_feed(config, train_step, dataset, placement, start_step=step)
    for line in remarks(dataset.train, dataset.val, dataset.class_names):
        display.say(line)
    # Only now has nothing been refused: weights that do not fit leave no run behind.
    record = leave_record(run_dir, config, facts)
    around = Surroundings(
        config=config,
        steps_per_epoch=per_epoch,
        feed=feed,
        validator=Validator(model, dataset, batch=config.batch // config.accumulate),
        checkpoints=checkpoints,
        log=RunLog(run_dir, config.log, step=step, settings=plain(config), lead=is_lead()),
        display=display,
        interrupt=interrupt,
        restore_record=lambda: restore_record(run_dir, record),
        profile_dir=run_dir / "profile",
    )
    return Session(Training(around, state, step), around)
