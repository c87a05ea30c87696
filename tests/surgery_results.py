"""What the surgery did to a foreign network, in a form to compare."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import aa_flax
from tests.foreign_networks import with_values
from tests.foreign_zoo import AvgPool2D, MaxPool2D

UNSEEN = "blur before the strided convolution: where its activation is cannot be seen"
REPLACE = {
    MaxPool2D: lambda pool: aa_flax.nn.MaxBlurPool((pool.window,) * 2, (pool.stride,) * 2),
    AvgPool2D: lambda pool: aa_flax.nn.AvgBlurPool((pool.window,) * 2, (pool.stride,) * 2),
}
REPLACE_MAXIMA = {MaxPool2D: REPLACE[MaxPool2D]}


@functools.cache
def network(build: Callable[..., nnx.Module]) -> nnx.Module:
    model = with_values(lambda: build(nnx.Rngs(0)))
    model.eval()
    return model


def picture(size: int = 32, channels: int = 3) -> jax.Array:
    return jnp.asarray(np.random.default_rng(3).normal(size=(1, size, size, channels)), jnp.float32)


def strides(model: nnx.Module, x: jax.Array) -> list[tuple[str, int]]:
    return [(s.module, max(s.stride)) for s in aa_flax.find_strided(model, x)]


def changed(report: aa_flax.SurgeryReport) -> dict[str, str]:
    return {c.path: c.detail for c in report.antialiased}


def shapes(model: nnx.Module) -> dict[tuple, tuple]:
    return {path: leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(model, graph=True))}


def close(a, b) -> None:
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
