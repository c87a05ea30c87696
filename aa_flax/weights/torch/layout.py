"""What kind of PyTorch file it is: whose names, which filters.

The reference's files carry their filters (`*.filt`), which tell the filter size and every place where the network
blurs, and thereby how its modules are numbered. torchvision's have none. The same key can name different tensors of
one shape in the two, so that nothing but the file itself is safe to ask.
"""

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import numpy as np

from aa_flax.blurpool import binomial_filter
from aa_flax.weights.errors import CheckpointError
from aa_flax.weights.filling import listing

_Value = TypeVar("_Value")

_WRAPPERS = {"module", "_orig_mod"}
# What PyTorch counts beside the weights: updates of batch norm, and of an average of weights (AveragedModel).
_COUNTERS = ("num_batches_tracked", "n_averaged")
_MAX_PREFIX_PARTS = 3
# Half precision keeps the taps of all filters in use exactly; the slack is for very long ones.
_FILTER_TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a state dict names its tensors.

    Attributes:
        filter_size: taps of the filters in it; None if it has none.
        blurs: names of its BlurPool modules.
        name: whose names they are: of the `reference`, `antialiased-cnns`, of `torchvision` or of `timm`.
    """

    filter_size: int | None = None
    blurs: frozenset[str] = frozenset()
    name: str = "torchvision"


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
    return Layout(sizes.pop(), frozenset(filters), "reference")


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
        # Old DenseNet files spell these layers with a dot.
        key = re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", _unwrapped(original))
        if key.rpartition(".")[2] in _COUNTERS:
            continue
        if key in tensors:
            raise CheckpointError(f"{what} holds {key} twice, once as {original}")
        tensors[key] = np.asarray(tensor)
    return tensors


def below_prefix(state: Mapping[str, _Value], prefix: str) -> dict[str, _Value]:
    """The part of a state dict whose names begin with a prefix, without it.

    Args:
        state: tensors by name; the wrappers' `module.` and `_orig_mod.` in the names do not count.
        prefix: such as `encoder_q` or `model.net.`.

    Raises:
        CheckpointError: (a ValueError) no name begins so.
    """
    wanted = _unwrapped(prefix).rstrip(".") + "."
    names = {name: _unwrapped(name) for name in state}
    found = {bare.removeprefix(wanted): state[name] for name, bare in names.items() if bare.startswith(wanted)}
    if not found:
        first = list(dict.fromkeys(bare.partition(".")[0] for bare in names.values()))
        listed = ", ".join(repr(part[:60]) for part in first[:8]) + (", ..." if len(first) > 8 else "")
        raise CheckpointError(f"no name in it begins with {wanted!r}; names begin with {listed}")
    return found


def prefixes(names: Iterable[str], least: int) -> list[str]:
    """The prefixes, each ending with a dot, that stand before so many names at least."""
    counts: collections.Counter[str] = collections.Counter()
    for name in names:
        parts = name.split(".")
        counts.update(".".join(parts[:depth]) + "." for depth in range(1, min(len(parts), _MAX_PREFIX_PARTS + 1)))
    return [prefix for prefix, count in counts.items() if count >= least]


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def binomial_kernel(size: int) -> np.ndarray:
    """The two-dimensional filter of a blur, (size, size) in float64."""
    return np.outer(binomial_filter(size), binomial_filter(size))
