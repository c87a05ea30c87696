"""Learnable polyphase sampling: its head by definition, its two modes, its shortcut, and its place in networks."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import errors, nnx

import aa_flax
from aa_flax.downsample import Choice, LearnablePolyphase
from aa_flax.models.abstract import abstract_model
from aa_flax.models.variables import variables
from tests.foreign_networks import with_values

CORNERS = list(itertools.product(range(2), repeat=2))
TINY = {"num_classes": 3, "depths": (1, 1, 1, 1), "downsample": "lps"}
BLURS = tuple(f"layer{stage}.0.blur" for stage in (2, 3, 4))
CIRCULAR = {"pad_type": "circular", "circular": True, "pool_only": False}


def values(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def made(channels: int = 5, filter_size: int = 3, **options) -> LearnablePolyphase:
    return with_values(lambda: LearnablePolyphase(channels, filter_size, rngs=nnx.Rngs(0), **options))


def phases(x: jax.Array) -> np.ndarray:
    x = np.asarray(x)
    return np.stack([x[:, i::2, j::2] for i, j in CORNERS])


def circular_conv(x: np.ndarray, conv: nnx.Conv) -> np.ndarray:
    """A 3x3 convolution in float64."""
    kernel = np.asarray(conv.kernel[...], np.float64)
    taps = itertools.product(range(3), repeat=2)
    y = sum(np.roll(x, (1 - i, 1 - j), (1, 2)) @ kernel[i, j] for i, j in taps)
    return y if conv.bias is None else y + np.asarray(conv.bias[...], np.float64)


def logits(layer: LearnablePolyphase, x: jax.Array) -> np.ndarray:
    """Of each phase and example: convolution, ReLU, convolution, mean."""
    blurred = np.asarray(aa_flax.blur_pool(x, layer.filter_size, 1, layer.pad_type), np.float64)
    features = [np.maximum(circular_conv(phase, layer.conv1), 0) for phase in phases(blurred)]
    return np.stack([circular_conv(each, layer.conv2).mean((1, 2, 3)) for each in features])


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x - x.max(0)) / np.exp(x - x.max(0)).sum(0)


@pytest.mark.parametrize("hidden", [None, 7])
def test_the_head_by_definition(hidden):
    layer, x = made(mode="convex", hidden=hidden), values(6, 8, 6, 5)
    layer.temperature[...] = jnp.float32(0.05)
    want = softmax(logits(layer, x) / 0.05)
    choice = jax.jit(layer.choose)(x)
    np.testing.assert_allclose(choice.weights, want, atol=1e-4)
    mixed = (want[..., None, None, None] * phases(aa_flax.blur_pool(x, 3, 1, "circular"))).sum(0)
    np.testing.assert_allclose(layer(x), mixed, atol=1e-4)
    np.testing.assert_allclose(layer(x), layer(x, choice), atol=1e-6)
    layer.eval()
    np.testing.assert_allclose(layer(x), mixed, atol=1e-4)


def test_evaluation_keeps_the_phase_with_the_largest_logit():
    layer, x = made(), values(16, 8, 6, 5)
    layer.eval()
    want = logits(layer, x).argmax(0)
    assert len(set(want)) > 1
    np.testing.assert_array_equal(layer.choose(x).index, want)
    kept = phases(aa_flax.blur_pool(x, 3, 1, "circular"))[want, np.arange(16)]
    np.testing.assert_array_equal(layer(x), kept)
    with pytest.raises(ValueError, match=r"chosen among 4 phases for a batch \(3,\), the map has 4 of"):
        layer(x, layer.choose(x[:3]))


def test_training_mixes_by_a_gumbel_softmax():
    """As often as the softmax says, the mixture is nearly one phase; its weights are the formula's."""
    layer, x = made(), values(1, 4, 4, 5)
    many = jnp.broadcast_to(x, (4000, *x.shape[1:]))
    layer.temperature[...] = jnp.float32(1e-3)
    weights = layer.choose(many, rngs=nnx.Rngs(dropout=1)).weights
    counts = np.bincount(np.asarray(weights).argmax(0), minlength=4)
    np.testing.assert_allclose(counts / 4000, softmax(logits(layer, x))[:, 0], atol=0.03)
    assert float(jnp.mean(weights.max(0) > 0.99)) > 0.95
    layer.temperature[...] = jnp.float32(0.7)
    noise = jax.random.gumbel(nnx.Rngs(dropout=1).dropout(), (4, 4000), jnp.float32)
    want = softmax((logits(layer, x) + np.asarray(noise, np.float64)) / 0.7)
    np.testing.assert_allclose(layer.choose(many, rngs=nnx.Rngs(dropout=1)).weights, want, atol=1e-4)


def test_the_head_learns():
    layer, x = made(), values(4, 6, 6, 5)
    graphdef, params, rest = nnx.split(layer, nnx.Param, ...)

    def loss(params):
        layer = nnx.merge(graphdef, params, rest, copy=True)
        return jnp.square(layer(x, layer.choose(x, rngs=nnx.Rngs(0)))).mean()

    gradient = nnx.to_pure_dict(jax.grad(loss)(params))
    assert {name: sorted(each) for name, each in gradient.items()} == {"conv1": ["bias", "kernel"], "conv2": ["kernel"]}
    assert all(float(jnp.abs(each).max()) > 0 for each in jax.tree.leaves(gradient))


