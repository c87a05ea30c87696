"""Convolutions in the forms that XLA compiles into fast code for CPUs, with gradients in such forms too.

What XLA makes of a convolution's transpose is slow as a rule: the gradient with respect to a dense kernel is a product
of matrices for each tap here, and that with respect to a depthwise one a loop over rows that stay in the cache.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from aa_flax.dtypes import at_least_float32
from aa_flax.models.windows import Windows
from aa_flax.models.winograd import winograd

Bilinear = Callable[[jax.Array, jax.Array], jax.Array]


def _with_derivatives(forward: Bilinear, of_map: Bilinear, of_kernel: Bilinear) -> Bilinear:
    """A function of map and kernel, with the forms of it whose transposes are to be the gradients of each."""
    function = jax.custom_jvp(forward)

    def moved(given: tuple[jax.Array, jax.Array], tangents: tuple[Any, Any]) -> tuple[jax.Array, jax.Array]:
        x, kernel = given
        terms = []
        # Images are not differentiated by: a convolution of zeros would be computed all the same.
        if not isinstance(tangents[0], SymbolicZero):
            terms.append(of_map(tangents[0], kernel))
        if not isinstance(tangents[1], SymbolicZero):
            terms.append(of_kernel(x, tangents[1]))
        return function(x, kernel), functools.reduce(jnp.add, terms)

    function.defjvp(moved, symbolic_zeros=True)
    return function


def _transposed(function: Callable[[jax.Array], jax.Array], result: jax.ShapeDtypeStruct, x: jax.Array) -> jax.Array:
    """The transpose of a linear function of what has the shape of `result`; its own transpose is the function."""
    (y,) = jax.linear_transpose(function, result)(x)
    return y


# Equal layers, of which networks have many, are traced once: a sample for each of 49 taps is most of a ConvNeXt.
@functools.partial(jax.jit, static_argnames="windows")
def shifted_products(x: jax.Array, kernel: jax.Array, *, windows: Windows) -> jax.Array:
    """The depthwise convolution as a sum over its taps: one loop, with a multiplication for each tap.

    Args:
        x: (N, H, W, C).
        kernel: (height, width, 1, C).
        windows: where they lie.

    Returns:
        (N, H', W', C) of the input's dtype; sums run in float32 or wider.
    """
    if not (windows.known and windows.dense):
        return _sum_over_taps(x, kernel, windows)

    def forward(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return _sum_over_taps(x, kernel, windows)

    def of_map(moved: jax.Array, kernel: jax.Array) -> jax.Array:
        back = windows._replace(padding=windows.backward, sizes=moved.shape[1:3])
        result = jax.eval_shape(forward, moved, kernel)
        return _transposed(lambda y: _sum_over_taps(y, kernel[::-1, ::-1], back), result, moved)

    def of_kernel(x: jax.Array, moved: jax.Array) -> jax.Array:
        # What is laid out for the rows is larger than a map of fewer rows.
        return (_row_by_row if windows.sizes[0] >= windows.taps[0] else _sum_over_taps)(x, moved, windows)

    return _with_derivatives(forward, of_map, of_kernel)(x, kernel)


def _sum_over_taps(x: jax.Array, kernel: jax.Array, windows: Windows) -> jax.Array:
    dtype = at_least_float32(x.dtype)
    factors = kernel.astype(dtype).reshape(-1, 1, 1, 1, kernel.shape[-1])
    terms = (sample.astype(dtype) * factor for sample, factor in zip(windows.samples(x), factors, strict=True))
    return functools.reduce(jnp.add, terms).astype(x.dtype)


def _row_by_row(x: jax.Array, kernel: jax.Array, windows: Windows) -> jax.Array:
    """The depthwise convolution in a loop over the rows of the result.

    Transposed, the loop adds up the products of a row with the gradient for all taps while the row is in the cache. The
    kernel is laid out as rows: it is what the products are added to, pixel by pixel, before they are summed.
    """
    padded, height = windows.padded(x), windows.taps[0]
    row = (x.shape[0], windows.sizes[1], x.shape[-1])
    factors = [jnp.broadcast_to(tap.astype(at_least_float32(x.dtype)), row) for tap in kernel.reshape(-1, row[-1])]

    # Otherwise every sample of every row would be kept.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def result(start: jax.Array, factors: list[jax.Array]) -> jax.Array:
        rows = lax.dynamic_slice_in_dim(padded, start, height, axis=1)
        samples = (sample for i in range(height) for sample in windows.along(rows[:, i]))
        terms = (sample.astype(factor.dtype) * factor for sample, factor in zip(samples, factors, strict=True))
        return functools.reduce(jnp.add, terms).astype(x.dtype)

    _, rows = lax.scan(lambda _, start: (None, result(start, factors)), None, jnp.arange(windows.sizes[0]))
    return jnp.moveaxis(rows, 0, 1)


def window_products(x: jax.Array, kernel: jax.Array, *, windows: Windows, **types: Any) -> jax.Array:
    """The dense convolution as one product of matrices, a row for each window; `types` are those of `lax.dot`."""
    rows = jnp.concatenate(list(windows.samples(x)), axis=-1)
    features = kernel.shape[-1]
    # Of two plain matrices: only then is their gradient with respect to the kernel fast too.
    products = lax.dot(rows.reshape(-1, rows.shape[-1]), kernel.reshape(-1, features), **types)
    return products.reshape(*rows.shape[:3], features)


@functools.partial(jax.jit, static_argnames=("windows", "fast", "precision", "preferred_element_type"))
def convolution(
    x: jax.Array,
    kernel: jax.Array,
    *,
    windows: Windows,
    fast: bool,
    precision: lax.PrecisionLike = None,
    preferred_element_type: jax.typing.DTypeLike | None = None,
) -> jax.Array:
    """The dense convolution with gradients of its own.

    Args:
        x: (N, H, W, C), float32 or wider.
        kernel: (height, width, C, features) of the same dtype.
        windows: where they lie, some at least.
        fast: whether to compute it, and the gradient with respect to the map, in Winograd's way.
        precision: of products, as in `lax.dot`.
        preferred_element_type: the same.

    Returns:
        (N, H', W', features).
    """
    types = {"precision": precision, "preferred_element_type": preferred_element_type}

    def forward(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return winograd(x, kernel, windows.padding, precision) if fast else windows.convolve(x, kernel, **types)

    def of_map(moved: jax.Array, kernel: jax.Array) -> jax.Array:
        if not fast:
            return forward(moved, kernel)
        turned = kernel[::-1, ::-1].swapaxes(2, 3)
        result = jax.eval_shape(forward, moved, kernel)
        return _transposed(lambda y: winograd(y, turned, windows.backward, precision), result, moved)

    def of_kernel(x: jax.Array, moved: jax.Array) -> jax.Array:
        rows = (sample.reshape(-1, sample.shape[-1]) for sample in windows.samples(x))
        # Transposed, a split writes each tap's gradient once; an index would write a whole kernel for each of them.
        taps = moved.reshape(-1, *moved.shape[2:])
        taps = (tap.reshape(moved.shape[2:]) for tap in lax.split(taps, [1] * len(taps)))
        products = functools.reduce(jnp.add, (lax.dot(a, b, **types) for a, b in zip(rows, taps, strict=True)))
        return products.reshape(x.shape[0], *windows.sizes, moved.shape[-1])

    return _with_derivatives(forward, of_map, of_kernel)(x, kernel)
