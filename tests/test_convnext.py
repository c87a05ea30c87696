"""ConvNeXt in small: where its blurs stand, what they promise, and that it goes where all networks go."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import aa_flax
from aa_flax.alias_free import AliasFreeActivation, AliasFreeNorm
from aa_flax.models.abstract import abstract_model
from aa_flax.models.variables import variables
from tests.foreign_networks import run, with_values
from tests.fourier_shifts import equivariance_error, features_of

SMALL = {"depths": (1, 1, 2, 1), "widths": (8, 12, 16, 24), "num_classes": 3}
CIRCULAR = {"circular": True, "pad_type": "circular"}
ALIAS_FREE = {"downsample": "ideal", "activation": "alias_free", "norm": "alias_free"}
IMAGE = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)


def convnext(suffix: str = "lpf3", **options) -> aa_flax.Network:
    """Random weights, biases around zero; the coefficients of alias-free activations as they begin."""

    def build() -> aa_flax.Network:
        return aa_flax.create_model(f"convnext_tiny_{suffix}", rngs=nnx.Rngs(0), **SMALL | options)

    model = with_values(build)
    for path, variable in variables(model).items():
        if path.endswith("bias"):
            variable[...] = variable[...] - 1
    for _, layer in nnx.iter_modules(model):
        if isinstance(layer, AliasFreeActivation):
            nnx.update(layer, nnx.state(AliasFreeActivation(layer.linear.shape[0])))
    model.eval()
    return model


def images(*size: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=(2, *size, 3)), jnp.float32)


def strided(model: aa_flax.Network) -> dict[str, int]:
    return {found.module: found.stride[1] for found in aa_flax.find_strided(model, IMAGE)}


@pytest.mark.parametrize(
    ("suffix", "options", "left"),
    [
        ("plain", {}, {"stem.conv": 4, "downsample2.conv": 2, "downsample3.conv": 2, "downsample4.conv": 2}),
        ("lpf3", {}, {"stem.conv": 2}),
        ("lpf3", {"pool_only": True}, {"stem.conv": 4}),
        ("lpf3", {"downsample": "ideal"}, {}),
        ("lpf3", ALIAS_FREE | {"pool_only": True}, {}),
    ],
)
def test_what_strides_are_left(suffix, options, left):
    model = abstract_model(f"convnext_tiny_{suffix}", **SMALL | options)
    model.eval()
    assert strided(model) == left


@pytest.mark.parametrize("size", [(64, 96), (97, 70), (66, 67)])
def test_maps_are_as_large_as_the_plain_networks(size):
    """The windows that the strides would have kept are still among the dense ones'."""

    def sizes(suffix: str, **options) -> list[tuple[int, ...]]:
        model = abstract_model(f"convnext_tiny_{suffix}", **SMALL | options)
        model.eval()
        x = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
        return [tuple(map.shape) for map in nnx.eval_shape(lambda m, x: m.feature_pyramid(x), model, x)]

    assert sizes("plain")[0] == (1, size[0] // 4, size[1] // 4, 8)
    assert sizes("lpf4") == sizes("lpf3", downsample="aps") == sizes("lpf1", pool_only=True) == sizes("plain")


def test_one_tap_is_the_plain_network():
    plain, once = convnext("plain"), convnext("lpf1")
    nnx.update(once, nnx.state(plain))
    x = images(67, 50)
    np.testing.assert_allclose(run(once, x), run(plain, x), rtol=1e-4, atol=1e-5)


def test_antialias_makes_the_network_that_its_name_says():
    plain = convnext("plain")
    changed, _ = aa_flax.antialias(plain, 3, first=True)
    assert changed.spec == convnext("lpf3").spec
    x = images(40, 49)
    wanted = convnext("lpf3")
    nnx.update(wanted, nnx.state(plain))
    np.testing.assert_allclose(run(changed, x), run(wanted, x), rtol=1e-5, atol=1e-6)


def test_adaptive_sampling_answers_rolled_images_alike():
    model = convnext("lpf3", downsample="aps", **CIRCULAR)
    x = images(64, 64)
    rolled = jnp.concatenate([jnp.roll(x, shift, (1, 2)) for shift in ((0, 0), (1, 0), (0, 3), (5, -7), (2, 30))])
    logits = np.asarray(run(model, rolled)).reshape(5, 2, -1)
    assert np.abs(logits[0, 0] - logits[0, 1]).max() > 1e-2 * np.abs(logits).max()
    np.testing.assert_allclose(logits, np.broadcast_to(logits[0], logits.shape), atol=1e-6 * np.abs(logits).max())


NETWORKS = {
    "alias-free ConvNeXt": ("lpf3", ALIAS_FREE, 1e-5),
    "with a window": ("lpf3", ALIAS_FREE | {"downsample": "asap"}, 1e-5),
    "layer norm": ("lpf3", ALIAS_FREE | {"norm": "layer"}, None),
    "GELU": ("lpf3", ALIAS_FREE | {"activation": "gelu", "circular": True}, None),
    "BlurPool": ("lpf3", CIRCULAR, None),
    "plain": ("plain", {"circular": True}, None),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_half_pixel_equivariance(kind):
    """Relative error of the last map under a shift by half a pixel, random weights, white noise, an odd side."""
    suffix, options, most = NETWORKS[kind]
    error = equivariance_error(features_of(convnext(suffix, **options)), np.asarray(images(64, 49)))
    print(f"{kind:<24} {error:.1e}")
    assert error < most if most else error > 1e-4


def test_it_goes_where_all_networks_go(tmp_path):
    model = convnext("lpf3", **ALIAS_FREE)
    x = images(32, 32)
    answer = run(model, x)
    aa_flax.save_pretrained(model, tmp_path)
    loaded = aa_flax.load_pretrained(tmp_path)
    assert loaded.spec == model.spec
    np.testing.assert_array_equal(run(loaded, x), answer)
    np.testing.assert_array_equal(run(pickle.loads(pickle.dumps(model)), x), answer)
    module, tree = aa_flax.linen.from_nnx(model)
    np.testing.assert_array_equal(jax.jit(module.apply)(tree, x), answer)
    assert model.feature_channels == SMALL["widths"]
    # There is no batch normalisation to fold.
    folded = aa_flax.fold_batchnorm(model)
    assert folded.spec == model.spec
    headless = abstract_model("convnext_tiny", **SMALL | {"num_classes": 0, "in_channels": 1, "dtype": jnp.bfloat16})
    headless.eval()
    pooled = nnx.eval_shape(lambda m, x: m(x), headless, jax.ShapeDtypeStruct((2, 64, 64, 1), jnp.float32))
    assert (pooled.shape, pooled.dtype) == ((2, 24), jnp.bfloat16)


def test_pytorchs_names():
    """Without PyTorch: the names and shapes of torchvision's file, and that weights come back from it."""
    model = convnext("lpf3")
    with pytest.raises(ValueError, match=r"convnext_tiny_lpf3 is no network of the reference: layout='torchvision'"):
        aa_flax.to_torch_state_dict(model)
    state = aa_flax.to_torch_state_dict(model, "torchvision")
    shapes = {key: array.shape for key, array in state.items()}
    assert len(shapes) == len(variables(model))
    assert shapes["features.0.0.weight"] == (8, 3, 4, 4)
    assert shapes["features.0.1.bias"] == (8,)
    assert shapes["features.5.1.layer_scale"] == (16, 1, 1)
    assert shapes["features.5.1.block.0.weight"] == (16, 1, 7, 7)
    assert shapes["features.5.1.block.3.weight"] == (64, 16)
    assert shapes["features.6.1.weight"] == (24, 16, 2, 2)
    assert shapes["classifier.2.weight"] == (3, 24)
    plain = aa_flax.convert_state_dict(state, "convnext_tiny_plain", **SMALL)
    free = aa_flax.convert_state_dict(state, "convnext_tiny", **SMALL | ALIAS_FREE)
    for other in (plain, free):
        np.testing.assert_array_equal(other.stage3[1].layer_scale[...], model.stage3[1].layer_scale[...])
    assert isinstance(free.stage3[1].norm, AliasFreeNorm)
    tuned = aa_flax.convert_state_dict(state, "convnext_tiny", skip_head=True, **SMALL | {"num_classes": 7})
    assert tuned.head.kernel.shape == (24, 7)
    np.testing.assert_array_equal(tuned.head_norm.scale[...], model.head_norm.scale[...])


def test_learnable_sampling_draws_its_noise():
    """In training the logits depend on the noise that reaches every layer; in evaluation there is none."""
    model = abstract_model("convnext_tiny_lpf3", downsample="lps", **SMALL | {"stochastic_depth_prob": 0.0})
    model = with_values(lambda: model)
    graphdef, state = nnx.split(model)
    answer = jax.jit(lambda state, x, key: nnx.merge(graphdef, state, copy=True)(x, rngs=nnx.Rngs(dropout=key)))
    first, same, other = (answer(state, images(32, 32), jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert np.abs(first - other).max() > 0


def test_it_learns():
    """Stochastic depth draws from `rngs`, and the loss falls."""
    model = aa_flax.create_model(
        "convnext_tiny_lpf3",
        rngs=nnx.Rngs(0),
        layer_scale=0.1,
        **SMALL | {"depths": (1, 1, 1, 1), "stochastic_depth_prob": 0.2} | ALIAS_FREE,
    )
    x, labels = jnp.tile(images(32, 32), (4, 1, 1, 1)) + 0.1 * jnp.arange(8)[:, None, None, None], jnp.arange(8) % 2
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def step(params, key):
        def loss(params):
            model = nnx.merge(graphdef, params, rest, copy=True)
            logits = jax.nn.log_softmax(model(x, rngs=nnx.Rngs(dropout=key)))
            return -jnp.take_along_axis(logits, labels[:, None], 1).mean()

        value, gradients = jax.value_and_grad(loss)(params)
        return value, jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients)

    losses = []
    for key in jax.random.split(jax.random.key(0), 12):
        loss, params = step(params, key)
        losses.append(float(loss))
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(
    ("suffix", "options", "words"),
    [
        ("plain", {"pool_only": True}, "pool_only belongs to anti-aliased networks"),
        ("lpf3", {"stochastic_depth_prob": 1.0}, "stochastic_depth_prob is a probability below 1, got 1.0"),
        ("lpf3", {"activation": "relu"}, "activation must be one of gelu, alias_free, got 'relu'"),
        ("lpf3", {"activation": "alias_free"}, "downsample='ideal' or 'asap', not downsample='blur'"),
        ("lpf3", {"widths": (8, 16)}, "widths must be of the kind of"),
    ],
)
def test_misuse(suffix, options, words):
    with pytest.raises(ValueError, match=words):
        abstract_model(f"convnext_tiny_{suffix}", **SMALL | options)


def test_small_images_are_refused():
    """Five halvings leave nothing of them, where torchvision answers NaN."""
    for suffix in ("plain", "lpf3"):
        with pytest.raises(ValueError, match="images must be at least 32x32 for ConvNeXt, got 31x40"):
            abstract_model(f"convnext_tiny_{suffix}", **SMALL)(jnp.ones((1, 31, 40, 3)))
