"""What people call a network's classes."""

import functools
from collections.abc import Sequence
from pathlib import Path

from train.data.wnids import imagenet_index, imagenet_wnids


@functools.cache
def imagenet_names() -> tuple[str, ...]:
    """English names of ImageNet's 1,000 classes in the order of their WordNet ids."""
    return tuple((Path(__file__).parent / "imagenet_names.txt").read_text("utf-8").splitlines())


def readable_names(class_names: Sequence[str] | None, num_classes: int) -> tuple[str, ...]:
    """A name for every logit.

    Args:
        class_names: what the weights' `config.json` says, or None. WordNet ids of ImageNet become
            English names.
        num_classes: logits. Without names, 1,000 of them are taken for ImageNet's; any other
            number of classes is called by its index.
    """
    if class_names is None:
        if num_classes == len(imagenet_wnids()):
            return imagenet_names()
        return tuple(f"class {index}" for index in range(num_classes))
    index, english = imagenet_index(), imagenet_names()
    return tuple(english[index[name]] if name in index else name for name in class_names)
