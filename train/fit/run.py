"""A run: what it works with and how far it has come, put together from its configuration."""

import collections
import dataclasses
import json
import math
import zlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import jax
from flax import nnx

from aa_flax.buckets import AnyPath
from aa_flax.models.base import Network
from train.data import Dataset, steps_per_epoch
from train.data.balance import remarks
from train.fit.agreement import require_same, together
from train.fit.checkpoint import Checkpoints, Restored, describe
from train.fit.config import TrainConfig
from train.fit.display import Display
from train.fit.distributed import Placement, is_lead
from train.fit.feed import Feed, open_feed
from train.fit.inputs import describe_dataset
from train.fit.interrupt import Interrupt
from train.fit.meter import Meter, Tracer
from train.fit.network import abstract_network, initial_network
from train.fit.recalibrate import settle_statistics
from train.fit.record import Record, plain
from train.fit.rundir import CHECKPOINTS, Claim, leave_record, may_continue
from train.fit.runlog import RunLog, read_scores
from train.fit.step import TrainState, split_model
from train.fit.symptoms import statistics_of_one_image, try_one_image
from train.fit.update import Update, preparation
from train.fit.validation import Validator


@dataclasses.dataclass(kw_only=True)
class Run:
    """What a run works with, and how far it has come; `train.fit.loop` takes it further.

    Attributes:
        config: what is trained.
        directory: where it lives.
        claim: the hold of it.
        record: what its `config.json` says; None in processes that write nothing.
        steps_per_epoch: updates in an epoch.
        feed: makes the updates.
        validator: measures weights.
        checkpoints: where states are saved.
        log: what is written.
        tracer: records what the devices do.
        display: what a person sees.
        interrupt: requests to stop.
        state, step: as far as it has come; the state is donated to the next update.
        unread: updates whose metrics may not have been computed yet: the step before, how many, and the metrics.
        window: metrics of the updates since the last logged line.
        loss: mean training loss of the last logged stretch.
        meter: how fast it was.
    """

    config: TrainConfig
    directory: AnyPath
    claim: Claim
    record: Record | None
    steps_per_epoch: int
    feed: Feed
    validator: Validator
    checkpoints: Checkpoints
    log: RunLog
    tracer: Tracer
    display: Display
    interrupt: Interrupt
    state: TrainState
    step: int
    unread: collections.deque[tuple[int, int, Any]] = dataclasses.field(default_factory=collections.deque)
    window: list[Mapping[str, float]] = dataclasses.field(default_factory=list)
    loss: float = math.nan
    meter: Meter = dataclasses.field(default_factory=Meter)

    @property
    def last_step(self) -> int:
        """Updates in the whole run."""
        return self.steps_per_epoch * self.config.epochs

    def close(self) -> None:
        """Ends what runs in the background and closes files; the last save is waited for."""
        # Whatever one of them raises, the others are closed as well.
        with ExitStack() as stack:
            for part in (self.checkpoints, self.log, self.feed):
                stack.callback(part.close)


def open_run(
    config: TrainConfig,
    directory: AnyPath,
    claim: Claim,
    dataset: Dataset,
    placement: Placement,
    display: Display,
    interrupt: Interrupt,
) -> Run:
    """Prepares a run, new or continued.

    Args:
        config: what to train; checked.
        directory: where it lives.
        claim: the hold of it.
        dataset: the data.
        placement: the devices.
        display: where to tell about it.
        interrupt: requests to stop.

    Raises:
        CommandError: the directory's run may not be continued, its checkpoints are all damaged, or given weights do
            not fit.
        OSError: the run's directory cannot be written to.
    """
    model = abstract_network(config, dataset.num_classes)
    display.say(_opening(config, dataset, model))
    facts = describe_dataset(dataset)
    for line in together(lambda: may_continue(directory, config, facts)):
        display.say(f"changed: {line}")
    per_epoch = steps_per_epoch(dataset, config.batch)
    update = Update(config, per_epoch)
    scores = {step: values["accuracy"] for step, values in together(lambda: read_scores(directory)).items()}
    checkpoints = Checkpoints(directory / CHECKPOINTS, scores=scores)
    restored = _restored(checkpoints, update.form(model, placement.replicated), display.say)
    if restored is None:
        first = _first_network(config, dataset, placement, display.say)
        state, step = placement.everywhere(update.start(*split_model(first)[1:])), 0
    else:
        state, step = restored.state, restored.step
    train_step = update.step(model, dataset)
    if statistics_of_one_image(config, model):
        try_one_image(train_step, state, config.batch, dataset.training.crop, display.say)
    feed = open_feed(config, train_step, dataset, placement, start_step=step)
    for line in remarks(dataset.train, dataset.val, dataset.class_names):
        display.say(line)
    return Run(
        config=config,
        directory=directory,
        claim=claim,
        # Only now has nothing been refused: weights that do not fit leave no run behind.
        record=leave_record(directory, config, facts),
        steps_per_epoch=per_epoch,
        feed=feed,
        validator=Validator(model, dataset, batch=config.batch // config.accumulate),
        checkpoints=checkpoints,
        log=RunLog(directory, config.log, step=step, settings=plain(config), lead=is_lead()),
        tracer=Tracer(directory / "profile", config.profile, step, per_epoch * config.epochs, display.say),
        display=display,
        interrupt=interrupt,
        state=state,
        step=step,
    )


def _opening(config: TrainConfig, dataset: Dataset, model: nnx.Module) -> str:
    """The first words of a run: what is about to be trained, before anything slow begins."""
    parameters = sum(math.prod(x.shape) for x in jax.tree.leaves(split_model(model)[1]))
    devices = collections.Counter(device.device_kind for device in jax.devices())
    return (
        f"{config.model}: {parameters:,} parameters · {len(dataset.train):,} training and {len(dataset.val):,} "
        f"validation images of {dataset.num_classes:,} classes · "
        f"{', '.join(f'{count} x {kind}' for kind, count in devices.items())} · compiling"
    )


def _restored(checkpoints: Checkpoints, like: TrainState, say: Callable[[str], None]) -> Restored | None:
    """The newest sound checkpoint, if there is one, and what is to be told about it."""
    require_same(
        {"the list of checkpoints": checkpoints.steps()},
        "Their --run-dir must be the same directory, seen at once by all",
    )
    restored = checkpoints.restore(like)
    if restored is not None:
        for line in restored.damaged:
            say(f"{line}; set aside")
        say(f"continuing from step {restored.step:,}")
    return restored


def _first_network(config: TrainConfig, dataset: Dataset, placement: Placement, say: Callable[[str], None]) -> Network:
    """The network with its first weights, the same in all processes."""
    network = together(lambda: initial_network(config, dataset))
    if jax.process_count() > 1:
        crc = zlib.crc32(json.dumps([describe(x) for x in jax.tree.leaves(split_model(network)[1:])]).encode())
        require_same({"the checksum of the initial weights": f"{crc:08x}"}, "Give all of them the same --init")
    settle_statistics(network, config, dataset, placement, preparation(config, dataset), say)
    return network
