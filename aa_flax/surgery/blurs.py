"""What takes a stride over: the layers, how they are attached to a network, and what they cost."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx

from aa_flax.downsample import Downsample, Site, blur_layer, method
from aa_flax.strided import BlurAfter, BlurBefore, BlurredConvolution, blurred, split_stride
from aa_flax.surgery.kinds import is_circular, kernel_size, strides_of
from aa_flax.surgery.plan import Plan, Survey
from aa_flax.surgery.report import Change


class Blurs:
    """Makes the layers that subsample.

    Attributes:
        made: the identities of those that the caller's function has made.
    """

    def __init__(self, plan: Plan, survey: Survey):
        self.plan, self.survey = plan, survey
        self.made: set[int] = set()

    def pad_type(self, conv: nnx.Conv | None = None) -> str:
        """What was asked for; otherwise circular where the convolution is, or for a pool the whole network."""
        if self.plan.pad_type is not None:
            return self.plan.pad_type
        circular = self.survey.circular if conv is None else is_circular(conv)
        return "circular" if circular else "reflect"

    def layer(self, factors: tuple[int, ...], conv: nnx.Conv | None = None, *, follows: bool = False) -> Downsample:
        """What subsamples a map by these factors: the one that a convolution makes, or that of a pool.

        With `follows` it is the one before a shortcut's convolution, which is told what the main path chooses.
        """
        plan, pad_type = self.plan, self.pad_type(conv)
        channels = None if conv is None else conv.in_features if follows else conv.out_features
        if callable(plan.downsample):
            own = plan.downsample(channels, factors)
            self.made.add(id(own))
            return own
        site = Site(
            strides=factors,
            filter_size=plan.filter_size,
            pad_type=pad_type,
            channels=channels,
            dtype=None if conv is None else conv.dtype,
            param_dtype=jnp.float32 if conv is None else conv.param_dtype,
            rngs=plan.rngs,
            follows=follows,
        )
        return method(plan.downsample).at(site)

    def before(self, conv: nnx.Conv) -> Downsample:
        """What blurs the input of a convolution that keeps its strides."""
        return blur_layer(_factors(conv), self.plan.filter_size, self.pad_type(conv), subsample=False)

    def cost(self, change: Change, conv: nnx.Conv, *, dense: bool, channels: int) -> Change:
        """The change with its floating point operations, counted before the convolution is changed.

        Args:
            change: what is done to the convolution.
            conv: the convolution as it was.
            dense: whether it becomes dense.
            channels: channels of the map that is blurred.
        """
        strides, factors, taps = strides_of(conv), _factors(conv), 2 * self.plan.filter_size * channels
        before = 2 * math.prod(kernel_size(conv)) * conv.in_features // conv.feature_group_count * conv.out_features
        after = before * math.prod(factors) if dense else before
        if self.plan.downsample == "blur" and change.detail.startswith(KEEPS_STRIDE):
            after += taps * math.prod(strides) * sum(f > 1 for f in factors)
        elif self.plan.downsample == "blur":
            # One axis after the other, first to last: the axes to come are still at full size.
            after += sum(taps * math.prod(factors[i + 1 :]) for i, f in enumerate(factors) if f > 1)
        calls = self.survey.calls.get(change.path, [])
        if not calls:
            return dataclasses.replace(change, flops=(before, after))
        pixels = sum(math.prod(call.gave[:-1]) for call in calls)
        return dataclasses.replace(change, flops=(pixels * before, pixels * after), per_pixel=False)


KEEPS_STRIDE = "blur before the strided convolution"


def _factors(conv: nnx.Conv) -> tuple[int, ...]:
    return tuple(split_stride(s)[1] for s in strides_of(conv))


def stride_left(strides: Sequence[int]) -> str:
    """The part of a stride that no blur is made for, as `stride 2 of 4`."""
    left = [split_stride(s)[0] for s in strides]
    if max(left) == 1:
        return ""
    pairs = sorted({(kept, s) for kept, s in zip(left, strides, strict=True) if kept > 1})
    return " and ".join(f"stride {kept} of {s}" for kept, s in pairs)


def make_dense(conv: nnx.Conv, *, mark: bool = True) -> tuple[int, ...]:
    """Takes from a convolution the part of its stride that a blur elsewhere takes over, which is returned.

    `mark` lets what is left of the stride be known as dealt with.
    """
    strides = strides_of(conv)
    kept, factors = zip(*map(split_stride, strides), strict=True)
    same = isinstance(conv.padding, str) and conv.padding.startswith("SAME")
    if same or (mark and max(kept) > 1):
        hook = BlurredConvolution(None, strides=strides, function=conv.conv_general_dilated)
        conv.conv_general_dilated = hook
    conv.strides = kept[0] if isinstance(conv.strides, int) else kept
    return factors


def keep_strides(conv: nnx.Conv) -> None:
    """Notes in a convolution that its input is blurred for its strides."""
    hook = BlurredConvolution(None, blurred=_factors(conv), function=conv.conv_general_dilated)
    conv.conv_general_dilated = hook


def blur_input(path: str, module: nnx.Module, blur: Downsample) -> None:
    """Lets a module blur what it is called with, before what it blurs already."""
    earlier = getattr(module, "input_blur", None)
    set_attribute(path, module, "input_blur", blur if earlier is None else nnx.Sequential(earlier, blur))
    object.__setattr__(module, "__class__", blurred(type(module)))


def blur_output(path: str, module: nnx.Module, blur: Downsample) -> None:
    """Lets a module blur what it answers."""
    set_attribute(path, module, "output_blur", blur)
    object.__setattr__(module, "__class__", blurred(type(module)))


def after(activation: Any, blur: Downsample) -> Any:
    """What stands in an activation's place and blurs behind it; parameters of a module keep their paths."""
    if not isinstance(activation, nnx.Module):
        return BlurAfter(activation, blur)
    # Another place may hold the same module without a blur behind it.
    own = nnx.clone(activation, variables=False)
    blur_output("", own, blur)
    return own


def before(function: Any, blur: Downsample) -> Any:
    """What stands in a function's place and blurs before it."""
    return BlurBefore(function, blur)


def set_attribute(path: str, module: nnx.Module, key: str, value: Any) -> None:
    """Sets what a module holds; ValueError if it is frozen."""
    layers = isinstance(value, nnx.Module) or (
        isinstance(value, tuple | list) and any(isinstance(v, nnx.Module) for v in value)
    )
    try:
        setattr(module, key, nnx.data(value) if layers else value)
    except dataclasses.FrozenInstanceError as error:
        raise ValueError(
            f"{path or 'the model'} is a frozen dataclass, its {key} cannot be replaced: drop frozen=True, or build it "
            "with aa_flax.nn's layers"
        ) from error
