"""Augmentation on the device: exact geometry, and randomness from (seed, step) alone."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from aa_flax.weights.config import Preprocessing
from train.data import Augmentation
from train.data.augment import augment, normalise, random_flip, random_shift

RULE = Preprocessing(resize=12, crop=12)
BOTH = Augmentation(flip=True, shift=3)


def pictures(count: int, size: int = 12) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@partial(jax.jit, static_argnames=("augmentation",))
def augmented(images, seed, step, augmentation=BOTH):
    return augment(images, seed=seed, step=step, augmentation=augmentation, preprocessing=RULE)


def test_flip_mirrors_about_half_of_the_images_and_leaves_the_others():
    images = pictures(400)
    flipped = np.asarray(random_flip(jnp.asarray(images), jax.random.key(0)))
    same = (flipped == images).all(axis=(1, 2, 3))
    mirrored = (flipped == images[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (same ^ mirrored).all()
    assert 150 < mirrored.sum() < 250
    assert flipped.dtype == np.uint8


def test_shift_cuts_windows_out_of_the_reflected_image():
    images = pictures(60)
    shifted = np.asarray(random_shift(jnp.asarray(images), jax.random.key(1), 2))
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
    offsets = set()
    for picture, surroundings in zip(shifted, padded, strict=True):
        matches = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if (surroundings[top : top + 12, left : left + 12] == picture).all()
        ]
        assert len(matches) == 1
        offsets.add(matches[0])
    assert len(offsets) > 15
    assert {top for top, _ in offsets} == set(range(5))


def test_no_reach_is_no_shift():
    images = jnp.asarray(pictures(3))
    np.testing.assert_array_equal(random_shift(images, jax.random.key(0), 0), images)


def test_normalise_is_what_the_published_networks_were_given():
    images = pictures(2)
    mean, std = np.float32(RULE.mean), np.float32(RULE.std)
    expected = (images.astype(np.float32) / np.float32(255) - mean) / std
    result = normalise(jnp.asarray(images), RULE)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6)


def test_seed_and_step_alone_decide():
    images = pictures(16)
    reference = augmented(images, 3, 10)
    np.testing.assert_array_equal(augmented(images, 3, 10), reference)
    assert not np.array_equal(augmented(images, 3, 11), reference)
    assert not np.array_equal(augmented(images, 4, 10), reference)


def test_the_number_of_devices_does_not_matter():
    assert jax.device_count() == 8
    images = pictures(16)
    reference = np.asarray(augmented(images, 3, 10))
    for count in (2, 8):
        mesh = jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:count])
        sharded = jax.device_put(images, NamedSharding(mesh, PartitionSpec("data")))
        np.testing.assert_array_equal(augmented(sharded, 3, 10), reference)


def test_steps_share_one_program():
    images = pictures(4)
    augmented.clear_cache()
    for step in range(3):
        augmented(images, 0, step)
    assert augmented._cache_size() == 1


@pytest.mark.parametrize("augmentation", [Augmentation(), Augmentation(random_resized_crop=True)])
def test_what_the_host_does_is_not_done_again(augmentation):
    images = pictures(4)
    np.testing.assert_allclose(
        augmented(images, 0, 0, augmentation), normalise(jnp.asarray(images), RULE), rtol=0, atol=1e-6
    )
