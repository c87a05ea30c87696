"""Networks made ready for inference: batch normalisation folded into the convolutions before it."""

from collections import Counter
from collections.abc import Iterator
from typing import Any, TypeVar

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

Path = tuple[Any, ...]
AnyModule = TypeVar("AnyModule", bound=nnx.Module)

_PRODUCT, _NORM = "aa_flax_product", "aa_flax_norm"


class Folded(nnx.Module):
    """Stands where a batch normalisation was: its work is done by the layer before it."""

    def __call__(self, x: jax.Array, use_running_average: bool | None = None, **kwargs: Any) -> jax.Array:
        return x


class _Watched(nnx.Module):
    """A layer whose output (of a product) or input (of a normalisation) carries the layer's number in the trace."""

    def __init__(self, layer: nnx.Module, number: int):
        self.layer, self.number = layer, number

    def __call__(self, x: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        call: Any = self.layer
        if isinstance(self.layer, nnx.BatchNorm):
            return call(checkpoint_name(x, f"{_NORM}{self.number}"), *args, **kwargs)
        return checkpoint_name(call(x, *args, **kwargs), f"{_PRODUCT}{self.number}")


def fold_batchnorm(
    model: AnyModule,
    *,
    param_dtype: jax.typing.DTypeLike | None = None,
    example: jax.typing.ArrayLike | jax.ShapeDtypeStruct | None = None,
) -> AnyModule:
    """A copy of a network for inference, with every batch normalisation that follows a product folded into it.

    ``BN(conv(x))`` with running statistics is a convolution with other weights and a bias. What may be folded is
    read from a trace of the network, not from names: a normalisation whose input is the output of one
    ``nnx.Conv`` or ``nnx.Linear`` that nothing else uses. Others, such as the ones before DenseNet's 1x1
    convolutions, stay. The network is not changed.

    Args:
        model: any NNX module; those of :func:`aa_flax.create_model` need no ``example``.
        param_dtype: dtype of all parameters of the copy, such as bfloat16 for a network that computes in it, so
            that no call has to convert them; None keeps each one's. The folding itself runs in float64 on the host.
        example: an input of the network, or its shape and dtype: only these are looked at.

    Returns:
        The copy in evaluation mode. :meth:`train` cannot bring the folded normalisations back.

    Raises:
        TypeError: if ``model`` is no NNX module.
        ValueError: if ``example`` is missing for a network that is not the library's own.
    """
    if not isinstance(model, nnx.Module):
        raise TypeError(f"fold_batchnorm takes a flax.nnx.Module, got {type(model).__name__}")
    if example is None:
        spec = getattr(model, "spec", None)
        if spec is None:
            raise ValueError("fold_batchnorm needs example=, an input of the network, or its shape and dtype")
        example = jax.ShapeDtypeStruct((1, 224, 224, spec.in_channels), jnp.float32)
    folded = nnx.clone(model)
    folded.eval()
    layers: dict[Path, Any] = dict(nnx.iter_modules(folded))
    pairs = _foldable(folded, example)
    for product, norm in pairs.items():
        _fold(layers[product], layers[norm])
    norms = set(pairs.values())
    folded = nnx.recursive_map(lambda path, node: Folded() if path in norms else node, folded)
    if param_dtype is not None:
        params = nnx.state(folded, nnx.Param)
        nnx.update(folded, jax.tree.map(lambda p: p.astype(param_dtype), params))
    return folded


def _foldable(model: nnx.Module, example: Any) -> dict[Path, Path]:
    """For the path of each product that can take a normalisation in, the path of that normalisation."""
    paths: list[Path] = []

    def watch(path: Path, node: Any) -> Any:
        if not isinstance(node, nnx.Conv | nnx.Linear | nnx.BatchNorm):
            return node
        paths.append(path)
        return _Watched(node, len(paths) - 1)

    watched: Any = nnx.recursive_map(watch, nnx.clone(model))
    shape = jax.ShapeDtypeStruct(jnp.shape(example), example.dtype)
    # Merged inside the trace: transforms of NNX within the network may only touch what belongs to it.
    graphdef, state = nnx.split(watched)
    jaxpr = jax.make_jaxpr(lambda state, x: nnx.merge(graphdef, state)(x))(nnx.to_pure_dict(state), shape).jaxpr
    found: list[tuple[str, str]] = []
    calls: Counter[str] = Counter()
    for part in _all_jaxprs(jaxpr):
        found += _adjacent(part, calls)
    return {
        paths[int(product.removeprefix(_PRODUCT))]: paths[int(norm.removeprefix(_NORM))]
        for product, norm in found
        if calls[product] == calls[norm] == 1
    }


def _all_jaxprs(jaxpr: Any) -> Iterator[Any]:
    yield jaxpr
    for equation in jaxpr.eqns:
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            if hasattr(value, "eqns"):
                yield from _all_jaxprs(getattr(value, "jaxpr", value))


def _adjacent(jaxpr: Any, calls: Counter[str]) -> list[tuple[str, str]]:
    """Names of products and of the normalisations that are the only ones to use them; counts the calls of each."""
    variables = [v for equation in jaxpr.eqns for v in equation.invars] + list(jaxpr.outvars)
    uses = Counter(v for v in variables if not isinstance(v, jax.extend.core.Literal))
    products, pairs = {}, []
    for equation in jaxpr.eqns:
        name = equation.params.get("name") if equation.primitive.name == "name" else None
        if name is None or not name.startswith((_PRODUCT, _NORM)):
            continue
        calls[name] += 1
        if name.startswith(_PRODUCT):
            products[equation.outvars[0]] = name
        elif equation.invars[0] in products and uses[equation.invars[0]] == 1:
            pairs.append((products[equation.invars[0]], name))
    return pairs


def _fold(product: Any, norm: nnx.BatchNorm) -> None:
    """Gives a convolution or linear layer the weights that make the normalisation after it the identity."""

    def wide(variable: Any, default: float) -> np.ndarray:
        return np.asarray(default if variable is None else variable[...], np.float64)

    kernel = product.kernel[...]
    factor = wide(norm.scale, 1) / np.sqrt(wide(norm.var, 1) + norm.epsilon)
    bias = (wide(product.bias, 0) - wide(norm.mean, 0)) * factor + wide(norm.bias, 0)
    product.kernel[...] = jnp.asarray(np.asarray(kernel, np.float64) * factor, kernel.dtype)
    product.bias = nnx.Param(jnp.asarray(bias, kernel.dtype))
    product.use_bias = True
