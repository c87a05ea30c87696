"""Every protocol against the loops of its definition, and everything that has to be refused."""

import dataclasses
import json
import math
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.tree_util import Partial

from aa_flax import consistency
from tests import shift_toys as toys

SIZES = {"max_examples": 8}


def check(result, fractions):
    """The result against one fraction for each image from a loop."""
    value, stderr = toys.loop_moments(fractions)
    np.testing.assert_allclose(result.per_image, 100 * np.asarray(fractions), atol=1e-9)
    assert result.value == pytest.approx(value, abs=1e-9)
    assert result.stderr == pytest.approx(stderr, abs=1e-9, nan_ok=True)
    assert result.images == len(fractions)


def loop_pairs(classes, labels):
    """Agreement, and its parts, from the classes (images, pairs, 2)."""
    agreement, correct, wrong = [], [], []
    for pairs, label in zip(classes, labels, strict=True):
        same = [first for first, second in pairs if first == second]
        agreement.append(len(same) / len(pairs))
        correct.append(sum(one == label for one in same) / len(pairs))
        wrong.append(sum(one != label for one in same) / len(pairs))
    return agreement, correct, wrong


def check_parts(result, correct, wrong):
    for name, fractions in (("consistent_correct", correct), ("consistent_wrong", wrong)):
        value, stderr = toys.loop_moments(fractions)
        assert result.parts[name].value == pytest.approx(value, abs=1e-9)
        assert result.parts[name].stderr == pytest.approx(stderr, abs=1e-9, nan_ok=True)


@st.composite
def scenes(draw):
    """Images with a crop and a number of shifts that fit, often only just."""
    crop = (draw(st.integers(3, 21)), draw(st.integers(3, 21)))
    shifts = draw(st.integers(1, 9))
    sides = [side + shifts - 1 + draw(st.integers(0, 6)) for side in crop]
    images = toys.photos(draw(st.integers(1, 6)), *sides, seed=draw(st.integers(0, 99)))
    return images, crop, shifts


@given(scenes(), st.integers(1, 4), st.integers(0, 99), st.integers(1, 9))
@settings(**SIZES)
def test_crop_with_given_offsets_is_the_loop(scene, pairs, seed, device_batch):
    images, crop, shifts = scene
    rng = np.random.default_rng(seed)
    offsets = rng.integers(0, shifts, (pairs, 2, 2))
    labels = rng.integers(0, toys.CLASSES, len(images))
    result = consistency.Crop(crop=crop, shifts=shifts, given=offsets, device_batch=device_batch).measure(
        toys.called(toys.strided), images, labels
    )
    classes = [
        [[toys.loop_class(toys.loop_crop(image, crop, shifts, at)) for at in pair] for pair in offsets]
        for image in images
    ]
    agreement, correct, wrong = loop_pairs(classes, labels)
    np.testing.assert_array_equal(result.arrays["predictions"], classes)
    check(result, agreement)
    check_parts(result, correct, wrong)


@pytest.mark.parametrize("kind", [toys.compiled, toys.called])
@pytest.mark.parametrize("name", ["crop", "zhang2019"])
def test_random_crops_agree_as_their_recorded_offsets_say(name, kind):
    images, labels = toys.photos(19, 27, 30), np.arange(19) % toys.CLASSES
    protocol = consistency.create_protocol(name, crop=20, shifts=7, pairs=4, seed=3)
    result = protocol.measure(kind(toys.strided), images, labels)
    offsets = result.arrays["offsets"]
    classes = [
        [[toys.loop_class(toys.loop_crop(image, (20, 20), 7, at)) for at in pair] for pair in own]
        for image, own in zip(images, offsets, strict=True)
    ]
    agreement, correct, wrong = loop_pairs(classes, labels)
    assert 0.2 < np.mean(agreement) < 0.95, "the toy must sometimes agree and sometimes not"
    check(result, agreement)
    check_parts(result, correct, wrong)
    again = dataclasses.replace(protocol, given=offsets).measure(kind(toys.strided), images, labels)
    np.testing.assert_array_equal(again.arrays["predictions"], result.arrays["predictions"])


