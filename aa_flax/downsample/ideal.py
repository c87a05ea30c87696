"""The ideal low-pass filter: no aliasing at all."""

from collections.abc import Sequence
from typing import get_args

import jax
import numpy as np

from aa_flax.axes import per_axis
from aa_flax.downsample.base import Downsample, Site, map_axes
from aa_flax.fourier import Window, resample, resampling_matrix


class IdealLowPass(Downsample):
    """The ideal low-pass filter: keeps every frequency that the smaller grid can hold, drops all others.

    The input counts as one period of a periodic signal. Its Fourier coefficients below half the output's sampling
    rate are kept unchanged, those from there on are zero, and the result is sampled evenly: there is no aliasing at
    all, at the price of ringing. The paper's crop of the spectrum also keeps one of the two coefficients at exactly
    half the rate; it is dropped here, for the smaller grid cannot tell its phase. For a given size the layer is a
    small dense matrix per axis, applied as a product; it holds no variables.

    Args:
        stride: subsampling, one number or one for each spatial axis.
        spatial_dims: spatial axes.
        window: `hamming` weights what is kept by the square root of a Hamming window over the input's spectrum, one
            for each axis: less ringing for a softer picture, and still no aliasing. `none` is the plain filter.

    Raises:
        ValueError: there is no such window.

    Source: Grabinski et al. 2022, *FrequencyLowCut Pooling* (arXiv 2204.00491), section 3; the window: Grabinski et
    al. 2023, *Fix your downsampling ASAP* (arXiv 2307.09804).
    """

    title = "ideal low-pass filters"
    alias_free = True

    @classmethod
    def at(cls, site: Site) -> Downsample:
        return cls(site.strides, spatial_dims=len(site.strides))

    def __init__(self, stride: int | Sequence[int] = 2, *, spatial_dims: int = 2, window: Window = "none"):
        self.stride = per_axis("stride", stride, spatial_dims)
        if window not in get_args(Window):
            raise ValueError(f"window must be one of {', '.join(get_args(Window))}, got {window!r}")
        self.window: Window = window

    def __call__(self, x: jax.Array, like: jax.Array | None = None) -> jax.Array:
        """Filters and subsamples. `like` is ignored."""
        strides = zip(map_axes(self, x, len(self.stride)), self.stride, strict=True)
        sizes = {axis: -(-x.shape[axis] // stride) for axis, stride in strides if stride > 1}
        return resample(x, tuple(sizes), tuple(sizes.values()), self.window).astype(x.dtype)


class HammingLowPass(IdealLowPass):
    """`IdealLowPass` with `window="hamming"`, under a name for networks: `downsample="asap"`."""

    title = "ideal low-pass filters with a Hamming window"

    def __init__(self, stride: int | Sequence[int] = 2, *, spatial_dims: int = 2):
        super().__init__(stride, spatial_dims=spatial_dims, window="hamming")


def ideal_matrix(size: int, stride: int) -> np.ndarray:
    """The (ceil(size / stride), size) matrix of ideal low-pass filtering and even resampling, float64."""
    return resampling_matrix(size, -(-size // stride))
