"""What a mesh with Explicit axes, JAX's default, asks of the layers: there an array's type says how it is cut."""

import contextlib
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec


def require_whole(x: jax.Array, axes: Iterable[int]) -> None:
    """ValueError if one of the axes is cut over devices by its type.

    Windows reach over such a cut, and on Explicit axes nothing moves between devices unless it is asked for. On Auto
    axes the type says nothing of a cut, and XLA exchanges what the windows need.
    """
    spec, axes = jax.typeof(x).sharding.spec, tuple(axes)
    cut = [axis for axis in axes if spec[axis] is not None]
    if cut:
        kept = tuple(None if axis in axes else names for axis, names in enumerate(spec))
        raise ValueError(
            f"axis {cut[0]} of {jax.typeof(x)} is cut over devices: bring it together first, "
            f"x = jax.sharding.reshard(x, jax.P{kept})"
        )


def take_rows(x: Any, rows: np.ndarray) -> Any:
    """`x[rows]` of any array; one that is cut along its rows on Explicit axes stays so where the rows divide."""
    if not isinstance(x, jax.Array) or jax.typeof(x).sharding.spec[0] is None:
        return x[rows]
    sharding = jax.typeof(x).sharding
    cuts = x.shape[0] // sharding.shard_shape(x.shape)[0]
    names = None if len(rows) % cuts else sharding.spec[0]
    return x.at[rows].get(out_sharding=NamedSharding(sharding.mesh, PartitionSpec(names)))


def within_mesh_of(x: jax.Array) -> contextlib.AbstractContextManager[Any]:
    """The mesh that the type of `x` is cut over, for operations that ask which one it is: newer JAX's slices do."""
    sharding = jax.typeof(x).sharding
    if all(names is None for names in sharding.spec):
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(sharding.mesh)


def cut_alike(x: jax.Array, like: jax.Array) -> jax.Array:
    """`x`, on Explicit axes with its first axis cut over devices as that of `like` is."""
    sharding = jax.typeof(like).sharding
    if sharding.spec[0] is None:
        return x
    return jax.sharding.reshard(x, NamedSharding(sharding.mesh, PartitionSpec(sharding.spec[0])))