def test_offsets_are_shared_by_eight_or_by_one():
    numbers = np.arange(20)
    shared = np.asarray(consistency.Zhang2019(seed=1).offsets(numbers))
    own = np.asarray(consistency.Crop(seed=1).offsets(numbers))
    assert shared.shape == own.shape == (20, 10, 2)
    for group in range(3):
        members = shared[group * 8 : group * 8 + 8]
        assert (members == members[:1]).all()
    assert len({each.tobytes() for each in shared}) == 3
    assert len({each.tobytes() for each in own}) == 20
    assert not np.array_equal(own, consistency.Crop(seed=2).offsets(numbers))


def test_offsets_are_uniform_over_the_whole_range():
    drawn = np.asarray(consistency.Crop(seed=5, shifts=32, pairs=50).offsets(np.arange(400)))
    counts = np.bincount(drawn.ravel(), minlength=32)
    expected = drawn.size / 32
    assert len(counts) == 32
    # 31 degrees of freedom: below 61.1 with probability 0.999.
    assert ((counts - expected) ** 2 / expected).sum() < 61.1
    rolls = np.asarray(consistency.Circular(seed=5, pairs=50).offsets(np.arange(400)))
    assert (rolls.min(), rolls.max()) == (-32, 31)
    fractions = np.asarray(consistency.Fractional(seed=5, pairs=50).offsets(np.arange(400)))
    assert -0.5 <= fractions.min() < -0.499
    assert 0.499 < fractions.max() < 0.5
    assert abs(fractions.mean()) < 4 * (1 / 12 / fractions.size) ** 0.5


@given(scenes(), st.integers(0, 99))
@settings(**SIZES)
def test_exact_is_the_mean_over_all_pairs_of_crops(scene, seed):
    images, crop, shifts = scene
    labels = np.random.default_rng(seed).integers(0, toys.CLASSES, len(images))
    result = consistency.Exact(crop=crop, shifts=shifts).measure(toys.called(toys.strided), images, labels)
    places = [(row, column) for row in range(shifts) for column in range(shifts)]
    classes = [[toys.loop_class(toys.loop_crop(image, crop, shifts, at)) for at in places] for image in images]
    np.testing.assert_array_equal(result.arrays["predictions"].reshape(len(images), -1), classes)
    every = [[(first, second) for first in own for second in own] for own in classes]
    agreement, correct, wrong = loop_pairs(every, labels)
    check(result, agreement)
    check_parts(result, correct, wrong)


@given(scenes(), st.integers(1, 40), st.integers(0, 99))
@settings(**SIZES)
def test_circular_rolls_the_centre_crop(scene, reach, seed):
    images, crop, _ = scene
    result = consistency.Circular(crop=crop, max_shift=reach, pairs=3, seed=seed).measure(
        toys.called(toys.strided), images
    )
    offsets = result.arrays["offsets"]
    assert offsets.min() >= -reach
    assert offsets.max() < reach
    classes = [
        [[toys.loop_class(np.roll(toys.loop_centre(image, crop), at, axis=(0, 1))) for at in pair] for pair in own]
        for image, own in zip(images, offsets, strict=True)
    ]
    check(result, loop_pairs(classes, np.zeros(len(images)))[0])


def test_diagonal_gives_the_four_arrays_and_the_flip_rate():
    images, labels, steps = toys.photos(6, 26, 31), np.array([0, 1, 2, 3, 4, 0]), 9
    # Divided, so that probabilities are not all 0 and 1.
    fn = Partial(lambda x: toys.strided(x) / 64)
    result = consistency.Diagonal(crop=(17, 20), steps=steps).measure(fn, images, labels)
    flips = []
    for row, (image, label) in enumerate(zip(images, labels, strict=True)):
        classes = []
        for at in range(steps + 1):
            seen = toys.loop_crop(image, (17, 20), steps, (at, at))
            logits = toys.strided_logits(np, seen[None])[0] / 64.0
            chance = np.exp(logits) / np.exp(logits).sum()
            others = np.delete(chance, label)
            classes.append(int(logits.argmax()))
            assert result.arrays["probability"][row, at] == pytest.approx(chance[label], rel=1e-5)
            assert result.arrays["best_other"][row, at] == pytest.approx(others.max(), rel=1e-5)
            assert result.arrays["predictions"][row, at] == classes[-1]
            assert result.arrays["correct"][row, at] == (classes[-1] == label)
        flips.append(sum(a != b for a, b in pairwise(classes)) / steps)
    assert 0 < np.mean(flips) < 1
    check(result, flips)
    assert result.parts["accuracy"].value == pytest.approx(100 * result.arrays["correct"].mean())


