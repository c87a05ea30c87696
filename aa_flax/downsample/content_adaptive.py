"""Content-adaptive low-pass filtering: a filter for every place."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from aa_flax import blurpool
from aa_flax.axes import one_of, per_axis, whole_number
from aa_flax.downsample.base import Downsample, Site, map_axes, pad
from aa_flax.dtypes import at_least_float32

Normalise = Literal["group", "all"]


class ContentAdaptiveBlur(Downsample):
    """Content-adaptive low-pass filtering (DDAC): a small convolution predicts the blur for every place.

    For every output position and group of channels a convolution over the input, normalised, predicts one weight for
    each of the `filter_size ** spatial_dims` samples around it. A softmax makes them positive with sum one: a
    low-pass filter that may be wide on flat ground and narrow across an edge. Unlike the other layers it has
    parameters, under `filters` and `norm`.

    Args:
        channels: channels of the input.
        filter_size: samples along each axis that a filter sees.
        stride: subsampling, one number or one for each spatial axis.
        pad_type: padding of the input.
        groups: groups of channels that share a filter (8 in the paper); must divide `channels`.
        normalise: over what weights sum to one: those of a `group`, so that constants stay constant, or `all` at a
            place, as in the authors' code, where a map of ones comes out far smaller.
        dense_statistics: predict weights for every sample, normalise them, and then keep those of the output
            positions: the normalisation's batch statistics are those of the authors' code. In evaluation it changes
            nothing but the cost.
        spatial_dims: spatial axes.
        norm: makes the normalisation of the predicted weights for a number of channels.
        dtype: what the prediction is computed in; the softmax runs in float32 or wider.
        param_dtype: dtype of the parameters.
        rngs: source of the initial values.

    Raises:
        ValueError: if `groups` does not divide `channels`.

    Source: Zou et al. 2020, *Delving Deeper into Anti-aliasing in ConvNets* (arXiv 2008.09604), section 3.
    """

    title = "content-adaptive filters"
    has_parameters = True
    options: ClassVar = {"normalise": get_args(Normalise), "dense_statistics": (False, True)}

    @classmethod
    def at(cls, site: Site, **options: Any) -> Downsample:
        assert site.channels is not None
        assert site.rngs is not None
        return cls(
            site.channels,
            site.filter_size,
            site.strides,
            site.pad_type,
            groups=math.gcd(8, site.channels),
            spatial_dims=len(site.strides),
            norm=site.norm,
            dtype=site.dtype,
            param_dtype=site.param_dtype,
            rngs=site.rngs,
            **options,
        )

    def __init__(
        self,
        channels: int,
        filter_size: int = 3,
        stride: int | Sequence[int] = 2,
        pad_type: str = "reflect",
        *,
        groups: int = 8,
        normalise: Normalise = "group",
        dense_statistics: bool = False,
        spatial_dims: int = 2,
        norm: Callable[[int], Callable[[jax.Array], jax.Array]] | None = None,
        dtype: jax.typing.DTypeLike | None = None,
        param_dtype: jax.typing.DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        filter_size = whole_number("filter_size", filter_size)
        if groups < 1 or channels % groups:
            raise ValueError(f"groups must divide the {channels} channels, got {groups}")
        self.filter_size, self.groups, self.dense_statistics = filter_size, groups, dense_statistics
        self.normalise = one_of("normalise", normalise, get_args(Normalise))
        self.stride = per_axis("stride", stride, spatial_dims)
        self.pad_type = blurpool.canonical_pad_type(pad_type)
        width = groups * filter_size**spatial_dims
        self.filters = nnx.Conv(
            channels,
            width,
            (filter_size,) * spatial_dims,
            (1,) * spatial_dims if dense_statistics else self.stride,
            padding="VALID",
            use_bias=False,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        if norm is None:
            norm = functools.partial(nnx.BatchNorm, momentum=0.9, use_fast_variance=False, rngs=rngs)
        self.norm = norm(width)

    def __call__(self, x: jax.Array, like: jax.Array | None = None) -> jax.Array:
        """Blurs by predicted filters and subsamples. `like` is ignored: every path predicts its own filters."""
        axes = map_axes(self, x, len(self.stride))
        k, wide = self.filter_size, at_least_float32(x.dtype)
        padded = x
        for axis in axes:
            padded = pad(padded, axis, (k - 1) // 2, k // 2, self.pad_type)
        weights = self.norm(self.filters(padded)).astype(wide)
        if self.dense_statistics:
            for axis, stride in zip(axes, self.stride, strict=True):
                weights = lax.slice_in_dim(weights, 0, None, stride, axis)
        taps = list(itertools.product(range(k), repeat=len(axes)))
        weights = weights.reshape(*weights.shape[:-1], self.groups, len(taps))
        weights = jax.nn.softmax(weights, -1 if self.normalise == "group" else (-2, -1))
        y = jnp.zeros((), wide)
        for i, offsets in enumerate(taps):
            sample = padded
            for axis, offset, stride in zip(axes, offsets, self.stride, strict=True):
                stop = offset + (x.shape[axis] - 1) // stride * stride + 1
                sample = lax.slice_in_dim(sample, offset, stop, stride, axis)
            grouped = sample.reshape(*sample.shape[:-1], self.groups, -1)
            y = y + weights[..., i, None] * grouped.astype(wide)
        return y.reshape(*y.shape[:-2], -1).astype(x.dtype)
