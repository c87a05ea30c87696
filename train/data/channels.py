"""Photos are read as red, green and blue; a network may read one channel, of grey."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from aa_flax.consistency import Normalise
from aa_flax.preprocessing import geometry
from aa_flax.weights.config import Preprocessing
from aa_flax.weights.input_channels import channel_statistics
from train.data.datasets import Dataset


@dataclasses.dataclass(frozen=True)
class _Grey:
    """Pixels 0..255 in RGB to one normalised channel."""

    normalise: Normalise

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.normalise(grey(images))


def network_input(preprocessing: Preprocessing) -> Callable[[jax.Array], jax.Array]:
    """What makes a network's input of RGB pixels 0..255: normalised, and grey before that for one channel.

    Equal preprocessing gives equal functions, whose compiled programs are shared.
    """
    normalise = Normalise(tuple(preprocessing.mean), tuple(preprocessing.std))
    return _Grey(normalise) if len(preprocessing.mean) == 1 else normalise


def grey(images: jax.Array) -> jax.Array:
    """RGB pixels (..., 3) to grey ones (..., 1) of the same dtype, whole numbers as Pillow's mode L has them."""
    if jnp.issubdtype(images.dtype, jnp.integer):
        return geometry.grey(images)
    weights = jnp.asarray(geometry.LUMA, images.dtype) / 2**16
    return (images * weights).sum(-1, keepdims=True)


def for_channels(dataset: Dataset, channels: int | None) -> Dataset:
    """A data set prepared for a network of one channel or of three (None)."""
    if channels != 1:
        return dataset
    said = dataset.preprocessing
    mean, std = (channel_statistics(values, 1) for values in (said.mean, said.std))
    return dataclasses.replace(dataset, preprocessing=dataclasses.replace(said, mean=mean, std=std))
