"""The way back up from an anti-aliased subsampling, for decoders and generators, behind one call."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from aa_flax import axis_maps, blurpool
from aa_flax.axes import check_floating, per_axis, spatial_axes, whole_number
from aa_flax.axis_maps import Band
from aa_flax.blurpool import blur_axes, blur_band
from aa_flax.downsample import Choice
from aa_flax.downsample.phases import shares


@dataclasses.dataclass(frozen=True)
class _UpAxis:
    """The upsampling of one axis, as `aa_flax.axis_maps` takes it."""

    axis: int
    size: int
    out: int
    filter_size: int
    stride: int
    pad_type: str

    @property
    def bands(self) -> tuple[Band, Band]:
        return _upsampling_bands(self.size, self.out, self.filter_size, self.stride, self.pad_type)


@functools.lru_cache(maxsize=256)
def _upsampling_bands(size: int, out: int, filter_size: int, stride: int, pad_type: str) -> tuple[Band, Band]:
    """The (out, size) matrix of blur upsampling, whose rows sum to one, and its transpose."""
    down, up = blur_band(out, filter_size, stride, pad_type, 0)
    gain = up.weights.sum(1)
    if not (gain > 0).all():
        raise ValueError(
            f"filter_size={filter_size} leaves gaps at stride {stride}: every sample is reached from "
            f"{2 * stride - 2} taps on"
        )
    return Band(up.indices, up.weights / gain[:, None]), Band(down.indices, down.weights / gain[down.indices])


def _large_size(small: Sequence[int], strides: Sequence[int], size: Sequence[int] | None) -> tuple[int, ...]:
    """The size of the output, by default `stride` times as large; ValueError if the strides do not lead back."""
    if size is None:
        return tuple(n * s for n, s in zip(small, strides, strict=True))
    large = per_axis("size", size, len(small))
    if any(-(-m // s) != n for m, n, s in zip(large, small, strides, strict=True)):
        raise ValueError(f"size={large} is no size that stride {tuple(strides)} brings to {tuple(small)}")
    return large


def blur_upsample(
    x: jax.Array,
    filter_size: int = 4,
    stride: int | Sequence[int] = 2,
    pad_type: str = "reflect",
    size: Sequence[int] | None = None,
    *,
    spatial_dims: int | None = None,
) -> jax.Array:
    """Enlarges every spatial axis: zeros between the samples, then a blur, scaled so that constants stay constant.

    It is the transpose of `aa_flax.blur_pool` with each output divided by the weight that it received, so that
    a decoder puts every sample back where the encoder took it from. The usual place is a U-Net's decoder or a
    generator, instead of a transposed convolution.

    Args:
        x: floating point array (N, spatial..., C).
        filter_size: taps of the blur; 4 at stride 2 is close to linear interpolation, 2 repeats the nearest sample.
        stride: enlargement, one number or one for each spatial axis.
        pad_type: padding of the blur on the large grid, see `aa_flax.blur_pool`.
        size: spatial size of the output, any that `blur_pool` would bring to that of `x`; by default `stride`
            times as large.
        spatial_dims: spatial axes, those before the channels; all before them are batch. None means every axis but
            the first and the last.

    Returns:
        Array of the input's dtype; sums run in float32 or wider.

    Raises:
        TypeError: if `x` is not floating point.
        ValueError: if the filter leaves gaps between the samples, or `size` does not fit.

    Source: Zhang 2019, section 3.2, transposed; the reference package's `BlurPool` has no counterpart.
    """
    axes = spatial_axes("blur_upsample", x, spatial_dims)
    check_floating("blur_upsample", x)
    pad_type = blurpool.canonical_pad_type(pad_type)
    filter_size = whole_number("filter_size", filter_size)
    small = tuple(x.shape[axis] for axis in axes)
    strides = per_axis("stride", stride, len(axes))
    large = _large_size(small, strides, size)
    maps = []
    for axis, n, m, s in zip(axes, small, large, strides, strict=True):
        if s > 1:
            one = _UpAxis(axis, n, m, filter_size, s, pad_type)
            one.bands  # noqa: B018  a filter with gaps raises here, before anything is traced
            maps.append(one)
    return axis_maps.apply(x, tuple(maps))


class BlurUpsample(nnx.Module):
    """`blur_upsample` as a layer, (..., spatial..., C). It holds no variables.

    Args:
        filter_size: taps of the blur.
        stride: enlargement, one number or one for each spatial axis.
        pad_type: padding of the blur, see `aa_flax.blur_pool`.
        spatial_dims: spatial axes: 1 for sequences, 2 for images, 3 for volumes.
    """

    def __init__(
        self,
        filter_size: int = 4,
        stride: int | Sequence[int] = 2,
        pad_type: str = "reflect",
        *,
        spatial_dims: int = 2,
    ):
        self.filter_size = whole_number("filter_size", filter_size)
        self.stride = per_axis("stride", stride, spatial_dims)
        self.pad_type = blurpool.canonical_pad_type(pad_type)

    def __call__(
        self, x: jax.Array, size: Sequence[int] | None = None, like: jax.Array | Choice | None = None
    ) -> jax.Array:
        """Enlarges the spatial axes of `x`, to `size` if given. `like` is there for `PolyphaseUpsample`."""
        return blur_upsample(x, self.filter_size, self.stride, self.pad_type, size, spatial_dims=len(self.stride))


class PolyphaseUpsample(nnx.Module):
    """Puts every sample back on the grid that it was taken from: the way up from `aps` and `lps`.

    A map s times as large is zero but for the phase that the layer on the way down has chosen, which holds the
    samples; then it is blurred. With circular padding, and sizes that the strides divide, down and up together commute
    with every roll of the map: a U-Net of them moves its answer exactly as its image moves. Where the choice is a
    mixture, as in the training of `aa_flax.LearnablePolyphase`, every phase gets its share. It holds no variables.

    Args:
        filter_size: taps of the blur.
        stride: enlargement, one number or one for each spatial axis.
        pad_type: padding of the blur; only `circular` keeps the guarantee at the border.
        gain: factor on each axis that is enlarged. None means its stride, with which the mean stays; the authors'
            code has 1.
        spatial_dims: spatial axes.

    Source: Chaman and Dokmanic 2021, *Truly shift-equivariant convolutional neural networks with adaptive polyphase
    upsampling* (arXiv 2105.04040), section 3.
    """

    def __init__(
        self,
        filter_size: int = 4,
        stride: int | Sequence[int] = 2,
        pad_type: str = "circular",
        *,
        gain: float | None = None,
        spatial_dims: int = 2,
    ):
        self.filter_size = whole_number("filter_size", filter_size)
        self.stride = per_axis("stride", stride, spatial_dims)
        self.pad_type = blurpool.canonical_pad_type(pad_type)
        self.gain = gain

    def __call__(
        self, x: jax.Array, size: Sequence[int] | None = None, like: jax.Array | Choice | None = None
    ) -> jax.Array:
        """Enlarges the spatial axes of `x`.

        Args:
            x: floating point array (..., spatial..., C).
            size: spatial size of the output, by default `stride` times as large.
            like: what `choose` of the layer on the way down has given.

        Raises:
            TypeError: without a `Choice`.
            ValueError: if it was made for other strides or another batch, or `size` does not fit.
        """
        if not isinstance(like, Choice):
            raise TypeError(f"PolyphaseUpsample needs like=down.choose(x), a Choice, got {type(like).__name__}")
        check_floating("PolyphaseUpsample", x)
        axes = spatial_axes("PolyphaseUpsample", x, len(self.stride))
        large = _large_size([x.shape[axis] for axis in axes], self.stride, size)
        y = self._interleaved(x, axes, like)
        for axis, stop in zip(axes, large, strict=True):
            y = jax.lax.slice_in_dim(y, 0, stop, axis=axis)
        y = blur_axes(y, axes, self.filter_size, 1, self.pad_type, 0)
        factors = [float(s) if self.gain is None else self.gain for s in self.stride if s > 1]
        return y * math.prod(factors)

    def _interleaved(self, x: jax.Array, axes: range, like: Choice) -> jax.Array:
        """The large map of zeros, with the samples on their phase."""
        batch, small = x.shape[: axes[0]], x.shape[axes[0] :]
        parts = shares(like, math.prod(self.stride), x.shape)
        phases = [jnp.where(part, x, 0) if part.dtype == bool else part.astype(x.dtype) * x for part in parts]
        # (batch, strides, sizes, C) to (batch, size, stride, size, stride, ..., C)
        grid = jnp.stack(phases, len(batch)).reshape(*batch, *self.stride, *small)
        first, dims = len(batch), len(axes)
        pairs = [axis for i in range(dims) for axis in (first + dims + i, first + i)]
        grid = grid.transpose(*range(first), *pairs, grid.ndim - 1)
        return grid.reshape(*batch, *(n * s for n, s in zip(small[:-1], self.stride, strict=True)), small[-1])
