"""The networks: one file a family, one table of names."""

from aa_flax.models.base import ModelSpec, Network
from aa_flax.models.create import create_model
from aa_flax.models.family import Family, Recipe, TorchNames
from aa_flax.models.layers import Builder, Stack
from aa_flax.models.registry import list_models, register

__all__ = [
    "Builder",
    "Family",
    "ModelSpec",
    "Network",
    "Recipe",
    "Stack",
    "TorchNames",
    "create_model",
    "list_models",
    "register",
]
