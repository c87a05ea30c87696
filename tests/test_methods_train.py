"""Every way to subsample learns: the loss on the digits falls, with the gradient of what the method itself learns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sklearn.datasets import load_digits

from aa_flax.downsample import METHODS
from aa_flax.models.layers import Builder, subsample

IMAGES, UPDATES = 64, 40


class Small(nnx.Module):
    """Convolution, subsampling, convolution, mean."""

    def __init__(self, downsample: str, rngs: nnx.Rngs):
        build = Builder(
            filter_size=3,
            pad_type="circular",
            downsample=downsample,
            circular=True,
            dtype=jnp.float32,
            param_dtype=jnp.float32,
            rngs=rngs,
        )
        self.conv1, self.bn1, self.blur = build.conv(1, 8, 3), build.bn(8), build.blur(8)
        self.conv2, self.bn2, self.fc = build.conv(8, 16, 3), build.bn(16), build.linear(16, 10)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs) -> jax.Array:
        x = subsample(self.blur, jax.nn.relu(self.bn1(self.conv1(x))), rngs)
        return self.fc(jax.nn.relu(self.bn2(self.conv2(x))).mean((1, 2)))


@functools.cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    images, labels = load_digits(return_X_y=True)
    return images[:IMAGES].reshape(-1, 8, 8, 1).astype(np.float32) / 16, labels[:IMAGES]


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_falls(method):
    graphdef, params, rest = nnx.split(Small(method, nnx.Rngs(0)), nnx.Param, ...)
    images, labels = digits()

    def loss(params, rest, key):
        model = nnx.merge(graphdef, params, rest, copy=True)
        chances = jax.nn.log_softmax(model(images, nnx.Rngs(dropout=key)))
        return -chances[jnp.arange(len(labels)), labels].mean(), nnx.state(model, nnx.Not(nnx.Param))

    @jax.jit
    def update(params, rest, slope, key):
        (value, rest), gradient = jax.value_and_grad(loss, has_aux=True)(params, rest, key)
        slope = jax.tree.map(lambda m, g: 0.9 * m + g, slope, gradient)
        return jax.tree.map(lambda p, m: p - 0.2 * m, params, slope), rest, slope, value

    trained, slope, losses = params, jax.tree.map(jnp.zeros_like, params), []
    for key in jax.random.split(jax.random.key(0), UPDATES):
        trained, rest, slope, value = update(trained, rest, slope, key)
        losses.append(float(value))
    assert np.mean(losses[-3:]) < 0.8 * losses[0]
    own = nnx.state(nnx.merge(graphdef, trained, rest).blur, nnx.Param)
    before = nnx.state(nnx.merge(graphdef, params, rest).blur, nnx.Param)
    changed = jax.tree.map(lambda one, other: bool(jnp.any(one != other)), own, before)
    assert all(jax.tree.leaves(changed))
    assert bool(jax.tree.leaves(changed)) == METHODS[method].has_parameters
