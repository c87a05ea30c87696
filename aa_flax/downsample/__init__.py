"""Beyond BlurPool: other ways to subsample without aliasing, behind one call.

Every layer here answers ``layer(x, like=None)`` as :class:`aa_flax.BlurPool2D` does, and gives ``ceil(N / stride)``
samples for an axis of N, so that they can stand in for each other.
"""

from aa_flax.downsample.base import Downsample
from aa_flax.downsample.blur import BlurPool1D, BlurPool2D, BlurPool3D, blur_layer
from aa_flax.downsample.content_adaptive import ContentAdaptiveBlur
from aa_flax.downsample.ideal import IdealLowPass, ideal_matrix
from aa_flax.downsample.polyphase import AdaptivePolyphase

__all__ = [
    "AdaptivePolyphase",
    "BlurPool1D",
    "BlurPool2D",
    "BlurPool3D",
    "ContentAdaptiveBlur",
    "Downsample",
    "IdealLowPass",
    "blur_layer",
    "ideal_matrix",
]
