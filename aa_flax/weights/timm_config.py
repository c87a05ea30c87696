"""What the `config.json` of timm says of weights, as this library's configuration."""

from pathlib import Path
from typing import Any

from aa_flax.models.registry import MODELS
from aa_flax.models.specs import resolve_spec
from aa_flax.weights.config import Preprocessing, PretrainedConfig
from aa_flax.weights.errors import CheckpointError

_DEFAULTS = {"input_size": (3, 224, 224), "mean": Preprocessing.mean, "std": Preprocessing.std}


def is_timm_config(content: Any) -> bool:
    """Whether a file's content is meant to be timm's."""
    return isinstance(content, dict) and "architecture" in content


def config_from_timm(content: dict[str, Any], path: Path | str) -> PretrainedConfig:
    """The configuration that timm's says.

    Images are prepared as timm does by default: resized and cut for the size of the training, not the larger one of
    its tests.

    Args:
        content: of the file.
        path: what to call it in errors.

    Raises:
        CheckpointError: (a ValueError) it is of a network that this library lacks, or no such configuration.
    """
    name, images = content["architecture"], content.get("pretrained_cfg", content)
    try:
        if not isinstance(name, str) or not isinstance(images, dict):
            raise ValueError("architecture must be a name, and pretrained_cfg an object")
        classes, names = content.get("num_classes", images.get("num_classes", 1000)), content.get("label_names")
        channels, *_ = _numbers(images, "input_size")
        return PretrainedConfig(
            spec=resolve_spec(_spec_of(name), num_classes=classes, in_channels=channels),
            preprocessing=_preparation(images, ""),
            test_preprocessing=_preparation(images, "test_") if images.get("test_input_size") else None,
            class_names=tuple(names) if isinstance(names, list) and len(names) == classes else None,
            license=_license(images.get("license")),
        )
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: timm's network {str(name)[:60]!r} cannot be had: {error}") from error


def _spec_of(architecture: str) -> str:
    """timm's names of networks that are torchvision's mean the plain ones."""
    plain = f"{architecture}_plain"
    return plain if architecture in MODELS and str(resolve_spec(architecture)) != architecture else architecture


def _preparation(images: dict[str, Any], prefix: str) -> Preprocessing:
    if images.get("crop_mode", "center") != "center":
        raise ValueError(f"crop_mode must be center, got {images['crop_mode']!r:.60}")
    _, height, width = _numbers(images, f"{prefix}input_size")
    if height != width:
        raise ValueError(f"{prefix}input_size must be square, got {height} x {width}")
    share = images.get(f"{prefix}crop_pct") or images.get("crop_pct", 0.875)
    return Preprocessing.of_share(
        height,
        share,
        interpolation=images.get("interpolation", "bicubic"),
        mean=tuple(_numbers(images, "mean")),
        std=tuple(_numbers(images, "std")),
    )


def _numbers(images: dict[str, Any], name: str) -> list[Any]:
    values = images.get(name, _DEFAULTS.get(name))
    if not isinstance(values, list | tuple) or ("size" in name and len(values) != 3):
        raise ValueError(f"{name} must be a list of {'3 ' * ('size' in name)}numbers, got {values!r:.60}")
    return list(values)


def _license(name: Any) -> str | None:
    if not isinstance(name, str):
        return None
    return {"apache-2.0": "Apache-2.0", "mit": "MIT"}.get(name, name)
