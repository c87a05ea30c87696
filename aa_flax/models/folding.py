"""Batch normalisation folded into the products before it: which ones, found in a trace, and with what numbers."""

from collections import Counter
from collections.abc import Iterator
from typing import Any, TypeVar

import jax
import jax.core
import jax.extend
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from aa_flax.models.batch_norm import BatchNorm, FrozenBatchNorm
from aa_flax.strided import unblurred

Path = tuple[Any, ...]
AnyModule = TypeVar("AnyModule", bound=nnx.Module)

_PRODUCT, _NORM, _BATCH = "aa_flax_product", "aa_flax_norm", "aa_flax_batch"
# A subclass that computes something else than these is not known to be linear, or to normalise each channel.
_PRODUCTS = {kind.__call__ for kind in (nnx.Conv, nnx.Linear)}
_NORMS = {kind.__call__ for kind in (nnx.BatchNorm, BatchNorm, FrozenBatchNorm)}


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
            # Arguments may ask for the statistics of the batch, which no weights stand for.
            name = _NORM if not (args or kwargs) else _BATCH
            return call(checkpoint_name(x, f"{name}{self.number}"), *args, **kwargs)
        return checkpoint_name(call(x, *args, **kwargs), f"{_PRODUCT}{self.number}")


def fold(model: AnyModule, example: Any) -> AnyModule:
    """The network with every normalisation folded that follows a product which nothing else sees.

    Args:
        model: it is used up; its variables may be traced or abstract.
        example: shape and dtype of an input.
    """
    layers: dict[Path, Any] = dict(nnx.iter_modules(model))
    pairs = _adjacent_pairs(model, example)
    pairs = {product: norm for product, norm in pairs.items() if _channels_agree(layers[product], layers[norm])}
    for product, norm in pairs.items():
        _take_in(layers[product], layers[norm])
    norms = set(pairs.values())
    return nnx.recursive_map(lambda path, node: Folded() if path in norms else node, model)


def _adjacent_pairs(model: nnx.Module, example: Any) -> dict[Path, Path]:
    """For the path of each product that can take a normalisation in, the path of that normalisation."""
    paths: list[Path] = []

    def watch(path: Path, node: Any) -> Any:
        # A blur before a product leaves it one; a blur behind it would lie between it and the normalisation.
        kind = type(node) if getattr(node, "output_blur", None) is not None else unblurred(type(node))
        product = isinstance(node, nnx.Conv | nnx.Linear) and kind.__call__ in _PRODUCTS
        norm = isinstance(node, nnx.BatchNorm) and type(node).__call__ in _NORMS
        if not (product or norm):
            return node
        paths.append(path)
        return _Watched(node, len(paths) - 1)

    watched: Any = nnx.recursive_map(watch, nnx.clone(model))
    watched.eval()
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
        if calls[product] == calls[norm] == 1 and not calls[norm.replace(_NORM, _BATCH)]
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
        if name is None or not name.startswith((_PRODUCT, _NORM, _BATCH)):
            continue
        calls[name] += 1
        if name.startswith(_PRODUCT):
            products[equation.outvars[0]] = name
        elif name.startswith(_NORM) and equation.invars[0] in products and uses[equation.invars[0]] == 1:
            pairs.append((products[equation.invars[0]], name))
    return pairs


def _channels_agree(product: Any, norm: nnx.BatchNorm) -> bool:
    """Whether the normalisation works on the product's channels, its last axis.

    Layers under ``nnx.vmap`` or ``nnx.scan`` hold their variables stacked, with an axis that is none of theirs.
    """
    return norm.axis == -1 and norm.mean.shape == product.kernel.shape[-1:] and product.kernel.ndim == _ndim(product)


def _ndim(product: Any) -> int:
    return 2 if isinstance(product, nnx.Linear) else len(product.kernel_size) + 2


def _take_in(product: Any, norm: nnx.BatchNorm) -> None:
    """Gives a convolution or linear layer the weights that make the normalisation after it the identity."""
    factor = _wide(norm.scale, 1) / (_wide(norm.var, 1) + norm.epsilon) ** 0.5
    bias = (_wide(product.bias, 0) - _wide(norm.mean, 0)) * factor + _wide(norm.bias, 0)
    kernel, dtype = _wide(product.kernel, 1) * factor, product.kernel.dtype
    # Variables of its own: other layers may share the ones it had.
    product.kernel = product.kernel.replace(jnp.asarray(kernel, dtype))
    product.bias = nnx.Param(jnp.asarray(bias, dtype))
    product.use_bias = True


def _wide(variable: Any, default: float) -> Any:
    """A variable's value in float64 on the host; while a network is traced there is none, and shapes are enough."""
    if variable is None:
        return np.float64(default)
    value = variable[...]
    return value if isinstance(value, jax.core.Tracer) else np.asarray(value, np.float64)
