"""Drop-in forms of NNX's strided layers: the same signatures, parameters and output sizes, but anti-aliased.

With `filter_size=1` each of them is NNX's own layer, up to the order of sums. The window says how many axes are
spatial; all axes before those are batch. On images a window over one axis is refused.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import lax

from aa_flax import blurpool
from aa_flax.axes import each_axis, per_axis, spatial_axes, whole_number
from aa_flax.downsample import Downsample, blur_layer
from aa_flax.strided import BlurredConvolution, Padding, blur_factors, dense_max, dense_mean, explicit_padding


class Conv(nnx.Conv):
    """`nnx.Conv` whose stride is anti-aliased: a dense convolution, then a blur that subsamples.

    Parameters, their names and the output's shape are those of `nnx.Conv`, so that its checkpoints load. The
    blur comes straight after the convolution; where the non-linearity belongs in between, as in the paper, use
    `ConvBlur`.

    Args:
        *args: the arguments of `nnx.Conv`.
        filter_size: taps of the blur, one number for all spatial axes. 1 gives `nnx.Conv` itself.
        pad_type: padding of the blur, see `aa_flax.blur_pool`.
        **kwargs: the keyword arguments of `nnx.Conv`, among them `rngs`.

    Raises:
        ValueError: for an unknown filter size or pad type, and on images if `kernel_size` is one number: NNX
            takes that for a convolution over one axis.
    """

    def __init__(self, *args: Any, filter_size: int = 4, pad_type: str = "reflect", **kwargs: Any):
        pad_type = blurpool.canonical_pad_type(pad_type)
        function = kwargs.pop("conv_general_dilated", lax.conv_general_dilated)
        hook = BlurredConvolution(whole_number("filter_size", filter_size), pad_type, function=function)
        super().__init__(*args, conv_general_dilated=hook, **kwargs)
        self.strides = per_axis("strides", 1 if self.strides is None else self.strides, len(self.kernel_size))

    def __call__(self, inputs: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        _check_rank("Conv", inputs, self.kernel_size)
        return super().__call__(inputs, *args, **kwargs)


def _check_rank(layer: str, x: jax.Array, window: Sequence[int]) -> None:
    if len(window) == 1 and x.ndim >= 4:
        raise ValueError(
            f"{layer} with a window of {tuple(window)} works on one axis, got images of shape {x.shape}: "
            f"write {(window[0], window[0])} for two axes"
        )


def max_pool(
    inputs: jax.Array,
    window_shape: tuple[int, ...],
    strides: tuple[int, ...] | None = None,
    padding: Padding = "VALID",
    *,
    filter_size: int = 4,
    pad_type: str = "reflect",
) -> jax.Array:
    """`nnx.max_pool` with its stride anti-aliased: a dense maximum, then a blur that subsamples.

    Args:
        inputs: floating point array (batch..., spatial..., C).
        window_shape: window in samples, one size for each spatial axis.
        strides: subsampling for each spatial axis; None means 1, as in NNX.
        padding: `"SAME"`, `"VALID"` or (before, after) for each spatial axis; pads with minus infinity.
        filter_size: taps of the blur. 1 gives `nnx.max_pool` itself.
        pad_type: padding of the blur, see `aa_flax.blur_pool`.

    Returns:
        Array of the shape and dtype that `nnx.max_pool` gives.

    Source: Zhang 2019, section 3.2, equation 6.
    """
    filter_size = whole_number("filter_size", filter_size)
    axes, window, steps, pads = _pool_geometry("max_pool", inputs, window_shape, strides, padding)
    y = dense_max(inputs, axes, window, pads)
    return blur_factors(y, axes, steps, filter_size, pad_type)


def avg_pool(
    inputs: jax.Array,
    window_shape: tuple[int, ...],
    strides: tuple[int, ...] | None = None,
    padding: Padding = "VALID",
    count_include_pad: bool = True,
    *,
    filter_size: int = 4,
    pad_type: str = "reflect",
) -> jax.Array:
    """`nnx.avg_pool` with its stride anti-aliased: a dense average, then a blur that subsamples.

    The paper puts the blur in the average's place. A mean over two samples is itself a binomial filter, so that
    here the usual window of 2 is followed by `filter_size - 1` taps: both together are the `filter_size` taps
    that the paper has, and the output keeps the size that `nnx.avg_pool` gives. Other windows are followed by all
    `filter_size` taps.

    Args:
        inputs: floating point array (batch..., spatial..., C).
        window_shape: window in samples, one size for each spatial axis.
        strides: subsampling for each spatial axis; None means 1, as in NNX.
        padding: `"SAME"`, `"VALID"` or (before, after) for each spatial axis; pads with zeros.
        count_include_pad: whether padded samples count in the mean.
        filter_size: taps of average and blur together. 1 gives `nnx.avg_pool` itself.
        pad_type: padding of the blur, see `aa_flax.blur_pool`.

    Returns:
        Array of the shape and dtype that `nnx.avg_pool` gives; sums run in float32 or wider.

    Source: Zhang 2019, section 3.2.
    """
    filter_size = whole_number("filter_size", filter_size)
    axes, window, steps, pads = _pool_geometry("avg_pool", inputs, window_shape, strides, padding)
    y = dense_mean(inputs, window, pads, count_include_pad)
    taps = [max(filter_size - 1, 1) if size == 2 else filter_size for size in window]
    return blur_factors(y, axes, steps, taps, pad_type)


def _pool_geometry(name: str, x: jax.Array, window: Sequence[int], strides: Sequence[int] | None, padding: Padding):
    """The spatial axes of `x`, and the window, the strides and the padding that a pool has on them."""
    window = each_axis("window_shape", window)
    strides = (1,) * len(window) if strides is None else each_axis("strides", strides)
    axes = spatial_axes(f"{name} over a window of {window}", x, len(window))
    _check_lengths(name, window, strides)
    _check_rank(name, x, window)
    pads = explicit_padding(padding, [x.shape[a] for a in axes], window, strides)
    if any(x.shape[a] + sum(pad) < size for a, pad, size in zip(axes, pads, window, strict=True)):
        raise ValueError(f"{name}: a window of {tuple(window)} does not fit into the map {x.shape}, padding {pads}")
    return axes, window, strides, pads


def _check_lengths(name: str, window: Sequence[int], strides: Sequence[int]) -> None:
    if len(strides) != len(window):
        raise ValueError(f"{name}: strides {tuple(strides)} and window {tuple(window)} differ in length")


class _Pool(nnx.Module):
    """What the two pooling layers share."""

    def __init__(
        self,
        window_shape: Sequence[int],
        strides: Sequence[int] | None = None,
        padding: Padding = "VALID",
        *,
        filter_size: int = 4,
        pad_type: str = "reflect",
        downsample: Downsample | None = None,
    ):
        filter_size = whole_number("filter_size", filter_size)
        self.window_shape = each_axis("window_shape", window_shape)
        self.strides = self.window_shape if strides is None else each_axis("strides", strides)
        _check_lengths(type(self).__name__, self.window_shape, self.strides)
        self.padding = padding if isinstance(padding, str | int | np.integer) else tuple((lo, hi) for lo, hi in padding)
        self.downsample = downsample or self._default(filter_size, pad_type)

    def _default(self, filter_size: int, pad_type: str) -> Downsample:
        return blur_layer(self.strides, filter_size, pad_type)


class MaxBlurPool(_Pool):
    """A dense maximum, then an anti-aliased subsampling.

    Args:
        window_shape: window in samples, one size for each spatial axis.
        strides: subsampling for each spatial axis; by default the window, as in PyTorch.
        padding: `"SAME"`, `"VALID"` or (before, after) for each spatial axis; pads with minus infinity.
        filter_size: taps of the blur.
        pad_type: padding of the blur, see `aa_flax.blur_pool`.
        downsample: what subsamples in the blur's place, with the same strides.

    Source: Zhang 2019, section 3.2, equation 6.
    """

    def __call__(self, x: jax.Array, like: jax.Array | None = None) -> jax.Array:
        axes, _, _, pads = _pool_geometry("MaxBlurPool", x, self.window_shape, self.strides, self.padding)
        return self.downsample(dense_max(x, axes, self.window_shape, pads), like)


class AvgBlurPool(_Pool):
    """A dense average, then an anti-aliased subsampling; arguments as `MaxBlurPool`, numbers as
    `avg_pool`."""

    def _default(self, filter_size: int, pad_type: str) -> Downsample:
        if all(size == 2 for size in self.window_shape):
            filter_size = max(filter_size - 1, 1)
        return blur_layer(self.strides, filter_size, pad_type)

    def __call__(self, x: jax.Array, like: jax.Array | None = None) -> jax.Array:
        _, _, _, pads = _pool_geometry("AvgBlurPool", x, self.window_shape, self.strides, self.padding)
        return self.downsample(dense_mean(x, self.window_shape, pads), like)


class ConvBlur(nnx.Module):
    """Convolution, normalisation, non-linearity, then an anti-aliased subsampling: the paper's strided block.

    Args:
        in_features: channels in.
        out_features: channels out.
        kernel_size: window in samples, one size for each spatial axis.
        strides: subsampling, one number or one for each spatial axis; the convolution itself is dense.
        norm: what follows the convolution, such as `nnx.BatchNorm`; None for nothing.
        activation: the non-linearity.
        filter_size: taps of the blur.
        pad_type: padding of the blur, see `aa_flax.blur_pool`.
        downsample: what subsamples in the blur's place, with the same strides.
        **options: further arguments of `nnx.Conv`, among them `rngs`.

    Source: Zhang 2019, section 3.2: `Relu . Conv` with stride becomes `Blur . Relu . Conv`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Sequence[int],
        strides: int | Sequence[int] = 2,
        *,
        norm: Callable[..., jax.Array] | None = None,
        activation: Callable[[jax.Array], jax.Array] = nnx.relu,
        filter_size: int = 4,
        pad_type: str = "reflect",
        downsample: Downsample | None = None,
        **options: Any,
    ):
        kernel_size = each_axis("kernel_size", kernel_size)
        factors = per_axis("strides", strides, len(kernel_size))
        filter_size = whole_number("filter_size", filter_size)
        self.conv = nnx.Conv(in_features, out_features, kernel_size, **options)
        self.norm = norm
        self.activation = activation
        self.downsample = downsample or blur_layer(factors, filter_size, pad_type)

    def __call__(self, x: jax.Array, like: jax.Array | None = None) -> jax.Array:
        y = self.conv(x)
        if self.norm is not None:
            y = self.norm(y)
        return self.downsample(self.activation(y), like)
