"""The networks by whose they are: Zhang's exist plain and with any filter, timm's are as their names say."""

from collections.abc import Iterable
from typing import Any

import pytest

from aa_flax.models.registry import MODELS, list_models

CONVNEXT = list_models("convnext*")  # plain as torchvision's; the reference has none
ZHANG = [name for name in list_models() if MODELS[name].filter_size is None and name not in CONVNEXT]
TIMM = [name for name in list_models() if MODELS[name].filter_size is not None]
# The others have more, or wider, of the blocks and heads of one of these.
KINDS = {
    *("alexnet", "vgg11_bn", "resnet18", "resnet50", "resnext50_32x4d", "densenet121", "mobilenet_v2"),
    "convnext_tiny",
    *("resnetblur18", "resnetblur50", "resnetblur50d", "resnetaa34d", "resnetaa50", "resnetaa50d", "seresnetaa50d"),
    *("seresnextaa101d_32x8d", "densenetblur121d", "mobilenetv4_conv_blur_medium", "mobilenetv4_conv_aa_medium"),
}


def others_marked(names: Iterable[str], mark: pytest.MarkDecorator) -> list[Any]:
    """Names to parametrise a test by; those that are not among `KINDS` have the mark."""
    return [name if name in KINDS else pytest.param(name, marks=mark) for name in names]
