"""Which of several maps is the largest, decided by sums that no order of addition can change.

Floating point sums of the same numbers in another order round differently, and two maps whose energies differ in the
ninth digit change places. Here each number is rounded once and cut into whole numbers, and whole numbers add up
exactly: for a rolled map, in every compiler, across devices.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from aa_flax.dtypes import at_least_float32

# A sum along one axis stays below it, and so does the sum with what is carried over from the digit beneath.
_SUM_BITS = 30
# What a number may keep beyond its type's precision: values far below the largest still count.
_SPARE_BITS = 13

Criterion = Literal["l2", "l1", "linf", "max", "smallest_l2", "smallest_l1", "sum"]
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)


def most_energetic(maps: Sequence[jax.Array], axes: int) -> jax.Array:
    """`largest_map` by the sum of squares."""
    return largest_map(maps, axes, "l2")


def largest_map(maps: Sequence[jax.Array], axes: int, criterion: Criterion) -> jax.Array:
    """Which map is the largest, for each example; the first of equal ones.

    A map with NaN or infinity counts as larger than all others. Nothing is differentiable here.

    Args:
        maps: floating point arrays of one shape (..., A1, ..., An).
        axes: how many of their last axes make up an example.
        criterion: what is compared: a norm (`l2`, `l1`, `linf`), the largest number (`max`) or the `sum`;
            `smallest_l2` and `smallest_l1` ask for the map whose norm is the smallest.

    Returns:
        Indices into `maps`, whole numbers of shape (...).
    """
    stacked = lax.stop_gradient(jnp.stack(maps))
    stacked = stacked.astype(at_least_float32(stacked.dtype))
    example = tuple(range(-axes, 0))
    # The largest of some numbers is the same in every order.
    if criterion in ("linf", "max"):
        numbers = jnp.abs(stacked) if criterion == "linf" else stacked
        return jnp.argmax(numbers.max(example), 0)
    largest = jnp.abs(stacked).max((0, *example), keepdims=True, initial=0)
    scaled = stacked / _power_of_two(largest)
    if criterion.endswith("l2"):
        shares = jnp.square(scaled) / 32
    else:
        shares = (scaled if criterion == "sum" else jnp.abs(scaled)) / 8
    sign = -1 if criterion.startswith("smallest") else 1
    first = jnp.ones(shares.shape[:-axes], bool)
    for digit in _digits_of_sum(shares, axes):
        left = jnp.where(first, sign * digit, np.int32(-(2**31)))
        first = left == left.max(0, keepdims=True)
    return jnp.argmax(first, 0)


def _power_of_two(largest: jax.Array) -> jax.Array:
    """The largest power of two that is not above, and more than a quarter of it: division by it is exact."""
    info = jnp.finfo(largest.dtype)
    # Those whose reciprocals are normal numbers: compilers divide by multiplying with them.
    powers = np.ldexp(np.ones((), largest.dtype), np.arange(info.minexp, 1 - info.minexp))
    powers = powers[(None,) * largest.ndim]
    finite = jnp.where(jnp.isfinite(largest), largest, info.max)[..., None]
    return jnp.where(powers <= finite, powers, powers[..., :1]).max(-1)


def _digits_of_sum(shares: jax.Array, axes: int) -> list[jax.Array]:
    """The sum of numbers in [-1/2, 1/2) along the last axes, as digits from the highest to the lowest.

    Half is added to each number beforehand, so that no digit is negative: sums of as many numbers compare the same.
    """
    bits = _SUM_BITS - max(shares.shape[-axes:]).bit_length()
    count = -(-(jnp.finfo(shares.dtype).nmant + _SPARE_BITS) // bits)
    # Infinity and NaN become the largest number, as no comparison holds for NaN.
    rest, digits = jnp.where(shares < 0.5, shares, 0.5), []
    for _ in range(count):
        rest = rest * np.asarray(2**bits, rest.dtype)
        whole = jnp.floor(rest)
        digits.append(whole.astype(jnp.int32))
        rest = rest - whole
    digits[0] = digits[0] + np.int32(2 ** (bits - 1))
    for _ in range(axes):
        digits = _carried([digit.sum(-1, dtype=jnp.int32) for digit in digits], bits)
    return digits


def _carried(digits: list[jax.Array], bits: int) -> list[jax.Array]:
    """The same number with digits below `2 ** bits`, one more of them."""
    base = np.int32(2**bits)
    carry, below = jnp.zeros_like(digits[0]), []
    for digit in reversed(digits):
        total = digit + carry
        carry = lax.div(total, base)
        below.append(total - carry * base)
    return [carry, *reversed(below)]
