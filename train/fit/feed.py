"""Two ways to bring batches to the update: from the loader, or from images kept on the devices."""

from collections.abc import Iterator
from typing import Protocol

import jax
import numpy as np
from jax.tree_util import Partial

from train.data import Dataset, evaluation_batches, steps_per_epoch, train_batches
from train.data.loader import TrainSteps
from train.errors import CommandError
from train.fit.config import TrainConfig
from train.fit.distributed import Placement
from train.fit.step import Metrics, TrainState, TrainStep, compile_step, compile_steps

# Most images that one look at the data set decodes at once.
READ_BATCH = 512


class Feed(Protocol):
    """Makes updates, and knows where their data come from."""

    @property
    def wait_seconds(self) -> float:
        """Time spent waiting for data so far."""
        ...

    def advance(self, state: TrainState, step: int, limit: int) -> tuple[TrainState, Metrics, int]:
        """Makes between 1 and `limit` updates.

        Args:
            state: where to start; it is donated.
            step: updates made so far.
            limit: most updates to make now.

        Returns:
            The new state, the metrics as arrays on the device (of at least as many values as updates), and how
            many updates were made.
        """
        ...

    def unreadable(self) -> int:
        """Images met so far that could not be decoded."""
        ...

    def close(self) -> None:
        """Ends threads and worker processes."""
        ...


class LoaderFeed:
    """Batches from the loader, sent to the devices while they compute.

    Args:
        train_step: the update; may be `Partial(function, *arrays)`.
        dataset: where batches come from.
        placement: the devices.
        batch: images per update over all processes.
        seed: of the order and the crops.
        start_step: the first update's number.
        like: the feed of an earlier run, to share its compiled program with where the update is a `Partial` of the same
            function.
    """

    def __init__(
        self,
        train_step: TrainStep,
        dataset: Dataset,
        placement: Placement,
        *,
        batch: int,
        seed: int,
        start_step: int,
        like: "LoaderFeed | None" = None,
    ):
        self._step = like._step if like else compile_step(placement.mesh)
        self._train_step = _placed(train_step, placement)
        self._placement = placement
        self._batches = train_batches(
            dataset,
            global_batch=batch,
            seed=seed,
            start_step=start_step,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    @property
    def wait_seconds(self) -> float:
        return self._batches.wait_seconds

    def advance(self, state: TrainState, step: int, limit: int) -> tuple[TrainState, Metrics, int]:
        # Outside the guard: what puts a process's share on its devices counts as an implicit transfer.
        batch = self._placement.batch(next(self._batches))
        with jax.transfer_guard("disallow"):
            state, metrics = self._step(self._train_step, state, batch)
        return state, metrics, 1

    def unreadable(self) -> int:
        return len(self._batches.bad.found)

    def close(self) -> None:
        self._batches.close()


class DeviceFeed:
    """The whole data set in device memory; batches are picked there, many updates in one call.

    The order is the loader's, so that a run has the same batches either way.

    Args:
        train_step: the update; may be `Partial(function, *arrays)`.
        dataset: images of one size that need no random crop on the host.
        placement: the devices; each holds all images.
        batch: images per update over all processes.
        seed: of the order.
        like: the feed of an earlier run with the same data and batch, to share its images with and, where the update
            is a `Partial` of the same function, its compiled program.

    Raises:
        CommandError: the data set cannot be kept this way.
    """

    def __init__(
        self,
        train_step: TrainStep,
        dataset: Dataset,
        placement: Placement,
        *,
        batch: int,
        seed: int,
        like: "DeviceFeed | None" = None,
    ):
        if dataset.augmentation.random_resized_crop:
            raise CommandError(
                f"--on-device cannot cut random crops of {dataset.name}; leave it out or set --data.augment no_shift"
            )
        if dataset.augmentation.policy != "none":
            raise CommandError(
                f"--on-device has no --data.auto-augment {dataset.augmentation.policy}, which is the loader's: "
                "leave one of them out"
            )
        self._placement = placement
        self._per_epoch = steps_per_epoch(dataset, batch)
        self._batch = batch
        self._data = like._data if like else placement.everywhere(_whole(dataset))
        self._steps = like._steps if like else compile_steps(placement.mesh, self._per_epoch)
        self._train_step = _placed(train_step, placement)
        self._order = TrainSteps(
            source=dataset.train,
            preprocessing=dataset.training,
            augmentation=dataset.augmentation,
            global_batch=batch,
            seed=seed,
            process_index=0,
            process_count=1,
        )
        self._rows: tuple[int, jax.Array] | None = None

    @property
    def wait_seconds(self) -> float:
        return 0.0

    def advance(self, state: TrainState, step: int, limit: int) -> tuple[TrainState, Metrics, int]:
        epoch, first = divmod(step, self._per_epoch)
        count = min(limit, self._per_epoch - first)
        order = self._epoch_rows(epoch)
        window = self._placement.put(np.array([first, count], np.int32))
        with jax.transfer_guard("disallow"):
            state, metrics = self._steps(self._train_step, state, self._data, order, window)
        return state, metrics, count

    def _epoch_rows(self, epoch: int) -> jax.Array:
        if self._rows is None or self._rows[0] != epoch:
            start = epoch * self._per_epoch * self._batch
            rows = [self._order.record(start + i) for i in range(self._per_epoch * self._batch)]
            shaped = np.array(rows, np.int32).reshape(self._per_epoch, self._batch)
            self._rows = epoch, self._placement.put(shaped)
        return self._rows[1]

    def unreadable(self) -> int:
        return 0

    def close(self) -> None:
        """Nothing runs in the background."""


def open_feed(
    config: TrainConfig,
    train_step: TrainStep,
    dataset: Dataset,
    placement: Placement,
    *,
    start_step: int = 0,
    like: Feed | None = None,
) -> Feed:
    """The feed that a run's configuration asks for.

    Args:
        config: the run.
        train_step: its update.
        dataset: its data.
        placement: the devices.
        start_step: the first update's number.
        like: see the feeds; another kind of feed has nothing to share.

    Raises:
        CommandError: the data set cannot be kept on the devices.
    """
    parts = (train_step, dataset, placement)
    if config.on_device:
        shared = like if isinstance(like, DeviceFeed) else None
        return DeviceFeed(*parts, batch=config.batch, seed=config.seed, like=shared)
    shared = like if isinstance(like, LoaderFeed) else None
    return LoaderFeed(*parts, batch=config.batch, seed=config.seed, start_step=start_step, like=shared)


def _placed(train_step: TrainStep, placement: Placement) -> Partial:
    return placement.everywhere(train_step if isinstance(train_step, Partial) else Partial(train_step))


def _whole(dataset: Dataset) -> dict[str, np.ndarray]:
    """All training images at their size, and their labels."""
    size = dataset.training.crop
    batches: Iterator[dict[str, np.ndarray]] = evaluation_batches(
        dataset.train, dataset.training, global_batch=READ_BATCH, size=size, workers=dataset.workers
    )
    count = len(dataset.train)
    images, labels = np.empty((count, size, size, 3), np.uint8), np.empty(count, np.int32)
    read = np.zeros(count, bool)
    for batch in batches:
        rows = batch["index"][batch["mask"]]
        images[rows], labels[rows], read[rows] = batch["image"][batch["mask"]], batch["label"][batch["mask"]], True
    if not read.all():
        raise CommandError(
            f"--on-device needs every image, but {count - read.sum()} of {dataset.name} cannot be read, "
            f"the first is {dataset.train.name(int(np.argmin(read)))}"
        )
    return {"image": images, "label": labels}
