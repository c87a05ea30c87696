"""Convolutions written so that they are fast where XLA's own form is not; the numbers are the same but for rounding.

Depthwise on CPUs: XLA has no fast code for grouped convolutions there, so that it becomes a sum of shifted products,
which fuses into one loop.

The strided first convolution of images on accelerators: three channels leave matrix units and wide loads idle. With
the pixels of each stride-sized block as channels it is a dense convolution of a smaller map.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from aa_flax.platforms import platform_dependent

# Images have no more channels than this: colour and, at times, transparency or depth.
IMAGE_CHANNELS = 4


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


def image_conv(
    x: jax.Array,
    kernel: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> jax.Array:
    """A two-dimensional convolution of images (N, H, W, C) with a kernel (height, width, C, features).

    For ``nnx.Conv(conv_general_dilated=...)``; the other arguments are those of :func:`depthwise_conv`, the result is
    (N, H', W', features) of the input's dtype. More than four channels, a stride of 1 and dilations stay as they are.
    """
    native = functools.partial(lax.conv_general_dilated, window_strides=window_strides, padding=padding, **options)
    dilations = (options.get("lhs_dilation") or ()), (options.get("rhs_dilation") or ())
    stride, other = (int(step) for step in window_strides)
    dilated = any(step != 1 for steps in dilations for step in steps)
    if stride == 1 or stride != other or dilated or x.shape[-1] > IMAGE_CHANNELS:
        return native(x, kernel)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], window_strides, padding)
    blocks = functools.partial(_convolve_blocks, stride=stride, padding=tuple(padding), **options)
    return platform_dependent(x, kernel, cpu=native, default=blocks)


def _convolve_blocks(
    x: jax.Array, kernel: jax.Array, *, stride: int, padding: tuple[tuple[int, int], ...], **options: Any
) -> jax.Array:
    """The strided convolution as a dense one over blocks of ``stride`` by ``stride`` pixels."""
    pads, taps = [], []
    for size, reach, (low, high) in zip(x.shape[1:3], kernel.shape[:2], padding, strict=True):
        out = (size + low + high - reach) // stride + 1
        whole = -(-reach // stride) * stride
        taps.append((0, whole - reach, 0))
        # The last window ends where the last block ends; the image is cut if it reaches further.
        pads.append((low, stride * (out - 1) + whole - size - low, 0))
    none = (0, 0, 0)
    x = lax.pad(x, np.zeros((), x.dtype), [none, *pads, none])
    kernel = lax.pad(kernel, np.zeros((), kernel.dtype), [*taps, none, none])
    n, height, width, channels = x.shape
    x = x.reshape(n, height // stride, stride, width // stride, stride, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(n, height // stride, width // stride, -1)
    rows, columns, _, features = kernel.shape
    kernel = kernel.reshape(rows // stride, stride, columns // stride, stride, channels, features)
    kernel = kernel.transpose(0, 2, 1, 3, 4, 5).reshape(rows // stride, columns // stride, -1, features)
    return lax.conv_general_dilated(x, kernel, (1, 1), "VALID", **options)
