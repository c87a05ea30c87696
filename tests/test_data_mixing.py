"""Mixup, CutMix and erasing on the device: each against its formula, and randomness from (seed, step) alone."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from train.data import Augmentation
from train.data.augment import random_erase, rectangles
from train.data.mixing import mix, mixed, outside

SIDES, CLASSES = (9, 12), 4
BOTH = Augmentation(mixup=0.3, cutmix=1.0)


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, *SIDES, 3)).astype(np.float32)


def labels(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.int32) % CLASSES


@partial(jax.jit, static_argnames=("augmentation",))
def mixture(images, seed, step, augmentation=BOTH):
    classes = jnp.arange(images.shape[0], dtype=jnp.int32) % CLASSES
    return mix(images, classes, seed=seed, step=step, augmentation=augmentation, num_classes=CLASSES)


def test_what_cutmix_keeps_is_outside_of_the_paper_s_rectangle():
    """Its sides are the image's times sqrt(1 - share); halves are rounded down and the border cuts off the rest."""
    random = np.random.default_rng(0)
    height, width = SIDES
    share = np.float32([0, 0.2, 0.5, 0.75, 0.99, 1, *random.uniform(size=40)])
    centre = random.integers(0, SIDES, (len(share), 2)).astype(np.int32)
    found = np.asarray(outside(jnp.asarray(share), jnp.asarray(centre), height, width))
    for each, (row, column), kept in zip(found, centre, share, strict=True):
        expected = np.ones(SIDES, np.float32)
        tall, wide = (int(0.5 * np.sqrt(np.float32(1) - kept) * side) for side in SIDES)
        expected[max(row - tall, 0) : row + tall, max(column - wide, 0) : column + wide] = 0
        np.testing.assert_array_equal(each, expected)


def test_images_and_labels_are_mixed_with_the_neighbour_in_the_same_shares():
    images, shares = pictures(5), np.eye(CLASSES, dtype=np.float32)[labels(5)]
    kept = np.random.default_rng(1).integers(0, 2, (5, *SIDES)).astype(np.float32)
    kept[0] = 0.3
    found, classes = mixed(jnp.asarray(images), jnp.asarray(shares), jnp.asarray(kept))
    for i in range(5):
        pixels = kept[i, ..., None].astype(np.float64)
        np.testing.assert_allclose(found[i], pixels * images[i] + (1 - pixels) * images[i - 1], rtol=0, atol=1e-6)
        own = pixels.mean()
        np.testing.assert_allclose(classes[i], own * shares[i] + (1 - own) * shares[i - 1], rtol=0, atol=1e-6)


def test_each_image_is_cut_or_blended_as_its_coin_says():
    images = pictures(200)
    found, classes = map(np.asarray, mixture(images, 0, 0))
    neighbours = np.roll(images, 1, axis=0)
    copied = ((found == images) | (found == neighbours)).all(axis=(1, 2, 3))
    assert 60 < copied.sum() < 140
    for i in np.flatnonzero(~copied):
        share = classes[i, i % CLASSES]
        np.testing.assert_allclose(found[i], share * images[i] + (1 - share) * neighbours[i], rtol=0, atol=1e-5)
    np.testing.assert_allclose(classes.sum(-1), 1, rtol=0, atol=1e-6)
    assert len(np.unique(classes[~copied].max(-1))) > 50


@pytest.mark.parametrize(
    ("augmentation", "variance"), [(Augmentation(mixup=0.2), 1 / 5.6), (Augmentation(mixup=2), 0.05)]
)
def test_shares_have_the_mean_and_variance_of_their_distribution(augmentation, variance):
    """Of Beta(a, a): 1/2 and 1 / (4 (2 a + 1))."""
    classes = np.asarray(mixture(pictures(2000), 0, 0, augmentation)[1])
    own = classes[np.arange(2000), labels(2000)]
    np.testing.assert_allclose(own.mean(), 0.5, atol=0.03)
    np.testing.assert_allclose(own.var(), variance, rtol=0.08)


def test_seed_and_step_alone_decide_on_any_number_of_devices():
    assert jax.device_count() == 8
    images = pictures(16)
    reference = jax.device_get(mixture(images, 3, 10))
    for other in ((4, 10), (3, 11)):
        assert not np.array_equal(mixture(images, *other)[0], reference[0])
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put(images, NamedSharding(mesh, PartitionSpec("data")))
    for found, expected in zip(mixture(sharded, 3, 10), reference, strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_erasing_wipes_out_one_rectangle_of_some_images():
    images = jnp.asarray(np.abs(pictures(400)) + 1)
    erase = jax.jit(random_erase)
    found = np.asarray(erase(images, jax.random.key(0), 0.25))
    wiped = (found == 0).all(-1)
    np.testing.assert_array_equal(found[~wiped], images[~wiped])
    assert 60 < wiped.any((1, 2)).sum() < 140
    np.testing.assert_array_equal(erase(images, jax.random.key(0), 0.0), images)


jitted_rectangles = jax.jit(rectangles, static_argnums=(1, 2, 3))


def test_erased_rectangles_are_those_of_the_paper():
    """Shares of the area from 0.02 to 0.33, uniform; heights of 0.3 to 3.3 widths, uniform in their logarithm."""
    side = 100
    found = np.asarray(jitted_rectangles(jax.random.key(1), 1500, side, side))
    rows, columns = found.any(2), found.any(1)
    np.testing.assert_array_equal(found, rows[:, :, None] & columns[:, None])
    height, width = rows.sum(1), columns.sum(1)
    starts = rows.argmax(1), columns.argmax(1)
    # Connected: from the first to the last there is no gap.
    assert (rows[:, ::-1].argmax(1) == side - starts[0] - height).all()
    area, ratio = height * width / side**2, np.log(height / width)
    assert 0.015 < area.min() < 0.04
    assert 0.3 < area.max() < 0.345
    np.testing.assert_allclose([area.mean(), area.std()], [0.175, 0.31 / np.sqrt(12)], rtol=0.05)
    assert np.abs(ratio).max() < np.log(3.3) + 0.2
    np.testing.assert_allclose(ratio.std(), np.log(3.3 / 0.3) / np.sqrt(12), rtol=0.05)
    for start, size in zip(starts, (height, width), strict=True):
        np.testing.assert_allclose((start / (side - size)).mean(), 0.5, atol=0.03)


def test_an_image_in_which_no_rectangle_fits_stays_whole():
    assert not jitted_rectangles(jax.random.key(0), 20, 1, 40).any()
