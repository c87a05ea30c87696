"""Adaptive polyphase sampling: the grid with the most energy."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, get_args

import jax
from flax import nnx

from aa_flax import blurpool
from aa_flax.axes import one_of, per_axis, whole_number
from aa_flax.blurpool import blur_axes
from aa_flax.downsample.base import Choice, Downsample, Site, map_axes
from aa_flax.downsample.energies import CRITERIA, Criterion, largest_map
from aa_flax.downsample.phases import chosen, phases

ChooseOn = Literal["blurred", "unblurred"]
NORMS = tuple(criterion for criterion in CRITERIA if criterion != "sum")


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
        criterion: what is compared: the norm `l2`, `l1` or `linf`, the largest number (`max`), or the norm that is to
            be smallest (`smallest_l2`, `smallest_l1`).
        choose_on: the phases of which map are compared, the `blurred` one as in the paper or the `unblurred` one as in
            the authors' networks for CIFAR-10.
        end_pad_type: what fills up the end of such an axis; None means `pad_type`. The authors' code always wraps
            there: `circular`.
        spatial_dims: spatial axes.

    Source: Chaman and Dokmanic 2021, *Truly shift-invariant convolutional neural networks* (arXiv 2011.14214),
    section 4; the blur before it is their APS with low-pass filter.
    """

    title = "adaptive polyphase sampling"
    exact = True
    options: ClassVar = {"criterion": NORMS, "choose_on": get_args(ChooseOn)}

    @classmethod
    def at(cls, site: Site, **options: Any) -> Downsample:
        return cls(site.filter_size, site.strides, site.pad_type, spatial_dims=len(site.strides), **options)

    def __init__(
        self,
        filter_size: int = 4,
        stride: int | Sequence[int] = 2,
        pad_type: str = "circular",
        *,
        criterion: Criterion = "l2",
        choose_on: ChooseOn = "blurred",
        end_pad_type: str | None = None,
        spatial_dims: int = 2,
    ):
        self.filter_size = whole_number("filter_size", filter_size)
        self.stride = per_axis("stride", stride, spatial_dims)
        self.pad_type = blurpool.canonical_pad_type(pad_type)
        self.criterion: Criterion = one_of("criterion", criterion, NORMS)
        self.choose_on = one_of("choose_on", choose_on, get_args(ChooseOn))
        self.end_pad_type = self.pad_type if end_pad_type is None else blurpool.canonical_pad_type(end_pad_type)

    def choose(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> Choice:
        """The phase to keep of each example; nothing is drawn."""
        found = self._phases(x, blurred=self.choose_on == "blurred")
        return Choice(len(found), largest_map(found, len(self.stride) + 1, self.criterion))

    def __call__(self, x: jax.Array, like: jax.Array | Choice | None = None) -> jax.Array:
        """Subsamples; with `like` on the grids chosen for that map.

        Raises:
            ValueError: if batch or sizes of `like` are not those of `x`.
        """
        if not isinstance(like, Choice | None) and like.shape[:-1] != x.shape[:-1]:
            raise ValueError(f"like must have the batch and sizes of the map {x.shape}, got {like.shape}")
        choice = like if isinstance(like, Choice) else self.choose(x if like is None else like)
        return chosen(self._phases(x), choice)

    def _phases(self, x: jax.Array, *, blurred: bool = True) -> list[jax.Array]:
        axes = map_axes(self, x, len(self.stride))
        if blurred:
            x = blur_axes(x, axes, self.filter_size, 1, self.pad_type, 0)
        return phases(x, axes, self.stride, self.end_pad_type)
