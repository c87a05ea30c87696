"""Several views at once, the unshifted view, the worst fraction of a pixel: against the loops of their definitions."""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from aa_flax import consistency
from tests import shift_toys as toys

COUNT, CROP = 13, (9, 12)
IMAGES = toys.photos(COUNT, 17, 20)
LABELS = np.array([toys.loop_class(toys.loop_centre(image, CROP)) for image in IMAGES])
LABELS[::3] = (LABELS[::3] + 1) % toys.CLASSES


def rounded(images):
    """The toy on fractionally shifted pixels, whose tiny errors rounding takes away."""
    return toys.strided_logits(jnp, jnp.round(images)).astype(jnp.float32) / 50


def loop_logits(image):
    return toys.strided_logits(np, np.round(np.asarray(image, np.float64))[None])[0] / 50


def softmax(logits):
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


@pytest.mark.parametrize("kind", [toys.compiled, toys.called])
@pytest.mark.parametrize("views", [2, 3, 5])
def test_all_views_have_to_agree(views, kind):
    size, count = (20, 21), 24
    images = toys.photos(count, 23, 24, block=8)
    labels = np.array([toys.loop_class(toys.loop_crop(image, size, 3, (1, 1))) for image in images])
    labels[::3] = (labels[::3] + 1) % toys.CLASSES
    protocol = consistency.Crop(crop=size, shifts=3, pairs=4, views=views, seed=3)
    result = protocol.measure(kind(toys.strided), images, labels)
    offsets = result.arrays["offsets"]
    assert offsets.shape == (count, 4, views, 2)
    agreement, right, some = [], [], []
    for image, label, own in zip(images, labels, offsets, strict=True):
        seen = [[toys.loop_class(toys.loop_crop(image, size, 3, at)) for at in group] for group in own]
        agreement.append(np.mean([len(set(group)) == 1 for group in seen]))
        right.append(np.mean([set(group) == {label} for group in seen]))
        some.append(np.mean([label in group for group in seen]))
    np.testing.assert_allclose(result.per_image, 100 * np.array(agreement), atol=1e-9)
    assert result.parts["consistent_correct"].value == pytest.approx(100 * np.mean(right))
    assert result.parts["consistent_wrong"].value == pytest.approx(100 * (np.mean(agreement) - np.mean(right)))
    ratio = np.sum(right) / np.sum(some)
    assert 0.02 < ratio < 0.9
    given = result.parts["agree_if_right"]
    assert given.value == pytest.approx(100 * ratio)
    # Cochran (1977), equation 6.4: the standard error of a ratio of two means over the same sample.
    rest = np.array(right) - ratio * np.array(some)
    stderr = np.sqrt((rest**2).sum() / (count - 1) / count) / np.mean(some)
    assert given.stderr == pytest.approx(100 * stderr)
    again = dataclasses.replace(protocol, given=offsets).measure(kind(toys.strided), images, labels)
    np.testing.assert_array_equal(again.per_image, result.per_image)


def test_two_views_are_the_pairs_they_were():
    drawn = np.random.default_rng((3, 5)).integers(0, 7, (4, 2, 2))
    np.testing.assert_array_equal(consistency.Crop(shifts=7, pairs=4, seed=3).draw(np.array([5]))[0], drawn)


def test_where_nothing_is_right_no_agreement_is_conditioned_on_it():
    never = np.full(COUNT, toys.CLASSES - 1)
    logits = lambda images: np.tile([1.0, 2, 3, 4, 0], (len(images), 1))  # noqa: E731
    parts = consistency.Crop(crop=CROP, shifts=7).measure(logits, IMAGES, never).parts
    assert "agree_if_right" not in parts
    assert parts["consistent_wrong"].value == 100


def seen_by(shift, image, offset):
    """The view of an image that a shift asks for, in numpy."""
    if shift == "crop":
        top, left = (round((n - s) / 2.0) for n, s in zip(image.shape[:2], CROP, strict=True))
        row, column = top + int(offset[0]), left + int(offset[1])
        return image[row : row + CROP[0], column : column + CROP[1]]
    centre = toys.loop_centre(image, CROP)
    return toys.loop_fourier(centre, offset) if shift == "fractional" else np.roll(centre, offset, (0, 1))