def test_noise_comes_as_for_dropout():
    x = values(2, 4, 4, 5)
    with pytest.raises(ValueError, match=r"draws noise in training: call the network with rngs="):
        made()(x)
    own = LearnablePolyphase(5, noise=nnx.Rngs(dropout=3), rngs=nnx.Rngs(0))
    first, second = own.choose(x).weights, own.choose(x).weights
    assert float(jnp.abs(first - second).max()) > 1e-3
    evaluated = nnx.view(own, deterministic=True)
    assert evaluated.choose(x).index is not None
    assert own.choose(x).index is None
    with pytest.raises(ValueError, match="mode must be one of gumbel, convex, got 'hard'"):
        LearnablePolyphase(5, mode="hard", rngs=nnx.Rngs(0))


@pytest.mark.parametrize("train", [True, False])
def test_shortcuts_follow(train):
    """A layer without a head takes its phases, or its mixture, as another path has chosen."""
    layer, follower = made(), LearnablePolyphase(2, follows=True, rngs=nnx.Rngs(0))
    layer.train() if train else layer.eval()
    assert not variables(follower)
    x, other = values(3, 6, 4, 5), values(3, 6, 4, 2)
    choice = layer.choose(x, rngs=nnx.Rngs(0))
    weights = np.eye(4)[choice.index].T if choice.weights is None else choice.weights
    want = np.einsum("pn,pnhwc->nhwc", weights, phases(other))
    np.testing.assert_allclose(follower(other, choice), want, atol=1e-6)
    with pytest.raises(ValueError, match="follows another path's choice: give it that as like"):
        follower(other)


def test_other_shapes():
    """Sequences, volumes, strides of each axis, sizes that these do not divide, several axes of batch."""

    def applied(x, mode, **options):
        layer = LearnablePolyphase(3, rngs=nnx.Rngs(0), **options)
        getattr(layer, mode)()
        choice = layer.choose(x, rngs=nnx.Rngs(0))
        return layer(x, choice), choice

    for shape, stride, dims in [((2, 7, 3), 2, 1), ((2, 4, 5, 6, 3), (1, 2, 3), 3), ((2, 2, 6, 9, 3), (3, 2), 2)]:
        for mode in ("train", "eval"):
            call = functools.partial(
                applied, mode=mode, filter_size=3, stride=stride, spatial_dims=dims, pad_type="reflect"
            )
            y, choice = jax.eval_shape(call, jax.ShapeDtypeStruct(shape, jnp.float32))
            strides = stride if isinstance(stride, tuple) else (stride,) * dims
            small = tuple(-(-n // s) for n, s in zip(shape[-1 - dims : -1], strides, strict=True))
            assert y.shape == (*shape[: -1 - dims], *small, 3)
    half = functools.partial(applied, mode="train", dtype=jnp.bfloat16)
    y, choice = jax.eval_shape(half, jax.ShapeDtypeStruct((2, 4, 4, 3), jnp.bfloat16))
    assert (y.dtype, choice.weights.dtype) == (jnp.bfloat16, jnp.float32)
    assert len(jax.tree.leaves(Choice(4, index=jnp.zeros(3, int)))) == 1


def network(**options) -> aa_flax.Network:
    return with_values(lambda: abstract_model("resnet18_lpf3", **TINY, **options))


def test_a_rolled_image_is_answered_alike():
    """`pytest -m slow -s tests/test_energies.py` has sixteen images and a whole ResNet-18."""
    model = network(**CIRCULAR)
    model.eval()
    graphdef, state = nnx.split(model)
    answer = jax.jit(lambda x: nnx.merge(graphdef, state)(x))
    x = values(4, 32, 32, 3)
    want = answer(x)
    assert float(jnp.abs(want - want.mean(0)).max()) > 1e-3
    for roll in [(1, 0), (0, 3), (5, 7), (-8, 2), (31, 16)]:
        np.testing.assert_allclose(answer(jnp.roll(x, roll, (1, 2))), want, atol=1e-4 * float(jnp.abs(want).max()))


def test_networks_and_their_files(tmp_path):
    model = network()
    heads = [path for path in variables(model) if path.endswith("temperature")]
    assert sorted(heads) == [f"{place}.temperature" for place in (*BLURS, "pool_blur")]
    model.pool_blur.temperature[...] = jnp.float32(0.25)
    aa_flax.save_pretrained(model, tmp_path / "m")
    loaded = aa_flax.load_pretrained(tmp_path / "m")
    assert float(loaded.pool_blur.temperature[...]) == 0.25
    jax.tree.map(np.testing.assert_array_equal, nnx.state(loaded), nnx.state(model))
    assert "blur" not in " ".join(aa_flax.to_torch_state_dict(model, "torchvision"))


def test_parameters_beside_those_of_the_network():
    """3x3 to as many channels with a bias, and once more without, where the map is first halved in a stage."""

    def count(**options) -> int:
        params = nnx.state(abstract_model("resnet18_lpf3", **options), nnx.Param)
        return sum(leaf.size for leaf in jax.tree.leaves(params))

    assert count(downsample="lps") - count() == sum(18 * c * c + c for c in (64, 128, 256, 512))


def test_linen_draws_noise():
    module = aa_flax.linen.create_model("resnet18_lpf3", **TINY)
    image = jax.ShapeDtypeStruct((2, 33, 33, 3), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), image)
    assert shapes["batch_stats"]["pool_blur"]["temperature"].shape == ()
    train = functools.partial(module.apply, train=True, mutable=["batch_stats"])
    with pytest.raises(errors.InvalidRngError, match="dropout"):
        jax.eval_shape(train, shapes, image)
    given = functools.partial(train, rngs={"dropout": jax.random.key(1)})
    assert jax.eval_shape(given, shapes, image)[0].shape == (2, 3)
    assert jax.eval_shape(module.apply, shapes, image).shape == (2, 3)
