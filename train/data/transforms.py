"""Host-side geometry with Pillow, equal bit for bit to torchvision's transforms on PIL images.

Flip, shift-crop and normalisation do not belong here: they run on the device (`augment.py`).
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from train.data.decode import MAX_PIXELS, UnreadableImageError

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def _resize(pixels: np.ndarray, height: int, width: int, interpolation: str) -> np.ndarray:
    if pixels.shape[:2] == (height, width):
        return pixels
    try:
        return np.asarray(Image.fromarray(pixels).resize((width, height), FILTERS[interpolation]))
    except MemoryError as error:
        size = f"{pixels.shape[1]}x{pixels.shape[0]}"
        raise UnreadableImageError(f"not enough memory to resize its {size} pixels") from error


@dataclass(frozen=True)
class Box:
    """A rectangle inside an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


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
        interpolation: a key of `FILTERS`.

    Returns:
        (big, big, 3) uint8.
    """
    height, width = resized_shape(pixels.shape[0], pixels.shape[1], resize)
    inner = centre_offset(big, crop)
    top, left = (centre_offset(side, crop) - inner for side in (height, width))
    # All of it is resized: Pillow's `box=` is rounded to float32, and which of its two passes comes first depends on
    # the size and on its version, so that no shortcut gives the same bits for sure.
    return _resize(pixels, height, width, interpolation)[top : top + big, left : left + big]


def random_resized_box(
    height: int,
    width: int,
    random: np.random.Generator,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """The rectangle of torchvision's `RandomResizedCrop`.

    Ten draws of an area share and a log-uniform aspect ratio; the first that fits is placed
    uniformly. If none fits, the central rectangle of the nearest allowed ratio.

    Args:
        height: of the image, pixels.
        width: of the image, pixels.
        random: where the draws come from.
        scale: least and greatest share of the image's area.
        ratio: least and greatest width / height.
    """
    log_ratio = (math.log(ratio[0]), math.log(ratio[1]))
    for _ in range(10):
        area = height * width * random.uniform(*scale)
        aspect = math.exp(random.uniform(*log_ratio))
        box_width = round(math.sqrt(area * aspect))
        box_height = round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(random.integers(0, height - box_height + 1))
            left = int(random.integers(0, width - box_width + 1))
            return Box(top, left, box_height, box_width)
    box_width = min(width, round(height * ratio[1]))
    box_height = min(height, round(width / ratio[0]))
    top, left = (height - box_height) // 2, (width - box_width) // 2
    return Box(top, left, max(1, box_height), max(1, box_width))


def crop_and_resize(pixels: np.ndarray, box: Box, size: int, interpolation: str = "bilinear") -> np.ndarray:
    """Cuts `box` out and resizes it to `size` x `size` pixels (torchvision's `resized_crop`)."""
    rows = slice(box.top, box.top + box.height)
    columns = slice(box.left, box.left + box.width)
    return _resize(pixels[rows, columns], size, size, interpolation)
