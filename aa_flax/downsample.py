"""Beyond BlurPool: other ways to subsample without aliasing, behind one call.

Every layer here answers ``layer(x, like=None)`` as :class:`aa_flax.BlurPool2D` does, and gives ``ceil(N / stride)``
samples for an axis of N, so that they can stand in for each other.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from aa_flax import blurpool
from aa_flax.axes import check_floating, per_axis, spatial_axes, whole_number
from aa_flax.axis_maps import matmul_along
from aa_flax.blurpool import blur_axes
from aa_flax.dtypes import at_least_float32
from aa_flax.energies import most_energetic


class Downsample(Protocol):
    """What subsampling layers have in common."""

    def __call__(self, x: jax.Array, like: jax.Array | None = None) -> jax.Array:
        """Subsamples the spatial axes of ``x``.

        Args:
            x: floating point array (..., spatial..., C).
            like: the map of another path, of the same batch and spatial size as ``x``, whose choices are to be
                followed where the layer chooses: the shortcut of a residual block has to keep the samples that
                the main path keeps. Layers that choose nothing ignore it.
        """
        ...


def _spatial_axes(layer: nnx.Module, x: jax.Array, spatial_dims: int) -> range:
    check_floating(type(layer).__name__, x)
    return spatial_axes(type(layer).__name__, x, spatial_dims)


_NUMPY_MODES: dict[str, Any] = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def _pad(x: jax.Array, axis: int, low: int, high: int, pad_type: str) -> jax.Array:
    if low == high == 0:
        return x
    if pad_type == "zero":
        margins = [(low, high, 0) if i == axis else (0, 0, 0) for i in range(x.ndim)]
        return lax.pad(x, jnp.zeros((), x.dtype), margins)
    size = x.shape[axis]
    positions = np.pad(np.arange(size), (low, high), _NUMPY_MODES[pad_type]).tolist()
    # Of slices, whose gradient is no scatter: JAX would not know how that lies on a mesh with Explicit axes.
    before, after = (
        [lax.slice_in_dim(x, p, p + 1, axis=axis) for p in part] for part in (positions[:low], positions[low + size :])
    )
    return jnp.concatenate([*before, x, *after], axis)


class AdaptivePolyphase(nnx.Module):
    """Adaptive polyphase sampling (APS): blur, then keep the phase with the most energy.

    Subsampling by s keeps one of s possible grids along each axis. This layer keeps, for every example, the one whose
    samples have the largest 2-norm over space and channels. Moving the image permutes the grids but not their
    content, so that the same samples are kept wherever the image lies: with circular padding throughout, and sizes
    that the strides divide, a network's answer to a rolled image is exactly the same. Norms are compared without
    rounding in their sums (:mod:`aa_flax.energies`), so that near ties stay decided. It holds no variables.

    An axis that the stride does not divide is filled up at its end, after the blur, so that every grid has
    ``ceil(N / stride)`` samples. No guarantee is left there, however it is filled.

    Args:
        filter_size: taps of the blur before the choice; 1 chooses without blur, as in the paper's plain APS.
        stride: subsampling, one number or one for each spatial axis.
        pad_type: padding of the blur; only ``circular`` keeps the guarantee at the border.
        end_pad_type: what fills up the end of such an axis; None means ``pad_type``. The authors' code always wraps
            there: ``circular``.
        spatial_dims: spatial axes.

    Source: Chaman and Dokmanic 2021, *Truly shift-invariant convolutional neural networks* (arXiv 2011.14214),
        section 4; the blur before it is their APS with low-pass filter.
    """

    def __init__(
        self,
        filter_size: int = 4,
        stride: int | Sequence[int] = 2,
        pad_type: str = "circular",
        *,
        end_pad_type: str | None = None,
        spatial_dims: int = 2,
    ):
        self.filter_size = whole_number("filter_size", filter_size)
        self.stride = per_axis("stride", stride, spatial_dims)
        self.pad_type = blurpool.canonical_pad_type(pad_type)
        self.end_pad_type = self.pad_type if end_pad_type is None else blurpool.canonical_pad_type(end_pad_type)

    def __call__(self, x: jax.Array, like: jax.Array | None = None) -> jax.Array:
        """Subsamples; with ``like`` on the grids chosen for that map.

        Raises:
            ValueError: if batch or sizes of ``like`` are not those of ``x``.
        """
        if like is not None and like.shape[:-1] != x.shape[:-1]:
            raise ValueError(f"like must have the batch and sizes of the map {x.shape}, got {like.shape}")
        phases = list(self._phases(x))
        guide = phases if like is None else list(self._phases(like))
        chosen = most_energetic(guide, len(self.stride) + 1)
        chosen = chosen.reshape(*chosen.shape, *(1,) * (len(self.stride) + 1))
        y = phases[0]
        for i, phase in enumerate(phases[1:], 1):
            y = jnp.where(chosen == i, phase, y)
        return y

    def _phases(self, x: jax.Array) -> Iterator[jax.Array]:
        axes = _spatial_axes(self, x, len(self.stride))
        x = blur_axes(x, axes, self.filter_size, 1, self.pad_type, 0)
        for axis, stride in zip(axes, self.stride, strict=True):
            x = _pad(x, axis, 0, -x.shape[axis] % stride, self.end_pad_type)
        for offsets in itertools.product(*map(range, self.stride)):
            phase = x
            for axis, offset, stride in zip(axes, offsets, self.stride, strict=True):
                phase = lax.slice_in_dim(phase, offset, None, stride, axis)
            yield phase


class ContentAdaptiveBlur(nnx.Module):
    """Content-adaptive low-pass filtering (DDAC): a small convolution predicts the blur for every place.

    For every output position and group of channels a convolution over the input, normalised, predicts one weight for
    each of the ``filter_size ** spatial_dims`` samples around it. A softmax makes them positive with sum one: a
    low-pass filter that may be wide on flat ground and narrow across an edge. Unlike the other layers it has
    parameters, under ``filters`` and ``norm``.

    Args:
        channels: channels of the input.
        filter_size: samples along each axis that a filter sees.
        stride: subsampling, one number or one for each spatial axis.
        pad_type: padding of the input.
        groups: groups of channels that share a filter (8 in the paper); must divide ``channels``.
        spatial_dims: spatial axes.
        norm: makes the normalisation of the predicted weights for a number of channels.
        dtype: what the prediction is computed in; the softmax runs in float32 or wider.
        param_dtype: dtype of the parameters.
        rngs: source of the initial values.

    Raises:
        ValueError: if ``groups`` does not divide ``channels``.

    Source: Zou et al. 2020, *Delving Deeper into Anti-aliasing in ConvNets* (arXiv 2008.09604), section 3.
    """

    def __init__(
        self,
        channels: int,
        filter_size: int = 3,
        stride: int | Sequence[int] = 2,
        pad_type: str = "reflect",
        *,
        groups: int = 8,
        spatial_dims: int = 2,
        norm: Callable[[int], Callable[[jax.Array], jax.Array]] | None = None,
        dtype: jax.typing.DTypeLike | None = None,
        param_dtype: jax.typing.DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        filter_size = whole_number("filter_size", filter_size)
        if groups < 1 or channels % groups:
            raise ValueError(f"groups must divide the {channels} channels, got {groups}")
        self.filter_size, self.groups = filter_size, groups
        self.stride = per_axis("stride", stride, spatial_dims)
        self.pad_type = blurpool.canonical_pad_type(pad_type)
        width = groups * filter_size**spatial_dims
        self.filters = nnx.Conv(
            channels,
            width,
            (filter_size,) * spatial_dims,
            self.stride,
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
        """Blurs by predicted filters and subsamples. ``like`` is ignored: every path predicts its own filters."""
        axes = _spatial_axes(self, x, len(self.stride))
        k, wide = self.filter_size, at_least_float32(x.dtype)
        padded = x
        for axis in axes:
            padded = _pad(padded, axis, (k - 1) // 2, k // 2, self.pad_type)
        weights = self.norm(self.filters(padded)).astype(wide)
        taps = list(itertools.product(range(k), repeat=len(axes)))
        weights = jax.nn.softmax(weights.reshape(*weights.shape[:-1], self.groups, len(taps)), -1)
        y = jnp.zeros((), wide)
        for i, offsets in enumerate(taps):
            sample = padded
            for axis, offset, stride in zip(axes, offsets, self.stride, strict=True):
                stop = offset + (x.shape[axis] - 1) // stride * stride + 1
                sample = lax.slice_in_dim(sample, offset, stop, stride, axis)
            grouped = sample.reshape(*sample.shape[:-1], self.groups, -1)
            y = y + weights[..., i, None] * grouped.astype(wide)
        return y.reshape(*y.shape[:-2], -1).astype(x.dtype)


class IdealLowPass(nnx.Module):
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

    def __init__(self, stride: int | Sequence[int] = 2, *, spatial_dims: int = 2):
        self.stride = per_axis("stride", stride, spatial_dims)

    def __call__(self, x: jax.Array, like: jax.Array | None = None) -> jax.Array:
        """Filters and subsamples. ``like`` is ignored."""
        y = x
        for axis, stride in zip(_spatial_axes(self, x, len(self.stride)), self.stride, strict=True):
            if stride > 1:
                y = matmul_along(y, ideal_matrix(x.shape[axis], stride), axis)
        return y.astype(x.dtype)


@functools.lru_cache(maxsize=256)
def ideal_matrix(size: int, stride: int) -> np.ndarray:
    """The (ceil(size / stride), size) matrix of ideal low-pass filtering and even resampling, float64.

    Row o is the sum of the cosines below half the output's rate, centred at ``o * size / out``: a Dirichlet kernel.
    """
    out = -(-size // stride)
    distance = np.arange(out)[:, None] * size / out - np.arange(size)
    frequencies = np.arange(1, (out + 1) // 2)
    waves = np.cos(2 * np.pi * frequencies * distance[..., None] / size)
    return (1 + 2 * waves.sum(-1)) / size
