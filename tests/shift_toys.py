"""Small networks whose every number is exact, and slow loops that measure them by the book.

The loops are the definitions of SPEC section 3 in numpy; nothing of aa_flax is used in them.
"""

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

CLASSES = 5


def photos(count, rows, columns, seed=0, channels=3, block=4):
    """Random images of flat blocks: neighbouring crops look alike, the more so the larger `block`."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (count, -(-rows // block), -(-columns // block), channels))
    large = small.repeat(block, axis=1).repeat(block, axis=2)
    noise = rng.integers(-20, 21, large.shape)
    return np.clip(large + noise, 0, 255).astype(np.uint8)[:, :rows, :columns]


def _weights(xp, rows, columns, channels):
    """A different integer for each pixel and class, from a formula that both sides can evaluate."""
    where = xp.arange(rows * columns * channels).reshape(-1, 1)
    which = xp.arange(CLASSES).reshape(1, -1)
    return (where * 7 + which * 13 + (where % 11) * (which + 1) * 5) % 23 - 11


def strided_logits(xp, images):
    """Every fourth pixel, thresholded, times integers: a network without any anti-aliasing."""
    seen = (images[:, ::4, ::4] > 128).astype(xp.int32)
    return seen.reshape(len(images), -1) @ _weights(xp, *seen.shape[1:])


def hash_logits(xp, images, classes=CLASSES):
    """One-hot of a hash of all pixels: the least stable network there is."""
    pixels = images.reshape(len(images), -1).astype(xp.uint32)
    factors = (xp.arange(pixels.shape[1]).astype(xp.uint32) * xp.uint32(2654435761)) | xp.uint32(1)
    mixed = (pixels * factors).sum(axis=1).astype(xp.uint32)
    mixed = (mixed ^ (mixed >> xp.uint32(15))) * xp.uint32(2246822519)
    picked = (mixed >> xp.uint32(8)) % xp.uint32(classes)
    return (picked.reshape(-1, 1) == xp.arange(classes).astype(xp.uint32).reshape(1, -1)).astype(xp.int32)


def strided(images):
    return strided_logits(jnp, images).astype(jnp.float32)


def pixel_hash(images):
    return hash_logits(jnp, images).astype(jnp.float32)


def compiled(function):
    """The function as a network that aa_flax compiles itself."""
    return Partial(function)


def called(function):
    """The same network from another library: it takes and gives numpy arrays."""
    logits = {strided: strided_logits, pixel_hash: hash_logits}[function]
    return lambda images: logits(np, np.asarray(images)).astype(np.float32)


def loop_class(image):
    return int(strided_logits(np, image[None]).argmax())


def loop_window(image, size, shifts):
    """The middle size + shifts pixels of an image; whole axes that are shorter."""
    middle = []
    for length, own in zip(image.shape[:2], size, strict=True):
        start = max(0, (length - own - shifts) // 2)
        middle.append(slice(start, start + own + shifts))
    return image[middle[0], middle[1]]


def loop_crop(image, size, shifts, offset):
    row, column = (int(each) for each in offset)
    found = loop_window(image, size, shifts)[row : row + size[0], column : column + size[1]]
    assert found.shape[:2] == tuple(size)
    return found


def loop_centre(image, size):
    top, left = (round((n - s) / 2.0) for n, s in zip(image.shape[:2], size, strict=True))
    return image[top : top + size[0], left : left + size[1]]


def loop_moments(values):
    """Mean and standard error in percent of fractions, one for each image."""
    count, mean = len(values), sum(values) / len(values)
    if count == 1:
        return 100 * mean, float("nan")
    variance = sum((v - mean) ** 2 for v in values) / (count - 1)
    return 100 * mean, 100 * (variance / count) ** 0.5


def loop_shift(signal, amount):
    """A periodic signal moved by `amount`, by its interpolation formula in float64.

    Odd lengths: sin(pi t) / (n sin(pi t / n)); even ones: sin(pi t) / (n tan(pi t / n)).
    """
    length = len(signal)
    moved = np.zeros(length)
    for place in range(length):
        for source in range(length):
            t = place - amount - source
            if abs(t / length - round(t / length)) < 1e-12:
                weight = 1.0
            else:
                below = np.tan if length % 2 == 0 else np.sin
                weight = np.sin(np.pi * t) / (length * below(np.pi * t / length))
            moved[place] += weight * signal[source]
    return moved


def loop_fourier(image, offset):
    moved = np.apply_along_axis(loop_shift, 0, image.astype(np.float64), float(offset[0]))
    return np.apply_along_axis(loop_shift, 1, moved, float(offset[1]))