@pytest.mark.parametrize("kind", ["compiled", "called"])
@pytest.mark.parametrize(("shift", "reach"), [("crop", 3), ("circular", 5), ("fractional", 1.5)])
def test_the_unshifted_view_is_what_others_are_compared_with(shift, reach, kind):
    fn = toys.compiled(rounded) if kind == "compiled" else lambda images: np.stack(list(map(loop_logits, images)))
    protocol = consistency.Unshifted(crop=CROP, shift=shift, max_shift=reach, draws=3, seed=2)
    result = protocol.measure(fn, IMAGES, LABELS)
    offsets = result.arrays["offsets"]
    assert offsets.shape == (COUNT, 4, 2)
    assert not offsets[:, 0].any()
    assert np.abs(offsets).max() <= reach
    assert len(np.unique(offsets[:, 1:].reshape(-1, 2), axis=0)) > COUNT
    same, change = [], []
    for image, own in zip(IMAGES, offsets, strict=True):
        chances = [softmax(loop_logits(seen_by(shift, image, offset))) for offset in own]
        first = chances[0].argmax()
        same.append(np.mean([chance.argmax() == first for chance in chances[1:]]))
        change.append(np.mean([abs(chance[first] - chances[0][first]) for chance in chances[1:]]))
    assert 0.05 < np.mean(same) < 0.95
    np.testing.assert_allclose(result.per_image, 100 * np.array(same), atol=1e-9)
    part = result.parts["probability_change"]
    assert part.value == pytest.approx(100 * np.mean(change), rel=1e-4)
    assert part.stderr == pytest.approx(100 * np.std(change, ddof=1) / COUNT**0.5, rel=1e-4)


@pytest.mark.parametrize("periodic", [True, False])
def test_the_worst_fraction_is_the_loop(periodic):
    images, labels = IMAGES[:6], LABELS[:6]
    protocol = consistency.FractionalWorst(crop=CROP, max_shift=1, step=0.5, periodic=periodic)
    result = protocol.measure(toys.compiled(rounded), images, labels)
    steps = np.arange(-2, 3) * 0.5
    predictions = np.empty((6, 5, 5), int)
    for (i, image), (j, down), (k, right) in itertools.product(*map(enumerate, (images, steps, steps))):
        if periodic:
            seen = toys.loop_fourier(toys.loop_centre(image, CROP), (down, right))
        else:
            seen = toys.loop_centre(toys.loop_fourier(image, (down, right)), CROP)
        predictions[i, j, k] = loop_logits(seen).argmax()
    np.testing.assert_array_equal(result.arrays["predictions"], predictions)
    correct = predictions == labels[:, None, None]
    np.testing.assert_array_equal(result.per_image, 100 * correct.all((1, 2)))
    assert result.parts["unshifted"].value == pytest.approx(100 * correct[:, 2, 2].mean())
    unchanged = (predictions == predictions[:, :1, :1]).all((1, 2))
    assert result.parts["unchanged"].value == pytest.approx(100 * unchanged.mean())


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("crop", {"views": 1}, "views=1: must be a whole number of at least 2"),
        ("crop", {"views": 3, "given": np.zeros((4, 2, 2), int)}, r"given must have the shape \(pairs, 3, 2\)"),
        ("unshifted", {"shift": "sideways"}, "shift='sideways': must be one of crop, circular, fractional"),
        ("unshifted", {"max_shift": 0.5}, "max_shift=0.5: shift='crop' moves by whole pixels"),
        ("unshifted", {"max_shift": np.inf}, "must be positive and finite"),
        ("unshifted", {"draws": 0}, "draws=0"),
        ("fractional_worst", {"step": 0.0}, "step=0.0: must be positive"),
        ("fractional_worst", {"max_shift": 0.7}, "max_shift=0.7: must be a multiple of step=0.5"),
    ],
)
def test_settings_that_cannot_be(name, settings, words):
    with pytest.raises(ValueError, match=words):
        consistency.create_protocol(name, **settings)


def test_the_unshifted_view_needs_room_for_its_crops():
    with pytest.raises(ValueError, match="too small"):
        consistency.Unshifted(crop=CROP, max_shift=5).measure(toys.called(toys.strided), IMAGES)
