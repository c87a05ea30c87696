"""The phases of a map, the grids that subsampling can keep, and a choice among them."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from aa_flax.downsample.base import Choice, pad
from aa_flax.dtypes import at_least_float32


def phases(x: jax.Array, axes: Sequence[int], strides: Sequence[int], end_pad_type: str) -> list[jax.Array]:
    """All grids of a map that take every stride-th sample, the last axis's first sample changing fastest.

    An axis that its stride does not divide is filled up at its end, so that every grid has `ceil(N / stride)` samples.
    """
    for axis, stride in zip(axes, strides, strict=True):
        x = pad(x, axis, 0, -x.shape[axis] % stride, end_pad_type)
    found = []
    for offsets in itertools.product(*map(range, strides)):
        phase = x
        for axis, offset, stride in zip(axes, offsets, strides, strict=True):
            phase = lax.slice_in_dim(phase, offset, None, stride, axis)
        found.append(phase)
    return found


def chosen(phases: Sequence[jax.Array], choice: Choice) -> jax.Array:
    """The phase that each example keeps, or the mixture of its phases.

    Raises:
        ValueError: if the choice was made for other strides or another batch.
    """
    parts = shares(choice, len(phases), phases[0].shape)
    if choice.weights is None:
        y = phases[0]
        for part, phase in zip(parts[1:], phases[1:], strict=True):
            y = jnp.where(part, phase, y)
        return y
    wide = at_least_float32(phases[0].dtype)
    y = jnp.zeros((), wide)
    for part, phase in zip(parts, phases, strict=True):
        y = y + part.astype(wide) * phase.astype(wide)
    return y.astype(phases[0].dtype)


def shares(choice: Choice, count: int, shape: Sequence[int]) -> list[jax.Array]:
    """What each of `count` phases of the given shape counts for, in a form that broadcasts against it: booleans where
    one phase is kept, weights where they are mixed."""
    batch = choice.batch
    if choice.count != count or batch != tuple(shape[: len(batch)]):
        raise ValueError(
            f"like was chosen among {choice.count} phases for a batch {batch}, the map has {count} of {tuple(shape)}"
        )
    ones = (1,) * (len(shape) - len(batch))
    if choice.weights is not None:
        return [weight.reshape(*batch, *ones) for weight in choice.weights]
    assert choice.index is not None
    index = choice.index.reshape(*batch, *ones)
    return [index == i for i in range(count)]
