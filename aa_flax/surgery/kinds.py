"""What the surgery recognises in a network, and how it names it."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from aa_flax import nn
from aa_flax.downsample import Downsample
from aa_flax.strided import BlurAfter, BlurBefore, BlurredConvolution, unblurred

Path = tuple[Any, ...]

_ACTIVATIONS = {
    jax.nn.celu,
    jax.nn.elu,
    jax.nn.gelu,
    jax.nn.hard_sigmoid,
    jax.nn.hard_silu,
    jax.nn.hard_tanh,
    jax.nn.leaky_relu,
    jax.nn.log_sigmoid,
    jax.nn.mish,
    jax.nn.relu,
    jax.nn.relu6,
    jax.nn.selu,
    jax.nn.sigmoid,
    jax.nn.silu,
    jax.nn.soft_sign,
    jax.nn.softplus,
    jax.nn.squareplus,
    jax.nn.tanh,
    jnp.tanh,
}
KEEPS_PLACE = (nnx.BatchNorm, nnx.LayerNorm, nnx.RMSNorm, nnx.GroupNorm, nnx.InstanceNorm, nnx.Dropout)
POOLS = {nnx.max_pool: nn.max_pool, nnx.avg_pool: nn.avg_pool}
BLURRED = (Downsample, BlurAfter, BlurBefore)


def children(node: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(node, nnx.Module):
        yield from [(k, v) for k, v in vars(node).items() if not k.startswith("_pytree__")]
    elif isinstance(node, Mapping):
        yield from list(node.items())
    elif isinstance(node, tuple | list):
        yield from enumerate(node)


def kernel_size(conv: nnx.Conv | nnx.ConvTranspose) -> tuple[int, ...]:
    """The window, one size for each spatial axis."""
    size = conv.kernel_size
    return (size,) if isinstance(size, int) else tuple(size)


def strides_of(conv: nnx.Conv | nnx.ConvTranspose) -> tuple[int, ...]:
    strides = conv.strides or 1
    return (strides,) * len(kernel_size(conv)) if isinstance(strides, int) else tuple(strides)


def has_own_call(conv: nnx.Conv) -> bool:
    return unblurred(type(conv)).__call__ is not nnx.Conv.__call__


def is_antialiased(conv: nnx.Conv) -> bool:
    return isinstance(conv.conv_general_dilated, BlurredConvolution)


def is_circular(conv: nnx.Conv) -> bool:
    return conv.padding == "CIRCULAR"


def is_pointwise(conv: nnx.Conv) -> bool:
    """Whether a convolution commutes with a blur before it: one tap and no padding."""
    return set(kernel_size(conv)) == {1} and conv.padding in ("SAME", "VALID", "CIRCULAR", 0)


def pool_of(value: Any) -> Any:
    """The pooling function inside nested partials, or None."""
    while isinstance(value, functools.partial):
        value = value.func
    return value if value in (*POOLS, nnx.min_pool) else None


def pool_arguments(value: functools.partial) -> dict[str, Any]:
    inner = pool_arguments(value.func) if isinstance(value.func, functools.partial) else {}
    return inner | value.keywords


def _by(numbers: Sequence[int]) -> str:
    return "x".join(map(str, numbers)) if len(set(numbers)) > 1 else str(numbers[0])


def describe(layer: Any) -> str:
    if isinstance(layer, nnx.Conv | nnx.ConvTranspose):
        size, stride = "x".join(map(str, kernel_size(layer))), _by(strides_of(layer))
        widths = f"{layer.in_features} to {layer.out_features}"
        return f"{type(layer).__name__} {size} stride {stride}, {widths}"
    if not isinstance(layer, functools.partial):
        return type(layer).__name__
    given = pool_arguments(layer)
    window, strides = given.get("window_shape", ()), given.get("strides") or (1,)
    return f"{pool_of(layer).__name__} {'x'.join(map(str, window)) or '?'} stride {_by(strides)}"


def is_activation(layer: Any) -> bool:
    if isinstance(layer, nnx.PReLU):
        return type(layer) is unblurred(type(layer))
    while isinstance(layer, functools.partial):
        layer = layer.func
    try:
        return layer in _ACTIVATIONS
    except TypeError:
        return False


def enlarges(conv: nnx.Conv) -> bool:
    dilation = conv.input_dilation or 1
    return max(dilation if isinstance(dilation, Sequence) else (dilation,)) > 1
