"""The networks by whose they are: Zhang's exist plain and with any filter, timm's are as their names say."""

from aa_flax.models.registry import MODELS, list_models

ZHANG = [name for name in list_models() if MODELS[name].filter_size is None]
TIMM = [name for name in list_models() if MODELS[name].filter_size is not None]
