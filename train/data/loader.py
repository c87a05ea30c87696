"""Iterators over batches: `steps.py` says what a step's batch is, grain computes batches ahead.

grain supplies threads, worker processes, shared memory and prefetching. Unreadable images are
named and counted here, and the time that the caller waits is measured.
"""

import gc
import logging
import os
import time
import weakref
from collections.abc import Iterator
from typing import Self

import grain
import grain.experimental
import numpy as np

from aa_flax.preprocessing.pixels import UnreadableImageError
from aa_flax.weights.config import Preprocessing
from train.data.datasets import Dataset
from train.data.sources import Source
from train.data.steps import Batch, TrainSteps, ValSteps
from train.data.workers import begin_worker, let_workers_start
from train.errors import CommandError

log = logging.getLogger(__name__)

MAX_BAD_OPTION = "--data.max-bad-fraction"


class BadImages:
    """Names unreadable images in the log, counts them, and stops when there are too many.

    Args:
        source: where they come from.
        max_fraction: share of the source's images that may be unreadable.
        option: the command's option that sets this share.

    Attributes:
        found: reason by name, in the order in which they were met.
    """

    def __init__(self, source: Source, max_fraction: float, option: str) -> None:
        self.found: dict[str, str] = {}
        self._source = source
        self._max_fraction, self._option = max_fraction, option
        self._seen: set[int] = set()

    def add(self, records: np.ndarray) -> None:
        """Takes note of records; those noted before count once.

        Raises:
            CommandError: more than the allowed share is unreadable.
        """
        for record in map(int, records):
            if record in self._seen:
                continue
            self._seen.add(record)
            name = self._source.name(record)
            self.found[name] = self._reason(record)
            log.warning("unreadable image %s: %s", name, self.found[name])
        if len(self._seen) > self._max_fraction * len(self._source):
            name, reason = next(iter(self.found.items()))
            raise CommandError(
                f"{len(self._seen)} of {len(self._source)} images are unreadable, more than the share allowed by "
                f"{self._option} ({self._max_fraction:g}); the first is {name} ({reason})"
            )

    def _reason(self, record: int) -> str:
        try:
            self._source[record]
        except UnreadableImageError as error:
            return str(error)
        return "cannot be cut to size"


class Batches(Iterator[Batch]):
    """An iterator of batches that knows how long it kept its caller waiting.

    Attributes:
        wait_seconds: time spent inside `next` so far.
        bad: the unreadable images met so far.
    """

    def __init__(self, batches: grain.DatasetIterator, bad: BadImages) -> None:
        self._open = [batches]
        # Also at exit: grain's threads and shared memory must go before the interpreter does.
        self._close = weakref.finalize(self, _close_all, self._open)
        self.bad = bad
        self.wait_seconds = 0.0

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        start = time.perf_counter()
        if not self._open:
            raise StopIteration
        batch = dict(next(self._open[0]))
        self.wait_seconds += time.perf_counter() - start
        bad = batch["bad"]
        if (bad >= 0).any():
            self.bad.add(bad[bad >= 0])
        if "mask" in batch:
            batch["bad"] = bad >= 0
        else:
            del batch["bad"]
        return batch

    def close(self) -> None:
        """Ends the threads and worker processes."""
        self._close()


def _close_all(iterators: list[grain.DatasetIterator]) -> None:
    if not iterators:
        return
    while iterators:
        iterators.pop().close()
    # Batches in shared memory that nobody took hang in reference cycles, and are released with them.
    gc.collect()


def steps_per_epoch(dataset: Dataset, global_batch: int) -> int:
    """Whole batches in the training images; the remainder differs from epoch to epoch.

    Raises:
        CommandError: the training images do not fill one batch.
    """
    steps = len(dataset.train) // global_batch
    if steps == 0:
        raise CommandError(
            f"the data set {dataset.name} has {len(dataset.train)} training images, fewer than "
            f"one batch of {global_batch}"
        )
    return steps


