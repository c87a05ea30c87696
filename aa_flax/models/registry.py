"""The one table of families and their networks: those of this package, and what others add."""

import difflib
import fnmatch
import re

from aa_flax.models import (
    alexnet,
    convnext,
    densenet,
    densenet_timm,
    mobilenet,
    mobilenet_v4,
    resnet,
    resnet_timm,
    vgg,
)
from aa_flax.models.family import Family

_FAMILIES = (
    alexnet.FAMILY,
    vgg.FAMILY,
    vgg.FAMILY_BN,
    resnet.FAMILY,
    densenet.FAMILY,
    mobilenet.FAMILY,
    convnext.FAMILY,
    resnet_timm.FAMILY_BLUR,
    resnet_timm.FAMILY_AVERAGE,
    densenet_timm.FAMILY,
    mobilenet_v4.FAMILY_BLUR,
    mobilenet_v4.FAMILY_AVERAGE,
)
MODELS = {name: family for family in _FAMILIES for name in family.configs}


def register(family: Family) -> None:
    """Adds a family made elsewhere, whose networks are created, changed, stored and trained like all others.

    A specification, a pickle and a `config.json` hold a network's name only: a process knows the name once the
    module that registers it has been imported.

    Args:
        family: the networks. Their names are lower-case words such as `tinynet` or `tinynet_50`.

    Raises:
        ValueError: a name is taken, or is none that a specification can have.
    """
    for name in family.configs:
        if name in MODELS:
            raise ValueError(f"there is a network {name!r} already: give the one of {family.network.__name__} another")
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or re.search(r"_(lpf\d+|plain)$", name):
            raise ValueError(
                f"{name!r} cannot be a network's name: take small letters, digits and _, and no ending _plain or _lpf4"
            )
    MODELS.update(dict.fromkeys(family.configs, family))


def family_of(name: str, asked: str = "") -> Family:
    """The family of a network.

    Args:
        name: the network's name.
        asked: the specification with that name in it, for the error.

    Raises:
        ValueError: there is no such network; close ones are listed.
    """
    if name not in MODELS:
        close = difflib.get_close_matches(name, MODELS, n=3, cutoff=0.5)
        lists = "aa_flax.list_models() lists them, those of others once they have called aa_flax.register"
        hint = f"did you mean {' or '.join(close)}?" if close else lists
        raise ValueError(f"unknown network {asked or name!r}: {hint}")
    return MODELS[name]


def list_models(pattern: str = "*") -> list[str]:
    """Names of the networks that match a shell pattern, sorted.

    Each exists plain and anti-aliased, but for those of timm's, whose names say how they are anti-aliased.

    >>> list_models("resnet1*")
    ['resnet101', 'resnet152', 'resnet18']
    """
    return sorted(fnmatch.filter(MODELS, pattern))
