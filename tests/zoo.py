"""The networks by whose they are: Zhang's exist plain and with any filter, timm's are as their names say."""

from aa_flax.models.registry import MODELS, list_models

CONVNEXT = list_models("convnext*")  # plain as torchvision's; the reference has none
ZHANG = [name for name in list_models() if MODELS[name].filter_size is None and name not in CONVNEXT]
TIMM = [name for name in list_models() if MODELS[name].filter_size is not None]
