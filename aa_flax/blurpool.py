"""BlurPool: low-pass filter and subsample, for any number of spatial dimensions.

Zhang, *Making Convolutional Networks Shift-Invariant Again*, ICML 2019, section 3 (arXiv 1904.11486).

The filter is separable, so the layer is one linear map `y = A x` per spatial axis, and A is banded: see
`aa_flax.axis_maps` for how it is applied.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from aa_flax import axis_maps
from aa_flax.axes import check_floating, per_axis, spatial_axes, whole_number
from aa_flax.axis_maps import Band

# The names numpy uses for the same index rules; the reference's short names are accepted as well.
NUMPY_PAD_MODES: dict[str, Literal["reflect", "edge", "constant", "wrap"]] = {
    "reflect": "reflect",
    "replicate": "edge",
    "zero": "constant",
    "circular": "wrap",
}
_PAD_ALIASES = {"refl": "reflect", "repl": "replicate"}


def binomial_filter(filter_size: int) -> np.ndarray:
    """The taps of a blur: a row of Pascal's triangle over its sum.

    Args:
        filter_size: number of taps k, at least 1. 1 gives `[1.]`, 4 gives `[1, 3, 3, 1] / 8`.

    Returns:
        float64 array of shape (filter_size,) that sums to one.

    Raises:
        ValueError: if `filter_size` is not a positive whole number.

    Source: Zhang 2019, section 4 ("Anti-aliasing filters").
    """
    row = np.ones(1)
    for _ in range(whole_number("filter_size", filter_size) - 1):
        # Halving at each step instead of dividing at the end keeps large filters finite.
        row = np.convolve(row, [0.5, 0.5])
    return row


def _padded_positions(size: int, filter_size: int, pad_type: str, pad_off: int) -> np.ndarray:
    """Where each sample of the padded axis comes from; -1 stands for a zero."""
    low, high = (filter_size - 1) // 2 + pad_off, filter_size // 2 + pad_off
    positions = np.arange(size)[max(-low, 0) : size - max(-high, 0)]
    if not len(positions):
        return positions
    width = (max(low, 0), max(high, 0))
    if pad_type == "zero":
        return np.pad(positions, width, constant_values=-1)
    return np.pad(positions, width, NUMPY_PAD_MODES[pad_type])


@functools.lru_cache(maxsize=1024)
def blur_band(size: int, filter_size: int, stride: int, pad_type: str, pad_off: int) -> tuple[Band, Band]:
    """The matrix of a one-dimensional BlurPool and its transpose.

    Args:
        size: length of the axis, at least 1.
        filter_size: number of taps.
        stride: distance between outputs, in samples.
        pad_type: one of `reflect`, `replicate`, `zero`, `circular`.
        pad_off: samples of padding added on both sides; negative values crop.

    Returns:
        `(forward, backward)`: the (out, size) matrix and the (size, out) one.

    Raises:
        ValueError: if the padded axis is shorter than the filter, so that there is no output.
    """
    taps = binomial_filter(filter_size)
    positions = _padded_positions(size, filter_size, pad_type, pad_off)
    out = (len(positions) - filter_size) // stride + 1
    if out < 1:
        raise ValueError(
            f"pad_off={pad_off} leaves {len(positions)} of {size} samples, fewer than filter_size={filter_size}"
        )
    windows = stride * np.arange(out)[:, None] + np.arange(filter_size)
    sources = positions[windows]
    matrix = np.zeros((out, size))
    rows = np.broadcast_to(np.arange(out)[:, None], sources.shape)
    inside = sources >= 0
    np.add.at(matrix, (rows[inside], sources[inside]), np.broadcast_to(taps, sources.shape)[inside])
    # A zero that the padding put in is read from the nearest sample of the row with weight 0.
    nearest = np.clip(windows - ((filter_size - 1) // 2 + pad_off), 0, size - 1)
    indices = np.where(inside, sources, nearest)
    return Band(indices, np.where(inside, taps, 0.0)), Band.of(matrix.T)


@dataclasses.dataclass(frozen=True)
class BlurAxis:
    """The BlurPool of one axis, as `aa_flax.axis_maps` takes it."""

    axis: int
    size: int
    filter_size: int
    stride: int
    pad_type: str
    pad_off: int

    @property
    def bands(self) -> tuple[Band, Band]:
        return blur_band(self.size, self.filter_size, self.stride, self.pad_type, self.pad_off)


@jax.named_scope("blur")
def blur_axes(
    x: jax.Array,
    axes: Sequence[int],
    filter_size: int | Sequence[int],
    stride: int | Sequence[int],
    pad_type: str,
    pad_off: int | Sequence[int],
) -> jax.Array:
    """Blurs and subsamples `x` along the given axes; see `blur_pool` for the other arguments."""
    x = jnp.asarray(x)
    check_floating("blur_pool", x)
    pad_type = canonical_pad_type(pad_type)
    geometry = zip(
        axes,
        per_axis("filter_size", filter_size, len(axes)),
        per_axis("stride", stride, len(axes)),
        per_axis("pad_off", pad_off, len(axes), least=None),
        strict=True,
    )
    maps = []
    for axis, taps, step, off in geometry:
        if x.shape[axis] < 1:
            raise ValueError(f"blur_pool needs at least one sample on axis {axis}, got shape {x.shape}")
        one = BlurAxis(axis, x.shape[axis], taps, step, pad_type, off)
        one.bands  # noqa: B018  an impossible geometry raises here, before anything is traced
        if (taps, step, off) != (1, 1, 0):
            maps.append(one)
    return axis_maps.apply(x, tuple(maps))


def canonical_pad_type(pad_type: str) -> str:
    """The full name of a pad type (`refl` is `reflect`); ValueError for an unknown one."""
    name = _PAD_ALIASES.get(pad_type, pad_type)
    if name not in NUMPY_PAD_MODES:
        raise ValueError(f"pad_type must be one of {', '.join(NUMPY_PAD_MODES)}, got {pad_type!r}")
    return name


def blur_pool(
    x: jax.Array,
    filter_size: int | Sequence[int] = 4,
    stride: int | Sequence[int] = 2,
    pad_type: str = "reflect",
    pad_off: int | Sequence[int] = 0,
    *,
    spatial_dims: int | None = None,
) -> jax.Array:
    """Low-pass filters and subsamples every spatial axis of a channels-last batch.

    Output position o of an axis is centred on input position `stride * o - pad_off` for odd filter sizes, and half a
    sample further on for even ones (docs/where-the-grid-moves.md). With `pad_off=0` an axis of size N becomes
    `ceil(N / stride)`. Differentiable any number of times, in forward and reverse mode.

    Args:
        x: floating point array (N, spatial..., C) with any number of spatial axes.
        filter_size: number of binomial taps k, one for all axes or one per axis. 1 subsamples without blur.
        stride: subsampling factor in samples, one for all axes or one per axis. 1 blurs only.
        pad_type: `reflect` (numpy's rule, the edge is not repeated; maps smaller than the padding are
            reflected again), `replicate`, `zero` or `circular`; `refl` and `repl` are understood.
        pad_off: samples of padding added on both sides of each axis; negative values crop.
        spatial_dims: spatial axes, those before the channels; all before them are batch. None means every axis but
            the first and the last, so that (N, T, H, W, C) is a volume: 2 makes it a batch of images.

    Returns:
        Array of the input's dtype. Sums run in float32, or in float64 for float64 inputs.

    Raises:
        TypeError: if `x` is not floating point.
        ValueError: for an unknown pad type, sizes that are no whole numbers, or a geometry without output.

    Source: Zhang 2019, section 3.2.
    """
    axes = spatial_axes("blur_pool", x, spatial_dims)
    return blur_axes(x, axes, filter_size, stride, pad_type, pad_off)