def test_worst_case_is_right_under_every_shift():
    images, reach = toys.photos(40, 33, 30, block=12), 3
    first = [toys.loop_class(toys.loop_centre(image, (24, 24))) for image in images]
    result = consistency.WorstCase(crop=24, max_shift=reach).measure(
        toys.compiled(toys.strided), images, np.array(first)
    )
    for within in range(reach + 1):
        right = []
        for image, label in zip(images, first, strict=True):
            top, left = (round((n - 24) / 2.0) for n in image.shape[:2])
            near = range(-within, within + 1)
            crops = [image[top + y : top + y + 24, left + x : left + x + 24] for y in near for x in near]
            right.append(float(all(toys.loop_class(each) == label for each in crops)))
        value, stderr = toys.loop_moments(right)
        part = result.parts[f"within_{within}"]
        assert (part.value, part.stderr) == pytest.approx((value, stderr))
    assert 0 < result.value < result.parts["within_0"].value == 100
    assert result.parts["unchanged"].value == result.value, "the label is the centre's prediction"
    check(result, right)


@given(st.integers(1, 17), st.integers(1, 17), st.floats(-20, 20), st.floats(-20, 20))
@settings(**SIZES)
def test_fourier_shift_is_the_interpolation_formula(rows, columns, down, right):
    image = np.random.default_rng(rows).normal(size=(rows, columns, 2)).astype(np.float32)
    offset = np.array([down, right], np.float32)
    moved = jax.jit(consistency.fourier_shift)(image, offset)
    assert moved.dtype == jnp.float32
    np.testing.assert_allclose(moved, toys.loop_fourier(image, offset), atol=3e-4)


@pytest.mark.parametrize("side", [(8, 9), (9, 8), (1, 2)])
def test_whole_fourier_shifts_are_rolls(side):
    image = np.random.default_rng(0).normal(size=(*side, 3)).astype(np.float32)
    shift = jax.jit(consistency.fourier_shift)
    for offset in [(0, 0), (1, -2), (-9, 30)]:
        moved = shift(image, np.array(offset, np.float32))
        np.testing.assert_allclose(moved, np.roll(image, offset, axis=(0, 1)), atol=2e-5)


def test_half_shifts_lose_nyquist_on_even_sides_only():
    stripes = np.tile([1.0, -1.0], 4).reshape(8, 1, 1).astype(np.float32) * np.ones((1, 7, 1), np.float32)
    half, shift = np.array([0.5, 0.0], np.float32), jax.jit(consistency.fourier_shift)
    np.testing.assert_allclose(shift(stripes, half), 0, atol=1e-6)
    odd = np.random.default_rng(0).normal(size=(9, 7, 1)).astype(np.float32)
    twice = shift(shift(odd, half), half)
    np.testing.assert_allclose(twice, np.roll(odd, 1, axis=0), atol=1e-5)


@pytest.mark.parametrize("periodic", [False, True])
def test_fractional_shifts_the_image_or_the_crop(periodic):
    images = toys.photos(5, 13, 12, seed=4)
    result = consistency.Fractional(crop=9, pairs=2, max_shift=2.0, periodic=periodic).measure(
        toys.compiled(toys.strided), images
    )
    for image, own, seen in zip(images, result.arrays["offsets"], result.arrays["predictions"], strict=True):
        for at, predicted in zip(own.reshape(-1, 2), seen.ravel(), strict=True):
            if periodic:
                moved = toys.loop_fourier(toys.loop_centre(image, (9, 9)), at)
            else:
                moved = toys.loop_centre(toys.loop_fourier(image, at), (9, 9))
            assert abs(moved - 128).min() > 1e-3, "no pixel at the toy's threshold"
            assert predicted == toys.loop_class(moved)
    check(result, loop_pairs(result.arrays["predictions"], np.zeros(5))[0])


