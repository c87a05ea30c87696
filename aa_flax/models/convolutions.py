"""Convolutions written so that they are fast where XLA's own form is not; the numbers are the same but for rounding.

On CPUs XLA has no fast code for grouped convolutions: a depthwise one becomes a sum of shifted products, which fuses
into one loop. Nor has it for a kernel that has more taps than the output has pixels, as in the last stage of a network
that sees small images: there the windows are laid out as the rows of a matrix. A pointwise convolution is faster as a
product of matrices as it is.

On accelerators three channels leave matrix units and wide loads idle. The strided first convolution of images becomes
a dense one of a smaller map that has the pixels of each stride-sized block as channels.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from aa_flax.dtypes import at_least_float32
from aa_flax.meshes import require_whole
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
    places = _Places.of(x, kernel, window_strides, padding, options.get("rhs_dilation"))
    return platform_dependent(x, kernel, cpu=functools.partial(_shifted_products, places=places), default=native)


def dense_conv(
    x: jax.Array,
    kernel: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> jax.Array:
    """A two-dimensional convolution of (N, H, W, C) with a kernel (height, width, C, features).

    For `nnx.Conv(conv_general_dilated=...)`; the other arguments are those of `depthwise_conv`, the result is
    (N, H', W', features) of the input's dtype. Groups and dilated maps stay as they are.
    """
    require_whole(x, (1, 2))
    native = functools.partial(lax.conv_general_dilated, window_strides=window_strides, padding=padding, **options)
    if _dilated(options.get("lhs_dilation")) or options.get("feature_group_count", 1) != 1:
        return native(x, kernel)
    places = _Places.of(x, kernel, window_strides, padding, options.get("rhs_dilation"))
    on_cpu = elsewhere = native
    taps = math.prod(places.taps)
    # Of a program for maps of any size no size is known here.
    known = all(isinstance(size, int) for size in places.sizes)
    if taps == 1 or (known and min(places.sizes) > 0 and math.prod(places.sizes) < taps):
        types = {name: options[name] for name in ("precision", "preferred_element_type") if name in options}
        on_cpu = functools.partial(_window_products, places=places, **types)
    stride, other = places.strides
    if stride == other > 1 and not _dilated(places.dilation) and x.shape[-1] <= IMAGE_CHANNELS:
        elsewhere = functools.partial(_convolve_blocks, stride=stride, padding=places.padding, **options)
    if on_cpu is elsewhere:
        return native(x, kernel)
    return platform_dependent(x, kernel, cpu=on_cpu, default=elsewhere)


def _dilated(steps: Sequence[int] | None) -> bool:
    return any(step != 1 for step in steps or ())


class _Places(NamedTuple):
    """Where the windows of a convolution lie, for height and width.

    Attributes:
        taps: of the kernel.
        strides: between windows.
        padding: pixels of zeros before and after.
        dilation: between the taps of a window.
        sizes: windows.
    """

    taps: tuple[int, int]
    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    dilation: tuple[int, int]
    sizes: tuple[int, int]

    @classmethod
    def of(
        cls,
        x: jax.Array,
        kernel: jax.Array,
        window_strides: Sequence[int],
        padding: str | Sequence[tuple[int, int]],
        rhs_dilation: Sequence[int] | None,
    ) -> Self:
        """Of the arguments of `lax.conv_general_dilated`."""
        taps = kernel.shape[0], kernel.shape[1]
        strides = int(window_strides[0]), int(window_strides[1])
        dilation = (1, 1) if rhs_dilation is None else (int(rhs_dilation[0]), int(rhs_dilation[1]))
        reach = [(size - 1) * step + 1 for size, step in zip(taps, dilation, strict=True)]
        if isinstance(padding, str):
            padding = lax.padtype_to_pads(x.shape[1:3], reach, strides, padding)
        (top, bottom), (left, right) = padding
        rows = (x.shape[1] + top + bottom - reach[0]) // strides[0] + 1
        columns = (x.shape[2] + left + right - reach[1]) // strides[1] + 1
        return cls(taps, strides, ((top, bottom), (left, right)), dilation, (rows, columns))

    def samples(self, x: jax.Array) -> Iterator[jax.Array]:
        """For each tap in reading order, the pixel (N, H', W', C) that it meets in every window."""
        padded = jnp.pad(x, ((0, 0), *self.padding, (0, 0)))
        spans = [(size - 1) * stride + 1 for size, stride in zip(self.sizes, self.strides, strict=True)]
        for i in range(0, self.taps[0] * self.dilation[0], self.dilation[0]):
            rows = lax.slice_in_dim(padded, i, i + spans[0], self.strides[0], axis=1)
            for j in range(0, self.taps[1] * self.dilation[1], self.dilation[1]):
                yield lax.slice_in_dim(rows, j, j + spans[1], self.strides[1], axis=2)


# Equal layers, of which networks have many, are then traced once: a sample for each of 49 taps is most of a ConvNeXt.
@functools.partial(jax.jit, static_argnames="places")
def _shifted_products(x: jax.Array, kernel: jax.Array, *, places: _Places) -> jax.Array:
    dtype = at_least_float32(x.dtype)
    factors = kernel.astype(dtype).reshape(-1, 1, 1, 1, kernel.shape[-1])
    terms = (sample.astype(dtype) * factor for sample, factor in zip(places.samples(x), factors, strict=True))
    return functools.reduce(jnp.add, terms).astype(x.dtype)


def _window_products(x: jax.Array, kernel: jax.Array, *, places: _Places, **types: Any) -> jax.Array:
    """The convolution as one product of matrices, a row for each window."""
    windows = jnp.concatenate(list(places.samples(x)), axis=-1)
    features = kernel.shape[-1]
    # Of two plain matrices: only then is their gradient with respect to the kernel fast too.
    products = lax.dot(windows.reshape(-1, windows.shape[-1]), kernel.reshape(-1, features), **types)
    return products.reshape(*windows.shape[:3], features)


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
