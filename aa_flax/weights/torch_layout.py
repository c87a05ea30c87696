"""What kind of PyTorch file it is: whose names, which filters.

The reference's files carry their filters (`*.filt`), which tell the filter size and every place where the network
blurs, and thereby how its modules are numbered. torchvision's have none. The same key can name different tensors of
one shape in the two, so that nothing but the file itself is safe to ask.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from aa_flax.blurpool import binomial_filter
from aa_flax.weights.errors import CheckpointError
from aa_flax.weights.variables import listing

_WRAPPERS = {"module", "_orig_mod"}
# Half precision keeps the taps of all filters in use exactly; the slack is for very long ones.
_FILTER_TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a state dict names its tensors.

    Attributes:
        filter_size: taps of the filters in it; None if it has none.
        blurs: names of its BlurPool modules.
    """

    filter_size: int | None = None
    blurs: frozenset[str] = frozenset()

    @property
    def name(self) -> Literal["reference", "torchvision"]:
        """Whose names they are: those of `antialiased-cnns` or of torchvision."""
        return "torchvision" if self.filter_size is None else "reference"


def detect_layout(state: Mapping[str, Any], what: str = "the state dict") -> Layout:
    """Reads a state dict's layout from its filters.

    Args:
        state: tensors by name, as for `convert_state_dict`.
        what: what the state dict is called in errors.

    Raises:
        CheckpointError: (a ValueError) if a `*.filt` is not the binomial filter that its shape claims, or if their
            sizes differ.
    """
    tensors = clean_names(state, what)
    filters = {key.removesuffix(".filt"): a for key, a in tensors.items() if key.endswith(".filt")}
    if not filters:
        return Layout()
    problems = []
    for place, array in filters.items():
        square = array.ndim == 4 and array.shape[1] == 1 and array.shape[2] == array.shape[3] > 0
        if not square:
            problems.append(f"{place}.filt: expected shape (C, 1, k, k), found {array.shape}")
        elif not np.allclose(array.astype(np.float64), binomial_kernel(array.shape[2]), _FILTER_TOLERANCE, 1e-7):
            problems.append(f"{place}.filt: not the binomial filter of {array.shape[2]} taps")
    if problems:
        raise CheckpointError("\n".join([f"{what} has filters of another kind:", *listing("not binomial", problems)]))
    sizes = {array.shape[2] for array in filters.values()}
    if len(sizes) > 1:
        raise CheckpointError(f"{what} mixes filters of {', '.join(map(str, sorted(sizes)))} taps")
    return Layout(sizes.pop(), frozenset(filters))


def clean_names(state: Mapping[str, Any], what: str = "the state dict") -> dict[str, np.ndarray]:
    """A state dict's arrays by the names that PyTorch would give them today, without wrappers and counters.

    Args:
        state: tensors by name, as for `convert_state_dict`.
        what: what the state dict is called in errors.

    Raises:
        CheckpointError: (a ValueError) if two tensors get one name.
    """
    tensors: dict[str, np.ndarray] = {}
    for original, tensor in state.items():
        key = ".".join(part for part in original.split(".") if part not in _WRAPPERS)
        # Old DenseNet files spell these layers with a dot.
        key = re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", key)
        if key.endswith("num_batches_tracked"):
            continue
        if key in tensors:
            raise CheckpointError(f"{what} holds {key} twice, once as {original}")
        tensors[key] = np.asarray(tensor)
    return tensors


def binomial_kernel(size: int) -> np.ndarray:
    """The two-dimensional filter of a blur, (size, size) in float64."""
    return np.outer(binomial_filter(size), binomial_filter(size))
