"""Weights: reading PyTorch files without PyTorch, converting them, storing and fetching them."""

from aa_flax.weights.catalog import list_pretrained
from aa_flax.weights.config import Preprocessing, PretrainedConfig, read_config
from aa_flax.weights.download import DownloadError
from aa_flax.weights.errors import CheckpointError
from aa_flax.weights.mapping import convert_state_dict, detect_layout, to_torch_state_dict
from aa_flax.weights.store import load_pretrained, save_pretrained
from aa_flax.weights.torch.reader import read_torch_checkpoint

__all__ = [
    "CheckpointError",
    "DownloadError",
    "Preprocessing",
    "PretrainedConfig",
    "convert_state_dict",
    "detect_layout",
    "list_pretrained",
    "load_pretrained",
    "read_config",
    "read_torch_checkpoint",
    "save_pretrained",
    "to_torch_state_dict",
]
