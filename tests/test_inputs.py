"""What layers and networks take: which shapes and numbers, and what is said of all others."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import aa_flax
import aa_flax.linen
from aa_flax import plain_pooling
from aa_flax.models.abstract import abstract_model
from aa_flax.models.images import check_images

RNGS = nnx.Rngs(0)
# Each maps (..., 6, 5, 2), the last two of them (..., 5, 2) and (..., 4, 6, 5, 2).
IMAGE_LAYERS = {
    "max_pool": lambda x: plain_pooling.max_pool(x, 3, 2, 1),
    "avg_pool": lambda x: plain_pooling.avg_pool(x, 2, (1, 2)),
    "adaptive_avg_pool": lambda x: plain_pooling.adaptive_avg_pool(x, (4, 3)),
    "global_avg_pool": plain_pooling.global_avg_pool,
    "blur_pool": lambda x: aa_flax.blur_pool(x, spatial_dims=2),
    "blur_upsample": lambda x: aa_flax.blur_upsample(x, spatial_dims=2),
    "BlurPool2D": aa_flax.BlurPool2D(3),
    "BlurUpsample": aa_flax.BlurUpsample(),
    "nn.max_pool": lambda x: aa_flax.nn.max_pool(x, (2, 2), (2, 1), "SAME"),
    "nn.avg_pool": lambda x: aa_flax.nn.avg_pool(x, (2, 3), (1, 2)),
    "nn.MaxBlurPool": aa_flax.nn.MaxBlurPool((2, 2)),
    "nn.AvgBlurPool": aa_flax.nn.AvgBlurPool((2, 2)),
    "nn.Conv": aa_flax.nn.Conv(2, 3, (3, 3), 2, rngs=RNGS),
    "nn.ConvBlur": aa_flax.nn.ConvBlur(2, 3, (3, 3), rngs=RNGS),
    "AdaptivePolyphase": aa_flax.AdaptivePolyphase(3),
    "ContentAdaptiveBlur": aa_flax.ContentAdaptiveBlur(2, groups=1, norm=lambda channels: jnp.tanh, rngs=RNGS),
    "IdealLowPass": aa_flax.IdealLowPass(),
}
LAYERS = {name: (2, layer) for name, layer in IMAGE_LAYERS.items()} | {
    "BlurPool1D": (1, aa_flax.BlurPool1D()),
    "BlurUpsample in one dimension": (1, aa_flax.BlurUpsample(spatial_dims=1)),
    "BlurPool3D": (3, aa_flax.BlurPool3D()),
    "nn.max_pool in three dimensions": (3, lambda x: aa_flax.nn.max_pool(x, (2, 2, 2), (2, 2, 2))),
}


def sizes(name: str) -> tuple[int, ...]:
    return (4, 6, 5, 2)[3 - LAYERS[name][0] :]


@pytest.mark.parametrize("name", LAYERS)
def test_all_axes_in_front_are_batch(name):
    layer = LAYERS[name][1]
    x = np.random.default_rng(0).normal(size=(6, *sizes(name))).astype(np.float32)
    want = np.asarray(jax.jit(layer)(x))
    got = jax.jit(layer)(x.reshape(3, 1, 2, *sizes(name)))
    np.testing.assert_allclose(got, want.reshape(3, 1, 2, *want.shape[1:]), rtol=1e-6, atol=1e-6)


@given(name=st.sampled_from(list(LAYERS)), batch=st.lists(st.integers(1, 3), max_size=3))
@settings(max_examples=40)
def test_the_batch_keeps_its_shape(name, batch):
    def shape(batch) -> tuple[int, ...]:
        x = jax.ShapeDtypeStruct((*batch, *sizes(name)), jnp.float32)
        return jax.eval_shape(LAYERS[name][1], x).shape

    assert shape(batch) == (*batch, *shape([math.prod(batch)])[1:])


@pytest.mark.parametrize("name", LAYERS)
def test_too_few_axes_are_refused(name):
    x = jax.ShapeDtypeStruct(sizes(name)[1:], jnp.float32)
    with pytest.raises(ValueError, match=r"shape"):
        jax.eval_shape(LAYERS[name][1], x)


def test_without_a_number_of_axes_all_but_the_first_are_spatial():
    x = jnp.ones((2, 4, 6, 5, 3))
    assert aa_flax.blur_pool(x).shape == (2, 2, 3, 3, 3)
    assert jax.eval_shape(aa_flax.blur_upsample, x).shape == (2, 8, 12, 10, 3)
    for function in (aa_flax.blur_pool, aa_flax.blur_upsample):
        with pytest.raises(ValueError, match=r"takes \(N, spatial..., C\), got shape \(6, 5\)"):
            function(x[0, 0, :, :, 0])


MAP = jnp.ones((1, 6, 6, 2))
# Each takes one argument that counts something, for one or for both spatial axes.
ARGUMENTS = {
    "max_pool window": lambda n: plain_pooling.max_pool(MAP, n, 1),
    "max_pool stride": lambda n: plain_pooling.max_pool(MAP, 2, n),
    "max_pool padding": lambda n: plain_pooling.max_pool(MAP, 2, 1, n),
    "avg_pool window": lambda n: plain_pooling.avg_pool(MAP, n, 1),
    "avg_pool stride": lambda n: plain_pooling.avg_pool(MAP, 2, n),
    "adaptive_avg_pool": lambda n: plain_pooling.adaptive_avg_pool(MAP, n),
    "blur_pool filter_size": lambda n: aa_flax.blur_pool(MAP, n),
    "blur_pool stride": lambda n: aa_flax.blur_pool(MAP, 4, n),
    "blur_pool pad_off": lambda n: aa_flax.blur_pool(MAP, 4, 2, "zero", n),
    "BlurPool2D": lambda n: aa_flax.BlurPool2D(n, n, "zero", n)(MAP),
    "blur_upsample stride": lambda n: aa_flax.blur_upsample(MAP, 6, n),
    "BlurUpsample stride": lambda n: aa_flax.BlurUpsample(6, n)(MAP),
    "AdaptivePolyphase stride": lambda n: aa_flax.AdaptivePolyphase(3, n)(MAP),
    "ContentAdaptiveBlur stride": lambda n: aa_flax.ContentAdaptiveBlur(2, 3, n, groups=1, rngs=nnx.Rngs(0))(MAP),
    "IdealLowPass": lambda n: aa_flax.IdealLowPass(n)(MAP),
    "nn.ConvBlur strides": lambda n: aa_flax.nn.ConvBlur(2, 2, (3, 3), n, rngs=nnx.Rngs(0))(MAP),
    "nn.Conv strides": lambda n: aa_flax.nn.Conv(2, 2, (3, 3), n, rngs=nnx.Rngs(0))(MAP),
}
NUMBERS_ONLY = {
    "blur_upsample filter_size": lambda n: aa_flax.blur_upsample(MAP, n),
    "BlurUpsample filter_size": lambda n: aa_flax.BlurUpsample(n)(MAP),
    "AdaptivePolyphase filter_size": lambda n: aa_flax.AdaptivePolyphase(n)(MAP),
    "ContentAdaptiveBlur filter_size": lambda n: aa_flax.ContentAdaptiveBlur(2, n, groups=1, rngs=nnx.Rngs(0))(MAP),
    "nn.max_pool filter_size": lambda n: aa_flax.nn.max_pool(MAP, (2, 2), (2, 2), filter_size=n),
    "nn.AvgBlurPool filter_size": lambda n: aa_flax.nn.AvgBlurPool((2, 2), filter_size=n)(MAP),
    "nn.ConvBlur filter_size": lambda n: aa_flax.nn.ConvBlur(2, 2, (3, 3), filter_size=n, rngs=nnx.Rngs(0))(MAP),
    "nn.Conv filter_size": lambda n: aa_flax.nn.Conv(2, 2, (3, 3), 2, filter_size=n, rngs=nnx.Rngs(0))(MAP),
    "binomial_filter": lambda n: jnp.asarray(aa_flax.blurpool.binomial_filter(n)),
}
WINDOWS = {
    "nn.max_pool": lambda n: aa_flax.nn.max_pool(MAP, n, n),
    "nn.avg_pool": lambda n: aa_flax.nn.avg_pool(MAP, n, n),
    "nn.MaxBlurPool": lambda n: aa_flax.nn.MaxBlurPool(n, n)(MAP),
    "nn.ConvBlur": lambda n: aa_flax.nn.ConvBlur(2, 2, n, rngs=nnx.Rngs(0))(MAP),
}


def shape_of(call, n) -> tuple[int, ...]:
    return jax.eval_shape(lambda: call(n)).shape


@pytest.mark.parametrize("name", ARGUMENTS | NUMBERS_ONLY)
def test_numpys_whole_numbers_are_taken(name):
    call = (ARGUMENTS | NUMBERS_ONLY)[name]
    assert shape_of(call, np.int64(2)) == shape_of(call, np.array(2)) == shape_of(call, 2)
    if name in ARGUMENTS:
        both = shape_of(call, (3, 2))
        assert shape_of(call, np.array([3, 2])) == shape_of(call, [np.int32(3), np.uint8(2)]) == both


@pytest.mark.parametrize("name", WINDOWS)
def test_windows_are_whole_numbers_of_any_kind(name):
    call = WINDOWS[name]
    assert shape_of(call, np.array([3, 2])) == shape_of(call, (np.int32(3), np.uint8(2))) == shape_of(call, (3, 2))
    with pytest.raises(ValueError, match=r"=2 is one number: give one for each spatial axis, such as \(2, 2\)"):
        shape_of(call, np.int64(2))
    for value in ((True, 2), (2, 2.0), (2, 0), "ab", (), None):
        with pytest.raises(ValueError, match="must be a whole number"):
            shape_of(call, value)


@pytest.mark.parametrize("name", ARGUMENTS | NUMBERS_ONLY)
def test_other_numbers_are_refused_in_one_line(name):
    wrong = [True, np.True_, 1.5, 2.0, "a", ()]
    wrong += [] if "pad_off" in name else [-1]
    wrong += [(True, 2), (2, 2.0), (2, 2, 2)] if name in ARGUMENTS else [(2, 2)]
    for value in wrong:
        with pytest.raises(ValueError, match=f"^[a-z_]+ must be a whole number.*got {re.escape(repr(value))}"):
            shape_of((ARGUMENTS | NUMBERS_ONLY)[name], value)


def test_surgery_and_export_take_numpys_numbers(tmp_path):
    model = nnx.Sequential(nnx.Conv(2, 2, (3, 3), 2, rngs=nnx.Rngs(0)))
    first, second = (aa_flax.antialias(model, filter_size=k, first=True)[0] for k in (3, np.int64(3)))
    np.testing.assert_array_equal(first(MAP), second(MAP))
    with pytest.raises(ValueError, match="filter_size must be a whole number >= 1, got 3"):
        aa_flax.antialias(model, filter_size=3.0)
    for size in (np.int64(6), np.array([6, 6])):
        written = aa_flax.export(model, tmp_path / "x", in_channels=2, image_size=size, platforms=("cpu",))
        np.testing.assert_allclose(aa_flax.load_exported(written)(MAP), model(MAP), rtol=1e-6)


def test_means_of_whole_numbers_are_refused():
    x = jnp.ones((1, 4, 4, 1), jnp.uint8)
    for name, call in (
        ("avg_pool", lambda: plain_pooling.avg_pool(x, 2, 2)),
        ("adaptive_avg_pool", lambda: plain_pooling.adaptive_avg_pool(x, 2)),
    ):
        with pytest.raises(TypeError, match=f"{name} takes floating point arrays, got uint8"):
            call()


# --- the networks' door ---

FAMILIES = ("alexnet_plain", "vgg11", "resnet18", "densenet121", "mobilenet_v2")
SHAPES = (
    ((1, 3, 48, 48), "(1, 3, 48, 48): channels come last, images.transpose(0, 2, 3, 1)"),
    ((48, 40, 3), "(48, 40, 3): one image needs a batch axis, images[None]"),
    ((3, 48, 40), "(3, 48, 40): channels come last and a batch axis first, images.transpose(1, 2, 0)[None]"),
    ((2, 48, 40), "(2, 48, 40): grey images need three channels, images[..., None].repeat(3, axis=-1)"),
    ((2, 48, 40, 1), "(2, 48, 40, 1): repeat the grey channel, images.repeat(3, axis=-1)"),
    ((2, 48, 40, 4), "(2, 48, 40, 4): drop the transparency, images[..., :3]"),
    ((2, 48, 40, 5), "(2, 48, 40, 5): create_model(..., in_channels=5) makes a network for them"),
    (
        (2, 2, 64, 64, 3),
        "(2, 2, 64, 64, 3): make one batch of the leading axes, images.reshape(-1, *",
    ),
    ((48, 40), "(48, 40)"),
)
DTYPES = ("uint8", "int32", "bool", "complex64")


@functools.cache
def network(spec: str, **options) -> aa_flax.Network:
    return abstract_model(spec, num_classes=2, **options)


def calls(model: aa_flax.Network, x) -> list:
    """Every way into a network."""
    return [lambda: model(x), lambda: model.features(x), lambda: model.feature_pyramid(x)]


@pytest.mark.parametrize("spec", FAMILIES)
def test_networks_take_images_and_nothing_else(spec):
    model = network(spec)
    for shape, message in SHAPES:
        for call in calls(model, np.ones(shape, np.float32)):
            with pytest.raises(ValueError, match=re.escape(f"images must be (N, H, W, 3), got {message}")):
                call()
    for dtype in DTYPES:
        for call in calls(model, np.ones((1, 64, 64, 3), dtype)):
            with pytest.raises(TypeError, match=f"images must be floating point, got {dtype}: divide .*Normalise"):
                call()


@pytest.mark.parametrize("shape", [(2, 3, 9, 3), (1, 40, 8, 3), (4, 9, 9, 3)])
def test_every_remedy_makes_images(shape):
    """What each message tells to do turns the refused array into one that is taken."""
    want = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    wrong = [want.transpose(0, 3, 1, 2), want[0], want[0].transpose(2, 0, 1), want[None], want[None, None]]
    grey = [want[..., 0], want[..., :1], np.concatenate([want, want[..., :1]], -1)]
    for images in wrong + grey:
        if images.shape[-1] == 3 and images.ndim == 4:
            continue
        with pytest.raises(ValueError, match="images must be") as error:
            check_images(images, 3)
        remedy = re.search(r", (images[.\[].*)$", str(error.value))
        assert remedy, str(error.value)
        check_images(eval(remedy[1], {"images": jnp.asarray(images)}), 3)


def test_one_channel_and_another_first_layer():
    grey = network("resnet18", in_channels=1)
    for shape, message in (
        ((2, 28, 28), "images[..., None]"),
        ((2, 28, 28, 3), "in_channels=3"),
        ((2, 1, 28, 28), "images.transpose(0, 2, 3, 1)"),
    ):
        with pytest.raises(ValueError, match=re.escape(f"images must be (N, H, W, 1), got {shape}: ") + ".*"):
            grey(np.ones(shape, np.float32))
        with pytest.raises(ValueError, match=re.escape(message)):
            check_images(jnp.ones(shape), 1)

    model = abstract_model("mobilenet_v2", num_classes=2)
    model.stem.conv = nnx.eval_shape(lambda: nnx.Conv(4, 32, (3, 3), 2, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"images must be \(N, H, W, 4\), got \(1, 32, 32, 3\)"):
        model(np.ones((1, 32, 32, 3), np.float32))
    model.stem = nnx.Sequential(nnx.relu)
    with pytest.raises(ValueError, match=r"images must be \(N, H, W, C\), got \(32, 32, 3\)$"):
        model(np.ones((32, 32, 3), np.float32))


def test_lists_and_halves():
    with pytest.raises(TypeError, match="images must be an array, got list: convert them"):
        network("resnet18")([[[[0.0]]]])
    for dtype in (jnp.bfloat16, jnp.float16, jnp.float64):
        check_images(np.ones((1, 8, 8, 3), dtype), 3)


class Foreign(aa_flax.Network):
    """Somebody's own family: it knows nothing of the check."""

    first_conv = "stem"

    def __init__(self, rngs: nnx.Rngs):
        self.stem = nnx.Conv(2, 4, (3, 3), rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def _pyramid(self, x, rngs):
        return (self.stem(x),)

    def _logits(self, x, rngs):
        return self.head(plain_pooling.global_avg_pool(x))


def test_a_family_from_outside_has_the_check():
    model = Foreign(nnx.Rngs(0))
    assert model(jnp.ones((1, 5, 5, 2))).shape == (1, 3)
    for call in calls(model, jnp.ones((1, 1, 5, 5, 2))):
        with pytest.raises(ValueError, match=r"images must be \(N, H, W, 2\), got \(1, 1, 5, 5, 2\)"):
            call()


def test_the_linen_twin_has_the_same_door():
    module = aa_flax.linen.create_model("resnet18", num_classes=2)
    for method, x, error, message in (
        ("__call__", jnp.ones((1, 3, 48, 48)), ValueError, r"images must be \(N, H, W, 3\), got \(1, 3, 48, 48\)"),
        ("features", jnp.ones((1, 48, 48, 3), jnp.uint8), TypeError, "images must be floating point, got uint8"),
    ):
        with pytest.raises(error, match=message):
            jax.eval_shape(functools.partial(module.init, method=method), jax.random.key(0), x)
