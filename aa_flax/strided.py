"""What a strided operation becomes: the dense operation, then a blur that subsamples.

Zhang 2019 (arXiv 1904.11486), section 3.2. The dense operation is placed so that the samples a stride would have
kept are still among its own: with a single tap the result is the strided operation's, up to the order of sums. Where
the non-linearity behind a convolution cannot be reached the blur may also come before it and the convolution keeps its
stride: inside the border both give the same numbers, and the convolution costs what it did.
"""

import contextlib
import copyreg
import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from aa_flax import blurpool, plain_pooling
from aa_flax.axes import per_axis
from aa_flax.downsample import Downsample
from aa_flax.dtypes import at_least_float32
from aa_flax.meshes import require_whole
from aa_flax.window_max import window_max

BLURRED_SCOPE = "blurred="
Padding = str | Sequence[tuple[int, int]]


def split_stride(stride: int) -> tuple[int, int]:
    """How a convolution's stride is shared out: what the convolution keeps, and what the blur takes over.

    The blur takes the smallest prime factor: 2 becomes (1, 2) and AlexNet's 4 becomes (2, 2), as in the paper's
    networks. A dense convolution in place of one with stride 4 would cost sixteen times as much.
    """
    factor = next((p for p in range(2, stride + 1) if stride % p == 0), 1)
    return stride // factor, factor


def explicit_padding(
    padding: Padding, sizes: Sequence[int], window: Sequence[int], strides: Sequence[int]
) -> list[tuple[int, int]]:
    """Padding in samples, (before, after) for each spatial axis.

    `"SAME"` depends on the stride: the dense layer has to pad as the strided one did, or else its samples lie
    between those that the weights were trained on.
    """
    if isinstance(padding, str):
        return [(int(lo), int(hi)) for lo, hi in lax.padtype_to_pads(sizes, window, strides, padding)]
    if isinstance(padding, int | np.integer):
        pairs = ((padding, padding),) * len(sizes)
        raise ValueError(
            f"padding={padding} is one number: give (before, after) for each spatial axis, such as {pairs}"
        )
    return [(lo, hi) for lo, hi in padding]


def blur_factors(
    x: jax.Array, axes: Sequence[int], factors: Sequence[int], filter_size: int | Sequence[int], pad_type: str
) -> jax.Array:
    """Blurs and subsamples the axes whose factor is above 1 and leaves the others alone."""
    sizes = per_axis("filter_size", filter_size, len(factors))
    taps = [k if factor > 1 else 1 for k, factor in zip(sizes, factors, strict=True)]
    return blurpool.blur_axes(x, axes, taps, factors, pad_type, 0)


@dataclasses.dataclass(frozen=True)
class BlurredConvolution:
    """The convolution function of an anti-aliased `nnx.Conv`, in place of `jax.lax.conv_general_dilated`.

    A convolution layer calls it with its own strides and padding; the layer's parameters stay as they are. The blur
    runs before the bias is added, which changes nothing: a blur keeps constants (at the border only where the
    padding does, so not with `pad_type="zero"`).

    Attributes:
        filter_size: taps of the blur; None for no blur at all, where another layer has taken the stride over.
        pad_type: padding of the blur.
        strides: the strides of the layer before surgery, which decide its `"SAME"` padding; None where the layer
            still has them.
        blurred: what of each stride a blur before the layer is made for, where the layer keeps its strides.
        function: the convolution function to call.
    """

    filter_size: int | None
    pad_type: str = "reflect"
    strides: tuple[int, ...] | None = None
    blurred: tuple[int, ...] | None = None
    function: Callable[..., jax.Array] = lax.conv_general_dilated

    def __call__(
        self,
        lhs: jax.Array,
        rhs: jax.Array,
        window_strides: Sequence[int],
        padding: Padding,
        lhs_dilation: Sequence[int] | None = None,
        rhs_dilation: Sequence[int] | None = None,
        **options: Any,
    ) -> jax.Array:
        axes = range(1, lhs.ndim - 1)
        require_whole(lhs, axes)
        if lhs_dilation is not None and any(d > 1 for d in lhs_dilation):
            raise ValueError(
                f"a convolution with input_dilation={tuple(lhs_dilation)} enlarges its input, there is nothing to "
                "blur before: see aa_flax.BlurUpsample"
            )
        window = [
            (size - 1) * dilation + 1
            for size, dilation in zip(rhs.shape, rhs_dilation or [1] * len(axes), strict=False)
        ]
        pads = explicit_padding(padding, lhs.shape[1:-1], window, self.strides or window_strides)
        convolve = functools.partial(
            self.function, padding=pads, lhs_dilation=lhs_dilation, rhs_dilation=rhs_dilation, **options
        )
        if self.filter_size is None:
            scope = f"{BLURRED_SCOPE}{'x'.join(map(str, self.blurred or ()))}"
            with jax.named_scope(scope) if self.blurred else contextlib.nullcontext():
                return convolve(lhs, rhs, window_strides=window_strides)
        kept, factors = zip(*(split_stride(s) for s in window_strides), strict=True)
        if all(size == 1 for size in window) and not any(lo or hi for lo, hi in pads):
            # A 1x1 convolution commutes with the blur and has a quarter of the work behind it.
            lhs = blur_factors(lhs, axes, factors, self.filter_size, self.pad_type)
            return convolve(lhs, rhs, window_strides=kept)
        y = convolve(lhs, rhs, window_strides=kept)
        return blur_factors(y, axes, factors, self.filter_size, self.pad_type)


