"""State dicts as PyTorch networks would have saved them, with weights by formula."""

import functools
import math
from typing import Any

import numpy as np

from aa_flax.models.abstract import abstract_model
from aa_flax.models.base import Network
from aa_flax.models.variables import variables
from aa_flax.weights.torch.names import blur_sites, rules
from tests import formula


def file_of(spec: str, **options: Any) -> dict[str, np.ndarray]:
    """The file of a network: torchvision's for `_plain`, else the reference's with its filters.

    Args:
        spec: the network, as for `create_model`.
        **options: further arguments of `create_model`.
    """
    return dict(_file_of(spec, tuple(options.items())))


@functools.lru_cache(maxsize=4)
def _file_of(spec: str, options: tuple[tuple[str, Any], ...]) -> dict[str, np.ndarray]:
    model = abstract_model(spec, **dict(options))
    shapes, taps = shapes_of(model), model.spec.filter_size
    sites = blur_sites(model.spec, shapes) if taps else {}
    state = formula.state_dict({rule.key: rule.torch_shape for rule in rules(model.spec, shapes, sites.keys())})
    for key in [key for key in state if key.endswith("running_var")]:
        state[key.replace("running_var", "num_batches_tracked")] = np.array(3)
    return state | {f"{place}.filt": filt(taps or 0, channels) for place, channels in sites.items()}


def filt(taps: int, channels: int) -> np.ndarray:
    """The filter buffer of a BlurPool, (channels, 1, taps, taps)."""
    row = np.array([math.comb(taps - 1, i) for i in range(taps)], np.float32)
    return np.tile(np.outer(row, row) / row.sum() ** 2, (channels, 1, 1, 1)).astype(np.float32)


def shapes_of(model: Network) -> dict[str, tuple[int, ...]]:
    """Shapes of a model's variables by path."""
    return {path: tuple(variable.shape) for path, variable in variables(model).items()}
