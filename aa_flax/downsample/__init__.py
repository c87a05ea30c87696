"""Beyond BlurPool: other ways to subsample without aliasing, behind one call.

Every layer here answers `layer(x, like=None)` as `aa_flax.BlurPool2D` does, and gives `ceil(N / stride)`
samples for an axis of N, so that they can stand in for each other. What is in `METHODS` is what networks, surgery,
files and the trainer know as `downsample`.
"""

from aa_flax.downsample.base import Choice, Downsample, Site
from aa_flax.downsample.blur import BlurPool, BlurPool1D, BlurPool2D, BlurPool3D, blur_layer
from aa_flax.downsample.content_adaptive import ContentAdaptiveBlur
from aa_flax.downsample.ideal import HammingLowPass, IdealLowPass, ideal_matrix
from aa_flax.downsample.learnable import LearnablePolyphase, Temperature
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
    "Site",
    "Temperature",
    "blur_layer",
    "ideal_matrix",
]

# Further methods may be put in, under names that the files of their networks will carry.
METHODS: dict[str, type[Downsample]] = {
    "blur": BlurPool,
    "aps": AdaptivePolyphase,
    "lps": LearnablePolyphase,
    "ddac": ContentAdaptiveBlur,
    "ideal": IdealLowPass,
    "asap": HammingLowPass,
}
