"""Convolutions written so that they are fast where XLA's own form is not; the numbers are the same but for rounding.

On CPUs XLA has no fast code for grouped convolutions: a depthwise one becomes a sum of shifted products, which fuses
into one loop. Nor has it for a kernel that has more taps than the output has pixels, as in the last stage of a network
that sees small images: there the windows are laid out as the rows of a matrix. A pointwise convolution is faster as a
product of matrices as it is. Large maps of three by three taps take Winograd's way. Their gradients have forms of their
own.

On accelerators three channels leave matrix units and wide loads idle. The strided first convolution of images becomes
a dense one of a smaller map that has the pixels of each stride-sized block as channels.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import lax

from aa_flax.dtypes import at_least_float32
from aa_flax.meshes import require_whole
from aa_flax.models.cpu_convolutions import convolution, shifted_products, window_products
from aa_flax.models.windows import Windows
from aa_flax.models.winograd import TAPS, winograd_tiles
from aa_flax.platforms import platform_dependent

# Images have no more channels than this: colour and, at times, transparency or depth.
IMAGE_CHANNELS = 4
# Fewer tiles, or channels, do not repay what Winograd's convolution spends around its products.
WINOGRAD_TILES, WINOGRAD_CHANNELS = 256, 32


def depthwise_conv(
    x: jax.Array,
    kernel: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> jax.Array:
    """A two-dimensional convolution of each channel by itself, for `nnx.Conv(conv_general_dilated=...)`.

    Args:
        x: (N, H, W, C).
        kernel: (height, width, 1, C).
        window_strides: stride along height and width.
        padding: pixels of zeros before and after, for height and width, or a name that `lax` knows.
        **options: the further arguments of `lax.conv_general_dilated`.

    Returns:
        (N, H', W', C) of the input's dtype; sums run in float32 or wider.
    """
    require_whole(x, (1, 2))
    native = functools.partial(lax.conv_general_dilated, window_strides=window_strides, padding=padding, **options)
    if _dilated(options.get("lhs_dilation")):
        return native(x, kernel)
    windows = Windows.of(x, kernel, window_strides, padding, options.get("rhs_dilation"))
    return platform_dependent(x, kernel, cpu=functools.partial(shifted_products, windows=windows), default=native)


def dense_conv(
    x: jax.Array,
    kernel: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    alike: bool = False,
    **options: Any,
) -> jax.Array:
    """A two-dimensional convolution of (N, H, W, C) with a kernel (height, width, C, features).

    For `nnx.Conv(conv_general_dilated=...)`; the other arguments are those of `depthwise_conv`, the result is
    (N, H', W', features) of the input's dtype. Groups and dilated maps stay as they are. With `alike` all windows are
    summed alike: a map that is rolled gives the result rolled, bit for bit.
    """
    require_whole(x, (1, 2))
    native = functools.partial(lax.conv_general_dilated, window_strides=window_strides, padding=padding, **options)
    if _dilated(options.get("lhs_dilation")) or options.get("feature_group_count", 1) != 1:
        return native(x, kernel)
    windows = Windows.of(x, kernel, window_strides, padding, options.get("rhs_dilation"))
    on_cpu = elsewhere = native
    types = {name: options[name] for name in ("precision", "preferred_element_type") if name in options}
    taps = math.prod(windows.taps)
    if taps == 1 or (windows.known and math.prod(windows.sizes) < taps):
        on_cpu = functools.partial(window_products, windows=windows, **types)
    elif windows.known and x.dtype == kernel.dtype == at_least_float32(x.dtype):
        fast = not alike and _winograd_pays(x, windows)
        on_cpu = functools.partial(convolution, windows=windows, fast=fast, **types)
    stride, other = windows.strides
    if stride == other > 1 and not _dilated(windows.dilation) and x.shape[-1] <= IMAGE_CHANNELS:
        elsewhere = functools.partial(_convolve_blocks, stride=stride, padding=windows.padding, **options)
    if on_cpu is elsewhere:
        return native(x, kernel)
    return platform_dependent(x, kernel, cpu=on_cpu, default=elsewhere)


def alike_conv(x: jax.Array, kernel: jax.Array, *places: Any, **options: Any) -> jax.Array:
    """`dense_conv(alike=True)`, for networks that choose by their maps: there the last digit may decide."""
    return dense_conv(x, kernel, *places, alike=True, **options)


def _dilated(steps: Sequence[int] | None) -> bool:
    return any(step != 1 for step in steps or ())


def _winograd_pays(x: jax.Array, windows: Windows) -> bool:
    if x.dtype != np.float32 or windows.taps != (TAPS, TAPS) or not windows.dense:
        return False
    # The size of a batch may be unknown too.
    images = x.shape[0] if isinstance(x.shape[0], int) else 1
    return images * winograd_tiles(windows.sizes) >= WINOGRAD_TILES and x.shape[-1] >= WINOGRAD_CHANNELS


def _convolve_blocks(
    x: jax.Array, kernel: jax.Array, *, stride: int, padding: tuple[tuple[int, int], ...], **options: Any
) -> jax.Array:
    """The strided convolution as a dense one over blocks of `stride` by `stride` pixels."""
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
    # One axis at a time: JAX knows how an array of a mesh with Explicit axes lies after that, and XLA joins both.
    x = x.reshape(n, height // stride, stride, width, channels)
    x = x.reshape(n, height // stride, stride, width // stride, stride, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(n, height // stride, width // stride, -1)
    rows, columns, _, features = kernel.shape
    kernel = kernel.reshape(rows // stride, stride, columns // stride, stride, channels, features)
    kernel = kernel.transpose(0, 2, 1, 3, 4, 5).reshape(rows // stride, columns // stride, -1, features)
    return lax.conv_general_dilated(x, kernel, (1, 1), "VALID", **options)