def train_batches(
    dataset: Dataset,
    *,
    global_batch: int,
    seed: int,
    start_step: int = 0,
    stop_step: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    workers: int | None = None,
) -> Batches:
    """Training batches from `start_step` on.

    Args:
        dataset: what `open_dataset` gave.
        global_batch: images per step over all processes; a multiple of `process_count`.
        seed: decides the order and the crops, together with the step number.
        start_step: the step whose batch comes first.
        stop_step: the step before which to end, so that nothing is loaded ahead in vain; None for
            no end.
        process_index: which of the processes this is; it gets rows
            `[index * n, (index + 1) * n)` of each global batch, n = global_batch / process_count.
        process_count: how many processes train together.
        workers: loader processes; `dataset.workers` by default.

    Returns:
        batches {"image": (n, side, side, 3) uint8, "label": (n,) int32}, the side that of
        `Dataset.training`. An unreadable image is replaced by its neighbour, named in the log and
        counted in `.bad`.

    Raises:
        CommandError: a batch larger than the data set; while iterating, too many unreadable images.
        ValueError: a global batch that the processes cannot share evenly.
    """
    steps_per_epoch(dataset, global_batch)
    _check_share(global_batch, process_count)
    steps = TrainSteps(
        source=dataset.train,
        preprocessing=dataset.training,
        augmentation=dataset.augmentation,
        global_batch=global_batch,
        seed=seed,
        process_index=process_index,
        process_count=process_count,
        stop_step=stop_step,
    )
    bad = BadImages(dataset.train, dataset.max_bad_fraction, MAX_BAD_OPTION)
    workers = dataset.workers if workers is None else workers
    return Batches(_pipeline(steps, start_step, workers), bad)


def val_batches(
    dataset: Dataset,
    *,
    global_batch: int,
    size: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    workers: int | None = None,
) -> Batches:
    """One pass over the validation images; see `evaluation_batches`."""
    return evaluation_batches(
        dataset.val,
        dataset.preprocessing,
        global_batch=global_batch,
        size=size,
        process_index=process_index,
        process_count=process_count,
        workers=dataset.workers if workers is None else workers,
        max_bad_fraction=dataset.max_bad_fraction,
    )


def evaluation_batches(
    source: Source,
    preprocessing: Preprocessing,
    *,
    global_batch: int,
    size: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    max_bad_fraction: float = 0.01,
    max_bad_option: str = MAX_BAD_OPTION,
) -> Batches:
    """One pass over a source in its order, every image exactly once.

    Args:
        source: the images.
        preprocessing: resize, crop and interpolation.
        global_batch: images per batch over all processes; a multiple of `process_count`.
        size: side of the images given, pixels, from `preprocessing.crop` to
            `preprocessing.resize`; the latter by default, which leaves room for shifted crops.
        process_index: which of the processes this is, as in `train_batches`.
        process_count: how many processes evaluate together.
        workers: loader processes.
        max_bad_fraction: share of the images that may be unreadable.
        max_bad_option: the command's option that sets this share, for the message.

    Returns:
        batches {"image": (n, size, size, 3) uint8, "label": (n,) int32, "index": (n,) int64
        position in the source, "mask": (n,) bool, "bad": (n,) bool}. The mask is False for rows
        that only fill the last batch and for unreadable images; the latter have "bad" set, are
        named in the log and counted in `.bad`.

    Raises:
        CommandError: while iterating, too many unreadable images.
        ValueError: a size out of range, or a global batch that cannot be shared evenly.
    """
    size = preprocessing.resize if size is None else size
    if not preprocessing.crop <= size <= preprocessing.resize:
        raise ValueError(f"size {size} is not between crop {preprocessing.crop} and resize {preprocessing.resize}")
    _check_share(global_batch, process_count)
    steps = ValSteps(source, preprocessing, size, global_batch, process_index, process_count)
    return Batches(_pipeline(steps, 0, workers), BadImages(source, max_bad_fraction, max_bad_option))


def _check_share(global_batch: int, process_count: int) -> None:
    if global_batch < 1 or global_batch % process_count:
        raise ValueError(f"the global batch {global_batch} cannot be shared evenly by {process_count} processes")


def _pipeline(steps: TrainSteps | ValSteps, start_step: int, workers: int) -> grain.DatasetIterator:
    batches = grain.MapDataset.source(steps)[start_step:]
    # A thread's unit of work is a whole batch, which bounds memory: so many batches lie ready.
    threads = 1 if workers else min(8, os.cpu_count() or 1)
    reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    dataset = batches.to_iter_dataset(reading)
    if workers:
        let_workers_start()
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        # Copied out of shared memory, in a thread: batches may outlive the loader.
        shared = dataset.mp_prefetch(options, worker_init_fn=begin_worker).map(_copy)
        dataset = grain.experimental.ThreadPrefetchIterDataset(shared, prefetch_buffer_size=2)
    return iter(dataset)


def _copy(batch: Batch) -> Batch:
    return {name: np.array(values) for name, values in batch.items()}
