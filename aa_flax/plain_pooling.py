"""Pools with PyTorch's values and gradients: (..., H, W, C), all axes in front are batch.

They are plain: where they stride, they alias. The anti-aliased ones are in `aa_flax.nn`.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from aa_flax.axes import check_floating, per_axis, spatial_axes
from aa_flax.dtypes import at_least_float32
from aa_flax.window_max import lowest, shifted, window_max


@jax.named_scope("maximum")
def max_pool(
    x: jax.Array,
    window: int | Sequence[int],
    stride: int | Sequence[int],
    padding: int | Sequence[int] = 0,
    *,
    circular: bool = False,
) -> jax.Array:
    """Maximum over windows; value and gradient equal PyTorch's, ties and NaN included.

    Args:
        x: array (..., H, W, C).
        window: window size in pixels, one number or (height, width).
        stride: distance between windows in pixels, one number or (height, width).
        padding: pixels of minus infinity on each side, one number or (height, width).
        circular: let the map go on at its opposite side in place of `padding`; with stride 1 it keeps its size.

    Returns:
        Array (..., H', W', C) of the input's dtype with `H' = (H + 2 padding - window) // stride + 1`.

    Raises:
        ValueError: if the padded map is smaller than the window.
    """
    axes = spatial_axes("max_pool", x, 2)
    sizes, pads = per_axis("window", window, 2), per_axis("padding", padding, 2, least=0)
    if circular:
        margins = [(0, 0)] * axes.start + [((size - 1) // 2, size // 2) for size in sizes] + [(0, 0)]
        x = jnp.pad(x, margins, mode="wrap")
    elif any(pads):
        x = pad_lowest(x, axes, [(p, p) for p in pads])
    return window_max(x, tuple(axes), sizes, per_axis("stride", stride, 2))


def pad_lowest(x: jax.Array, axes: Sequence[int], pads: Sequence[tuple[int, int]]) -> jax.Array:
    """Pads axes, (before, after) for each of them, by what no maximum takes: minus infinity, or the least number."""
    margins = [(0, 0, 0)] * x.ndim
    for axis, (low, high) in zip(axes, pads, strict=True):
        margins[axis] = (low, high, 0)
    return lax.pad(x, lowest(x.dtype), margins)


def avg_pool(x: jax.Array, window: int | Sequence[int], stride: int | Sequence[int]) -> jax.Array:
    """Mean over windows without padding.

    Args:
        x: floating point array (..., H, W, C).
        window: window size in pixels, one number or (height, width).
        stride: distance between windows in pixels, one number or (height, width).

    Returns:
        Array (..., H', W', C) of the input's dtype with `H' = (H - window) // stride + 1`; sums run in float32 or
        wider.

    Raises:
        TypeError: if `x` is not floating point.
        ValueError: if the map is smaller than the window.
    """
    axes = spatial_axes("avg_pool", x, 2)
    check_floating("avg_pool", x)
    y = x.astype(at_least_float32(x.dtype))
    sizes, strides = per_axis("window", window, 2), per_axis("stride", stride, 2)
    for axis, size, step in reversed(list(zip(axes, sizes, strides, strict=True))):
        y = functools.reduce(jnp.add, shifted(y, axis, size, step)) / size
    return y.astype(x.dtype)


def even_sides(x: jax.Array) -> jax.Array:
    """The map (..., H, W, C) without the last row or column of an odd number: PyTorch's average of 2x2 skips them."""
    height, width = (x.shape[axis] // 2 * 2 for axis in spatial_axes("even_sides", x, 2))
    return x[..., :height, :width, :]


def adaptive_avg_pool(x: jax.Array, output_size: int | Sequence[int]) -> jax.Array:
    """Averages a map of any size into a grid of fixed size.

    Cell i of an axis of N pixels covers `floor(i N / out)` up to `ceil((i + 1) N / out)`, PyTorch's rule:
    neighbouring cells overlap where N is no multiple of `out`, and repeat pixels where N is smaller.

    Args:
        x: floating point array (..., H, W, C).
        output_size: cells, one number or (height, width).

    Returns:
        Array (..., height, width, C) of the input's dtype; means are taken in float32 or wider.

    Raises:
        TypeError: if `x` is not floating point.
    """
    axes = spatial_axes("adaptive_avg_pool", x, 2)
    check_floating("adaptive_avg_pool", x)
    dtype = at_least_float32(x.dtype)
    y = x
    for axis, cells in zip(axes, per_axis("output_size", output_size, 2), strict=True):
        size = y.shape[axis]
        if size == cells:
            continue
        means = [
            lax.slice_in_dim(y, i * size // cells, -(-(i + 1) * size // cells), axis=axis).mean(axis, dtype)
            for i in range(cells)
        ]
        y = jnp.stack(means, axis)
    return y.astype(x.dtype)


def global_avg_pool(x: jax.Array) -> jax.Array:
    """The mean over all pixels, (..., H, W, C) to (..., C), taken in float32 or wider, in the input's dtype."""
    spatial_axes("global_avg_pool", x, 2)
    return x.mean((-3, -2), dtype=at_least_float32(x.dtype)).astype(x.dtype)
