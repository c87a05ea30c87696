"""The base of every layer that subsamples, and the geometry that several of them need."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from aa_flax.axes import check_floating, spatial_axes
from aa_flax.blurpool import NUMPY_PAD_MODES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Site:
    """A place in a network where a layer is to subsample.

    Attributes:
        strides: subsampling for each spatial axis.
        filter_size: taps, for layers with filters of some size.
        pad_type: padding, for layers that pad.
        channels: channels of the map; None where a pool stands, which does not say.
        norm: makes a normalisation for a number of channels; None for the layer's own.
        dtype: what layers compute in.
        param_dtype: dtype of parameters.
        rngs: source of initial values; None where no layer with parameters may stand.
        follows: whether the layer is always told what another path has chosen, as in the shortcut of a residual block.
    """

    strides: tuple[int, ...]
    filter_size: int
    pad_type: str
    channels: int | None = None
    norm: Callable[[int], Callable[[jax.Array], jax.Array]] | None = None
    dtype: jax.typing.DTypeLike | None = None
    param_dtype: jax.typing.DTypeLike = jnp.float32
    rngs: nnx.Rngs | None = None
    follows: bool = False


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Choice:
    """Which phase of a map is kept, for each example, or how much of each: what other paths are to follow.

    Attributes:
        count: how many phases there were, a number for each product of strides.
        index: whole numbers (batch...) where one phase is kept, the last axis's first sample changing fastest.
        weights: (phases, batch...) with sum one where the phases are mixed.
    """

    count: int = dataclasses.field(metadata={"static": True})
    index: jax.Array | None = None
    weights: jax.Array | None = None

    @property
    def batch(self) -> tuple[int, ...]:
        """The shape of the batch that it was made for."""
        if self.index is not None:
            return self.index.shape
        assert self.weights is not None
        return self.weights.shape[1:]


class Downsample(nnx.Module):
    """What subsampling layers have in common.

    A layer gives `ceil(N / stride)` samples for an axis of N and has the arguments that decide its function in
    attributes. Variables below it have no counterpart in PyTorch's networks.

    Attributes:
        title: the method in a few words, for model cards.
        options: what may be chosen behind the method's name, and the values of each, its default first; they are
            arguments of `at`.
        has_parameters: whether layers can only be made where channels and `rngs` are known.
        alias_free: whether nothing folds over, so that shifts by any fraction of a sample commute with the layer.
        exact: whether a network that is circular throughout answers rolled images as it does the image.
    """

    title: ClassVar[str] = "a method of its own"
    options: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    has_parameters: ClassVar[bool] = False
    alias_free: ClassVar[bool] = False
    exact: ClassVar[bool] = False

    @classmethod
    def at(cls, site: Site, **options: Any) -> "Downsample":
        """The layer for a place in a network, with those of its options that differ from their default."""
        raise NotImplementedError(f"{cls.__name__} does not say how it is made for a network: define its method at")

    def choose(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> "jax.Array | Choice":
        """What this layer and others are to follow, to be given to them as `like`.

        Args:
            x: the map that decides, floating point (..., spatial..., C).
            rngs: source of noise, for layers that draw some in training.

        Returns:
            A `Choice` of layers that choose; otherwise the map itself.
        """
        return x

    def __call__(self, x: jax.Array, like: "jax.Array | Choice | None" = None) -> jax.Array:
        """Subsamples the spatial axes of `x`.

        Args:
            x: floating point array (..., spatial..., C).
            like: what `choose` has given for another path, or the map of that path, of the same batch and spatial
                size as `x`: the shortcut of a residual block has to keep the samples that the main path keeps. None
                lets the layer choose by `x`. Layers that choose nothing ignore it.
        """
        raise NotImplementedError

    @property
    def settings(self) -> tuple[Any, ...]:
        """What decides the layer's function besides its variables and mode, in the order of the attributes' names."""
        aside = ("deterministic", "noise")
        given = {key: v for key, v in vars(self).items() if not key.startswith("_pytree__") and key not in aside}
        return tuple(v for _, v in sorted(given.items()) if not isinstance(v, nnx.Module | nnx.Variable))


def map_axes(layer: Downsample, x: jax.Array, spatial_dims: int) -> range:
    """The spatial axes of a layer's input; TypeError or ValueError if it is none."""
    check_floating(type(layer).__name__, x)
    return spatial_axes(type(layer).__name__, x, spatial_dims)


def pad(x: jax.Array, axis: int, low: int, high: int, pad_type: str) -> jax.Array:
    """The map with so many samples more at the ends of one axis."""
    if low == high == 0:
        return x
    if pad_type == "zero":
        margins = [(low, high, 0) if i == axis else (0, 0, 0) for i in range(x.ndim)]
        return lax.pad(x, jnp.zeros((), x.dtype), margins)
    size = x.shape[axis]
    positions = np.pad(np.arange(size), (low, high), NUMPY_PAD_MODES[pad_type]).tolist()
    # Of slices, whose gradient is no scatter: JAX would not know how that lies on a mesh with Explicit axes.
    before, after = (
        [lax.slice_in_dim(x, p, p + 1, axis=axis) for p in part] for part in (positions[:low], positions[low + size :])
    )
    return jnp.concatenate([*before, x, *after], axis)
