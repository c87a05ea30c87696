"""Depthwise convolution that is fast on CPUs too.

XLA has no fast code for grouped convolutions on CPUs. There the convolution is written as a sum of shifted products,
which fuses into one loop; elsewhere it stays a convolution.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from aa_flax.platforms import platform_dependent


def depthwise_conv(
    x: jax.Array,
    kernel: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> jax.Array:
    """A two-dimensional convolution of each channel by itself, for ``nnx.Conv(conv_general_dilated=...)``.

    Args:
        x: (N, H, W, C).
        kernel: (height, width, 1, C).
        window_strides: stride along height and width.
        padding: pixels of zeros before and after, for height and width, or a name that ``lax`` knows.
        **options: the further arguments of ``lax.conv_general_dilated``.

    Returns:
        (N, H', W', C) of the input's dtype; sums run in float32 or wider.
    """
    strides = (int(window_strides[0]), int(window_strides[1]))
    native = functools.partial(lax.conv_general_dilated, window_strides=window_strides, padding=padding, **options)
    dilation = tuple(options.get("rhs_dilation") or (1, 1))
    if any(size != 1 for size in options.get("lhs_dilation") or ()):
        return native(x, kernel)
    reach = [(size - 1) * step + 1 for size, step in zip(kernel.shape, dilation, strict=False)]
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], reach, strides, padding)
    shifted = functools.partial(_shifted_products, strides=strides, padding=tuple(padding), dilation=dilation)
    return platform_dependent(x, kernel, cpu=shifted, default=native)


def _shifted_products(
    x: jax.Array,
    kernel: jax.Array,
    *,
    strides: tuple[int, int],
    padding: tuple[tuple[int, int], ...],
    dilation: tuple[int, ...],
) -> jax.Array:
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    spans = [
        (size - (taps - 1) * step - 1) // stride * stride + 1
        for size, taps, step, stride in zip(padded.shape[1:3], kernel.shape, dilation, strides, strict=False)
    ]
    total = None
    for i in range(kernel.shape[0]):
        rows = lax.slice_in_dim(padded, i * dilation[0], i * dilation[0] + spans[0], strides[0], axis=1)
        for j in range(kernel.shape[1]):
            window = lax.slice_in_dim(rows, j * dilation[1], j * dilation[1] + spans[1], strides[1], axis=2)
            term = window.astype(dtype) * kernel[i, j, 0].astype(dtype)
            total = term if total is None else total + term
    assert total is not None
    return total.astype(x.dtype)
