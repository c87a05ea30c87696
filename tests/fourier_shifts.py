"""Shifts by fractions of a sample, in float64: the oracle of what has to commute with them."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def shifted(x: np.ndarray, turns: Sequence[float]) -> np.ndarray:
    """Periodic maps (N, H, W, C), moved down and to the right by fractions of their period.

    What lies at exactly half the sampling rate keeps its real part, as every real shift of it does.
    """
    spectrum = np.fft.fft2(np.asarray(x, np.float64), axes=(1, 2))
    for axis, turn in zip((1, 2), turns, strict=True):
        frequencies = np.fft.fftfreq(x.shape[axis], 1 / x.shape[axis])
        spectrum = spectrum * np.exp(-2j * np.pi * turn * frequencies).reshape((-1, 1, 1) if axis == 1 else (-1, 1))
    return np.fft.ifft2(spectrum, axes=(1, 2)).real


def equivariance_error(function: Callable, images: np.ndarray, pixels: tuple[float, float] = (0.5, 0.5)) -> float:
    """How far the maps of shifted images are from the shifted maps, relative to these (Frobenius norms).

    Args:
        function: images (N, H, W, C) to maps, whose period is the images'.
        images: as large as one likes.
        pixels: how far the images are moved.
    """
    turns = [distance / size for distance, size in zip(pixels, images.shape[1:3], strict=True)]
    moved = np.asarray(function(jnp.asarray(shifted(images, turns), jnp.float32)))
    wanted = shifted(np.asarray(function(jnp.asarray(images, jnp.float32))), turns)
    return float(np.linalg.norm(moved - wanted) / np.linalg.norm(wanted))


def features_of(model: nnx.Module) -> Callable[[jax.Array], jax.Array]:
    """A network's last map, compiled, in evaluation mode."""
    model.eval()
    graphdef, state = nnx.split(model)
    run = jax.jit(lambda state, x: nnx.merge(graphdef, state).features(x))
    return lambda x: run(state, x)
