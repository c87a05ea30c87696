"""Equivariance of maps: against the formulas in float64, and exact where the theory promises it."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.tree_util import Partial

import aa_flax
from aa_flax.consistency import Equivariance, gather
from tests import shift_toys as toys
from tests.foreign_networks import with_values
from tests.test_alias_free import IDEAL, resnet
from tests.test_polyphase_upsample import UNet

COUNT, CROP = 5, (12, 18)
IMAGES = np.random.default_rng(0).normal(size=(COUNT, 21, 27, 3)).astype(np.float32)
WEIGHTS = np.random.default_rng(1).normal(size=(3, 4))


def maps(xp, images, strides=(3, 2)):
    """A map of four channels with strides of its own: a kink, and neighbours around the border."""
    mixed = xp.maximum(images @ xp.asarray(WEIGHTS, images.dtype), 0)
    mixed = mixed + 0.5 * xp.roll(mixed, (1, 2), (1, 2))
    return mixed[:, :: strides[0], :: strides[1]]


def valid(xp, images):
    """A map of one channel, two rows and two columns smaller than the image, as convolutions without padding give."""
    mixed = xp.tanh(images @ xp.asarray(WEIGHTS[:, :1], images.dtype))
    return mixed[:, 2:, 2:] + mixed[:, :-2, 1:-1] - 0.3 * mixed[:, 1:-1, :-2]


def networks(function):
    """One function compiled here, and called as another library's is."""
    return Partial(lambda images: function(jnp, images)), lambda images: function(np, np.asarray(images, np.float64))


# --- by definition ---


def look(shift, image, offset):
    """The view of an image, in float64."""
    image = image.astype(np.float64)
    centre = toys.loop_centre(image, CROP)
    if shift == "circular":
        return np.roll(centre, offset, (0, 1))
    if shift == "fractional":
        return toys.loop_fourier(centre, offset)
    top, left = (round((n - s) / 2.0) + int(o) for n, s, o in zip(image.shape, CROP, offset, strict=False))
    return image[top : top + CROP[0], left : left + CROP[1]]


def lanczos(t):
    return np.sinc(t) * np.sinc(t / 3) if abs(t) < 3 else 0.0


def read_at(signal, where):
    """A map's value between its samples along the first axis; None where a sample is missing."""
    if where == round(where):
        return signal[round(where)] if 0 <= where < len(signal) else None
    taps = [p for p in range(math.floor(where) - 3, math.ceil(where) + 4) if abs(where - p) < 3]
    if taps[0] < 0 or taps[-1] >= len(signal):
        return None
    weights = np.array([lanczos(where - p) for p in taps])
    return np.tensordot(weights / weights.sum(), signal[taps], 1)


def expected(shift, still, moved, offset, strides, margin):
    """Samples of the shifted map, of the map of the shifted image and of the map that stays: (places, channels)."""
    if shift != "crop":
        wanted = toys.loop_fourier(still, offset * np.array(still.shape[:2]) / CROP)
        return [each.reshape(-1, each.shape[-1]) for each in (wanted, moved, still)]
    found = []
    inner = [slice(margin, side - margin) for side in still.shape[:2]]
    within = still[inner[0], inner[1]]
    for row in range(margin, still.shape[0] - margin):
        line = read_at(within, row - margin + offset[0] / strides[0])
        for column in range(margin, still.shape[1] - margin):
            value = None if line is None else read_at(line, column - margin + offset[1] / strides[1])
            if value is not None:
                found.append((value, moved[row, column], still[row, column]))
    return np.array(found).transpose(1, 0, 2)


