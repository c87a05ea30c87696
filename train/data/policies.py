"""TrivialAugment and RandAugment: random operations on a photo's pixels, on the host, bit for bit torchvision's.

TrivialAugment: Müller and Hutter 2021 (arXiv 2103.10158), its wide space; RandAugment: Cubuk et al. 2019 (arXiv
1909.13719). The operations are Pillow's. What comes into the picture at its borders is black.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

PolicyName = Literal["none", "trivial", "rand"]
# Strengths of an operation; RandAugment's magnitude is an index into them.
LEVELS = 31
BLACK = (0, 0, 0)


class Operation(NamedTuple):
    """What can be done to a photo.

    Attributes:
        apply: does it, with a strength.
        wide: the strengths of TrivialAugment, from weak to strong; empty where there is one only.
        narrow: those of RandAugment for an image of 331 pixels.
        signed: strengths may as well be negative.
        by_size: RandAugment's strengths are in proportion to the image's side.
    """

    apply: Callable[[Image.Image, float], Image.Image]
    wide: tuple[float, ...] = ()
    narrow: tuple[float, ...] = ()
    signed: bool = False
    by_size: Literal["", "width", "height"] = ""


def _moved(image: Image.Image, *matrix: float) -> Image.Image:
    """The nearest pixel of another place: row by row of the matrix that leads back to it."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=BLACK)


def _rotated(image: Image.Image, angle: float) -> Image.Image:
    return image.rotate(angle, Image.Resampling.NEAREST, fillcolor=BLACK)


def _up_to(strongest: float) -> tuple[float, ...]:
    return tuple(np.linspace(0.0, strongest, LEVELS).tolist())


def _bits(fewest: int) -> tuple[float, ...]:
    """Bits a value keeps, from 8 down."""
    return tuple((8 - np.round(np.arange(LEVELS) * (8 - fewest) / (LEVELS - 1))).tolist())


def _enhanced(kind: Callable[[Image.Image], Any]) -> Operation:
    def apply(image: Image.Image, strength: float) -> Image.Image:
        return kind(image).enhance(1.0 + strength)

    return Operation(apply, _up_to(0.99), _up_to(0.9), signed=True)


_LESS_LIGHT = tuple(np.linspace(255.0, 0.0, LEVELS).tolist())
OPERATIONS: Mapping[str, Operation] = {
    "identity": Operation(lambda image, _: image),
    "shear_x": Operation(lambda image, by: _moved(image, 1, by, 0, 0, 1, 0), _up_to(0.99), _up_to(0.3), signed=True),
    "shear_y": Operation(lambda image, by: _moved(image, 1, 0, 0, by, 1, 0), _up_to(0.99), _up_to(0.3), signed=True),
    "translate_x": Operation(
        lambda image, by: _moved(image, 1, 0, -int(by), 0, 1, 0), _up_to(32), _up_to(150), signed=True, by_size="width"
    ),
    "translate_y": Operation(
        lambda image, by: _moved(image, 1, 0, 0, 0, 1, -int(by)), _up_to(32), _up_to(150), signed=True, by_size="height"
    ),
    "rotate": Operation(_rotated, _up_to(135), _up_to(30), signed=True),
    "brightness": _enhanced(ImageEnhance.Brightness),
    "color": _enhanced(ImageEnhance.Color),
    "contrast": _enhanced(ImageEnhance.Contrast),
    "sharpness": _enhanced(ImageEnhance.Sharpness),
    "posterize": Operation(lambda image, bits: ImageOps.posterize(image, int(bits)), _bits(2), _bits(4)),
    "solarize": Operation(lambda image, above: ImageOps.solarize(image, above), _LESS_LIGHT, _LESS_LIGHT),
    "autocontrast": Operation(lambda image, _: ImageOps.autocontrast(image)),
    "equalize": Operation(lambda image, _: ImageOps.equalize(image)),
}


def trivial(pixels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """TrivialAugment: one operation at a strength, both drawn uniformly.

    Args:
        pixels: (height, width, 3) uint8.
        random: where the draws come from.
    """
    operation = _drawn(random)
    strength = operation.wide[random.integers(LEVELS)] if operation.wide else 0.0
    return _applied(operation, pixels, strength, random)


def rand(pixels: np.ndarray, random: np.random.Generator, *, count: int, magnitude: int) -> np.ndarray:
    """RandAugment: some operations one after the other, drawn uniformly, all at one magnitude.

    Args:
        pixels: (height, width, 3) uint8.
        random: where the draws come from.
        count: how many operations.
        magnitude: from 0 to 30.
    """
    for _ in range(count):
        operation = _drawn(random)
        pixels = _applied(operation, pixels, narrow_strength(operation, magnitude, pixels), random)
    return pixels


def narrow_strength(operation: Operation, magnitude: int, pixels: np.ndarray) -> float:
    """What a magnitude of RandAugment means for an operation and an image."""
    if not operation.narrow:
        return 0.0
    height, width = pixels.shape[:2]
    scale = {"": 1.0, "width": width / 331, "height": height / 331}[operation.by_size]
    return operation.narrow[magnitude] * scale


def _drawn(random: np.random.Generator) -> Operation:
    names = tuple(OPERATIONS)
    return OPERATIONS[names[random.integers(len(names))]]


def _applied(operation: Operation, pixels: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    sign = -1 if operation.signed and random.integers(2) else 1
    return np.asarray(operation.apply(Image.fromarray(pixels), sign * strength))
