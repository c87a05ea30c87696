"""How training cuts photos, on the host: equal bit for bit to torchvision's transforms on PIL images.

Evaluation cuts them by `aa_flax.preprocessing.geometry`. Flip, shift-crop and normalisation do not belong here: they
run on the device (`augment.py`).
"""

import math
from dataclasses import dataclass

import numpy as np

from aa_flax.preprocessing.geometry import resized


@dataclass(frozen=True)
class Box:
    """A rectangle inside an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


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
    return resized(pixels[rows, columns], size, size, interpolation)
