"""Batch normalisation: accuracy of its one-pass statistics, derivatives of every order, sharding."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from aa_flax.models.abstract import abstract_model
from aa_flax.models.batch_norm import BatchNorm, FrozenBatchNorm


def _values(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    noise = rng.standard_normal(shape)
    if name == "large mean":
        return 100 + 0.01 * noise
    if name == "huge mean":
        return 1e4 + noise
    if name == "outliers where the rough mean looks":
        noise[:, 4::8, 4::8] += 50
    if name == "constant":
        noise[:] = 37.3
    return noise


@pytest.mark.parametrize(
    "name", ["standard", "large mean", "huge mean", "outliers where the rough mean looks", "constant"]
)
@pytest.mark.parametrize("group_size", [None, 4])
def test_statistics_are_those_of_float64(name, group_size):
    x = _values(name, (8, 17, 20, 3), np.random.default_rng(0)).astype(np.float32)
    groups = x.astype(np.float64).reshape(-1, group_size or len(x), *x.shape[1:])
    mean, var = groups.mean((1, 2, 3), keepdims=True), groups.var((1, 2, 3), keepdims=True)
    want = ((groups - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)
    bn = BatchNorm(3, group_size=group_size, rngs=nnx.Rngs(0))
    got = np.asarray(bn(jnp.asarray(x)), np.float64)
    # A mean of 1e4 is itself only known to half a unit in the last place, 5e-4 of a standard deviation.
    # The outliers put the rough mean five deviations off, the worst that values can do to this size of map.
    known = {"huge mean": 1e-3, "large mean": 1e-3, "constant": 1e-2, "outliers where the rough mean looks": 2e-4}
    tolerance = known.get(name, 2e-5)
    assert np.abs(got - want).max() < tolerance
    count = groups.size / len(groups) / 3
    running = 0.9 + 0.1 * var.mean(0).reshape(-1) * count / (count - 1)
    np.testing.assert_allclose(bn.var[...], running, rtol=1e-5)
    np.testing.assert_allclose(bn.mean[...], 0.1 * mean.mean(0).reshape(-1), rtol=1e-5, atol=1e-7)


def test_variance_keeps_its_digits_at_a_large_mean():
    x = _values("large mean", (64, 14, 14, 5), np.random.default_rng(1)).astype(np.float32)
    bn = BatchNorm(5, rngs=nnx.Rngs(0))
    *_, var = bn._batch_statistics(jnp.asarray(x))
    np.testing.assert_allclose(var.reshape(-1), x.astype(np.float64).var((0, 1, 2)), rtol=2e-5)


def _split(channels):
    graphdef, state = nnx.split(BatchNorm(channels, rngs=nnx.Rngs(0)))
    return graphdef, nnx.to_pure_dict(state)


def _two_pass(x, scale, bias):
    mean = x.mean((0, 1, 2))
    var = jnp.square(x - mean).mean((0, 1, 2))
    return (x - mean) / jnp.sqrt(var + 1e-5) * scale + bias


def test_derivatives_of_first_and_second_order_equal_the_textbook_form():
    rng = np.random.default_rng(2)
    x, v, w = (jnp.asarray(rng.standard_normal((4, 9, 10, 3)), jnp.float32) for _ in range(3))
    graphdef, state = _split(3)

    def ours(x):
        return jnp.sum(jnp.sin(nnx.merge(graphdef, state)(3 + 2 * x)) * w)

    def textbook(x):
        return jnp.sum(jnp.sin(_two_pass(3 + 2 * x, 1.0, 0.0)) * w)

    def second(f):
        return lambda x: jax.jvp(jax.grad(f), (x,), (v,))[1]

    for transform in (jax.grad, lambda f: lambda x: jax.jvp(f, (x,), (v,))[1], second):
        got, want = (np.asarray(jax.jit(transform(f))(x)) for f in (ours, textbook))
        assert np.abs(got - want).max() < 2e-4 * np.abs(want).max()


def test_a_sharded_batch_exchanges_statistics_and_nothing_larger():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    graphdef, state = _split(4)
    x = np.random.default_rng(3).standard_normal((16, 12, 12, 4), np.float32)

    def loss(state, x):
        return jnp.square(nnx.merge(graphdef, state)(x)).sum()

    compiled = jax.jit(jax.grad(loss, argnums=1), in_shardings=(None, sharding)).lower(state, x).compile()
    text = compiled.as_text()
    assert not re.search(r"all-gather|collective-permute|all-to-all", text)
    lines = [line for line in text.splitlines() if " all-reduce(" in line]
    reduced = [shape for line in lines for shape in re.findall(r"f32\[([\d,]*)\]", line)]
    assert reduced
    assert all(np.prod([int(n) for n in shape.split(",") if n]) <= 4 for shape in reduced)
    np.testing.assert_allclose(
        compiled(state, jax.device_put(x, sharding)), jax.grad(loss, argnums=1)(state, x), atol=1e-4
    )


@pytest.mark.parametrize(
    ("shape", "group_size", "words"),
    [
        ((1, 1, 1, 3), None, r"more than one value a channel, got a map \(1, 1, 1, 3\)"),
        ((1, 3), None, r"got a map \(1, 3\)"),
        ((4, 1, 1, 3), 1, r"more than one value a channel in each group of group_size=1, got a map \(4, 1, 1, 3\)"),
    ],
)
def test_one_value_a_channel_is_nothing_to_train_on(shape, group_size, words):
    bn = BatchNorm(3, group_size=group_size, rngs=nnx.Rngs(0))
    x = jnp.ones(shape)
    with pytest.raises(ValueError, match=words):
        bn(x)
    np.testing.assert_array_equal(bn.var[...], 1)
    # Evaluation takes it, and so do frozen statistics and any second value.
    assert bn(x, use_running_average=True).shape == shape
    assert FrozenBatchNorm(3, rngs=nnx.Rngs(0))(x).shape == shape
    assert bool(jnp.isfinite(bn(jnp.concatenate([x, x], -2))).all())


def test_a_network_says_so_in_training_and_works_otherwise():
    """32 pixels at a total stride of 32 leave one value a channel in the last stage."""
    model = abstract_model("resnet18", num_classes=2)
    image = jnp.ones((1, 32, 32, 3))
    model.train()
    with pytest.raises(ValueError, match=r"got a map \(1, 1, 1, 512\): take more or larger images"):
        nnx.eval_shape(lambda m, x: m(x), model, image)
    for again in (jnp.ones((2, 32, 32, 3)), jnp.ones((1, 64, 64, 3))):
        assert nnx.eval_shape(lambda m, x: m(x), model, again).shape == (len(again), 2)
    model.eval()
    assert nnx.eval_shape(lambda m, x: m(x), model, image).shape == (1, 2)
