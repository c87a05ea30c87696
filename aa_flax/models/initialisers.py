"""Initial values: those of `jax.nn.initializers` but for rounding, drawn by few compiled programs."""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

Initialiser = Callable[..., jax.Array]
# Shorter draws cost no less, and twice as many numbers as wanted are too many for the kernels of a VGG.
_LEAST_DRAW, _MOST_SHARED = 2**16, 2**24


def normal(stddev: float) -> Initialiser:
    """Normal values around zero with a given standard deviation."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32, **kwargs: Any) -> jax.Array:
        return _scaled(jax.random.normal, np.asarray(stddev, dtype), key, shape, dtype, **kwargs)

    return init


def _he_normal(mode: Literal["fan_in", "fan_out"]) -> Initialiser:
    """Untruncated normal values of variance 2 / fan (He et al. 2015), for kernels (spatial..., in, out)."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32, **kwargs: Any) -> jax.Array:
        variance = np.asarray(2 / _fan(shape, mode), dtype)
        return _scaled(jax.random.normal, np.sqrt(variance), key, shape, dtype, **kwargs)

    return init


# Zhang 2019 trains from torchvision's initial values: over the outputs, but for DenseNet.
he_fan_in, he_fan_out = _he_normal("fan_in"), _he_normal("fan_out")


def torch_default(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32, **kwargs: Any) -> jax.Array:
    """PyTorch's default for kernels of convolutions and linear layers: U(+-1/sqrt(fan_in))."""
    # The variance is 1 / (3 fan_in); the roundings are those of JAX's own initialiser.
    variance = np.asarray(1 / 3 / _fan(shape, "fan_in"), dtype)
    draw = functools.partial(jax.random.uniform, minval=-1)
    return _scaled(draw, np.sqrt(3 * variance), key, shape, dtype, **kwargs)


def torch_default_bias(fan_in: int) -> Initialiser:
    """PyTorch's default bias, U(+-1/sqrt(fan_in)); `fan_in` counts the inputs of one output."""
    bound = fan_in**-0.5
    draw = functools.partial(jax.random.uniform, minval=-bound, maxval=bound)

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32, **kwargs: Any) -> jax.Array:
        return _scaled(draw, np.ones((), dtype), key, shape, dtype, **kwargs)

    return init


def _fan(shape: tuple[int, ...], mode: str) -> int:
    return math.prod(shape[:-2]) * shape[-2 if mode == "fan_in" else -1]


def _scaled(
    draw: Initialiser, scale: np.ndarray, key: jax.Array, shape: tuple[int, ...], dtype: Any, **kwargs: Any
) -> jax.Array:
    """`draw(key, shape, dtype) * scale`.

    Every shape would have a program of its own, a third of a second each to compile: ten seconds for a new network.
    Number i of a Threefry draw depends on the key and on i alone, so that the beginning of a longer draw is the
    shorter one, and the programs of a few lengths serve all shapes. Where numbers are drawn on the host, it also takes
    the beginning, without a program.
    """
    size = math.prod(shape)
    if kwargs or size > _MOST_SHARED or isinstance(key, Tracer) or not _counts_numbers(key):
        return draw(key, shape, dtype, **kwargs) * scale
    # Powers of four: 3x3 kernels between as many channels take as many numbers as with powers of two.
    longer = draw(key, (max(_LEAST_DRAW, 4 ** math.ceil((size - 1).bit_length() / 2)),), dtype)
    if longer.committed or {device.platform for device in longer.devices()} != {"cpu"}:
        return _beginning(longer, scale, shape)
    return jnp.asarray(np.asarray(longer)[:size].reshape(shape) * scale)


def _counts_numbers(key: jax.Array) -> bool:
    partitionable: bool = jax.config.jax_threefry_partitionable  # pyright: ignore[reportAttributeAccessIssue]
    return partitionable and "threefry2x32" in str(jax.random.key_impl(key))


@functools.partial(jax.jit, static_argnums=2)
def _beginning(draws: jax.Array, scale: np.ndarray, shape: tuple[int, ...]) -> jax.Array:
    return draws[: math.prod(shape)].reshape(shape) * scale
