"""One call for each protocol, for images that are in memory."""

from collections.abc import Sequence
from typing import Any

from aa_flax.consistency.by_distance import Distance
from aa_flax.consistency.fixed import Accuracy, Diagonal, Exact, WorstCase
from aa_flax.consistency.pairs import Circular, Crop, Fractional, Zhang2019
from aa_flax.consistency.protocol import Progress
from aa_flax.consistency.result import Result
from aa_flax.consistency.sweep import Predictor, Preprocess
from aa_flax.consistency.views import Size


def accuracy(
    fn: Predictor,
    images: Any,
    labels: Any,
    *,
    crop: int | Size = 224,
    preprocess: Preprocess | None = None,
    device_batch: int = 64,
    progress: Progress | None = None,
) -> Result:
    """Top-1 accuracy of the centre crop; top-5 is `result.parts["top5"]`. See `Accuracy`."""
    protocol = Accuracy(crop=crop, device_batch=device_batch)
    return protocol.measure(fn, images, labels, preprocess=preprocess, progress=progress)


def zhang2019(
    fn: Predictor,
    images: Any,
    labels: Any = None,
    *,
    crop: int | Size = 224,
    shifts: int = 32,
    pairs: int = 5,
    given: Any = None,
    seed: int = 0,
    preprocess: Preprocess | None = None,
    device_batch: int = 64,
    progress: Progress | None = None,
) -> Result:
    """Crop consistency in the reference's form, eight images to a pair of offsets.

    `given` offsets replace random ones: (pairs, 2, 2) for all images or (images, pairs, 2, 2).
    See `Zhang2019`.
    """
    protocol = Zhang2019(crop=crop, shifts=shifts, pairs=pairs, given=given, seed=seed, device_batch=device_batch)
    return protocol.measure(fn, images, labels, preprocess=preprocess, progress=progress)


def crop(
    fn: Predictor,
    images: Any,
    labels: Any = None,
    *,
    crop: int | Size = 224,
    shifts: int = 32,
    pairs: int = 5,
    given: Any = None,
    seed: int = 0,
    preprocess: Preprocess | None = None,
    device_batch: int = 64,
    progress: Progress | None = None,
) -> Result:
    """Crop consistency with offsets of its own for each image, or the given ones. See `Crop`."""
    protocol = Crop(crop=crop, shifts=shifts, pairs=pairs, given=given, seed=seed, device_batch=device_batch)
    return protocol.measure(fn, images, labels, preprocess=preprocess, progress=progress)


def exact(
    fn: Predictor,
    images: Any,
    labels: Any = None,
    *,
    crop: int | Size = 224,
    shifts: int = 32,
    preprocess: Preprocess | None = None,
    device_batch: int = 64,
    progress: Progress | None = None,
) -> Result:
    """Crop consistency over all `shifts` x `shifts` crops, without sampling. See `Exact`."""
    protocol = Exact(crop=crop, shifts=shifts, device_batch=device_batch)
    return protocol.measure(fn, images, labels, preprocess=preprocess, progress=progress)


def circular(
    fn: Predictor,
    images: Any,
    labels: Any = None,
    *,
    crop: int | Size = 224,
    max_shift: int = 32,
    pairs: int = 5,
    given: Any = None,
    seed: int = 0,
    preprocess: Preprocess | None = None,
    device_batch: int = 64,
    progress: Progress | None = None,
) -> Result:
    """Agreement when the centre crop is rolled by two random offsets. See `Circular`."""
    protocol = Circular(crop=crop, max_shift=max_shift, pairs=pairs, given=given, seed=seed, device_batch=device_batch)
    return protocol.measure(fn, images, labels, preprocess=preprocess, progress=progress)


def diagonal(
    fn: Predictor,
    images: Any,
    labels: Any,
    *,
    crop: int | Size = 224,
    steps: int = 32,
    preprocess: Preprocess | None = None,
    device_batch: int = 64,
    progress: Progress | None = None,
) -> Result:
    """Mean flip rate along the diagonal, with the four arrays in `result.arrays`. See `Diagonal`."""
    protocol = Diagonal(crop=crop, steps=steps, device_batch=device_batch)
    return protocol.measure(fn, images, labels, preprocess=preprocess, progress=progress)


def worst_case(
    fn: Predictor,
    images: Any,
    labels: Any,
    *,
    crop: int | Size = 224,
    max_shift: int = 4,
    preprocess: Preprocess | None = None,
    device_batch: int = 64,
    progress: Progress | None = None,
) -> Result:
    """Accuracy under the worst shift of up to `max_shift` pixels. See `WorstCase`."""
    protocol = WorstCase(crop=crop, max_shift=max_shift, device_batch=device_batch)
    return protocol.measure(fn, images, labels, preprocess=preprocess, progress=progress)


def fractional(
    fn: Predictor,
    images: Any,
    labels: Any = None,
    *,
    crop: int | Size = 224,
    max_shift: float = 0.5,
    periodic: bool = False,
    pairs: int = 5,
    given: Any = None,
    seed: int = 0,
    preprocess: Preprocess | None = None,
    device_batch: int = 64,
    progress: Progress | None = None,
) -> Result:
    """Agreement under two shifts by fractions of a pixel. See `Fractional`."""
    protocol = Fractional(
        crop=crop,
        max_shift=max_shift,
        periodic=periodic,
        pairs=pairs,
        given=given,
        seed=seed,
        device_batch=device_batch,
    )
    return protocol.measure(fn, images, labels, preprocess=preprocess, progress=progress)


def distance(
    fn: Predictor,
    images: Any,
    *,
    crop: int | Size = 224,
    shifts: int = 32,
    distances: Sequence[int] | None = None,
    pairs: int = 2,
    seed: int = 0,
    preprocess: Preprocess | None = None,
    device_batch: int = 64,
    progress: Progress | None = None,
) -> Result:
    """Agreement of two crops d pixels apart, for each d. See `Distance`."""
    protocol = Distance(
        crop=crop, shifts=shifts, distances=distances, pairs=pairs, seed=seed, device_batch=device_batch
    )
    return protocol.measure(fn, images, preprocess=preprocess, progress=progress)
