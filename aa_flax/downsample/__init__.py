"""Beyond BlurPool: other ways to subsample without aliasing, behind one call.

Every layer here answers `layer(x, like=None)` as `aa_flax.BlurPool2D` does, and gives `ceil(N / stride)`
samples for an axis of N, so that they can stand in for each other. What is in `METHODS` is what networks, surgery,
files and the trainer know as `downsample`, with a method's options behind it: `aps:criterion=l1`.
"""

from aa_flax.downsample.base import Choice, Downsample, Site
from aa_flax.downsample.blur import BlurPool, BlurPool1D, BlurPool2D, BlurPool3D, blur_layer
from aa_flax.downsample.content_adaptive import ContentAdaptiveBlur
from aa_flax.downsample.ideal import HammingLowPass, IdealLowPass, ideal_matrix
from aa_flax.downsample.learnable import LearnablePolyphase, Temperature
from aa_flax.downsample.methods import METHODS, Method, method
from aa_flax.downsample.polyphase import AdaptivePolyphase

__all__ = [
    "METHODS",
    "AdaptivePolyphase",
    "BlurPool",
    "BlurPool1D",
    "BlurPool2D",
    "BlurPool3D",
    "Choice",
    "ContentAdaptiveBlur",
    "Downsample",
    "HammingLowPass",
    "IdealLowPass",
    "LearnablePolyphase",
    "Method",
    "Site",
    "Temperature",
    "blur_layer",
    "ideal_matrix",
    "method",
]
