"""The networks: one file a family, one table of names."""

from aa_flax.models.base import ModelSpec, Network
from aa_flax.models.create import create_model
from aa_flax.models.registry import list_models

__all__ = ["ModelSpec", "Network", "create_model", "list_models"]