def test_distance_pairs_lie_that_far_apart():
    protocol = consistency.Distance(crop=12, shifts=9, pairs=400, seed=2)
    assert protocol.distances == (1, 2, 4, 8)
    drawn = np.asarray(protocol.offsets(np.arange(3))).reshape(3, 4, 400, 2, 2)
    assert drawn.min() == 0
    assert drawn.max() == 8
    apart = drawn[..., 1, :] - drawn[..., 0, :]
    for place, distance in enumerate((1, 2, 4, 8)):
        along_rows = (apart[:, place] == (distance, 0)).all(-1)
        along_columns = (apart[:, place] == (0, distance)).all(-1)
        assert (along_rows ^ along_columns).all()
        assert abs(along_rows.mean() - 0.5) < 4 * (0.25 / along_rows.size) ** 0.5


def test_distance_estimates_the_exact_curve():
    images = toys.photos(8, 24, 24, seed=7)
    fn = toys.compiled(toys.strided)
    grids = consistency.Exact(crop=16, shifts=8).measure(fn, images).arrays["predictions"]
    curve = consistency.agreement_by_distance(grids)
    for apart, estimate in curve.items():
        agreement = []
        for grid in grids:
            pairs = []
            for row in range(8):
                for column in range(8):
                    if row + apart < 8:
                        pairs.append(grid[row, column] == grid[row + apart, column])
                    if column + apart < 8:
                        pairs.append(grid[row, column] == grid[row, column + apart])
            agreement.append(float(np.mean(pairs)))
        assert (estimate.value, estimate.stderr) == pytest.approx(toys.loop_moments(agreement))
    sampled = consistency.Distance(crop=16, shifts=8, pairs=300, distances=[1, 3, 4, 7]).measure(fn, images)
    for name, part in sampled.parts.items():
        # 2400 pairs: the sampling error is at most 50 / sqrt(2400) = 1.02 points.
        assert part.value == pytest.approx(curve[int(name)].value, abs=3.5)
    assert sampled.value == pytest.approx(np.mean([part.value for part in sampled.parts.values()]))
    assert max(p.value for p in curve.values()) - min(p.value for p in curve.values()) > 15


def test_accuracy_ranks_the_label_with_ties_by_class():
    logits = np.random.default_rng(0).integers(0, 4, (60, 9)).astype(np.float32)
    labels = np.random.default_rng(1).integers(0, 9, 60)
    images = np.arange(60, dtype=np.float32).reshape(60, 1, 1, 1)
    fn = Partial(lambda table, x: table[x[:, 0, 0, 0].astype(jnp.int32)], jnp.asarray(logits))
    result = consistency.Accuracy(crop=1).measure(fn, images, labels)
    top1, top5 = [], []
    for row, label in zip(logits, labels, strict=True):
        order = sorted(range(9), key=lambda c: (-row[c], c))
        top1.append(float(order[0] == label))
        top5.append(float(label in order[:5]))
    check(result, top1)
    top5_value, top5_stderr = toys.loop_moments(top5)
    assert result.parts["top5"].value == pytest.approx(top5_value)
    assert result.parts["top5"].stderr == pytest.approx(top5_stderr)
    assert 0 < result.value < top5_value < 100
    few = consistency.Accuracy(crop=1).measure(lambda x: fn(x)[:, :4], images, labels % 4)
    assert few.parts["top5"].value == 100


@pytest.mark.parametrize("crop", [31, 32, 64, 160, 223, 224, 288])
def test_every_crop_size_and_the_centre_is_the_centre(crop):
    images = toys.photos(2, crop + 32, crop + 33)
    labels = [toys.loop_class(toys.loop_centre(image, (crop, crop))) for image in images]
    fn = toys.called(toys.strided)
    assert consistency.Accuracy(crop=crop).measure(fn, images, np.array(labels)).value == 100
    result = consistency.Crop(crop=crop, pairs=2).measure(fn, images)
    for image, own, seen in zip(images, result.arrays["offsets"], result.arrays["predictions"], strict=True):
        for at, predicted in zip(own.reshape(-1, 2), seen.ravel(), strict=True):
            assert predicted == toys.loop_class(toys.loop_crop(image, (crop, crop), 32, at))


def test_one_image_has_no_standard_error_and_is_json():
    result = consistency.Crop(crop=33, shifts=8).measure(toys.called(toys.strided), toys.photos(1, 40, 40))
    assert math.isnan(result.stderr)
    told = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert told["stderr"] is None
    assert told["protocol"] == "crop"
    assert told["images"] == 1
    rebuilt = consistency.create_protocol(told["protocol"], **told["settings"])
    assert rebuilt == consistency.Crop(crop=33, shifts=8)


