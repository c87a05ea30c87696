"""Weights of a network for colour photos as a start for images of one channel, of four, of any number."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from aa_flax.models.registry import family_of
from aa_flax.models.specs import resolve_spec
from aa_flax.weights.config import Preprocessing, PretrainedConfig
from aa_flax.weights.torch.layout import clean_names
from aa_flax.weights.torch.names import module_name


def with_input_channels(state: Mapping[str, Any], spec: str, channels: int) -> dict[str, np.ndarray]:
    """A PyTorch state dict whose first convolution reads another number of channels.

    For one channel the kernels are summed over their input channels: a grey image gives what it gave in equal channels.
    For any other number they are repeated in order (red, green, blue, red, ...) and scaled by old / new channels, so
    that sums keep their size.

    Args:
        state: tensors by name, as for `convert_state_dict`.
        spec: the network, as for `create_model`.
        channels: of the images.

    Returns:
        The tensors under the names that PyTorch would give them, wrappers and counters left out; nothing else changes
        where the channels agree or there is no first convolution.

    Raises:
        CheckpointError: (a ValueError) two tensors get one name.
        ValueError: there is no such network.
    """
    tensors = clean_names(state)
    wanted = resolve_spec(spec)
    key = f"{module_name(family_of(wanted.name).network.first_conv, wanted)}.weight"
    kernel = tensors.get(key)
    if kernel is not None and kernel.ndim == 4 and kernel.shape[1] not in (0, channels):
        tensors[key] = spread(kernel.astype(np.float64), channels).astype(kernel.dtype)
    return tensors


def channel_statistics(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Means or standard deviations for images of other channels: their average for one, else repeated in order."""
    if channels == 1:
        return (round(sum(values) / len(values), 3),)
    return tuple(values[channel % len(values)] for channel in range(channels))


def preparation_for(config: PretrainedConfig, channels: int, **given: Any) -> dict[str, Preprocessing | None]:
    """How images are prepared for weights that may read other channels than they did.

    Args:
        config: what is known of the weights.
        channels: of the images.
        **given: fields of `Preprocessing` that are as given.

    Returns:
        `preprocessing`, and `test_preprocessing` where nothing was changed.

    Raises:
        ValueError: a value that cannot be, or as many means as there are no channels.
    """
    known, same = config.preprocessing, channels == config.in_channels
    if not same:
        mean, std = (channel_statistics(values, channels) for values in (known.mean, known.std))
        known = dataclasses.replace(known, mean=mean, std=std)
    prepared = dataclasses.replace(known, **given)
    if len(prepared.mean) != channels:
        raise ValueError(f"mean and std have {len(prepared.mean)} numbers, the images {channels} channels")
    return {"preprocessing": prepared, "test_preprocessing": config.test_preprocessing if same and not given else None}


def spread(kernel: np.ndarray, channels: int) -> np.ndarray:
    """A kernel (out, in, height, width) for another number of input channels, as `with_input_channels` says."""
    if channels == 1:
        return kernel.sum(1, keepdims=True)
    given = kernel.shape[1]
    return kernel[:, np.arange(channels) % given] * (given / channels)
