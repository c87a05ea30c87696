"""Photos as a network of one channel reads them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from PIL import Image

from aa_flax.weights.config import Preprocessing
from train.data import DataConfig, open_dataset
from train.data.augment import augment
from train.data.channels import for_channels, grey, network_input
from train.data.datasets import Augmentation
from train.errors import CommandError
from train.evaluate.scoring import protocols_for, score
from train.explain.shift_views import Photo, look
from train.fit.config import NetworkConfig, TrainConfig, validate

ONE = Preprocessing(resize=12, crop=8, mean=(0.4,), std=(0.2,))


@pytest.fixture(scope="module")
def photos() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (8, 12, 12, 3), dtype=np.uint8)


def by_pillow(photos: np.ndarray) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(photo).convert("L"))[..., None] for photo in photos])


def test_grey_is_pillows():
    every = np.stack(np.meshgrid(*[np.arange(0, 256, 5, dtype=np.uint8)] * 3, indexing="ij"), -1).reshape(1, 52, -1, 3)
    found = grey(jnp.asarray(every))
    assert found.dtype == jnp.uint8
    np.testing.assert_array_equal(found, by_pillow(every))
    np.testing.assert_allclose(grey(jnp.asarray(every, jnp.float32)), by_pillow(every), atol=0.51)


def test_grey_photos_stay_as_they_are():
    same = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    np.testing.assert_array_equal(grey(jnp.asarray(same.repeat(3, -1))), same)


def test_training_measuring_and_explaining_see_the_same(photos):
    expected = (by_pillow(photos) / 255 - 0.4) / 0.2
    found = augment(jnp.asarray(photos), seed=0, step=0, augmentation=Augmentation(), preprocessing=ONE)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    seen = []

    def network(images: jax.Array) -> jax.Array:
        seen.append(images.shape)
        return jnp.stack([images.mean((1, 2, 3)), -images.mean((1, 2, 3))], -1)

    right = (expected[:, 2:10, 2:10].mean((1, 2, 3)) < 0).astype(np.int32)
    count = len(photos)
    batch = {
        "image": photos, "label": right, "index": np.arange(count), "mask": np.ones(count, bool),
        "bad": np.zeros(count, bool),
    }  # fmt: skip
    protocols = protocols_for(("accuracy",), ONE, margin=0, device_batch=count)
    assert score(Partial(network), [batch], protocols, ONE).results["accuracy"].value == 100
    view = look("grey", Partial(network), Photo(photos[0], 8), ONE, batch=25, progress=lambda count: None)
    means = [[expected[0, y : y + 8, x : x + 8].mean() for x in range(4)] for y in range(4)]
    np.testing.assert_allclose(view.grid[..., 0], 1 / (1 + np.exp(-2 * np.array(means))), rtol=1e-5)
    assert {shape[-1] for shape in seen} == {1}


def test_preprocessing_of_a_data_set():
    dataset = open_dataset(DataConfig(name="synthetic", image_size=8, synthetic_size=8))
    wide = dataclasses.replace(dataset, preprocessing=Preprocessing())
    assert for_channels(wide, None) is for_channels(wide, 3) is wide
    found = for_channels(wide, 1).preprocessing
    assert (found.mean, found.std, found.crop) == ((0.449,), (0.226,), 224)
    assert network_input(found) == network_input(found)


def test_other_channels_are_refused():
    with pytest.raises(CommandError, match=r"--net\.in-channels is 4, but must be 1 or 3"):
        validate(TrainConfig(net=NetworkConfig(in_channels=4)))
