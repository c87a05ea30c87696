"""Initial values against JAX's own initialisers, and the few programs that draw them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.nn import initializers

from aa_flax.models import initialisers

PAIRS = {
    "he_fan_in": (initialisers.he_fan_in, initializers.variance_scaling(2.0, "fan_in", "normal")),
    "he_fan_out": (initialisers.he_fan_out, initializers.variance_scaling(2.0, "fan_out", "normal")),
    "normal": (initialisers.normal(0.01), initializers.normal(0.01)),
    "torch_default": (initialisers.torch_default, initializers.variance_scaling(1 / 3, "fan_in", "uniform")),
}
# Few and many numbers, one more than a power of two.
SHAPES = [(1, 1), (3, 5), (3, 3, 24, 304), (1, 65537), (5, 5, 7, 11)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", PAIRS)
def test_values_are_those_of_jax(name, dtype):
    ours, theirs = PAIRS[name]
    for number, shape in enumerate(SHAPES):
        key = jax.random.key(number)
        values, expected = ours(key, shape, dtype), theirs(key, shape, jnp.dtype(dtype))
        assert values.dtype == expected.dtype == dtype
        # Programs for other lengths may round the last bit differently.
        values, expected = np.asarray(values, np.float64), np.asarray(expected, np.float64)
        np.testing.assert_allclose(values, expected, rtol=2 * float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg"])
def test_traced_and_eager_values_agree(implementation):
    key = jax.random.key(5, impl=implementation)
    for init in (initialisers.torch_default, initialisers.torch_default_bias(9), initialisers.normal(2.0)):
        for shape in SHAPES:
            eager, traced = init(key, shape), jax.jit(init, static_argnums=1)(key, shape)
            # Fused, a product and a sum may round once instead of twice.
            np.testing.assert_allclose(eager, traced, rtol=3e-7, atol=1e-7)


def test_old_style_keys_are_taken():
    init = initialisers.he_fan_in
    np.testing.assert_array_equal(init(jax.random.PRNGKey(3), (3, 3, 4, 8)), init(jax.random.key(3), (3, 3, 4, 8)))


def test_the_bias_fills_its_bounds():
    values = np.asarray(initialisers.torch_default_bias(16)(jax.random.key(0), (4096,)))
    assert -0.25 <= values.min() < -0.249
    assert 0.249 < values.max() < 0.25


def test_shapes_share_programs(monkeypatch):
    """A network has dozens of shapes, and the programs that draw are what takes long to compile."""
    asked = []
    draw = jax.random.normal

    def recorded(key, shape, dtype):
        asked.append(shape)
        return draw(key, shape, dtype)

    monkeypatch.setattr(jax.random, "normal", recorded)
    for width in range(8, 16):
        initialisers.he_fan_in(jax.random.key(width), (3, 3, width, width))
    assert len(asked) == 8
    assert len(set(asked)) == 1
