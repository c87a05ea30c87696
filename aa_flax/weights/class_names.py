"""What people call a network's classes."""

import functools
from collections.abc import Sequence
from importlib import resources

from flax import nnx

from aa_flax.weights.config import PretrainedConfig
from aa_flax.weights.provenance import known_config


def class_names(model_or_config: nnx.Module | PretrainedConfig) -> tuple[str, ...]:
    """A name for every logit of a network.

    Those that `config.json` has, WordNet's ids of ImageNet's classes in English. Without names, 1,000 classes are
    taken for ImageNet's; others are called "class 17", by their number.

    Args:
        model_or_config: a network that `load_pretrained` has given, or `read_config(directory)`.

    Raises:
        ValueError: nothing is known of the network.
        TypeError: it is no network.
    """
    config = known_config(model_or_config, "class_names")
    spec = getattr(model_or_config, "spec", None) or config.spec
    # A head that was put on since has classes of its own.
    known = config.class_names if spec.num_classes == config.num_classes else None
    return readable_names(known, spec.num_classes)


def readable_names(names: Sequence[str] | None, num_classes: int) -> tuple[str, ...]:
    """A name for every logit, as `class_names` says.

    Args:
        names: what is known, or None.
        num_classes: logits.
    """
    if names is None:
        if num_classes == len(imagenet_wnids()):
            return imagenet_names()
        return tuple(f"class {index}" for index in range(num_classes))
    index, english = imagenet_index(), imagenet_names()
    return tuple(english[index[name]] if name in index else name for name in names)


@functools.cache
def imagenet_names() -> tuple[str, ...]:
    """English names of ImageNet's 1,000 classes, WordNet's first of each, in the order of their ids."""
    return tuple(_lines("imagenet_names.txt"))


@functools.cache
def imagenet_wnids() -> tuple[str, ...]:
    """The WordNet ids of ILSVRC 2012, sorted; a class's number in published weights is its position."""
    return tuple(_lines("imagenet_wnids.txt"))


@functools.cache
def imagenet_index() -> dict[str, int]:
    """Class number by WordNet id."""
    return {wnid: index for index, wnid in enumerate(imagenet_wnids())}


def _lines(name: str) -> list[str]:
    return resources.files("aa_flax.weights").joinpath(name).read_text("utf-8").splitlines()