CASES = {
    "circular": (maps, (3, 2), {"shift": "circular", "max_shift": 9}),
    "fractional": (maps, (3, 2), {"shift": "fractional", "max_shift": 2.5}),
    "crop": (lambda xp, images: maps(xp, images, (1, 2)), (1, 2), {"shift": "crop", "max_shift": 4}),
    "no padding": (valid, (1, 1), {"shift": "crop", "max_shift": 4, "stride": 1, "margin": 1}),
    "finer than its image": (
        lambda xp, images: xp.repeat(maps(xp, images, (1, 1)), 2, 2),
        (1, 0.5),
        {"shift": "crop", "max_shift": 3, "margin": 2},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_by_definition(case):
    function, strides, settings = CASES[case]
    protocol = Equivariance(crop=CROP, draws=3, seed=4, **settings)
    compiled, called = networks(function)
    result = protocol.measure(compiled, IMAGES)
    offsets = result.arrays["offsets"]
    assert offsets.shape == (COUNT, 4, 2)
    assert not offsets[:, 0].any()
    signal, noise, still, agreement = np.zeros((4, COUNT, 3))
    for i, (image, own) in enumerate(zip(IMAGES, offsets, strict=True)):
        first, *others = (function(np, look(protocol.shift, image, offset)[None])[0] for offset in own)
        for j, (moved, offset) in enumerate(zip(others, own[1:], strict=True)):
            wanted, found, stays = expected(protocol.shift, first, moved, offset, strides, protocol.margin)
            signal[i, j], noise[i, j] = (wanted**2).mean(), ((found - wanted) ** 2).mean()
            still[i, j] = ((stays - wanted) ** 2).mean()
            agreement[i, j] = (found.argmax(-1) == wanted.argmax(-1)).mean()
    error = 100 * np.sqrt(noise / signal).mean(1)
    assert error.min() > 1 or case == "no padding"
    np.testing.assert_allclose(result.per_image, error, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(protocol.measure(called, IMAGES).per_image, error, rtol=1e-4, atol=1e-4)
    assert result.stderr == pytest.approx(error.std(ddof=1) / COUNT**0.5, rel=1e-3, abs=1e-5)
    unmoved = 100 * np.sqrt(still / signal).mean()
    assert result.parts["unmoved"].value == pytest.approx(unmoved, rel=1e-4)
    if function is valid:
        assert "argmax_agreement" not in result.parts
    else:
        assert result.parts["argmax_agreement"].value == pytest.approx(100 * agreement.mean(), rel=1e-5)
    if error.min() > 1:
        check_decibels(result.parts["snr_db"], signal.mean(1), noise.mean(1))


def check_decibels(part, signal, noise):
    """The ratio over all images; its standard error is near that of leaving out each image in turn."""
    decibels = lambda rows: 10 * np.log10(signal[rows].sum() / noise[rows].sum())  # noqa: E731
    assert part.value == pytest.approx(decibels(slice(None)), abs=1e-3)
    left_out = np.array([decibels(np.arange(COUNT) != i) for i in range(COUNT)])
    jackknife = np.sqrt((COUNT - 1) / COUNT * ((left_out - left_out.mean()) ** 2).sum())
    assert part.stderr == pytest.approx(jackknife, rel=0.15)


# --- exactness ---


@dataclasses.dataclass(frozen=True, kw_only=True)
class BySteps(Equivariance):
    """Shifts by multiples of four pixels only."""

    def offsets(self, index):
        return super().offsets(index) // 4 * 4


@pytest.mark.parametrize(
    ("settings", "padding", "exact"),
    [
        ({"shift": "circular"}, "CIRCULAR", True),
        ({"shift": "circular"}, "SAME", False),
        ({"shift": "crop", "max_shift": 8, "margin": 1}, "SAME", True),
        ({"shift": "crop", "max_shift": 8}, "SAME", False),
    ],
)
def test_multiples_of_the_stride_are_exact_but_for_the_border(settings, padding, exact):
    network = nnx.Conv(3, 4, (5, 5), strides=4, padding=padding, rngs=nnx.Rngs(0))
    images = np.random.default_rng(2).normal(size=(4, 56, 56, 3)).astype(np.float32)
    result = BySteps(crop=40, **settings).measure(network, images)
    assert (result.value < 1e-4) == exact
    assert result.parts["unmoved"].value > 50
    if exact:
        assert result.parts["argmax_agreement"].value == 100
        assert Equivariance(crop=40, **settings).measure(network, images).value > 50


def test_a_polyphase_unet_is_exact():
    """`pytest -s` prints it, beside the U-Net that forgets where its samples came from."""
    images = np.random.default_rng(0).standard_normal((4, 32, 32, 3)).astype(np.float32)
    found = {}
    for up in (aa_flax.PolyphaseUpsample, aa_flax.BlurUpsample):
        network = with_values(lambda up=up: UNet("aps", up, rngs=nnx.Rngs(0)))
        found[up] = Equivariance(crop=32).measure(network, images)
        print(f"U-Net, {up.__name__}: {found[up].value:.1e} %, {found[up].parts['snr_db']} dB")
    exact, other = found.values()
    assert exact.value < 1e-3
    assert exact.parts["argmax_agreement"].value == 100
    assert other.value > 1


def test_half_a_pixel_of_the_last_map():
    """`pytest -s` prints the alias-free network and the plain one."""
    images = np.random.default_rng(0).standard_normal((2, 16, 17, 3)).astype(np.float32)
    protocol = Equivariance(crop=(16, 17), shift="fractional", max_shift=0.5)
    free = resnet(**IDEAL, norm="alias_free")
    plain = resnet("resnet18_plain", circular=True)
    found = [protocol.measure(network.features, images).value for network in (free, plain)]
    print(f"alias-free {found[0]:.1e} %, plain {found[1]:.1e} %")
    assert found[0] < 1e-3  # a relative error of 1e-5
    assert found[1] > 1


# --- laws ---


def test_a_method_is_measured_in_evaluation_mode():
    class Dropping(nnx.Module):
        def __init__(self):
            self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

        def features(self, x):
            return self.dropout(x)

    network = Dropping()
    assert Equivariance(crop=CROP).measure(network.features, IMAGES).value < 1e-4
    assert not network.dropout.deterministic


@pytest.mark.parametrize(("shift", "axis_type"), [("circular", AxisType.Auto), ("crop", AxisType.Explicit)])
def test_eight_devices_and_batches_change_nothing(shift, axis_type):
    images = np.resize(IMAGES, (16, *IMAGES.shape[1:]))
    network = Partial(lambda x: maps(jnp, x, (1, 2)))
    protocol = Equivariance(crop=CROP, shift=shift, max_shift=4)
    one = protocol.measure(network, images)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    spread = jax.device_put(images, NamedSharding(mesh, PartitionSpec("data")))
    arrays = protocol.per_image(network, spread, index=np.arange(16))
    assert len(arrays["noise"].sharding.device_set) == 8
    eight = protocol.summarise(gather([arrays]))
    np.testing.assert_allclose(one.per_image, eight.per_image, rtol=1e-5)
    small = dataclasses.replace(protocol, device_batch=3).measure(network, images)
    np.testing.assert_allclose(one.per_image, small.per_image, rtol=1e-5)
    assert small.settings == one.settings


def test_half_precision_is_compared_in_single():
    network = Partial(lambda x: maps(jnp, x).astype(jnp.bfloat16))
    result = Equivariance(crop=CROP).measure(network, IMAGES)
    assert result.arrays["noise"].dtype == np.float32


# --- misuse ---


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"shift": "sideways"}, "shift='sideways': must be one of crop, circular, fractional"),
        ({"max_shift": 0.5}, "max_shift=0.5: shift='circular' moves by whole pixels"),
        ({"shift": "crop", "stride": 0}, "stride=0: must be positive"),
        ({"shift": "crop", "margin": -1}, "margin=-1"),
        ({"margin": 1}, "stride and margin are for shift='crop'; shift='circular' takes the map as a period"),
    ],
)
def test_settings_that_cannot_be(settings, words):
    with pytest.raises(ValueError, match=words):
        Equivariance(**settings)


