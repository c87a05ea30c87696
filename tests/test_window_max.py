"""The forms of the maximum over windows: the same values and gradients, bit for bit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import aa_flax
from aa_flax.plain_pooling import max_pool

# Window, stride and padding: ResNet's, DenseNet's, AlexNet's and one with unequal sides.
GEOMETRIES = [(2, 1, 0), (3, 1, 1), (3, 2, 0), ((3, 2), (1, 1), 1)]
RNG = np.random.default_rng(0)
# Whole numbers of a small range are full of ties.
MAP = RNG.integers(-2, 3, size=(2, 7, 6, 3)).astype(np.float32)
UNEQUAL = RNG.normal(size=MAP.shape).astype(np.float32)


def on(platform: str, function, *arguments):
    with aa_flax.traced_for(platform):
        return jax.device_get(jax.jit(function)(*arguments))


def loss(x: jax.Array, geometry=GEOMETRIES[0]) -> jax.Array:
    y = max_pool(x, *geometry)
    # Unequal weights: each window's share of the gradient can be told from the others'.
    return (jnp.sin(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape) * y**2).sum()


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_equal_bit_for_bit_with_ties_and_nan(geometry, dtype):
    x = jnp.asarray(MAP, dtype).at[0, 2, 3, 0].set(jnp.nan).at[1, 4, 1].set(jnp.inf)

    def both(x, tangent):
        y, moved = jax.jvp(lambda x: max_pool(x, *geometry), (x,), (tangent,))
        _, pull = jax.vjp(lambda x: max_pool(x, *geometry), x)
        (back,) = pull(jnp.sin(jnp.arange(y.size, dtype=dtype)).reshape(y.shape))
        return y, moved, back

    answers = (on(platform, both, x, jnp.asarray(UNEQUAL, dtype)) for platform in ("cpu", "tpu"))
    # numpy takes NaN for equal to NaN in its own types only.
    wanted, got = (jax.tree.map(lambda y: y.astype(np.float32), answer) for answer in answers)
    assert np.isnan(wanted[0]).any()
    assert wanted[2].any()
    jax.tree.map(np.testing.assert_array_equal, got, wanted)


def test_each_platform_has_its_form():
    for platform, has, lacks in (("tpu", "reduce_window_max", "select_n"), ("cuda", "select_n", "reduce_window_max")):
        with aa_flax.traced_for(platform):
            program = str(jax.make_jaxpr(lambda x: max_pool(x, 2, 1))(MAP))
        assert has in program
        assert lacks not in program


TRANSFORMS = {
    "grad of vmap": lambda x: jax.grad(lambda x: jax.vmap(loss)(x[:, None]).sum())(x),
    "vmap of grad": lambda x: jax.vmap(jax.grad(loss))(x[:, None]),
    "remat": jax.grad(jax.checkpoint(loss)),
    "curvature": lambda x: jax.jvp(jax.grad(loss), (x,), (x,))[1],
    "curvature backward": jax.grad(lambda x: (jax.grad(loss)(x) ** 2).sum()),
    "scan": jax.grad(lambda x: jax.lax.scan(lambda total, one: (total + loss(one[None]), None), 0.0, x)[0]),
}


@functools.cache
def transformed(platform: str):
    return on(platform, lambda x: {name: transform(x) for name, transform in TRANSFORMS.items()}, MAP)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms(name):
    assert transformed("cpu")[name].any()
    np.testing.assert_allclose(transformed("tpu")[name], transformed("cpu")[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.int32])
def test_whole_numbers_are_padded_by_their_least(dtype):
    x = jnp.full((1, 3, 3, 1), jnp.iinfo(dtype).min, dtype).at[0, 0, 0, 0].set(-5)
    wanted, got = (on(platform, lambda x: max_pool(x, 2, 1, 1), x) for platform in ("cpu", "tpu"))
    np.testing.assert_array_equal(got, wanted)
    assert got[0, 0, 0, 0] == -5
    assert got[0, -1, -1, 0] == jnp.iinfo(dtype).min


@pytest.mark.every_platform
def test_one_export_for_all_platforms_and_batches():
    (batch,) = jax.export.symbolic_shape("n")
    x = jax.ShapeDtypeStruct((batch, *MAP.shape[1:]), jnp.float32)
    exported = jax.export.export(jax.jit(jax.grad(lambda x: max_pool(x, 2, 1).sum())), platforms=("cpu", "cuda", "tpu"))
    np.testing.assert_array_equal(exported(x).call(MAP), jax.grad(lambda x: max_pool(x, 2, 1).sum())(MAP))


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_a_window_larger_than_the_map_is_refused(platform):
    with pytest.raises(ValueError, match="pooling window of 8 is larger than axis"):
        on(platform, lambda x: max_pool(x, 8, 1), MAP)
