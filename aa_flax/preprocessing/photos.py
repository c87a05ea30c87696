"""`preprocess`: photos to a network's input."""

import dataclasses
import os
from collections.abc import Iterable
from typing import Any

import numpy as np
from flax import nnx

from aa_flax.local_paths import local_path
from aa_flax.preprocessing import geometry, pixels
from aa_flax.weights.config import Preprocessing, PretrainedConfig
from aa_flax.weights.input_channels import channel_statistics
from aa_flax.weights.provenance import known_config


def preprocess(images: Any, model_or_config: nnx.Module | PretrainedConfig | Preprocessing) -> np.ndarray:
    """Photos as the input of a network, exactly the one that it was measured with.

    The shorter side is resized with Pillow, the centre cut out, values are scaled to 0..1 and normalised: bit for bit
    what torchvision's and timm's transforms for evaluation give. EXIF orientation is ignored, as there.

    Args:
        images: one photo or several. A photo is a path, an image of Pillow's, or an array of uint8 in red, green and
            blue (H, W, 3), or grey (H, W).
        model_or_config: a network that `load_pretrained` has given, or what says how images are prepared, such as
            `read_config(directory)` or its `test_preprocessing`.

    Returns:
        (N, crop, crop, channels) float32, with N = 1 for one photo.

    Raises:
        ImportError: Pillow is not installed.
        FileNotFoundError: there is no such photo.
        TypeError: something is no photo.
        ValueError: a photo cannot be read, or nothing is known of the network's images.
    """
    rule = _rule(model_or_config)
    if len(rule.mean) not in (1, 3):
        raise ValueError(f"preprocess makes images of 3 channels, or of 1 in grey; the network takes {len(rule.mean)}")
    photos = _several(images)
    if not photos:
        raise ValueError("preprocess was given no photo")
    batch = np.stack([_prepared(photo, rule, number) for number, photo in enumerate(photos)])
    return normalised(batch, rule)


def normalised(images: np.ndarray, rule: Preprocessing) -> np.ndarray:
    """Pixels 0..255 as float32 with the mean and the standard deviation that a network expects."""
    mean, std = (np.asarray(values, np.float32) for values in (rule.mean, rule.std))
    return (images.astype(np.float32) / np.float32(255) - mean) / std


def _rule(model_or_config: Any) -> Preprocessing:
    if isinstance(model_or_config, Preprocessing):
        return model_or_config
    rule = known_config(model_or_config, "preprocess").preprocessing
    channels = getattr(model_or_config, "image_channels", lambda: None)()
    if channels in (None, len(rule.mean)):
        return rule
    # Loaded for images of other channels: load_pretrained(..., in_channels=1).
    mean, std = (channel_statistics(values, channels) for values in (rule.mean, rule.std))
    return dataclasses.replace(rule, mean=mean, std=std)


def _several(images: Any) -> list[Any]:
    """The photos of what was given; a batch of arrays is several."""
    if isinstance(images, str | os.PathLike) or _is_pillows(images):
        return [images]
    if getattr(images, "ndim", None) in (2, 3):
        return [images]
    if not isinstance(images, Iterable) or isinstance(images, bytes):
        raise _no_photo(images, "")
    return list(images)


def _prepared(photo: Any, rule: Preprocessing, number: int) -> np.ndarray:
    """(crop, crop, channels) uint8."""
    name = f"photo {number}"
    try:
        if isinstance(photo, str | os.PathLike):
            name = os.fspath(photo)
            path = local_path(photo)
            if not path.exists():
                raise FileNotFoundError(f"{name}: there is no such photo")
            rgb = pixels.read(path)
        elif _is_pillows(photo):
            rgb = pixels.rgb(photo)
        else:
            rgb = _of_array(photo, name)
        cut = geometry.evaluation_crop(
            rgb, resize=rule.resize, big=rule.crop, crop=rule.crop, interpolation=rule.interpolation
        )
    except pixels.UnreadableImageError as error:
        raise ValueError(f"{name}: {error}") from error
    return cut if len(rule.mean) == 3 else geometry.grey(cut)


def _of_array(photo: Any, name: str) -> np.ndarray:
    shape, dtype = getattr(photo, "shape", None), getattr(photo, "dtype", None)
    if shape is None or dtype is None:
        raise _no_photo(photo, f"{name}: ")
    if dtype != np.uint8:
        raise TypeError(f"{name}: an array of {dtype}; pixels are uint8, from 0 to 255")
    array = np.asarray(photo)
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, axis=-1)
    if array.ndim != 3 or array.shape[-1] != 3 or 0 in array.shape:
        raise ValueError(f"{name}: an array {shape}; photos are (H, W, 3), or grey (H, W)")
    return array


def _is_pillows(photo: Any) -> bool:
    # Whoever has an image of Pillow's has loaded it: a look at the class loads nothing.
    return any(kind.__module__ == "PIL.Image" and kind.__name__ == "Image" for kind in type(photo).__mro__)


def _no_photo(photo: Any, where: str) -> TypeError:
    return TypeError(
        f"{where}{type(photo).__name__} is no photo: give a path, an image of Pillow's or an array of uint8"
    )
