"""The maximum over windows, with PyTorch's value and gradient: the first of equal maxima takes all of it, NaN wins.

What is kept for the backward pass is one byte a window, the place of its maximum.

TPUs have forms of their own. The maximum is the one operation that XLA has for it; that operation's own gradient is
slower and knows neither ties nor NaN as PyTorch does. The gradient of overlapping windows pads what comes back once and
selects from slices of it, one loop over the map; selecting first and padding each part takes a loop for every sample of
a window (docs/performance.md).
"""

import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from aa_flax.platforms import platform_dependent

Numbers = tuple[int, ...]


def lowest(dtype: np.dtype) -> np.ndarray:
    """What no maximum takes: minus infinity, or the least whole number."""
    return np.asarray(-np.inf if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).min, dtype)


def shifted(x: jax.Array, axis: int, size: int, stride: int) -> list[jax.Array]:
    """The samples of every window along one axis: first ones, second ones, and so on."""
    _check_fits(x, axis, size)
    span = (x.shape[axis] - size) // stride * stride + 1
    return [lax.slice_in_dim(x, i, i + span, stride, axis) for i in range(size)]


def _check_fits(x: jax.Array, axis: int, size: int) -> None:
    if x.shape[axis] < size:
        raise ValueError(f"a pooling window of {size} is larger than axis {axis} of the map, shape {x.shape}")


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def window_max(x: jax.Array, axes: Numbers, sizes: Numbers, strides: Numbers) -> jax.Array:
    """The maximum over windows along any axes, without padding: window and stride for each of them."""
    windows = {"axes": axes, "sizes": sizes, "strides": strides}
    return platform_dependent(
        x, tpu=functools.partial(_reduced, **windows), default=functools.partial(_selected, **windows)
    )


@window_max.defjvp
def _window_max_jvp(axes: Numbers, sizes: Numbers, strides: Numbers, primals, tangents):
    windows = {"axes": axes, "sizes": sizes, "strides": strides}
    value, *others = _in_windows(primals[0], axes, sizes, strides)
    place = jnp.zeros(value.shape, jnp.uint8 if len(others) < 255 else jnp.int32)
    for i, other in enumerate(others, 1):
        stays = _stays(value, other)
        value, place = jnp.where(stays, value, other), jnp.where(stays, place, i)
    # Differentiated again, the maximum follows this rule once more: the operation's own would split ties.
    value = platform_dependent(
        primals[0], value, tpu=lambda x, _: window_max(x, axes, sizes, strides), default=lambda _, value: value
    )
    last = functools.partial(_selected_last, **windows)
    if any(stride != 1 for stride in strides):
        return value, last(tangents[0], place)
    # Only the place is kept for it, not the masks that are made of it.
    first = jax.checkpoint(functools.partial(_selected_first, axes=axes, sizes=sizes), prevent_cse=False)
    return value, platform_dependent(tangents[0], place, tpu=first, default=last)


def _stays(a: jax.Array, b: jax.Array) -> jax.Array:
    # jnp.maximum would split the gradient of a tie, and lose PyTorch's; here the first one takes all of it.
    return (a >= b) | jnp.isnan(a)


def _larger(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.where(_stays(a, b), a, b)


def _selected(x: jax.Array, *, axes: Numbers, sizes: Numbers, strides: Numbers) -> jax.Array:
    # Columns, then rows: of several equal maxima the first in reading order wins, as in PyTorch.
    for axis, size, stride in reversed(list(zip(axes, sizes, strides, strict=True))):
        x = functools.reduce(_larger, shifted(x, axis, size, stride))
    return x


def _reduced(x: jax.Array, *, axes: Numbers, sizes: Numbers, strides: Numbers) -> jax.Array:
    window, steps = [1] * x.ndim, [1] * x.ndim
    for axis, size, stride in zip(axes, sizes, strides, strict=True):
        _check_fits(x, axis, size)
        window[axis], steps[axis] = size, stride
    return lax.reduce_window(x, lowest(x.dtype), lax.max, window, steps, "VALID")


def _in_windows(x: jax.Array, axes: Numbers, sizes: Numbers, strides: Numbers) -> list[jax.Array]:
    """The samples of every window, in reading order."""
    samples = [x]
    for axis, size, stride in zip(axes, sizes, strides, strict=True):
        samples = [one for sample in samples for one in shifted(sample, axis, size, stride)]
    return samples


def _selected_last(t: jax.Array, place: jax.Array, *, axes: Numbers, sizes: Numbers, strides: Numbers) -> jax.Array:
    """The sample of each window that is at its place. Transposed it pads what was selected."""
    moved = [jnp.where(place == i, sample, 0) for i, sample in enumerate(_in_windows(t, axes, sizes, strides))]
    return functools.reduce(jnp.add, moved)


def _selected_first(t: jax.Array, place: jax.Array, *, axes: Numbers, sizes: Numbers) -> jax.Array:
    """The same for windows one sample apart. Transposed it pads once, then selects."""
    rims = [size - 1 for size in sizes]
    place = _padded(place, axes, rims, rims, np.asarray(-1).astype(place.dtype))
    samples = [t]
    for size in sizes:
        # A name of its own for each: what comes back is then summed in the other form's order, bit for bit.
        samples = [sample * np.ones((), t.dtype) for sample in samples for _ in range(size)]
    moved = []
    for i, (sample, after) in enumerate(zip(samples, itertools.product(*map(range, sizes)), strict=True)):
        before = [rim - step for rim, step in zip(rims, after, strict=True)]
        kept = jnp.where(_sliced(place, axes, before, after) == i, sample, 0)
        moved.append(_padded(kept, axes, before, after, np.zeros((), t.dtype)))
    return _sliced(functools.reduce(jnp.add, moved), axes, rims, rims)


def _padded(x: jax.Array, axes: Numbers, before: Sequence[int], after: Sequence[int], value: np.ndarray) -> jax.Array:
    margins = [(0, 0, 0)] * x.ndim
    for axis, low, high in zip(axes, before, after, strict=True):
        margins[axis] = (low, high, 0)
    return lax.pad(x, value, margins)


def _sliced(x: jax.Array, axes: Numbers, before: Sequence[int], after: Sequence[int]) -> jax.Array:
    for axis, low, high in zip(axes, before, after, strict=True):
        x = lax.slice_in_dim(x, low, x.shape[axis] - high, axis=axis)
    return x
