"""Resized and cut with Pillow, bit for bit as torchvision does it on PIL images, and timm, which uses torchvision."""

from typing import Any

import numpy as np

from aa_flax.preprocessing.pixels import MAX_PIXELS, UnreadableImageError, pillow

# Of 65536: Pillow's integers for the luma of ITU-R 601, 0.299 R + 0.587 G + 0.114 B.
LUMA = (19595, 38470, 7471)


def resized(pixels: np.ndarray, height: int, width: int, interpolation: str) -> np.ndarray:
    """Resizes with Pillow's antialiasing filters.

    Args:
        pixels: (height, width, 3) uint8.
        height: wanted, pixels.
        width: wanted, pixels.
        interpolation: one of `aa_flax.weights.config.INTERPOLATIONS`.

    Raises:
        UnreadableImageError: there is not enough memory.
    """
    if pixels.shape[:2] == (height, width):
        return pixels
    Image = pillow()
    try:
        return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling[interpolation.upper()]))
    except MemoryError as error:
        size = f"{pixels.shape[1]}x{pixels.shape[0]}"
        raise UnreadableImageError(f"not enough memory to resize its {size} pixels") from error


def resized_shape(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width after resizing the shorter side to `size`, the longer to `int(size * long / short)`.

    Raises:
        UnreadableImageError: the image is so elongated that the result would be oversized.
    """
    short, long = min(height, width), max(height, width)
    new_long = int(size * long / short)
    if size * new_long > MAX_PIXELS:
        raise UnreadableImageError(f"{width}x{height} is too elongated to resize to {size} pixels")
    return (size, new_long) if height <= width else (new_long, size)


def centre_offset(size: int, crop: int) -> int:
    """Where torchvision's centre crop of `crop` pixels starts on a side of `size` pixels."""
    return round((size - crop) / 2.0)


def evaluation_crop(pixels: np.ndarray, *, resize: int, big: int, crop: int, interpolation: str) -> np.ndarray:
    """Resizes the shorter side and cuts the centre, `big` pixels wide, around the centre `crop`.

    Every shifted crop of the consistency protocols lies inside the result, and its own centre
    crop of `crop` pixels is exactly the centre crop of the resized image (for odd differences
    the roundings of two centre crops, one after the other, could disagree by a pixel).

    Args:
        pixels: (height, width, 3) uint8.
        resize: shorter side after resizing, pixels; at least `big`.
        big: side of the result, pixels; at least `crop`.
        crop: side of the network's input, pixels.
        interpolation: one of `aa_flax.weights.config.INTERPOLATIONS`.

    Returns:
        (big, big, 3) uint8.
    """
    height, width = resized_shape(pixels.shape[0], pixels.shape[1], resize)
    inner = centre_offset(big, crop)
    top, left = (centre_offset(side, crop) - inner for side in (height, width))
    # All of it is resized: Pillow's `box=` is rounded to float32, and which of its two passes comes first depends on
    # the size and on its version, so that no shortcut gives the same bits for sure.
    return resized(pixels, height, width, interpolation)[top : top + big, left : left + big]


def grey(pixels: Any) -> Any:
    """RGB pixels (..., 3), whole numbers of NumPy's or JAX's, to grey ones (..., 1) as Pillow's mode L has them."""
    red, green, blue = (pixels[..., i : i + 1].astype("int32") * weight for i, weight in enumerate(LUMA))
    return ((red + green + blue + 2**15) >> 16).astype(pixels.dtype)
