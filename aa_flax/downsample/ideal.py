"""The ideal low-pass filter: no aliasing at all."""

import functools
from collections.abc import Sequence

import jax
import numpy as np

from aa_flax.axes import per_axis
from aa_flax.axis_maps import matmul_along
from aa_flax.downsample.base import Downsample, Site, map_axes


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

    Source: Grabinski et al. 2022, *FrequencyLowCut Pooling* (arXiv 2204.00491), section 3.
    """

    title = "ideal low-pass filters"

    @classmethod
    def at(cls, site: Site) -> Downsample:
        return cls(site.strides, spatial_dims=len(site.strides))

    def __init__(self, stride: int | Sequence[int] = 2, *, spatial_dims: int = 2):
        self.stride = per_axis("stride", stride, spatial_dims)

    def __call__(self, x: jax.Array, like: jax.Array | None = None) -> jax.Array:
        """Filters and subsamples. `like` is ignored."""
        y = x
        for axis, stride in zip(map_axes(self, x, len(self.stride)), self.stride, strict=True):
            if stride > 1:
                y = matmul_along(y, ideal_matrix(x.shape[axis], stride), axis)
        return y.astype(x.dtype)


@functools.lru_cache(maxsize=256)
def ideal_matrix(size: int, stride: int) -> np.ndarray:
    """The (ceil(size / stride), size) matrix of ideal low-pass filtering and even resampling, float64.

    Row o is the sum of the cosines below half the output's rate, centred at `o * size / out`: a Dirichlet kernel.
    """
    out = -(-size // stride)
    distance = np.arange(out)[:, None] * size / out - np.arange(size)
    frequencies = np.arange(1, (out + 1) // 2)
    waves = np.cos(2 * np.pi * frequencies * distance[..., None] / size)
    return (1 + 2 * waves.sum(-1)) / size