@pytest.mark.parametrize("name", consistency.PROTOCOLS)
def test_the_one_call_of_earlier_versions_still_measures(name):
    kind, images, fn = consistency.PROTOCOLS[name], toys.photos(2, 28, 28), toys.called(toys.strided)
    with pytest.warns(DeprecationWarning, match=rf"write consistency\.{kind.__name__}\(\.\.\.\)\.measure\(fn"):
        call = getattr(consistency, "worst_case" if name == "worst" else name)
    room = {"shifts": 3} if "shifts" in kind.__dataclass_fields__ else {}
    room |= {"steps": 2} if name == "diagonal" else {}
    told = call(fn, images, np.zeros(2, int), crop=20, progress=lambda done, total: None, **room)
    assert told.as_dict() == kind(crop=20, **room).measure(fn, images, np.zeros(2, int)).as_dict()


def test_earlier_names():
    with pytest.warns(DeprecationWarning, match="write consistency.ShiftProtocol"):
        assert consistency.Protocol is consistency.ShiftProtocol  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(AttributeError, match="no attribute 'crops'"):
        consistency.crops  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("name", consistency.PROTOCOLS)
def test_one_class_is_a_class(name):
    protocol = consistency.create_protocol(name, crop=8)
    images, labels = toys.photos(3, 41, 41), np.zeros(3, np.int32)
    result = protocol.measure(lambda x: np.ones((len(x), 1)), images, labels)
    assert result.value == (0 if name == "diagonal" else 100)
    assert result.stderr == 0


def test_protocols_are_equal_where_they_measure_the_same():
    offsets = np.arange(8).reshape(2, 2, 2)
    given = consistency.Crop(given=offsets)
    assert given.pairs == 2
    assert given == consistency.Crop(given=offsets.tolist())
    assert given != consistency.Crop(given=offsets[:, ::-1])
    assert consistency.create_protocol("crop", **json.loads(json.dumps(given.settings()))) == given
    assert consistency.Exact(crop=[8, 9]) == consistency.Exact(crop=(8, 9)) != consistency.Exact(crop=8)
    assert len({given, consistency.Crop(given=offsets), consistency.Crop(seed=1), consistency.Crop()}) == 3


def small_settings(name):
    fields = consistency.PROTOCOLS[name].__dataclass_fields__
    return {key: 6 for key in ("shifts", "steps") if key in fields}


