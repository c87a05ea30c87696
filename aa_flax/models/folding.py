"""Batch normalisation folded into the products before it: which ones, found in a trace, and with what numbers."""

from typing import Any, TypeVar

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from flax import nnx

from aa_flax.models.batch_norm import BatchNorm, FrozenBatchNorm
from aa_flax.strided import unblurred
from aa_flax.tracing.flow import Flow
from aa_flax.tracing.program import TracedProgram, dotted, traced

AnyModule = TypeVar("AnyModule", bound=nnx.Module)

# A subclass that computes something else than these is not known to be linear, or to normalise each channel.
_PRODUCTS = {kind.__call__ for kind in (nnx.Conv, nnx.Linear)}
_NORMS = {kind.__call__ for kind in (nnx.BatchNorm, BatchNorm, FrozenBatchNorm)}


class Folded(nnx.Module):
    """Stands where a batch normalisation was: its work is done by the layer before it."""

    def __call__(self, x: jax.Array, use_running_average: bool | None = None, **kwargs: Any) -> jax.Array:
        return x


def fold(model: AnyModule, example: Any) -> AnyModule:
    """The network with every normalisation folded that follows a product which nothing else sees.

    Args:
        model: it is used up; its variables may be traced or abstract.
        example: shape and dtype of an input.
    """
    layers: dict[str, Any] = {dotted(path): layer for path, layer in nnx.iter_modules(model)}
    pairs = _adjacent_pairs(layers, traced(model, (jax.ShapeDtypeStruct(jnp.shape(example), example.dtype),)))
    pairs = {product: norm for product, norm in pairs.items() if _channels_agree(layers[product], layers[norm])}
    for product, norm in pairs.items():
        _take_in(layers[product], layers[norm])
    norms = set(pairs.values())
    return nnx.recursive_map(lambda path, node: Folded() if dotted(path) in norms else node, model)


def _adjacent_pairs(layers: dict[str, Any], program: TracedProgram) -> dict[str, str]:
    """For the path of each product that can take a normalisation in, the path of that normalisation."""
    flow = Flow(program)
    products = {path for path, layer in layers.items() if _is_product(layer)}
    pairs = {}
    for path, layer in layers.items():
        # Further arguments may ask for the statistics of the batch, which no weights stand for.
        if _is_norm(layer) and all(call.alone for call in program.calls.get(path, ())):
            product = flow.source(path, products)
            if product is not None:
                pairs[product] = path
    return pairs


def _is_product(layer: Any) -> bool:
    # A blur before a product leaves it one; a blur behind it would lie between it and the normalisation.
    kind = type(layer) if getattr(layer, "output_blur", None) is not None else unblurred(type(layer))
    return isinstance(layer, nnx.Conv | nnx.Linear) and kind.__call__ in _PRODUCTS


def _is_norm(layer: Any) -> bool:
    return isinstance(layer, nnx.BatchNorm) and type(layer).__call__ in _NORMS


def _channels_agree(product: Any, norm: nnx.BatchNorm) -> bool:
    """Whether the normalisation works on the product's channels, its last axis.

    Layers under `nnx.vmap` or `nnx.scan` hold their variables stacked, with an axis that is none of theirs.
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