@jax.named_scope("maximum")
def dense_max(x: jax.Array, axes: Sequence[int], window: Sequence[int], pads: Sequence[tuple[int, int]]) -> jax.Array:
    """The maximum over windows one sample apart, along any axes."""
    x = plain_pooling.pad_lowest(x, axes, pads)
    for axis, size in zip(reversed(axes), reversed(window), strict=True):
        x = window_max(x, (axis,), (size,), (1,))
    return x


def dense_mean(
    x: jax.Array, window: Sequence[int], pads: Sequence[tuple[int, int]], count_include_pad: bool = True
) -> jax.Array:
    """The mean over windows one sample apart, along the last axes before the channels, in float32 or wider."""
    spatial = x.shape[-1 - len(window) :]
    wide = x.astype(at_least_float32(x.dtype)).reshape(-1, *spatial)
    padding: Any = pads  # NNX takes pairs, its annotation knows names only

    def sums(values: jax.Array) -> jax.Array:
        return nnx.pool(values, 0.0, lax.add, tuple(window), (1,) * len(window), padding)

    # Not nnx.avg_pool: it divides by a whole number, which strict promotion of dtypes forbids.
    if count_include_pad:
        y = sums(wide) / math.prod(window)
    else:
        y = sums(wide) / sums(jnp.ones((1, *spatial[:-1], 1), wide.dtype))
    y = y.astype(x.dtype)
    return y.reshape(*x.shape[: -1 - len(window)], *y.shape[1:])


class BlurAfter(nnx.Module):
    """A function, such as an activation that took a convolution's stride over, then a layer that subsamples.

    Args:
        function: maps an array (..., spatial..., C) to one.
        blur: subsamples it.
    """

    def __init__(self, function: Callable[..., jax.Array], blur: Downsample):
        self.function, self.blur = function, blur

    def __call__(self, *args: Any, **kwargs: Any) -> jax.Array:
        return self.blur(self.function(*args, **kwargs))


class BlurBefore(nnx.Module):
    """A layer that subsamples, then a function; arguments as `BlurAfter`."""

    def __init__(self, function: Callable[..., jax.Array], blur: Downsample):
        self.function, self.blur = function, blur

    def __call__(self, x: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        return self.function(self.blur(x), *args, **kwargs)


class Blurred:
    """What `blurred` adds to the class of a module: layers before and behind its `__call__`.

    The module itself stays what and where it was: an instance of its class, with its parameters at their paths.

    Attributes:
        input_blur: applied to the first argument; None for nothing.
        output_blur: applied to the result; None for nothing.
    """

    __slots__ = ()  # the layout of the instances must not change
    input_blur: ClassVar[Any] = None
    output_blur: ClassVar[Any] = None


class _BlurredType(type(nnx.Module)):
    """The type of these classes. They have no name to be found by, so that pickles say how to make them."""


@functools.cache
def blurred(kind: type) -> type:
    """The subclass of a module's class that has the layers of `Blurred`."""
    if issubclass(kind, Blurred):
        return kind

    @functools.wraps(kind.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.input_blur is not None and args:
            args = (self.input_blur(args[0]), *args[1:])
        elif self.input_blur is not None:
            name = list(inspect.signature(kind.__call__).parameters)[1]
            kwargs[name] = self.input_blur(kwargs[name])
        y = kind.__call__(self, *args, **kwargs)
        return y if self.output_blur is None else self.output_blur(y)

    body = {"__call__": call, "__module__": kind.__module__, "__doc__": kind.__doc__}
    # The module's own class comes first: only then may the class of an instance change.
    return _BlurredType(kind.__name__, (kind, Blurred), body)


def unblurred(kind: type) -> type:
    """The class that a module had before `blurred`."""
    return kind.__bases__[0] if issubclass(kind, Blurred) else kind


copyreg.pickle(_BlurredType, lambda kind: (blurred, (unblurred(kind),)))
