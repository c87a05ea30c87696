"""The one table of the 23 networks."""

import fnmatch
from typing import Any

from aa_flax.models import alexnet, densenet, mobilenet, resnet, vgg

_FAMILIES = (
    (alexnet.AlexNet, alexnet.CONFIGS),
    (vgg.VGG, vgg.CONFIGS),
    (resnet.ResNet, resnet.CONFIGS),
    (densenet.DenseNet, densenet.CONFIGS),
    (mobilenet.MobileNetV2, mobilenet.CONFIGS),
)
MODELS: dict[str, tuple[Any, Any]] = {
    name: (family, config) for family, configs in _FAMILIES for name, config in configs.items()
}


def list_models(pattern: str = "*") -> list[str]:
    """Names of the networks that match a shell pattern, sorted; each exists plain and anti-aliased.

    >>> list_models("resnet1*")
    ['resnet101', 'resnet152', 'resnet18']
    """
    return sorted(fnmatch.filter(MODELS, pattern))
