"""What the batch of a step is: a pure function of the seed and the step number.

The element of the data pipeline is the whole batch of one step, computed from the step number:
which records it holds, how each is cut out, and which rows of it belong to this process. So a
resumed run needs no data state but its step, and neither the number of loader processes nor that
of training processes changes what a step sees.
"""

import functools
from dataclasses import dataclass

import numpy as np

from aa_flax.preprocessing.geometry import evaluation_crop
from aa_flax.preprocessing.pixels import UnreadableImageError
from aa_flax.weights.config import Preprocessing
from train.data.datasets import Augmentation
from train.data.policies import rand, trivial
from train.data.sources import ArraySource, Source
from train.data.transforms import crop_and_resize, random_resized_box
from train.errors import CommandError

Batch = dict[str, np.ndarray]

# Unreadable records next to each other after which something larger must be wrong.
MAX_REPLACEMENTS = 16
ENDLESS = 2**62


@dataclass(frozen=True)
class TrainSteps:
    """Random access to the local training batch of every step.

    Attributes:
        source: the training images.
        preprocessing: resize, crop and interpolation.
        augmentation: whether the crop is random, and what else the host does.
        global_batch: images per step over all processes.
        seed: decides order, crops and what else the host does.
        process_index, process_count: which contiguous share of the rows is this process's.
        stop_step: the step before which to end; None for an endless sequence.
    """

    source: Source
    preprocessing: Preprocessing
    augmentation: Augmentation
    global_batch: int
    seed: int
    process_index: int
    process_count: int
    stop_step: int | None = None

    def __len__(self) -> int:
        return ENDLESS if self.stop_step is None else self.stop_step

    def __getitem__(self, index: int) -> Batch:
        rows = self.global_batch // self.process_count
        size = self.preprocessing.crop
        first = index * self.global_batch + self.process_index * rows
        bad = np.full(rows, -1, np.int64)
        if self._needs_no_cutting():
            assert isinstance(self.source, ArraySource)
            records = np.array([self.record(first + row) for row in range(rows)])
            return {"image": self.source.images[records], "label": self.source.labels[records], "bad": bad}
        batch = {"image": np.empty((rows, size, size, 3), np.uint8), "label": np.empty(rows, np.int32), "bad": bad}
        for row in range(rows):
            self._fill(batch, row, first + row)
        return batch

    def _needs_no_cutting(self) -> bool:
        size = self.preprocessing.crop
        return (
            isinstance(self.source, ArraySource)
            and self.source.images.shape[1:3] == (size, size) == (self.preprocessing.resize,) * 2
            and not self.augmentation.random_resized_crop
            and self.augmentation.policy == "none"
        )

    def _fill(self, batch: Batch, row: int, position: int) -> None:
        """Puts the image at a position of the endless order into a row of the batch."""
        record = self.record(position)
        for attempt in range(MAX_REPLACEMENTS):
            try:
                pixels, label = self.source[(record + attempt) % len(self.source)]
                batch["image"][row] = self._cut(pixels, position)
            except UnreadableImageError:
                batch["bad"][row] = record
                continue
            batch["label"][row] = label
            return
        raise CommandError(f"{MAX_REPLACEMENTS} images in a row are unreadable, from {self.source.name(record)}")

    def record(self, position: int) -> int:
        """Which record lies at a position of the endless order (every epoch anew shuffled)."""
        count = len(self.source)
        per_epoch = count // self.global_batch * self.global_batch
        epoch, index = divmod(position, per_epoch)
        return int(epoch_order(self.seed, epoch, count)[index])

    def _cut(self, pixels: np.ndarray, position: int) -> np.ndarray:
        rule, augmentation = self.preprocessing, self.augmentation
        random = np.random.default_rng((self.seed, position))
        if augmentation.random_resized_crop:
            height, width = pixels.shape[:2]
            box = random_resized_box(height, width, random)
            pixels = crop_and_resize(pixels, box, rule.crop, rule.interpolation)
        else:
            pixels = _centre(pixels, rule, rule.crop)
        match augmentation.policy:
            case "trivial":
                return trivial(pixels, random)
            case "rand":
                return rand(pixels, random, count=augmentation.rand_ops, magnitude=augmentation.rand_magnitude)
            case "none":
                return pixels


@dataclass(frozen=True)
class ValSteps:
    """Random access to the local batches of one pass over a source, every image exactly once.

    The last global batch is filled up with rows whose mask is False, so that one shape, and one
    compiled program, serves all; every process has the same number of batches.
    """

    source: Source
    preprocessing: Preprocessing
    size: int
    global_batch: int
    process_index: int
    process_count: int

    def __len__(self) -> int:
        return -(-len(self.source) // self.global_batch)

    def __getitem__(self, index: int) -> Batch:
        rows = self.global_batch // self.process_count
        first = index * self.global_batch + self.process_index * rows
        records = np.arange(first, first + rows, dtype=np.int64)
        batch: Batch = {
            "image": np.zeros((rows, self.size, self.size, 3), np.uint8),
            "label": np.zeros(rows, np.int32),
            "mask": records < len(self.source),
            "index": records,
            "bad": np.full(rows, -1, np.int64),
        }
        for row in np.flatnonzero(batch["mask"]):
            try:
                pixels, label = self.source[int(records[row])]
                batch["image"][row] = _centre(pixels, self.preprocessing, self.size)
                batch["label"][row] = label
            except UnreadableImageError:
                batch["mask"][row] = False
                batch["bad"][row] = records[row]
        return batch


@functools.lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of `count` records in an epoch, (count,) integers; unrelated for other arguments.

    Sorted by the raw bits of a counter-based generator, whose stream numpy promises never to
    change, unlike its `permutation`: a run resumes with another version of numpy, too.
    """
    bits = np.random.Philox(np.random.SeedSequence((seed, epoch))).random_raw(count)
    return np.argsort(bits, kind="stable")


def _centre(pixels: np.ndarray, rule: Preprocessing, size: int) -> np.ndarray:
    return evaluation_crop(pixels, resize=rule.resize, big=size, crop=rule.crop, interpolation=rule.interpolation)
