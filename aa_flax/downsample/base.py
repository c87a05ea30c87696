"""What subsampling layers have in common, and the geometry that several of them need."""

from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from aa_flax.axes import check_floating, spatial_axes


class Downsample(Protocol):
    """What subsampling layers have in common."""

    def __call__(self, x: jax.Array, like: jax.Array | None = None) -> jax.Array:
        """Subsamples the spatial axes of ``x``.

        Args:
            x: floating point array (..., spatial..., C).
            like: the map of another path, of the same batch and spatial size as ``x``, whose choices are to be
                followed where the layer chooses: the shortcut of a residual block has to keep the samples that
                the main path keeps. Layers that choose nothing ignore it.
        """
        ...


def map_axes(layer: nnx.Module, x: jax.Array, spatial_dims: int) -> range:
    check_floating(type(layer).__name__, x)
    return spatial_axes(type(layer).__name__, x, spatial_dims)


_NUMPY_MODES: dict[str, Any] = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def pad(x: jax.Array, axis: int, low: int, high: int, pad_type: str) -> jax.Array:
    if low == high == 0:
        return x
    if pad_type == "zero":
        margins = [(low, high, 0) if i == axis else (0, 0, 0) for i in range(x.ndim)]
        return lax.pad(x, jnp.zeros((), x.dtype), margins)
    size = x.shape[axis]
    positions = np.pad(np.arange(size), (low, high), _NUMPY_MODES[pad_type]).tolist()
    # Of slices, whose gradient is no scatter: JAX would not know how that lies on a mesh with Explicit axes.
    before, after = (
        [lax.slice_in_dim(x, p, p + 1, axis=axis) for p in part] for part in (positions[:low], positions[low + size :])
    )
    return jnp.concatenate([*before, x, *after], axis)
