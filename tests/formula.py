"""Weights and images by formula: the same numbers wherever and whenever they are computed."""

import zlib
from collections.abc import Mapping

import numpy as np

# A prime length, so that no axis of a tensor is a multiple of the period.
_PERIOD = 65521
# How a one-dimensional tensor of each kind spreads: mean and half-width.
_VECTORS = {"running_var": (1.25, 0.75), "running_mean": (0.0, 0.4), "weight": (1.0, 0.5), "bias": (0.0, 0.4)}


def _noise(seed: str) -> np.ndarray:
    """Uniform numbers between -1 and 1."""
    # Raw bits are the part of NumPy's generators that never changes.
    bits = np.random.PCG64(zlib.crc32(seed.encode())).random_raw(_PERIOD)
    return (bits >> np.uint64(40)) / 2**23 - 1.0


def tensor(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """A float32 weight or statistic for a name in a PyTorch state dict; matrices have variance 2/fan_in."""
    if len(shape) > 1:
        centre, width = 0.0, (6 / np.prod(shape[1:])) ** 0.5
    else:
        centre, width = _VECTORS[key.rpartition(".")[2]]
    # Repeated only at the end: a hundred million weights cost no more than their copy.
    return np.resize((centre + width * _noise(key)).astype(np.float32), shape)


def state_dict(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """A tensor for every name, filters and counters excepted."""
    keys = (key for key in shapes if not key.endswith((".filt", "num_batches_tracked")))
    return {key: tensor(key, tuple(shapes[key])) for key in keys}


def images(size: tuple[int, int], batch: int = 2) -> np.ndarray:
    """NHWC float32 images of different colour and contrast."""
    noise = np.resize(_noise("images"), (batch, *size, 3))
    colour = 3 * np.resize(_noise("colours"), (batch, 1, 1, 3))
    contrast = np.linspace(0.5, 2.5, batch)[:, None, None, None]
    return (colour + contrast * noise).astype(np.float32)
