"""Mixup and CutMix on the device: two images of a batch become one, and so do their labels."""

import jax
import jax.numpy as jnp

from train.data.datasets import Augmentation

# Keeps these draws apart from all others of a seed and a step.
MIX = 0x6D697873


def mix(
    images: jax.Array,
    labels: jax.Array,
    *,
    seed: int | jax.Array,
    step: int | jax.Array,
    augmentation: Augmentation,
    num_classes: int,
) -> tuple[jax.Array, jax.Array]:
    """Mixes each image of a global batch with its neighbour, in a share of its own.

    Mixup (Zhang et al. 2017, arXiv 1710.09412) is the mean of both by their shares, CutMix (Yun et al. 2019, arXiv
    1905.04899) a rectangle of the neighbour. Where both are asked for, each image has one of them, by the toss of a
    coin. Shares are drawn from Beta(a, a).

    Args:
        images: (n, height, width, channels) floats, the whole global batch (sharded or not).
        labels: (n,) whole numbers.
        seed: of the run; may be traced.
        step: of the run; may be traced.
        augmentation: has the a of either, 0 for not at all; static.
        num_classes: of the data.

    Returns:
        The images, and (n, num_classes) float32 shares of the classes.
    """
    count, height, width, _ = images.shape
    toss, draw, place = jax.random.split(jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), MIX), 3)
    cut = jax.random.bernoulli(toss, _share_of_cutmix(augmentation), (count,))
    alpha = jnp.where(cut, augmentation.cutmix, augmentation.mixup)
    share = jax.random.beta(draw, alpha, alpha)
    centre = jax.random.randint(place, (count, 2), 0, jnp.array([[height, width]]))
    kept = jnp.where(cut[:, None, None], outside(share, centre, height, width), share[:, None, None])
    return mixed(images, jax.nn.one_hot(labels, num_classes), kept)


def _share_of_cutmix(augmentation: Augmentation) -> float:
    """How many of the images are cut: all, none or half."""
    return (augmentation.cutmix > 0) / ((augmentation.cutmix > 0) + (augmentation.mixup > 0))


def outside(share: jax.Array, centre: jax.Array, height: int, width: int) -> jax.Array:
    """What CutMix keeps: 0 in a rectangle, which has the image's proportions and is cut off at its border, 1 elsewhere.

    Args:
        share: (n,) of the image that is kept, but for what the border cuts off.
        centre: (n, 2) row and column of the rectangle's.
        height: of the images.
        width: of the images.

    Returns:
        (n, height, width) float32.
    """
    inside = []
    for axis, size in enumerate((height, width)):
        half = jnp.floor(0.5 * jnp.sqrt(1 - share) * size)
        place, middle = jnp.arange(size, dtype=jnp.float32)[None], centre[:, axis].astype(jnp.float32)
        inside.append((place >= (middle - half)[:, None]) & (place < (middle + half)[:, None]))
    return 1 - (inside[0][:, :, None] & inside[1][:, None]).astype(jnp.float32)


def mixed(images: jax.Array, shares: jax.Array, kept: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Each image and its neighbour in the batch, pixel by pixel, and their classes by the mean over the pixels.

    Args:
        images: (n, height, width, channels).
        shares: (n, classes) shares of the classes.
        kept: how much of a pixel is the image's own, (n, height, width) or (n, 1, 1).
    """
    # The neighbour, and not a partner from afar: nearly all stay on the device where they are.
    kept = jnp.broadcast_to(kept, images.shape[:3])
    own = kept.mean((1, 2))[:, None]
    pixels = kept[..., None]
    return (
        pixels * images + (1 - pixels) * jnp.roll(images, 1, axis=0),
        own * shares + (1 - own) * jnp.roll(shares, 1, axis=0),
    )
