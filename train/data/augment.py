"""What happens to training images on the device one by one: flip, shift, normalisation, erasing.

Pure functions for use inside a jitted step. Their randomness is a function of (seed, step) and
of an image's row in the global batch, so it depends on no device count, no loader and no resume.
"""

import jax
import jax.numpy as jnp

from aa_flax.weights.config import Preprocessing
from train.data.channels import network_input
from train.data.datasets import Augmentation

# Streams of one step's key, kept apart from others that a trainer folds in (dropout).
FLIP, SHIFT, ERASE = 0x666C6970, 0x73686966, 0x65726173


def random_flip(images: jax.Array, key: jax.Array) -> jax.Array:
    """Mirrors each image left to right with probability one half.

    Args:
        images: (n, height, width, channels), any dtype, which is kept.
        key: a JAX random key.
    """
    flip = jax.random.bernoulli(key, shape=(images.shape[0], 1, 1, 1))
    return jnp.where(flip, images[:, :, ::-1], images)


def random_shift(images: jax.Array, key: jax.Array, reach: int) -> jax.Array:
    """Moves each image by up to `reach` whole pixels both ways, reflecting at the border.

    The same as padding by `reach` (without repeating the edge) and cutting a random window out.

    Args:
        images: (n, height, width, channels), any dtype, which is kept.
        key: a JAX random key.
        reach: greatest shift in pixels, smaller than height and width.
    """
    if reach == 0:
        return images
    count, height, width, channels = images.shape
    pads = ((0, 0), (reach, reach), (reach, reach), (0, 0))
    padded = jnp.pad(images, pads, mode="reflect")
    starts = jax.random.randint(key, (count, 2), 0, 2 * reach + 1)

    def window(image: jax.Array, start: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (*start, 0), (height, width, channels))

    return jax.vmap(window)(padded, starts)


def normalise(images: jax.Array, preprocessing: Preprocessing) -> jax.Array:
    """Pixels 0..255 to the network's input, `(x / 255 - mean) / std` per channel, float32; grey for one channel."""
    return network_input(preprocessing)(images)


def random_erase(images: jax.Array, key: jax.Array, probability: float) -> jax.Array:
    """Puts zeros, the mean colour of normalised images, into a random rectangle of some images.

    Zhong et al. 2017 (arXiv 1708.04896) with torchvision's numbers: of ten rectangles of 0.02 to 0.33 of the area and a
    height of 0.3 to 3.3 widths, the first that fits.

    Args:
        images: (n, height, width, channels), any dtype, which is kept.
        key: a JAX random key.
        probability: how often an image is chosen.
    """
    toss, draw = jax.random.split(key)
    chosen = jax.random.bernoulli(toss, probability, (images.shape[0], 1, 1))
    wiped = chosen & rectangles(draw, *images.shape[:3])
    return jnp.where(wiped[..., None], jnp.zeros((), images.dtype), images)


def rectangles(key: jax.Array, count: int, height: int, width: int) -> jax.Array:
    """A random rectangle in each of so many images, (count, height, width) booleans; none where ten did not fit."""
    area_key, ratio_key, place_key = jax.random.split(key, 3)
    area = height * width * jax.random.uniform(area_key, (count, 10), minval=0.02, maxval=0.33)
    ratio = jnp.exp(jax.random.uniform(ratio_key, (count, 10), minval=jnp.log(0.3), maxval=jnp.log(3.3)))
    tall, wide = jnp.round(jnp.sqrt(area * ratio)), jnp.round(jnp.sqrt(area / ratio))
    fits = (tall < height) & (wide < width)
    first = fits.argmax(-1)[:, None]
    place = jax.random.uniform(place_key, (count, 2))
    inside = []
    for axis, (sizes, limit) in enumerate(((tall, height), (wide, width))):
        size = jnp.where(fits.any(-1, keepdims=True), jnp.take_along_axis(sizes, first, axis=-1), 0)
        start = jnp.floor(place[:, axis, None] * (limit - size + 1))
        at = jnp.arange(limit, dtype=start.dtype)[None]
        inside.append((at >= start) & (at < start + size))
    return inside[0][:, :, None] & inside[1][:, None]


def augment(
    images: jax.Array,
    *,
    seed: int | jax.Array,
    step: int | jax.Array,
    augmentation: Augmentation,
    preprocessing: Preprocessing,
) -> jax.Array:
    """Varies and normalises one global batch.

    Args:
        images: (n, crop, crop, 3) uint8, the whole global batch (sharded or not).
        seed: of the run; may be traced.
        step: of the run; may be traced.
        augmentation: what to do; static.
        preprocessing: mean and standard deviation; static.

    Returns:
        (n, crop, crop, 3) float32, or one channel where the preprocessing is for one.
    """
    key = jax.random.fold_in(jax.random.key(seed), step)
    if augmentation.shift:
        images = random_shift(images, jax.random.fold_in(key, SHIFT), augmentation.shift)
    if augmentation.flip:
        images = random_flip(images, jax.random.fold_in(key, FLIP))
    images = normalise(images, preprocessing)
    if augmentation.random_erase:
        images = random_erase(images, jax.random.fold_in(key, ERASE), augmentation.random_erase)
    return images
