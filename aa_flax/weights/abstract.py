"""Networks without memory, to be filled from a file."""

from collections.abc import Collection
from typing import Any, cast

import jax
from flax import nnx

from aa_flax.models.base import Network
from aa_flax.models.registry import create_model
from aa_flax.weights.variables import variables


class HostKeys:
    """Stands in for `nnx.Rngs` while a network is traced.

    `nnx.Rngs` counts its keys in an array. Counting under a trace costs time that grows with the square of the number
    of layers (ten seconds for DenseNet-201); here the count is a Python number.

    Args:
        key: the key that all keys derive from.
    """

    def __init__(self, key: jax.Array):
        self._key, self._count = key, 0

    def params(self) -> jax.Array:
        """The next key."""
        self._count += 1
        return jax.random.fold_in(self._key, self._count)


def abstract_model(spec: str, **options: Any) -> Network:
    """A network whose variables have shapes and types but no values; `fill` gives it some.

    Args:
        spec: the network, as for `create_model`.
        **options: further arguments of `create_model`, except `rngs`.

    Raises:
        TypeError, ValueError: what `create_model` raises.
    """
    key = jax.random.key(0)
    return nnx.eval_shape(lambda: create_model(spec, rngs=_as_rngs(key), **options))


def fresh_values(spec: str, paths: Collection[str], *, key: jax.Array, **options: Any) -> dict[str, jax.Array]:
    """Initial values of some variables of a network; those of the others are never computed.

    Args:
        spec: the network, as for `create_model`.
        paths: paths of the variables.
        key: decides the values.
        **options: further arguments of `create_model`, except `rngs`.

    Returns:
        The values by path.
    """

    @jax.jit
    def draw(key: jax.Array) -> dict[str, jax.Array]:
        model = create_model(spec, rngs=_as_rngs(key), **options)
        return {path: variable[...] for path, variable in variables(model).items() if path in paths}

    return draw(key)


def _as_rngs(key: jax.Array) -> nnx.Rngs:
    return cast(nnx.Rngs, HostKeys(key))
