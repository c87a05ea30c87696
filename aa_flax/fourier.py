"""Ideal resampling: the one periodic signal behind some samples, sampled evenly anew."""

import functools
from collections.abc import Sequence
from typing import Literal

import jax
import numpy as np

from aa_flax.axis_maps import matmul_along
from aa_flax.meshes import require_whole

Window = Literal["none", "hamming"]


@functools.lru_cache(maxsize=256)
def resampling_matrix(size: int, out: int, window: Window = "none") -> np.ndarray:
    """The (out, size) matrix that takes `size` samples of a periodic signal to `out` samples of it, float64.

    It keeps the frequencies below half of either rate, and drops all others: where `out` is smaller it is an ideal
    low-pass filter with subsampling, where `out` is larger an interpolation. What lies at exactly half a rate is
    dropped as well, for a grid cannot tell its phase; without it every shift, by any fraction of a sample, commutes
    with the matrix.

    Args:
        size: samples of the input, one period.
        out: samples of the output, the same period.
        window: `hamming` multiplies the spectrum by the square root of a Hamming window as long as the input's, which
            turns the filter's edge, and with it the ringing, into a slope. `none` keeps what it keeps unchanged.
    """
    frequencies = np.arange(1, (min(size, out) + 1) // 2)
    # The window's periodic form, symmetric around frequency zero: the samples stay real.
    weights = np.sqrt(0.54 + 0.46 * np.cos(2 * np.pi * frequencies / size)) if window == "hamming" else 1.0

    def waves(samples: int) -> np.ndarray:
        # Whole turns are taken off while the angles are whole numbers.
        return np.exp(2j * np.pi * (np.outer(np.arange(samples), frequencies) % samples) / samples)

    return (1 + 2 * np.real((waves(out) * weights) @ waves(size).conj().T)) / size


def resample(x: jax.Array, axes: Sequence[int], sizes: Sequence[int], window: Window = "none") -> jax.Array:
    """Resamples some axes, each to its size, by one small dense product an axis; in float32 or wider."""
    require_whole(x, axes)
    # The axes that shrink come first: the others have less to do then.
    for axis, out in sorted(zip(axes, sizes, strict=True), key=lambda pair: pair[1] / x.shape[pair[0]]):
        x = matmul_along(x, resampling_matrix(x.shape[axis], out, window), axis)
    return x
