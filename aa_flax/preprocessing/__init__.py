"""Photos as a network's input, exactly as it was measured with. Needs Pillow, which is loaded with the first photo."""

from aa_flax.preprocessing.photos import preprocess

__all__ = ["preprocess"]
