"""Adaptive polyphase sampling: the grid with the most energy."""

import itertools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from aa_flax import blurpool
from aa_flax.axes import per_axis, whole_number
from aa_flax.blurpool import blur_axes
from aa_flax.downsample.base import Downsample, Site, map_axes, pad
from aa_flax.downsample.energies import most_energetic


class AdaptivePolyphase(Downsample):
    """Adaptive polyphase sampling (APS): blur, then keep the phase with the most energy.

    Subsampling by s keeps one of s possible grids along each axis. This layer keeps, for every example, the one whose
    samples have the largest 2-norm over space and channels. Moving the image permutes the grids but not their
    content, so that the same samples are kept wherever the image lies: with circular padding throughout, and sizes
    that the strides divide, a network's answer to a rolled image is exactly the same. Norms are compared without
    rounding in their sums (`aa_flax.downsample.energies`), so that near ties stay decided. It holds no variables.

    An axis that the stride does not divide is filled up at its end, after the blur, so that every grid has
    `ceil(N / stride)` samples. No guarantee is left there, however it is filled.

    Args:
        filter_size: taps of the blur before the choice; 1 chooses without blur, as in the paper's plain APS.
        stride: subsampling, one number or one for each spatial axis.
        pad_type: padding of the blur; only `circular` keeps the guarantee at the border.
        end_pad_type: what fills up the end of such an axis; None means `pad_type`. The authors' code always wraps
            there: `circular`.
        spatial_dims: spatial axes.

    Source: Chaman and Dokmanic 2021, *Truly shift-invariant convolutional neural networks* (arXiv 2011.14214),
    section 4; the blur before it is their APS with low-pass filter.
    """

    title = "adaptive polyphase sampling"

    @classmethod
    def at(cls, site: Site) -> Downsample:
        return cls(site.filter_size, site.strides, site.pad_type, spatial_dims=len(site.strides))

    def __init__(
        self,
        filter_size: int = 4,
        stride: int | Sequence[int] = 2,
        pad_type: str = "circular",
        *,
        end_pad_type: str | None = None,
        spatial_dims: int = 2,
    ):
        self.filter_size = whole_number("filter_size", filter_size)
        self.stride = per_axis("stride", stride, spatial_dims)
        self.pad_type = blurpool.canonical_pad_type(pad_type)
        self.end_pad_type = self.pad_type if end_pad_type is None else blurpool.canonical_pad_type(end_pad_type)

    def __call__(self, x: jax.Array, like: jax.Array | None = None) -> jax.Array:
        """Subsamples; with `like` on the grids chosen for that map.

        Raises:
            ValueError: if batch or sizes of `like` are not those of `x`.
        """
        if like is not None and like.shape[:-1] != x.shape[:-1]:
            raise ValueError(f"like must have the batch and sizes of the map {x.shape}, got {like.shape}")
        phases = list(self._phases(x))
        guide = phases if like is None else list(self._phases(like))
        chosen = most_energetic(guide, len(self.stride) + 1)
        chosen = chosen.reshape(*chosen.shape, *(1,) * (len(self.stride) + 1))
        y = phases[0]
        for i, phase in enumerate(phases[1:], 1):
            y = jnp.where(chosen == i, phase, y)
        return y

    def _phases(self, x: jax.Array) -> Iterator[jax.Array]:
        axes = map_axes(self, x, len(self.stride))
        x = blur_axes(x, axes, self.filter_size, 1, self.pad_type, 0)
        for axis, stride in zip(axes, self.stride, strict=True):
            x = pad(x, axis, 0, -x.shape[axis] % stride, self.end_pad_type)
        for offsets in itertools.product(*map(range, self.stride)):
            phase = x
            for axis, offset, stride in zip(axes, offsets, self.stride, strict=True):
                phase = lax.slice_in_dim(phase, offset, None, stride, axis)
            yield phase
