"""The layers of alias-free networks, with which every shift commutes, by any fraction of a pixel.

A map counts as the samples of one period of a band-limited signal. Convolutions that see it as periodic are filters of
that signal, and filters commute with shifts. What does not is all that makes new frequencies, which fold over where the
grid is too coarse for them: subsampling (`aa_flax.downsample.IdealLowPass` takes them away before), an activation, and
a normalisation whose divisor differs from place to place. The last two have their alias-free form here.

Michaeli, Michaeli and Soudry 2023, *Alias-Free Convnets: Fractional Shift Invariance via Polynomial Activations* (arXiv
2303.08085), section 3.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from aa_flax.axes import check_floating, per_axis, spatial_axes
from aa_flax.dtypes import at_least_float32
from aa_flax.fourier import resample
from aa_flax.meshes import require_whole

# The authors' initial values: a parabola that is close to GELU around zero.
CONSTANT, LINEAR, QUADRATIC = 0.0169394634313126, 0.5, 0.3078363963999393


def band_limited(x: jax.Array) -> jax.Array:
    """The map (..., H, W, C) without what it has at exactly half its sampling rate, on axes of even length.

    No grid can tell the phase of that: half a sample further nothing is left of it. All other layers here leave none,
    so that a network needs this once, where nothing else filters its images.
    """
    axes = spatial_axes("band_limited", x, 2)
    return resample(x, axes, [x.shape[axis] for axis in axes]).astype(x.dtype)


class IdealUpsample(nnx.Module):
    """Ideal interpolation: the samples, and the band-limited signal between them. It holds no variables.

    The transpose of `IdealLowPass`, but for a factor: what is on the small grid comes back unchanged from the large
    one. What the input has at exactly half its sampling rate is dropped, for its phase is not known.

    Args:
        stride: enlargement, one number or one for each spatial axis.
        spatial_dims: spatial axes.
    """

    def __init__(self, stride: int | Sequence[int] = 2, *, spatial_dims: int = 2):
        self.stride = per_axis("stride", stride, spatial_dims)

    def __call__(self, x: jax.Array, size: Sequence[int] | None = None) -> jax.Array:
        """Enlarges the spatial axes of `x` (..., spatial..., C), to `size` if given."""
        axes = spatial_axes("IdealUpsample", x, len(self.stride))
        check_floating("IdealUpsample", x)
        times = tuple(x.shape[axis] * stride for axis, stride in zip(axes, self.stride, strict=True))
        sizes = times if size is None else per_axis("size", size, len(axes))
        return resample(x, axes, sizes).astype(x.dtype)


class AliasFreeActivation(nnx.Module):
    """A parabola for each channel, `a + b x + c x^2`, whose new frequencies are filtered away before they fold over.

    A product of two signals has at most the sum of their bandwidths. On a grid twice as fine there is room for it: the
    map is interpolated there, the polynomial applied, and an ideal low-pass filter leads back to the map's own grid.
    A function with a kink, such as ReLU, has no such bandwidth, and no grid is fine enough for it.

    The cost is that of a dense product of four times the map with each of its axes, about 12 N multiplications for
    each sample of an N by N map, and four times the map's memory in training.

    Args:
        channels: channels of the map.
        dtype: dtype of the output; None keeps the input's. What lies between runs in float32 or wider.
        param_dtype: dtype of the coefficients.
    """

    def __init__(
        self,
        channels: int,
        *,
        dtype: jax.typing.DTypeLike | None = None,
        param_dtype: jax.typing.DTypeLike = jnp.float32,
    ):
        self.constant = nnx.Param(jnp.full(channels, CONSTANT, param_dtype))
        self.linear = nnx.Param(jnp.full(channels, LINEAR, param_dtype))
        self.quadratic = nnx.Param(jnp.full(channels, QUADRATIC, param_dtype))
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (..., H, W, C) to the same shape."""
        axes = spatial_axes("AliasFreeActivation", x, 2)
        check_floating("AliasFreeActivation", x)
        size = [x.shape[axis] for axis in axes]
        fine = resample(x, axes, [2 * samples for samples in size])
        constant, linear, quadratic = (_row(v, fine) for v in (self.constant, self.linear, self.quadratic))
        y = resample((linear + quadratic * fine) * fine, axes, size) + constant
        return y.astype(self.dtype or x.dtype)


class AliasFreeNorm(nnx.Module):
    """Layer normalisation that divides every place of an image by the same number.

    At every place the mean over the channels is taken away; what is left is divided by its standard deviation over all
    places and channels, where a layer normalisation has one for each place. That number does not change when the
    image is shifted, by whatever fraction.

    Args:
        channels: channels of the map.
        epsilon: added to the variance.
        dtype: dtype of the output; None keeps the input's. Statistics are taken in float32 or wider.
        param_dtype: dtype of scale and bias.
    """

    def __init__(
        self,
        channels: int,
        *,
        epsilon: float = 1e-6,
        dtype: jax.typing.DTypeLike | None = None,
        param_dtype: jax.typing.DTypeLike = jnp.float32,
    ):
        self.scale = nnx.Param(jnp.ones(channels, param_dtype))
        self.bias = nnx.Param(jnp.zeros(channels, param_dtype))
        self.epsilon, self.dtype = epsilon, dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises (..., H, W, C), each image by itself."""
        axes = spatial_axes("AliasFreeNorm", x, 2)
        require_whole(x, axes)
        wide = x.astype(at_least_float32(x.dtype))
        centred = wide - wide.mean(-1, keepdims=True)
        variance = jnp.square(centred).mean((-3, -2, -1), keepdims=True)
        y = centred * lax.rsqrt(variance + self.epsilon) * _row(self.scale, wide) + _row(self.bias, wide)
        return y.astype(self.dtype or x.dtype)


def _row(variable: nnx.Param, x: jax.Array) -> jax.Array:
    """One value for each channel, as (1, ..., C) of the rank and dtype of the map `x`."""
    return variable[...].astype(x.dtype).reshape(*(1,) * (x.ndim - 1), -1)
