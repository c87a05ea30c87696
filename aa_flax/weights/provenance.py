"""What is known of a network's weights: it stays with the network from loading to saving."""

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from aa_flax.models.base import ModelSpec
from aa_flax.weights.config import PretrainedConfig


@dataclasses.dataclass(frozen=True)
class Provenance:
    """What a file said of the weights that a network was loaded from: `model.provenance`.

    Attributes:
        config: the content of its `config.json`.
        digest: check sum of the weights, by which it shows whether they were trained since.
    """

    config: PretrainedConfig
    digest: int

    # Attributes of a network are compared and hashed wherever it is compiled; dictionaries cannot be.
    def __hash__(self) -> int:
        return self.digest


def known_config(model_or_config: Any, function: str) -> PretrainedConfig:
    """What is known of a network's weights.

    Args:
        model_or_config: a network, or this itself.
        function: who asks, for the error.

    Raises:
        TypeError: it is neither.
        ValueError: nothing is known: the network was not loaded.
    """
    if isinstance(model_or_config, PretrainedConfig):
        return model_or_config
    if not isinstance(model_or_config, nnx.Module):
        raise TypeError(
            f"{function} needs a network or what its config.json says (aa_flax.read_config), "
            f"got {type(model_or_config).__name__}"
        )
    known = getattr(model_or_config, "provenance", None)
    if not isinstance(known, Provenance):
        raise ValueError(
            f"{function}: nothing is known of this {type(model_or_config).__name__}, which aa_flax.load_pretrained has "
            "not loaded: give an aa_flax.PretrainedConfig in its place"
        )
    return known.config


def digest(arrays: Mapping[str, np.ndarray]) -> int:
    """A check sum of weights, names and types included."""
    value = 0
    for path in sorted(arrays):
        array = np.ascontiguousarray(arrays[path])
        value = zlib.crc32(f"{path} {array.dtype} {array.shape}".encode(), value)
        value = zlib.crc32(array.reshape(-1).view(np.uint8).data, value)
    return value


def known_of(model: nnx.Module, spec: ModelSpec, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What is known of a network that is about to be saved.

    Licence, class names and preprocessing stay what they were where they still fit. Source and metrics belong to the
    weights: of a network that was trained or changed since it was loaded, the source names the weights it began with,
    and the metrics are gone.

    Args:
        model: the network.
        spec: what builds it.
        arrays: its weights.

    Returns:
        Fields of `PretrainedConfig`; what is not known is left out.
    """
    known = getattr(model, "provenance", None)
    if not isinstance(known, Provenance):
        return {}
    before = known.config
    same = known.digest == digest(arrays) and before.spec == spec
    fields: dict[str, Any] = {
        "source": before.source if same else {"parents": [as_parent(before)]},
        "license": before.license,
        "metrics": before.metrics if same else {},
    }
    if before.in_channels == spec.in_channels:
        fields["preprocessing"] = before.preprocessing
        fields["test_preprocessing"] = before.test_preprocessing
    if before.num_classes == spec.num_classes:
        fields["class_names"] = before.class_names
    return fields


def as_parent(config: PretrainedConfig) -> dict[str, Any]:
    """What the source of trained weights says of the weights that they began with."""
    return {"model": config.model, "license": config.license, "source": config.source}