class Network(nnx.Module):
    """Batch norm and dropout, which behave differently in training."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), strides=4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.5)
        self.head = nnx.Linear(4, toys.CLASSES, rngs=rngs)

    def __call__(self, x, rngs=None):
        return self.head(self.drop(nnx.relu(self.norm(self.conv(x))).mean((1, 2)), rngs=rngs))


def test_a_network_is_measured_in_eval_mode_and_left_as_it_was():
    images, normalise = toys.photos(9, 40, 40), consistency.Normalise()
    network = Network(nnx.Rngs(0))
    before = jax.tree.map(np.asarray, nnx.as_pure(nnx.state(network)))
    protocol = consistency.Crop(crop=33, shifts=8)
    result = protocol.measure(network, images, preprocess=normalise)
    assert not network.norm.use_running_average
    after = jax.tree.map(np.asarray, nnx.as_pure(nnx.state(network)))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    evaluating = nnx.view(network, use_running_average=True, deterministic=True)
    other = protocol.measure(jax.jit(lambda x: evaluating(normalise(x))), images)
    np.testing.assert_array_equal(result.arrays["predictions"], other.arrays["predictions"])


def test_changed_weights_change_the_measurement_without_a_new_program():
    images, labels = toys.photos(6, 40, 40), np.arange(6) % toys.CLASSES
    network, normalise = Network(nnx.Rngs(0)), consistency.Normalise()
    programs = []

    def counting(x):
        programs.append(x.shape)
        return normalise(x)

    protocol = consistency.Diagonal(crop=33, steps=6)
    first = protocol.measure(network, images, labels, preprocess=counting)
    network.head.bias[...] = network.head.bias[...].at[3].add(100.0)
    second = protocol.measure(network, images, labels, preprocess=counting)
    assert set(second.arrays["predictions"].ravel()) == {3}
    assert (first.arrays["predictions"] != 3).any()
    assert len(programs) == 1


@pytest.mark.parametrize("name", consistency.PROTOCOLS)
def test_one_program_for_all_offsets_seeds_and_batches(name):
    traced = []

    def network(x):
        traced.append(x.shape)
        return toys.strided(x)

    images, labels, fn = toys.photos(23, 30, 30), np.zeros(23, np.int32), Partial(network)
    for seed in range(3):
        protocol = consistency.create_protocol(name, crop=21, seed=seed, device_batch=7, **small_settings(name))
        protocol.measure(fn, images, labels)
    assert len(traced) == (2 if name == "unshifted" else 1)  # the unshifted view is looked at first
    assert traced[0][0] <= 7


def test_callers_functions_see_one_shape_no_larger_than_the_device_batch():
    shapes = set()

    def network(x):
        assert isinstance(x, jax.Array)
        shapes.add(x.shape)
        return toys.strided_logits(np, np.asarray(x))

    consistency.Exact(crop=19, shifts=7, device_batch=10).measure(network, toys.photos(5, 26, 26))
    assert len(shapes) == 1
    assert shapes.pop()[0] <= 10


def test_progress_counts_every_image_once():
    seen = []
    consistency.Crop(crop=19, shifts=7, device_batch=4).measure(
        toys.called(toys.strided), toys.photos(11, 26, 26), progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(4, 11), (8, 11), (11, 11)]


IMAGES = toys.photos(3, 40, 40)
LABELS = np.array([0, 1, 2])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda f: consistency.Crop(crop=224).measure(f, IMAGES),
            r"images of 40x40.*crop=224x224 and shifts=32.*255x255",
        ),
        (lambda f: consistency.Crop(crop=0).measure(f, IMAGES), "crop=0"),
        (lambda f: consistency.Crop(crop=8.0).measure(f, IMAGES), "crop=8.0"),
        (lambda f: consistency.Crop(crop=(8, 8, 3)).measure(f, IMAGES), r"crop=\(8, 8, 3\)"),
        (lambda f: consistency.Crop(crop=8, shifts=0).measure(f, IMAGES), "shifts=0"),
        (lambda f: consistency.Crop(crop=8, shifts=2.5).measure(f, IMAGES), "shifts=2.5: must be a whole number"),
        (lambda f: consistency.Crop(crop=8).per_image(f, IMAGES, index=LABELS - 1), "index has the number -1"),
        (lambda f: consistency.Crop(crop=8, pairs=0).measure(f, IMAGES), "pairs=0"),
        (lambda f: consistency.Crop(crop=8, seed=-1).measure(f, IMAGES), "seed=-1"),
        (lambda f: consistency.Crop(crop=8, device_batch=0).measure(f, IMAGES), "device_batch=0"),
        (lambda f: consistency.Crop(crop=8).measure(f, IMAGES[0]), r"images must have.*\(40, 40, 3\)"),
        (lambda f: consistency.Crop(crop=8).measure(f, IMAGES[:0]), r"images must have.*\(0, 40, 40, 3\)"),
        (lambda f: consistency.Crop(crop=8).measure(f, IMAGES > 3), "images must be.*bool"),
        (lambda f: consistency.Crop(crop=8).measure(f, IMAGES, LABELS[:2]), r"labels must be 3 integers.*\(2,\)"),
        (lambda f: consistency.Crop(crop=8).measure(f, IMAGES, LABELS / 2), "labels must be 3 integers.*float"),
        (
            lambda f: consistency.Crop(crop=8).measure(f, IMAGES, LABELS + 3),
            "label is none.*1 images, the first with index 2 and label 5",
        ),
        (lambda f: consistency.Accuracy(crop=8).measure(f, IMAGES, None), "labels=None.*'accuracy'"),
        (lambda f: consistency.Accuracy(crop=(8, 41)).measure(f, IMAGES, LABELS), "crop=8x41.*8x41"),
        (lambda f: consistency.Circular(crop=41).measure(f, IMAGES), "crop=41x41 and circular"),
        (lambda f: consistency.Circular(crop=8, max_shift=0).measure(f, IMAGES), "max_shift=0"),
        (lambda f: consistency.Fractional(crop=8, max_shift=0.0).measure(f, IMAGES), "max_shift=0.0"),
        (lambda f: consistency.Fractional(crop=8, max_shift=math.nan).measure(f, IMAGES), "max_shift=nan"),
        (lambda f: consistency.Diagonal(crop=20).measure(f, IMAGES, LABELS), "crop=20x20 and steps=32.*52x52"),
        (lambda f: consistency.Diagonal(crop=8, steps=0).measure(f, IMAGES, LABELS), "steps=0"),
        (lambda f: consistency.WorstCase(crop=33).measure(f, IMAGES, LABELS), "max_shift=4.*41x41"),
        (lambda f: consistency.WorstCase(crop=8, max_shift=-1).measure(f, IMAGES, LABELS), "max_shift=-1"),
        (lambda f: consistency.Distance(crop=8, distances=(1, 32)).measure(f, IMAGES), r"distances=\(1, 32\).*31"),
        (lambda f: consistency.Distance(crop=8, distances=()).measure(f, IMAGES), r"distances=\(\)"),
        (lambda f: consistency.Distance(crop=8, shifts=1).measure(f, IMAGES), "shifts=1"),
        (
            lambda f: consistency.Crop(crop=8, given=[[[0, 32], [0, 0]]]).measure(f, IMAGES),
            r"given.*\[0, 32\].*\[0, 31\]",
        ),
        (lambda f: consistency.Crop(crop=8, given=[[0, 1]]).measure(f, IMAGES), r"given must have.*\(1, 2\)"),
        (lambda f: consistency.Crop(crop=8, given=[[[0.5, 1], [0, 0]]]).measure(f, IMAGES), "given=float64"),
        (lambda f: consistency.Circular(crop=8, given=[[[0.5, 1], [0, 0]]]).measure(f, IMAGES), "given=float64"),
        (lambda f: consistency.Fractional(crop=8, given=[[[math.inf, 1], [0, 0]]]).measure(f, IMAGES), "not finite"),
        (
            lambda f: consistency.Crop(crop=8, given=np.zeros((2, 1, 2, 2), int)).measure(f, IMAGES),
            "offsets of 2 images",
        ),
        (lambda f: consistency.Crop(crop=8).measure(lambda x: f(x)[0], IMAGES), r"fn must return logits.*\(5,\)"),
        (
            lambda f: consistency.Crop(crop=8).measure(lambda x: f(x)[1:], IMAGES),
            r"fn must return logits.*for 30 images.*\(29, 5\)",
        ),
        (
            lambda f: consistency.Crop(crop=8).measure(Partial(lambda x: x), IMAGES),
            r"fn must return logits.*\(30, 8, 8, 3\)",
        ),
        (
            lambda f: consistency.Crop(crop=8).measure(lambda x: f(x) * math.nan, IMAGES),
            "NaN for 3 images, the first with index 0",
        ),
        (
            lambda f: consistency.Crop(crop=8).measure(Network(nnx.Rngs(0)), IMAGES),
            "images are uint8.*Network.*preprocess",
        ),
        (lambda f: consistency.gather([]), "batches is empty"),
        (lambda f: consistency.agreement_by_distance(np.zeros((2, 3, 4))), r"grids must.*\(2, 3, 4\)"),
        (lambda f: consistency.create_protocol("crops"), "unknown protocol 'crops'; close to it: crop"),
    ],
)
def test_wrong_input_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call(toys.called(toys.strided))


def test_an_unknown_setting_is_a_type_error():
    with pytest.raises(TypeError, match="'exact' has no setting 'pairs'; it has: crop"):
        consistency.create_protocol("exact", pairs=3)


def test_normalise_takes_images_of_its_own_channels():
    normalise = consistency.Normalise((0.5,), (0.25,), 1)
    np.testing.assert_allclose(normalise(jnp.ones((2, 4, 5, 1))), 2)
    assert consistency.Normalise()(jnp.ones((4, 5, 3))).shape == (4, 5, 3)
    for other, channels in ((normalise, 3), (consistency.Normalise(), 1), (consistency.Normalise(), 4)):
        with pytest.raises(ValueError, match=f"images .* have {channels}: give Normalise {channels} numbers"):
            other(jnp.ones((1, 4, 5, channels)))
    with pytest.raises(ValueError, match=r"mean and std are for the same channels, got mean=\(0.5,\) and std=\(1, 1\)"):
        consistency.Normalise((0.5,), (1, 1))
