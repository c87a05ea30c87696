"""Which convolutions the surgery leaves alone, and which it cannot take."""

from typing import Any

from flax import nnx

from aa_flax.surgery.kinds import describe, enlarges, has_own_call, is_antialiased, kernel_size, strides_of
from aa_flax.surgery.plan import Plan, Survey
from aa_flax.surgery.report import STRIDE_1

LEFT_OUT = "left out by `where`"
ALREADY = "already anti-aliased"


def objection(plan: Plan, survey: Survey, path: str, conv: nnx.Conv | nnx.ConvTranspose) -> str | None:
    """Why a convolution stays as it is; None if it is to be changed.

    Raises:
        ValueError: if it was to be changed, but cannot.
    """
    if isinstance(conv, nnx.ConvTranspose) or enlarges(conv):
        return _enlarging(plan, path, conv)
    if max(strides_of(conv)) == 1:
        return STRIDE_1
    if is_antialiased(conv):
        return ALREADY
    if not plan.first and survey.reads_input(conv):
        return f"reads the image ({conv.in_features} channels); first=True includes it"
    if conv.in_features < plan.min_channels:
        return f"fewer than min_channels={plan.min_channels} input channels"
    if plan.declines(path, conv):
        return LEFT_OUT
    if has_own_call(conv):
        return f"{type(conv).__name__} has a __call__ of its own: declare antialias_slots or use aa_flax.nn.Conv"
    check_axes(plan, path, conv, len(kernel_size(conv)))
    places = survey.places[id(conv)]
    if len(places) > 1:
        raise ValueError(
            f"{' and '.join(places)} are one layer, whose stride cannot move into two places: give "
            "each its own nnx.Conv (they may share the kernel variable), or leave it out by `where`"
        )
    return None


def pool_objection(plan: Plan, path: str, layer: Any) -> str | None:
    """Why a pool stays as it is, whatever its kind; None if it is to be changed."""
    if plan.declines(path, layer):
        return LEFT_OUT
    if plan.needs_channels:
        return f"{plan.downsample} has to know the channels of its map, which a pool does not say"
    return None


def _enlarging(plan: Plan, path: str, conv: nnx.Conv | nnx.ConvTranspose) -> str:
    if isinstance(conv, nnx.ConvTranspose) and max(strides_of(conv)) == 1:
        return STRIDE_1
    advice = "it enlarges: a stride-1 convolution and aa_flax.BlurUpsample before it take its place"
    if plan.where is not None and plan.where(path, conv):
        raise ValueError(f"{path} ({describe(conv)}) cannot be anti-aliased by a blur behind it: {advice}")
    return advice


def check_axes(plan: Plan, path: str, layer: Any, axes: int) -> None:
    """Raises ValueError for a layer of other than `spatial_dims` axes."""
    if axes == plan.spatial_dims:
        return
    hint = f"pass spatial_dims={axes} if the whole network works on {axes} axes"
    if axes == 1 and isinstance(layer, nnx.Conv):
        size = layer.kernel_size[0]
        hint = f"nnx.Conv takes kernel_size={size} for one axis, write {(size, size)} for images; {hint}"
    raise ValueError(f"{path} ({describe(layer)}) works on {axes} axes, not {plan.spatial_dims}: {hint}")
