"""The spatial axes of an array, and the arguments that are given for each of them.

Arrays are (..., spatial..., C): the last axis holds the channels, the n axes before it are spatial, and all that come
before those are batch, however many. Every layer and function on maps follows this rule.
"""

import operator
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from aa_flax.meshes import require_whole

Text = TypeVar("Text", bound=str)


def spatial_axes(caller: str, x: jax.Array, spatial_dims: int | None) -> range:
    """The spatial axes of `x`, counted from the front.

    Args:
        caller: the layer or function, for the error.
        x: array (..., spatial..., C).
        spatial_dims: how many axes are spatial; None for all but the first and the last.

    Raises:
        ValueError: if the array has fewer axes than that and the channels, or one of them is cut over devices.
    """
    if spatial_dims is None:
        if x.ndim < 3:
            raise ValueError(f"{caller} takes (N, spatial..., C), got shape {x.shape}")
        spatial_dims = x.ndim - 2
    if x.ndim < spatial_dims + 1:
        raise ValueError(f"{caller} takes (..., {spatial_dims} spatial axes, C), got shape {x.shape}")
    axes = range(x.ndim - 1 - spatial_dims, x.ndim - 1)
    require_whole(x, axes)
    return axes


def check_floating(caller: str, x: jax.Array) -> None:
    """Raises TypeError for whole numbers, whose means and sums would be cut off."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{caller} takes floating point arrays, got {x.dtype}: convert the input first")


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """An argument that counts something, as a Python number; numpy's are taken, booleans and fractions are not.

    Raises:
        ValueError: for anything else, or a number below `least`.
    """
    number = _index(value)
    if number is None or number < least:
        raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}")
    return number


def per_axis(name: str, value: int | Sequence[int], axes: int, least: int | None = 1) -> tuple[int, ...]:
    """One whole number for each spatial axis, from as many or from one that stands for all.

    Args:
        name: of the argument, for the error.
        value: whole numbers, Python's or numpy's.
        axes: how many spatial axes there are.
        least: the smallest number that is allowed; None for any.

    Raises:
        ValueError: for other numbers, or another count of them.
    """
    given = [value] * axes if (one := _sequence(value)) is None else one
    numbers = [_index(v) for v in given]
    if len(given) != axes or any(n is None or (least is not None and n < least) for n in numbers):
        kind = "a whole number" if least is None else f"a whole number >= {least}"
        several = f" or {axes} of them, one for each spatial axis" if axes > 1 else ""
        raise ValueError(f"{name} must be {kind}{several}, got {value!r}")
    return tuple(n for n in numbers if n is not None)


def each_axis(name: str, value: Sequence[int]) -> tuple[int, ...]:
    """Whole numbers >= 1 whose count says how many spatial axes there are, as NNX's windows do.

    Raises:
        ValueError: for other numbers, and for a single one, which leaves the axes open.
    """
    given = _sequence(value)
    if given is None and _index(value) is not None:
        raise ValueError(f"{name}={value} is one number: give one for each spatial axis, such as ({value}, {value})")
    if not given:
        raise ValueError(f"{name} must be a whole number for each spatial axis, such as (2, 2), got {value!r}")
    return per_axis(name, given, len(given))


def _sequence(value: Any) -> tuple[Any, ...] | None:
    """The entries of a sequence or an array; None for a single value."""
    try:
        return tuple(value)
    except TypeError:
        return None


def _index(value: Any) -> int | None:
    # bool is an int to Python, but True is no size.
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def one_of(argument: str, value: Text, choices: Sequence[str]) -> Text:
    """The value of an argument that has to be one of some words; ValueError if it is none."""
    if value not in choices:
        raise ValueError(f"{argument} must be one of {', '.join(choices)}, got {value!r}")
    return value
