"""Functions of earlier versions by the names they had, each with what to write in its place."""

import warnings
from collections.abc import Callable, Sequence

import jax

from aa_flax import plain_pooling
from aa_flax.axes import spatial_axes
from aa_flax.blurpool import blur_axes


def max_blur_pool(
    x: jax.Array,
    window: int | Sequence[int] = 2,
    filter_size: int | Sequence[int] = 4,
    stride: int | Sequence[int] = 2,
    padding: int | Sequence[int] = 0,
    pad_type: str = "reflect",
) -> jax.Array:
    """A dense maximum, then `aa_flax.blur_pool`: `aa_flax.nn.max_pool` with other arguments."""
    axes = spatial_axes("max_blur_pool", x, 2)
    return blur_axes(plain_pooling.max_pool(x, window, 1, padding), axes, filter_size, stride, pad_type, 0)


_PLAIN = "aa_flax.plain_pooling.{0}, or aa_flax.nn.{0}, which is anti-aliased"
FUNCTIONS: dict[str, tuple[Callable[..., jax.Array], str]] = {
    "max_pool": (plain_pooling.max_pool, _PLAIN.format("max_pool")),
    "avg_pool": (plain_pooling.avg_pool, _PLAIN.format("avg_pool")),
    "adaptive_avg_pool": (plain_pooling.adaptive_avg_pool, "aa_flax.plain_pooling.adaptive_avg_pool"),
    "max_blur_pool": (max_blur_pool, "aa_flax.nn.max_pool(x, (2, 2), (2, 2), filter_size=4)"),
}


def deprecated(name: str) -> Callable[..., jax.Array]:
    """A function by its earlier name, with a warning.

    Raises:
        AttributeError: there never was one of this name.
    """
    if name not in FUNCTIONS:
        raise AttributeError(f"module 'aa_flax' has no attribute {name!r}")
    function, now = FUNCTIONS[name]
    warnings.warn(f"aa_flax.{name} is deprecated: write {now}", DeprecationWarning, stacklevel=3)
    return function
