"""What PyTorch calls the variables of a network: the rules that follow from what its family says (`TorchNames`).

The reference's files carry the filters of its blurs as constant buffers `<module>.filt`, which tell where the blurs
are and thereby how modules are numbered. One table of torchvision's names therefore serves both.
"""

import contextlib
import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

import numpy as np

from aa_flax.models.base import ModelSpec
from aa_flax.models.family import TorchNames
from aa_flax.models.registry import family_of
from aa_flax.models.specs import config_of

_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}

Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Rule:
    """One tensor's way between PyTorch's layout and ours; a bijection.

    Attributes:
        key: name in the PyTorch state dict.
        path: path of our variable.
        torch_shape: shape of the PyTorch tensor.
        split: that shape with an axis that PyTorch flattened from (C, H, W) split up again.
        axes: order in which our layout has the axes of `split`.
        shape: shape of our variable.
    """

    key: str
    path: str
    torch_shape: tuple[int, ...]
    split: tuple[int, ...]
    axes: tuple[int, ...]
    shape: tuple[int, ...]

    def from_torch(self, array: np.ndarray) -> np.ndarray:
        """The tensor in our layout: a view where one is possible."""
        return array.reshape(self.split).transpose(self.axes).reshape(self.shape)

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """Our array in PyTorch's layout: a view where one is possible."""
        ours = [self.split[axis] for axis in self.axes]
        return array.reshape(ours).transpose(np.argsort(self.axes)).reshape(self.torch_shape)


def rules(spec: ModelSpec, shapes: Shapes, blurs: Set[str]) -> list[Rule]:
    """The rule of every variable of a network.

    Args:
        spec: the network.
        shapes: shape of each of our variables by path.
        blurs: names of the BlurPool modules of the PyTorch network, i.e. the keys `*.filt` of its file without
            that ending. Empty for torchvision's network.

    Returns:
        One rule a variable, in the order of `shapes`.

    Raises:
        ValueError: the family knows no names of PyTorch.
    """
    names = _names(spec, configuration_with(blurs, spec) if blurs else None)
    modules = {path.rpartition(".")[0] for path in shapes}
    theirs = {module: _behind_blurs(_renamed(module, names), blurs, names) for module in modules}
    return [_rule(path, shapes, theirs[path.rpartition(".")[0]], names) for path in shapes]


def module_name(module: str, spec: ModelSpec, blurs: Set[str] = frozenset()) -> str:
    """The name of one of our modules in a file with these blurs, torchvision's without."""
    names = _names(spec, configuration_with(blurs, spec) if blurs else None)
    return _behind_blurs(_renamed(module, names), blurs, names)


def package_of(spec: ModelSpec) -> str:
    """Whose network it is without the reference's blurs: torchvision's or timm's."""
    return _names(spec).package


def blur_sites(spec: ModelSpec, shapes: Shapes) -> dict[str, int]:
    """The BlurPool modules of the reference's anti-aliased network, and the channels of each."""
    return {place: shapes[f"{layer}.kernel"][-1] for place, layer in _names(spec).blurs.items()}


def configuration_with(blurs: Set[str], spec: ModelSpec) -> Any:
    """The network's configuration, with as few other options as possible, that blurs in these places; None if none."""
    given, found = config_of(spec), []
    for config in _placements(spec):
        # Options that contradict each other make no network.
        with contextlib.suppress(ValueError):
            if _names(spec, config).blurs.keys() == blurs:
                found.append(config)
    return min(found, key=lambda config: len(differing(config, given)), default=None)


def differing(config: Any, given: Any) -> dict[str, Any]:
    """The options in which a configuration is not another one."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {name: value for name, value in values.items() if value != getattr(given, name)}


def _placements(spec: ModelSpec) -> Iterator[Any]:
    given, placements = config_of(spec), family_of(spec.name).placements
    for values in itertools.product(*placements.values()):
        yield dataclasses.replace(given, **dict(zip(placements, values, strict=True)))


def _names(spec: ModelSpec, config: Any = None) -> TorchNames:
    family = family_of(spec.name)
    if family.torch is None:
        raise ValueError(f"no PyTorch names are known for {spec.name}: its family has none (torch=)")
    return family.torch(config_of(spec) if config is None else config)


def _rule(path: str, shapes: Shapes, module_name: str, names: TorchNames) -> Rule:
    module, _, leaf = path.rpartition(".")
    shape = shapes[path]
    flattened, source = names.flattened or ("", "")
    if leaf == "kernel" and module == flattened:
        channels = shapes[f"{source}.kernel"][-1]
        side = math.isqrt(shape[0] // channels)
        split, axes = (shape[1], channels, side, side), (2, 3, 1, 0)
        torch_shape = shape[::-1]
    elif leaf == "kernel":
        # Spatial axes keep their order; PyTorch has outputs and inputs in front of them, we have them behind.
        axes = (*range(2, len(shape)), 1, 0)
        split = torch_shape = (shape[-1], shape[-2], *shape[:-2])
    else:
        split, axes = shape, tuple(range(len(shape)))
        torch_shape = (*shape, 1, 1) if leaf in names.as_maps else shape
    return Rule(f"{module_name}.{_LEAVES.get(leaf, leaf)}", path, torch_shape, split, axes, shape)


def _renamed(module: str, names: TorchNames) -> str:
    for pattern, name in names.modules:
        match = re.fullmatch(pattern, module)
        if match:
            return match.expand(name)
    return module


def _behind_blurs(name: str, blurs: Set[str], names: TorchNames) -> str:
    """The reference's name of a torchvision module in a network with these blurs."""
    if f"{name}.0" in blurs:
        return f"{name}.1"
    if not blurs:
        return name
    plain = name.split(".")
    parts = list(plain)
    for depth, part in enumerate(plain):
        if part.isdigit():
            index = int(part)
            index -= sum(position < index for position in _positions(".".join(plain[:depth]), names.absent))
            for position in _positions(".".join(parts[:depth]), blurs):
                index += position <= index
            parts[depth] = str(index)
    return ".".join(parts)


def _positions(parent: str, modules: Iterable[str]) -> list[int]:
    """Which children of a module are among some modules, in order."""
    children = (module.rpartition(".") for module in modules)
    return sorted(int(child) for name, _, child in children if name == parent and child.isdigit())
