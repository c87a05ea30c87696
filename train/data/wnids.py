"""ImageNet's class index: the 1,000 WordNet ids of ILSVRC 2012 in sorted order."""

import functools
from pathlib import Path


@functools.cache
def imagenet_wnids() -> tuple[str, ...]:
    """The ids; a class's index in published weights is its position in this tuple."""
    return tuple((Path(__file__).parent / "imagenet_wnids.txt").read_text().split())


@functools.cache
def imagenet_index() -> dict[str, int]:
    """Class index by WordNet id."""
    return {wnid: index for index, wnid in enumerate(imagenet_wnids())}
