"""Blur upsampling: the way back up from an anti-aliased subsampling, for decoders and generators."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
from flax import nnx

from aa_flax import axis_maps, blurpool
from aa_flax.axes import check_floating, per_axis, spatial_axes, whole_number
from aa_flax.axis_maps import Band
from aa_flax.blurpool import blur_band


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
    times = tuple(n * s for n, s in zip(small, strides, strict=True))
    large = times if size is None else per_axis("size", size, len(axes))
    if any(-(-m // s) != n for m, n, s in zip(large, small, strides, strict=True)):
        raise ValueError(f"size={large} is no size that stride {strides} brings to {small}")
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

    def __call__(self, x: jax.Array, size: Sequence[int] | None = None) -> jax.Array:
        """Enlarges the spatial axes of `x`, to `size` if given."""
        return blur_upsample(x, self.filter_size, self.stride, self.pad_type, size, spatial_dims=len(self.stride))
