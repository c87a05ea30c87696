"""Alias-free layers and networks against Fourier transforms in float64, and the plain ones' figures beside them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import aa_flax
from aa_flax.alias_free import CONSTANT, LINEAR, QUADRATIC, AliasFreeActivation, AliasFreeNorm, IdealUpsample
from aa_flax.fourier import resampling_matrix
from aa_flax.models.abstract import abstract_model
from aa_flax.models.variables import variables
from tests.foreign_networks import with_values
from tests.fourier_shifts import equivariance_error, features_of, shifted
from train.fit.command import parse
from train.fit.config import network_spec, validate

IDEAL = {"downsample": "ideal", "activation": "alias_free"}
SMALL = {"depths": (1, 1, 1, 1), "num_classes": 3}


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def without_highest(x: np.ndarray) -> np.ndarray:
    """Maps without what lies at exactly half the sampling rate of an even axis."""
    spectrum = np.fft.fft2(x, axes=(1, 2))
    for axis in (1, 2):
        size = x.shape[axis]
        if size % 2 == 0:
            spectrum[(slice(None),) * axis + (size // 2,)] = 0
    return np.fft.ifft2(spectrum, axes=(1, 2)).real.astype(np.float32)


# --- resampling ---


@pytest.mark.parametrize(("size", "out"), [(8, 4), (9, 5), (12, 5), (1, 1), (2, 1), (5, 10), (6, 12), (7, 9), (1, 3)])
@pytest.mark.parametrize("window", ["none", "hamming"])
def test_resampling_by_fourier_transform(size, out, window):
    x = np.random.default_rng(0).normal(size=size)
    spectrum, kept = np.fft.fft(x), np.zeros(out, complex)
    for f in range(-size, size + 1):
        if abs(f) < min(size, out) / 2:
            kept[f] = spectrum[f] * (np.sqrt(0.54 + 0.46 * np.cos(2 * np.pi * f / size)) if window == "hamming" else 1)
    want = np.fft.ifft(kept) * out / size
    assert np.abs(want.imag).max() < 1e-12
    np.testing.assert_allclose(resampling_matrix(size, out, window) @ x, want.real, atol=1e-12)


def test_large_grids_keep_their_digits():
    matrix = resampling_matrix(448, 224)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-13)
    np.testing.assert_allclose(
        matrix @ matrix.T * 2, np.eye(224) - np.outer(*[(-1.0) ** np.arange(224)] * 2) / 224, atol=1e-13
    )


def test_the_window_is_a_method_of_its_own():
    layer = aa_flax.IdealLowPass(window="hamming")
    x = noise(1, 12, 10, 2)
    want = np.einsum("oh,nhwc->nowc", resampling_matrix(12, 6, "hamming"), x)
    want = np.einsum("pw,nowc->nopc", resampling_matrix(10, 5, "hamming"), want)
    np.testing.assert_allclose(layer(jnp.asarray(x)), want, atol=1e-6)
    network = abstract_model("mobilenet_v2_lpf3", downsample="asap", num_classes=2)
    blurs = [m for _, m in nnx.iter_modules(network) if isinstance(m, aa_flax.IdealLowPass)]
    assert {m.settings for m in blurs} == {layer.settings} == {((2, 2), "hamming")}
    with pytest.raises(ValueError, match="window must be one of none, hamming, got 'hann'"):
        aa_flax.IdealLowPass(window="hann")  # pyright: ignore[reportArgumentType]


def test_upsampling_leads_back_to_the_samples():
    x = without_highest(noise(2, 6, 7, 3))
    fine = IdealUpsample()(jnp.asarray(x))
    assert fine.shape == (2, 12, 14, 3)
    np.testing.assert_allclose(fine[:, ::2, ::2], x, atol=1e-6)
    np.testing.assert_allclose(aa_flax.IdealLowPass()(fine), x, atol=1e-6)
    np.testing.assert_allclose(fine[:, 1::2, 1::2], shifted(x, (-0.5 / 6, -0.5 / 7)), atol=1e-6)
    assert IdealUpsample((1, 3))(jnp.ones((1, 4, 4, 1), jnp.bfloat16), size=(4, 11)).shape == (1, 4, 11, 1)
    with pytest.raises(TypeError, match="IdealUpsample takes floating point arrays, got int32"):
        IdealUpsample()(jnp.ones((1, 4, 4, 1), jnp.int32))


# --- layers ---


def activation_by_fourier(x: np.ndarray, constant, linear, quadratic) -> np.ndarray:
    """Zeros between the samples, an ideal filter of gain 4, the polynomial, the filter again, every second sample."""
    n, height, width, channels = x.shape
    fine = np.zeros((n, 2 * height, 2 * width, channels))
    fine[:, ::2, ::2] = 4 * x
    rows, columns = (np.abs(np.fft.fftfreq(2 * m, 1 / (2 * m))) < m / 2 for m in (height, width))
    mask = np.outer(rows, columns)[None, :, :, None]

    def low_pass(y: np.ndarray) -> np.ndarray:
        return np.fft.ifft2(np.fft.fft2(y, axes=(1, 2)) * mask, axes=(1, 2)).real

    fine = low_pass(fine)
    return low_pass(constant + linear * fine + quadratic * fine**2)[:, ::2, ::2]


@pytest.mark.parametrize("size", [(6, 8), (7, 9), (1, 2)])
def test_activation_by_fourier_transform(size):
    layer, x = AliasFreeActivation(3), noise(2, *size, 3)
    initial = (CONSTANT, LINEAR, QUADRATIC)
    np.testing.assert_allclose(layer(jnp.asarray(x)), activation_by_fourier(x, *initial), atol=2e-6)
    layer = with_values(lambda: AliasFreeActivation(3))
    own = [np.asarray(v[...], np.float64) for v in (layer.constant, layer.linear, layer.quadratic)]
    np.testing.assert_allclose(layer(jnp.asarray(x)), activation_by_fourier(x, *own), atol=1e-5)
    assert layer(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16


def test_norm_by_definition():
    layer = with_values(lambda: AliasFreeNorm(5))
    x = 3 + 2 * noise(2, 4, 3, 5)
    centred = x - x.mean(-1, keepdims=True, dtype=np.float64)
    want = centred / np.sqrt(np.square(centred).mean((1, 2, 3), keepdims=True) + 1e-6)
    want = want * np.asarray(layer.scale[...]) + np.asarray(layer.bias[...])
    np.testing.assert_allclose(layer(jnp.asarray(x)), want, atol=1e-5)
    assert layer(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("pixels", [(0.5, 0.5), (0.25, -1.3)])
def test_what_commutes_with_shifts_and_what_does_not(pixels):
    """The layers alone, on white noise; a parabola without its filters folds as much as ReLU does."""
    x = without_highest(noise(2, 16, 15, 8))
    layers = {
        "alias-free activation": (AliasFreeActivation(8), 1e-6),
        "alias-free norm": (AliasFreeNorm(8), 1e-6),
        "ideal low-pass": (aa_flax.IdealLowPass(), 1e-6),
        "with a window": (aa_flax.IdealLowPass(window="hamming"), 1e-6),
        "ReLU": (jax.nn.relu, None),
        "the parabola alone": (lambda x: CONSTANT + LINEAR * x + QUADRATIC * x**2, None),
        "layer norm": (nnx.LayerNorm(8, rngs=nnx.Rngs(0)), None),
        "blur": (aa_flax.BlurPool2D(4, pad_type="circular"), None),
    }
    for name, (layer, most) in layers.items():
        error = equivariance_error(layer, x, pixels)
        print(f"{name:<24} {error:.1e}")
        assert error < most if most else error > 0.05, name


# --- networks ---


def resnet(name: str = "resnet18_lpf3", **options) -> aa_flax.Network:
    """Random weights and statistics; coefficients around their initial ones, for squares of squares leave float32."""
    model = with_values(lambda: aa_flax.create_model(name, rngs=nnx.Rngs(0), **SMALL | options))
    for _, layer in nnx.iter_modules(model):
        if isinstance(layer, AliasFreeActivation):
            for variable, initial in ((layer.constant, CONSTANT), (layer.linear, LINEAR), (layer.quadratic, QUADRATIC)):
                variable[...] = variable[...] * initial
    return model


NETWORKS = {
    "alias-free ResNet": ("resnet18_lpf3", IDEAL | {"norm": "alias_free"}, 1e-5),
    "with batch norm": ("resnet18_lpf3", IDEAL, 1e-5),
    "with bottlenecks": ("resnet50_lpf3", IDEAL | {"norm": "alias_free", "output_stride": 16}, 1e-5),
    "with a window, stem s1": (
        "resnet18_lpf3",
        IDEAL | {"downsample": "asap", "norm": "alias_free", "stem_stride": 1},
        1e-5,
    ),
    "ideal filters, ReLU": ("resnet18_lpf3", {"downsample": "ideal", "circular": True}, None),
    "BlurPool": ("resnet18_lpf3", {"circular": True, "pad_type": "circular"}, None),
    "plain": ("resnet18_plain", {"circular": True}, None),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_half_pixel_equivariance(kind):
    """Relative error of the last map under a shift by half a pixel, random weights, white noise, an odd side."""
    name, options, most = NETWORKS[kind]
    error = equivariance_error(features_of(resnet(name, **options)), noise(2, 64, 49, 3))
    print(f"{kind:<24} {error:.1e}")
    assert error < most if most else error > 1e-2


def test_maps_of_deep_networks_stay_in_bounds():
    """Each block adds what its parabola gives; squares of squares would overflow after nine."""
    model = aa_flax.create_model("resnet18", rngs=nnx.Rngs(0), **IDEAL | {"depths": (9, 1, 1, 1), "num_classes": 0})
    graphdef, state = nnx.split(model)
    run = jax.jit(lambda state, x: nnx.merge(graphdef, state, copy=True).feature_pyramid(x)[0])
    assert float(jnp.abs(run(state, jnp.asarray(noise(2, 32, 32, 3)))).max()) < 1e3


def test_its_answers_do_not_move():
    model = resnet(**IDEAL, norm="alias_free")
    model.eval()
    x = noise(2, 32, 32, 3)
    images = np.concatenate([x, *(shifted(x, turns) for turns in ((0.3, 0.1), (0.5 / 32, 0), (0.25, 0.77)))])
    graphdef, state = nnx.split(model)
    logits = jax.jit(lambda state, x: nnx.merge(graphdef, state)(x))(state, jnp.asarray(images, jnp.float32))
    logits = np.asarray(logits).reshape(4, 2, -1)
    assert np.abs(logits[0, 0] - logits[0, 1]).max() > 1e-3
    np.testing.assert_allclose(logits, np.broadcast_to(logits[0], logits.shape), atol=1e-5 * np.abs(logits).max())


def test_nothing_in_it_is_strided():
    for name in ("resnet18", "resnet50"):
        model = abstract_model(name, **IDEAL)
        model.eval()
        assert aa_flax.find_strided(model, jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)) == ()
        assert {conv.padding for _, conv in nnx.iter_modules(model) if isinstance(conv, nnx.Conv)} == {"CIRCULAR"}


def test_it_learns():
    """The loss falls, by the coefficients too; batch normalisation is trained as ever."""
    x, labels = jnp.asarray(noise(8, 16, 16, 3)), jnp.arange(8) % 3
    graphdef, params, rest = nnx.split(resnet(**IDEAL), nnx.Param, ...)

    @jax.jit
    def step(params, rest):
        def loss(params):
            model = nnx.merge(graphdef, params, rest, copy=True)
            logits = jax.nn.log_softmax(model(x))
            return -jnp.take_along_axis(logits, labels[:, None], 1).mean(), nnx.state(model, nnx.BatchStat)

        (value, rest_), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        return value, gradients, jax.tree.map(lambda p, g: p - 0.02 * g, params, gradients), rest_

    losses = []
    for _ in range(6):
        loss, gradients, params, rest = step(params, rest)
        losses.append(float(loss))
    assert losses[-1] < 0.7 * losses[0]
    for leaf in (gradients["layer2"]["0"]["act1"]["quadratic"], gradients["act1"]["linear"]):
        assert float(jnp.abs(leaf[...]).min()) > 0


@pytest.mark.parametrize(
    ("spec", "options", "error", "words"),
    [
        ("resnet18", {"activation": "alias_free"}, ValueError, "downsample='ideal' or 'asap', not downsample='blur'"),
        ("resnet18", IDEAL | {"downsample": "aps"}, ValueError, "not downsample='aps'"),
        ("resnet18_plain", {"activation": "alias_free"}, ValueError, "not in the plain network"),
        ("resnet18", {"activation": "gelu"}, ValueError, "activation must be one of relu, alias_free, got 'gelu'"),
        ("resnet18", {"norm": "layer"}, ValueError, "norm must be one of batch, alias_free, got 'layer'"),
        ("resnet18", {"norm": "alias_free", "frozen_bn": True}, ValueError, "no running statistics that frozen_bn"),
        ("vgg11", {"activation": "alias_free"}, TypeError, "vgg11 has no option 'activation'"),
    ],
)
def test_what_would_break_the_promise_is_refused(spec, options, error, words):
    with pytest.raises(error, match=words):
        abstract_model(spec, **options)


def test_it_goes_where_all_networks_go(tmp_path):
    model = resnet(**IDEAL, norm="alias_free")
    model.eval()
    x = jnp.asarray(noise(1, 16, 16, 3))
    aa_flax.save_pretrained(model, tmp_path / "m")
    assert aa_flax.read_config(tmp_path / "m").options == dict(model.spec.options)
    loaded = aa_flax.load_pretrained(tmp_path / "m")
    assert loaded.spec == model.spec
    jax.tree.map(np.testing.assert_array_equal, nnx.state(loaded), nnx.state(model))
    module, tree = aa_flax.linen.from_nnx(model)
    graphdef, state = nnx.split(model)
    answer = jax.jit(lambda state, x: nnx.merge(graphdef, state)(x))(state, x)
    np.testing.assert_array_equal(jax.jit(module.apply)(tree, x), answer)
    with pytest.raises(ValueError, match=r"norm='alias_free' is in no ResNet of PyTorch"):
        aa_flax.to_torch_state_dict(model, "torchvision")


def test_pytorchs_weights_leave_the_coefficients_as_they_begin():
    plain = resnet("resnet18_plain")
    state = aa_flax.to_torch_state_dict(plain)
    model = aa_flax.convert_state_dict(state, "resnet18", **SMALL, **IDEAL)
    np.testing.assert_array_equal(model.layer4[0].conv2.kernel[...], plain.layer4[0].conv2.kernel[...])
    np.testing.assert_array_equal(model.layer4[0].act2.quadratic[...], np.float32(QUADRATIC))
    back = aa_flax.to_torch_state_dict(model, "torchvision")
    assert back.keys() == state.keys()
    assert variables(model).keys() - variables(plain).keys() == {
        path for path in variables(model) if path.split(".")[-1] in ("constant", "linear", "quadratic")
    }


def test_in_the_trainer(capsys):
    words = ["--net.downsample", "ideal", "--net.activation", "alias_free", "--net.norm", "alias_free"]
    config = parse(["resnet18", "--data.name", "synthetic", *words], "fit")
    validate(config)
    assert dict(network_spec(config).options) == IDEAL | {"norm": "alias_free"}
    assert dict(network_spec(parse(["resnet18", "--data.name", "synthetic"], "fit")).options) == {}
