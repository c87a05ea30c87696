"""Anti-aliased convolutional networks for JAX and Flax.

Zhang, *Making Convolutional Networks Shift-Invariant Again*, ICML 2019 (arXiv 1904.11486).
"""

from typing import TYPE_CHECKING, Any

from aa_flax import consistency, linen, nn, plain_pooling
from aa_flax.blurpool import blur_pool
from aa_flax.downsample import (
    AdaptivePolyphase,
    BlurPool1D,
    BlurPool2D,
    BlurPool3D,
    ContentAdaptiveBlur,
    Downsample,
    IdealLowPass,
    LearnablePolyphase,
)
from aa_flax.export import ExportedNetwork, export, load_exported
from aa_flax.hub import load_from_hub, push_to_hub
from aa_flax.inference import fold_batchnorm
from aa_flax.models import ModelSpec, Network, create_model, list_models, register
from aa_flax.platforms import traced_for
from aa_flax.preprocessing import preprocess
from aa_flax.surgery import StridedOperation, SurgeryReport, antialias, find_strided
from aa_flax.upsample import BlurUpsample, PolyphaseUpsample, blur_upsample
from aa_flax.weights import (
    CheckpointError,
    DownloadError,
    Preprocessing,
    PretrainedConfig,
    convert_state_dict,
    list_pretrained,
    load_pretrained,
    read_config,
    read_torch_checkpoint,
    save_pretrained,
    to_torch_state_dict,
)
from aa_flax.weights.class_names import class_names

if not TYPE_CHECKING:  # so that type checkers point at the names of earlier versions too

    def __getattr__(name: str) -> Any:
        from aa_flax.deprecated import deprecated

        return deprecated(name)


__version__ = "0.1.0"

__all__ = [
    "AdaptivePolyphase",
    "BlurPool1D",
    "BlurPool2D",
    "BlurPool3D",
    "BlurUpsample",
    "CheckpointError",
    "ContentAdaptiveBlur",
    "DownloadError",
    "Downsample",
    "ExportedNetwork",
    "IdealLowPass",
    "LearnablePolyphase",
    "ModelSpec",
    "Network",
    "PolyphaseUpsample",
    "Preprocessing",
    "PretrainedConfig",
    "StridedOperation",
    "SurgeryReport",
    "antialias",
    "blur_pool",
    "blur_upsample",
    "class_names",
    "consistency",
    "convert_state_dict",
    "create_model",
    "export",
    "find_strided",
    "fold_batchnorm",
    "linen",
    "list_models",
    "list_pretrained",
    "load_exported",
    "load_from_hub",
    "load_pretrained",
    "nn",
    "plain_pooling",
    "preprocess",
    "push_to_hub",
    "read_config",
    "read_torch_checkpoint",
    "register",
    "save_pretrained",
    "to_torch_state_dict",
    "traced_for",
]
