"""Two networks on the same images: how much they differ, and whether by more than chance.

Images are the sample, and each has been shown to both networks. So the difference is that of each image, whose spread
is less than that of two networks measured on different images.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aa_flax.consistency.result import Estimate

# Percentages are whole multiples of a 960th of 100 for all usual numbers of pairs, steps and distances.
_GRID = 960
# With so many images that differ the distribution is normal for all that a test can tell.
_MANY = 2000


@dataclass(frozen=True)
class Difference(Estimate):
    """The first network's mean minus the second's.

    Args:
        value: in points of percent.
        stderr: sample standard deviation of the differences over images divided by the root of their number.
        p: how likely a difference of this size or more would be if neither network were better: see `sign_flip`.
    """

    p: float


def difference(first: np.ndarray, second: np.ndarray) -> Difference:
    """What separates two networks on the same images.

    Args:
        first: (images,) percentages, such as `Result.per_image`.
        second: those of another network on the same images, in the same order.

    Raises:
        ValueError: the numbers of images differ, or there is none.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.shape != second.shape:
        raise ValueError(f"the same images are needed for both networks, got {first.shape} and {second.shape}")
    mean = Estimate.over_images(first - second)
    return Difference(mean.value, mean.stderr, sign_flip(first - second))


def sign_flip(differences: np.ndarray) -> float:
    """The two-sided p-value of the sign-flip test (Fisher's randomisation test for pairs).

    If neither network were better, each image could as well have had its two percentages the other way around. The
    value is the share of all 2^images such exchanges whose sum is at least as far from zero as the one observed. For
    right and wrong answers this is McNemar's exact test. It assumes nothing of the distribution. The share is computed
    exactly, by the characteristic function of the sum, from differences rounded to a 960th of 100; from the normal
    distribution where more than 2,000 images differ.

    Args:
        differences: (images,) in points of percent.
    """
    signed = np.rint(np.asarray(differences, np.float64) * (_GRID / 100)).astype(np.int64)
    signed = signed[signed != 0]
    if signed.sum() == 0:
        return 1.0
    # In units of what divides all: sums then are two units apart.
    signed //= np.gcd.reduce(signed)
    steps, observed = np.abs(signed), abs(int(signed.sum()))
    if len(steps) > _MANY:
        return _normal_tail((observed - 1) / math.sqrt(float(np.square(steps).sum())))
    sizes, counts = np.unique(steps, return_counts=True)
    total = int(steps.sum())
    angle = 2 * np.pi * np.arange(2 * total + 1) / (2 * total + 1)
    characteristic = np.ones_like(angle)
    for size, count in zip(sizes, counts, strict=True):
        characteristic *= np.cos(size * angle) ** int(count)
    chance = np.fft.fft(characteristic).real / len(angle)  # of the sum s at s modulo the length
    beyond = chance[observed : len(angle) - observed + 1].sum()
    return float(np.clip(beyond, 0, 1))


def _normal_tail(deviations: float) -> float:
    """Both tails of the standard normal distribution."""
    return math.erfc(max(deviations, 0.0) / math.sqrt(2))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """P-values adjusted for their number: those below 0.05 hold together, with 5 % risk that any of them is chance.

    Args:
        p_values: of all the tests that were made, by the method of Holm (1979).
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    rising = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(rising, 1)
    return adjusted
