"""Ways to look at one image under a shift: a window, a roll, a shift by fractions of a pixel.

A view is a small hashable value, called with one image (H, W, C) and one offset (rows, columns).
The offset is an ordinary argument of the compiled program, so a thousand shifts are one program.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from aa_flax.dtypes import at_least_float32

Size = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """The `size` pixels below and to the right of `origin + offset`. Keeps the image's dtype.

    Offsets that leave the image must be refused before: `lax.dynamic_slice` moves them inside.
    """

    size: Size
    origin: Size = (0, 0)

    def __call__(self, image: jax.Array, offset: jax.Array) -> jax.Array:
        start = (offset[0] + self.origin[0], offset[1] + self.origin[1], 0)
        return lax.dynamic_slice(image, start, (*self.size, image.shape[-1]))


@dataclass(frozen=True)
class Rolled:
    """The centre crop, moved around by whole pixels: what leaves one side enters the other."""

    size: Size

    def __call__(self, image: jax.Array, offset: jax.Array) -> jax.Array:
        return jnp.roll(centre_crop(image, self.size), offset, axis=(0, 1))


@dataclass(frozen=True)
class FourierShifted:
    """The centre crop of the image moved by fractions of a pixel (`fourier_shift`).

    With `periodic` the crop itself is moved and wraps around; otherwise the whole image is moved
    first and then cropped, so that the seam of the wrap stays outside where there is a margin.
    """

    size: Size
    periodic: bool = False

    def __call__(self, image: jax.Array, offset: jax.Array) -> jax.Array:
        if self.periodic:
            return fourier_shift(centre_crop(image, self.size), offset)
        return centre_crop(fourier_shift(image, offset), self.size)


def centre(length: int, size: int) -> int:
    """Where a centre crop of `size` pixels begins, by torchvision's rule."""
    return round((length - size) / 2.0)


def centre_crop(image: jax.Array, size: Size) -> jax.Array:
    """The middle `size` of an image (H, W, C)."""
    top, left = centre(image.shape[0], size[0]), centre(image.shape[1], size[1])
    return image[top : top + size[0], left : left + size[1]]


def fourier_shift(image: jax.Array, offset: jax.Array) -> jax.Array:
    """Move a periodic image down and to the right by any number of pixels, fractions included.

    The image is read as the band-limited signal through its pixels, sampled again `offset` to the
    upper left: every frequency is turned by its phase. Whole numbers give `jnp.roll`. An even
    side has one frequency, Nyquist's, whose sine the pixels cannot hold; the smallest signal
    through them is its cosine, so it is scaled by cos(pi offset) and the result stays real.
    Two half shifts therefore lose that frequency and are not quite one whole shift.

    Args:
        image: (H, W, C); integers are moved as floats.
        offset: (2,) pixels along rows and columns.

    Returns:
        (H, W, C), at least float32. Values may overshoot the range of the input; they are not
        clipped, since clipping is no shift.
    """
    moved = image.astype(at_least_float32(image.dtype))
    for axis in (0, 1):
        length = image.shape[axis]
        cycles = jnp.arange(length // 2 + 1) / length
        angle = (2 * jnp.pi) * cycles.astype(moved.dtype) * offset[axis].astype(moved.dtype)
        turn = lax.complex(jnp.cos(angle), -jnp.sin(angle))
        if length % 2 == 0:
            turn = turn.at[-1].set(jnp.cos(angle[-1]).astype(turn.dtype))
        shape = tuple(-1 if d == axis else 1 for d in range(3))
        spectrum = jnp.fft.rfft(moved, axis=axis) * turn.reshape(shape)
        moved = jnp.fft.irfft(spectrum, n=length, axis=axis).astype(moved.dtype)
    return moved


@dataclass(frozen=True)
class Normalise:
    """A `preprocess` for protocols: `(x / scale - mean) / std`, per channel, in float32.

    Args:
        mean: one number per channel, on the scale of `x / scale`. ImageNet's by default.
        std: as `mean`.
        scale: 255 for pixels 0..255, whatever their dtype; 1 for pixels 0..1.

    Raises:
        ValueError: `mean` and `std` differ in length, or images have another number of channels.
    """

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    scale: float = 255.0

    def __post_init__(self):
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean and std are for the same channels, got mean={self.mean} and std={self.std}")

    def __call__(self, images: jax.Array) -> jax.Array:
        channels = images.shape[-1]
        if channels != len(self.mean):
            raise ValueError(
                f"mean={self.mean} is for {len(self.mean)} channels, images {images.shape} have {channels}: "
                f"give Normalise {channels} numbers for each of mean and std"
            )
        row = (1,) * (images.ndim - 1) + (-1,)
        mean, std = (jnp.asarray(v, jnp.float32).reshape(row) for v in (self.mean, self.std))
        return (images.astype(jnp.float32) / self.scale - mean) / std
