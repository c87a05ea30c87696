"""What must hold for every network: bounds, invariances, and how the estimates relate."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.tree_util import Partial

from aa_flax import consistency
from tests import shift_toys as toys

SAMPLED = ["zhang2019", "crop", "circular", "fractional", "distance"]
AGREEMENT = ["zhang2019", "crop", "exact", "circular", "fractional", "distance"]


def protocol_of(name, **settings):
    """The protocol on crops of 20 pixels that move by up to 8."""
    fields = consistency.PROTOCOLS[name].__dataclass_fields__
    small = {key: value for key, value in (("shifts", 9), ("steps", 8)) if key in fields}
    return consistency.create_protocol(name, crop=20, **{**small, **settings})


def constant(images):
    return np.tile(np.eye(toys.CLASSES)[2], (len(images), 1))


def histogram(images):
    """Sums of a function of single pixels: a perfectly shift-invariant network on a torus."""
    pixels = images.astype(jnp.int32)
    return jnp.stack([((pixels * (c + 3)) % 17).sum(axis=(1, 2, 3)) for c in range(toys.CLASSES)], axis=1)


@pytest.mark.parametrize("name", consistency.PROTOCOLS)
def test_a_constant_network_is_perfectly_stable(name):
    images, labels = toys.photos(10, 29, 29), np.full(10, 2)
    result = protocol_of(name).measure(constant, images, labels)
    assert result.value == (0 if name == "diagonal" else 100)
    assert result.stderr == 0


@pytest.mark.parametrize("name", ["zhang2019", "crop", "exact", "circular", "fractional"])
def test_a_constant_network_is_consistent_and_wrong(name):
    labels = np.array([2, 2, 2, 0, 1])
    result = protocol_of(name).measure(constant, toys.photos(5, 29, 29), labels)
    assert result.value == 100
    assert result.parts["consistent_correct"].value == pytest.approx(60)
    assert result.parts["consistent_wrong"].value == pytest.approx(40)


def test_a_shift_invariant_network_is_perfect_under_circular_shifts_only():
    images = toys.photos(60, 29, 29)
    assert protocol_of("circular").measure(Partial(histogram), images).value == 100
    assert protocol_of("crop").measure(Partial(histogram), images).value < 95


def test_whole_fractional_shifts_are_circular_shifts():
    images = toys.photos(12, 29, 29)
    rounded = Partial(lambda x: toys.strided(jnp.round(x.astype(jnp.float32))))
    offsets = np.random.default_rng(0).integers(-9, 9, (3, 2, 2))
    circular = protocol_of("circular", given=offsets).measure(rounded, images)
    fractional = protocol_of("fractional", given=offsets, periodic=True).measure(rounded, images)
    np.testing.assert_array_equal(circular.arrays["predictions"], fractional.arrays["predictions"])
    assert 0 < circular.value < 100


@pytest.mark.parametrize("name", AGREEMENT)
def test_a_hash_of_the_pixels_agrees_by_chance(name):
    images = np.random.default_rng(0).integers(0, 256, (250, 29, 29, 3)).astype(np.uint8)
    # At least a pixel apart by far the most of the time, so that crops differ.
    settings = {"max_shift": 4.0} if name == "fractional" else {}
    result = protocol_of(name, **settings).measure(Partial(toys.pixel_hash), images)
    equal = {"zhang2019": 1 / 81, "crop": 1 / 81, "exact": 1 / 81, "circular": 1 / 400}.get(name, 0)
    chance = 100 * (equal + (1 - equal) / toys.CLASSES)
    assert result.value == pytest.approx(chance, abs=4 * result.stderr)
    assert result.stderr < 2


@pytest.mark.parametrize("name", consistency.PROTOCOLS)
def test_batch_size_changes_nothing(name):
    images, labels = toys.photos(17, 29, 30), np.arange(17) % toys.CLASSES
    kinds = [(toys.called, 64), (toys.called, 5), (toys.compiled, 7)]
    results = [
        protocol_of(name, device_batch=batch).measure(kind(toys.strided), images, labels) for kind, batch in kinds
    ]
    for other in results[1:]:
        for key, array in results[0].arrays.items():
            np.testing.assert_allclose(array, other.arrays[key], rtol=1e-6, err_msg=key)
        assert other.as_dict()["value"] == results[0].as_dict()["value"]


@pytest.mark.parametrize("name", consistency.PROTOCOLS)
def test_streamed_batches_are_the_whole(name):
    images, labels = toys.photos(11, 29, 30), np.arange(11) % toys.CLASSES
    protocol, fn = protocol_of(name), toys.called(toys.strided)
    whole = protocol.measure(fn, images, labels)
    batches = []
    for start in range(0, 11, 4):
        rows = np.minimum(np.arange(start, start + 4), 10)
        padded = protocol.per_image(fn, images[rows], index=rows, labels=labels[rows])
        batches.append({key: array[: min(4, 11 - start)] for key, array in padded.items()})
    streamed = protocol.summarise(consistency.gather(batches))
    np.testing.assert_array_equal(streamed.per_image, whole.per_image)
    assert streamed.as_dict() == whole.as_dict()


@pytest.mark.parametrize("name", consistency.PROTOCOLS)
def test_order_changes_nothing(name):
    images, labels = toys.photos(17, 29, 30), np.arange(17) % toys.CLASSES
    protocol, fn = protocol_of(name), toys.called(toys.strided)
    order = np.random.default_rng(0).permutation(17)
    straight = protocol.measure(fn, images, labels)
    shuffled = protocol.measure(fn, images[order], labels[order], index=order)
    np.testing.assert_array_equal(straight.per_image[order], shuffled.per_image)
    assert shuffled.value == pytest.approx(straight.value)


def test_the_order_of_numbers_decides_who_shares_in_zhang2019_only():
    images, order = toys.photos(24, 29, 30), np.random.default_rng(1).permutation(24)
    fn = toys.called(toys.strided)
    for name in ("zhang2019", "crop"):
        straight = protocol_of(name).measure(fn, images).arrays["offsets"]
        renumbered = protocol_of(name).measure(fn, images, index=order).arrays["offsets"]
        np.testing.assert_array_equal(renumbered, straight[order])
        together = [len(np.unique(renumbered[start : start + 8], axis=0)) for start in (0, 8, 16)]
        assert (max(together) > 1) if name == "zhang2019" else (together == [8, 8, 8])


@pytest.mark.parametrize("name", ["accuracy", "crop", "circular", "diagonal", "fractional"])
def test_eight_devices_change_nothing(name):
    assert len(jax.devices()) == 8, "tests/conftest.py simulates eight devices"
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    images, labels = toys.photos(16, 29, 30), np.arange(16) % toys.CLASSES
    one = protocol_of(name).measure(Partial(toys.strided), images, labels)
    spread = jax.device_put(images, NamedSharding(mesh, PartitionSpec("data")))
    arrays = protocol_of(name).per_image(Partial(toys.strided), spread, index=np.arange(16), labels=labels)
    assert len(arrays["predictions"].sharding.device_set) == 8
    eight = protocol_of(name).summarise(consistency.gather([arrays]))
    np.testing.assert_array_equal(one.per_image, eight.per_image)


@pytest.mark.parametrize("name", SAMPLED)
def test_a_result_tells_how_to_repeat_it(name):
    images, fn = toys.photos(13, 29, 30), toys.called(toys.strided)
    result = protocol_of(name, seed=7).measure(fn, images)
    again = consistency.create_protocol(result.protocol, **result.settings).measure(
        fn, images[::-1], index=np.arange(13)[::-1]
    )
    np.testing.assert_array_equal(again.arrays["offsets"][::-1], result.arrays["offsets"])
    np.testing.assert_array_equal(again.per_image[::-1], result.per_image)
    assert not np.array_equal(
        protocol_of(name, seed=8).offsets(np.arange(13)), protocol_of(name, seed=7).offsets(np.arange(13))
    )


@functools.cache
def fifty_runs():
    """The exact value of the strided toy on 64 images, and 50 random runs of both protocols."""
    images, fn = toys.photos(64, 28, 28, seed=3), toys.called(toys.strided)
    exact = consistency.Exact(crop=20, shifts=9).measure(fn, images)
    grids = exact.arrays["predictions"]
    runs = {}
    for name in ("zhang2019", "crop"):
        runs[name] = []
        for seed in range(50):
            offsets = protocol_of(name, seed=seed).offsets(np.arange(64))
            seen = grids[np.arange(64)[:, None], offsets[..., 0], offsets[..., 1]].reshape(64, -1, 2)
            arrays = {"index": np.arange(64), "predictions": seen}
            runs[name].append(protocol_of(name, seed=seed).summarise(arrays).value)
        direct = protocol_of(name, seed=0).measure(fn, images)
        assert direct.value == runs[name][0], "looking up the exact predictions is running the protocol"
    return exact, {name: np.array(values) for name, values in runs.items()}


def test_exact_is_what_fifty_random_runs_tend_to():
    exact, runs = fifty_runs()
    for name, values in runs.items():
        stderr = values.std(ddof=1) / 50**0.5
        print(f"exact {exact.value:.3f}; {name}, mean of 50: {values.mean():.3f} +- {stderr:.3f}")
        assert abs(values.mean() - exact.value) < 2 * stderr
        assert stderr < 1


def test_offsets_of_their_own_spread_less_than_shared_ones():
    _, runs = fifty_runs()
    shared, own = (runs[name].std(ddof=1) for name in ("zhang2019", "crop"))
    print(f"spread over 50 seeds: shared offsets {shared:.3f}, per-image offsets {own:.3f}")
    # Standard deviations of 50 runs are uncertain by about 10 % each.
    assert own < 0.75 * shared


def test_the_standard_error_is_the_spread_over_samples_of_images():
    values, errors = [], []
    for seed in range(60):
        result = protocol_of("crop", seed=seed).measure(
            toys.called(toys.strided), toys.photos(25, 28, 28, seed=100 + seed)
        )
        values.append(result.value)
        errors.append(result.stderr)
    assert np.mean(errors) == pytest.approx(np.std(values, ddof=1), rel=0.3)
