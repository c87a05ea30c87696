"""BlurPool as layers, for sequences, images and volumes."""

from collections.abc import Sequence

import jax

from aa_flax.axes import per_axis, spatial_axes
from aa_flax.blurpool import blur_axes, canonical_pad_type
from aa_flax.downsample.base import Downsample, Site


class BlurPool(Downsample):
    """What the layers for one, two and three axes share. They hold no variables: the filter is a constant."""

    title = "BlurPool"
    spatial_dims: int

    @classmethod
    def at(cls, site: Site) -> Downsample:
        return blur_layer(site.strides, site.filter_size, site.pad_type)

    def __init__(
        self,
        filter_size: int | Sequence[int],
        stride: int | Sequence[int],
        pad_type: str,
        pad_off: int | Sequence[int],
    ):
        self.filter_size = per_axis("filter_size", filter_size, self.spatial_dims)
        self.stride = per_axis("stride", stride, self.spatial_dims)
        self.pad_type = canonical_pad_type(pad_type)
        self.pad_off = per_axis("pad_off", pad_off, self.spatial_dims, least=None)

    def __call__(self, x: jax.Array, like: jax.Array | None = None) -> jax.Array:
        """Blurs and subsamples. `like` is there for layers that adapt, see `aa_flax.Downsample`."""
        axes = spatial_axes(type(self).__name__, x, self.spatial_dims)
        return blur_axes(x, axes, self.filter_size, self.stride, self.pad_type, self.pad_off)


class BlurPool1D(BlurPool):
    """BlurPool for sequences, (..., L, C) to (..., ceil(L / stride), C).

    Args:
        filter_size: number of binomial taps. The default of the reference's 1-D layer is 3, not 4.
        stride: subsampling factor in samples.
        pad_type: see `aa_flax.blur_pool`.
        pad_off: see `aa_flax.blur_pool`.
    """

    spatial_dims = 1

    def __init__(self, filter_size=3, stride=2, pad_type: str = "reflect", pad_off=0):
        super().__init__(filter_size, stride, pad_type, pad_off)


class BlurPool2D(BlurPool):
    """BlurPool for images, (..., H, W, C) to (..., ceil(H / stride), ceil(W / stride), C).

    Args:
        filter_size: number of binomial taps, one or one per axis.
        stride: subsampling factor in pixels, one or one per axis.
        pad_type: see `aa_flax.blur_pool`.
        pad_off: see `aa_flax.blur_pool`.
    """

    spatial_dims = 2

    def __init__(self, filter_size=4, stride=2, pad_type: str = "reflect", pad_off=0):
        super().__init__(filter_size, stride, pad_type, pad_off)


class BlurPool3D(BlurPool):
    """BlurPool for volumes and video, (..., D, H, W, C); arguments as `BlurPool2D`, one or three each."""

    spatial_dims = 3

    def __init__(self, filter_size=4, stride=2, pad_type: str = "reflect", pad_off=0):
        super().__init__(filter_size, stride, pad_type, pad_off)


_BLURS = {1: BlurPool1D, 2: BlurPool2D, 3: BlurPool3D}


def blur_layer(factors: tuple[int, ...], filter_size: int, pad_type: str, *, subsample: bool = True) -> BlurPool:
    """The blur that subsamples each spatial axis by its factor and leaves axes of factor 1 alone.

    Without `subsample` it only blurs, for a layer behind it that takes these steps itself.
    """
    if len(factors) not in _BLURS:
        raise ValueError(f"layers have 1, 2 or 3 spatial axes, got {len(factors)}: {factors}")
    taps = tuple(filter_size if factor > 1 else 1 for factor in factors)
    return _BLURS[len(factors)](taps, factors if subsample else 1, pad_type)
