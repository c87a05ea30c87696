"""Networks without memory, to be filled from a file."""

import functools
from collections.abc import Collection
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx

from aa_flax.models.base import ModelSpec, Network
from aa_flax.models.create import build_model
from aa_flax.models.specs import resolve_spec
from aa_flax.models.variables import variables

Dtype = jax.typing.DTypeLike


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


def abstract_model(
    spec: str, *, dtype: Dtype = jnp.float32, param_dtype: Dtype = jnp.float32, **options: Any
) -> Network:
    """A network whose variables have shapes and types but no values; `fill` gives it some.

    Args:
        spec: the network, as for `create_model`.
        dtype: what layers compute and answer in.
        param_dtype: dtype of the parameters.
        **options: further arguments of `create_model`, except `rngs`.

    Raises:
        TypeError, ValueError: what `create_model` raises.
    """
    return build_abstract(resolve_spec(spec, **options), dtype=dtype, param_dtype=param_dtype)


def build_abstract(spec: ModelSpec, *, dtype: Dtype = jnp.float32, param_dtype: Dtype = jnp.float32) -> Network:
    """`abstract_model` for a resolved spec, as `build_model` is `create_model` for one."""
    graphdef, shapes = _traced(spec, dtype, param_dtype, jax.dtypes.canonicalize_dtype(float))
    return nnx.merge(graphdef, shapes)


@functools.lru_cache(maxsize=64)
def _traced(spec: ModelSpec, dtype: Dtype, param_dtype: Dtype, widest: Dtype) -> tuple[Any, Any]:
    """The network's static part and its shapes: tracing a deep one takes seconds, and loading and saving both do."""
    key = jax.random.key(0)
    model = nnx.eval_shape(lambda: build_model(spec, dtype=dtype, param_dtype=param_dtype, rngs=_as_rngs(key)))
    graphdef, state = nnx.split(model)
    return graphdef, nnx.to_pure_dict(state)


def fresh_values(
    spec: ModelSpec, paths: Collection[str], *, key: jax.Array, param_dtype: Dtype = jnp.float32
) -> dict[str, jax.Array]:
    """Initial values of some variables of a network; those of the others are never computed.

    Args:
        spec: the network.
        paths: paths of the variables.
        key: decides the values.
        param_dtype: dtype of the parameters.

    Returns:
        The values by path.
    """

    @jax.jit
    def draw(key: jax.Array) -> dict[str, jax.Array]:
        model = build_model(spec, param_dtype=param_dtype, rngs=_as_rngs(key))
        return {path: variable[...] for path, variable in variables(model).items() if path in paths}

    return draw(key)


def _as_rngs(key: jax.Array) -> nnx.Rngs:
    return cast(nnx.Rngs, HostKeys(key))