def crops(**settings):
    return Equivariance(crop=CROP, shift="crop", **{"max_shift": 2, **settings})


@pytest.mark.parametrize(
    ("protocol", "network", "words"),
    [
        (
            crops(),
            lambda x: x.mean((1, 2)),
            r"fn must return maps \(images, h, w, C\); for 5 images it returned \(5, 3",
        ),
        (crops(), lambda x: x[:, :5], "maps of 5x18 for crops of 12x18: neither divides the other; give stride="),
        (crops(), lambda x: x[:, ::4, ::4], "neither divides the other"),
        (crops(), lambda x: x[:, ::4, ::3], "max_shift=2 and margin=0 leave nothing to compare; lower them"),
        (crops(margin=5), lambda x: x, "max_shift=2 and margin=5 leave nothing to compare"),
        (crops(), lambda x: jnp.where(x > 2, jnp.nan, x), "the network returned NaN or infinity for . images"),
        (Equivariance(crop=CROP), lambda x: x * (x[:, :1, :1] != IMAGES[0, 4, 4]), "the map is zero everywhere for 1 "),
    ],
)
def test_networks_that_cannot_be_measured(protocol, network, words):
    with pytest.raises(ValueError, match=words):
        protocol.measure(Partial(network), IMAGES)


def test_nothing_differs_from_nothing():
    result = Equivariance(crop=CROP).measure(Partial(jnp.zeros_like), IMAGES)
    assert (result.value, result.parts["unmoved"].value) == (0, 0)
    assert "snr_db" not in result.parts
