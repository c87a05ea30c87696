"""What PyTorch calls the variables of each network: torchvision's names and the reference's.

The reference (`antialiased-cnns`) inserts BlurPool modules into torchvision's networks. Modules in a
`Sequential` are called by their position, so that each inserted blur moves the names behind it by one.
Its files carry the filters as constant buffers `<module>.filt`, which tell where the blurs are. The
tables below therefore hold torchvision's names only; the reference's follow from the filters of a file.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np

from aa_flax.models.resnet import dilated_stages

# Our module path -> torchvision's module name; modules that no pattern matches have the same name in both.
_RENAMED: dict[str, tuple[tuple[str, str], ...]] = {
    "AlexNet": (
        (r"conv1", "features.0"),
        (r"conv2", "features.3"),
        (r"conv3", "features.6"),
        (r"conv4", "features.8"),
        (r"conv5", "features.10"),
        (r"fc6", "classifier.1"),
        (r"fc7", "classifier.4"),
        (r"fc8", "classifier.6"),
    ),
    "VGG": (
        (r"fc6", "classifier.0"),
        (r"fc7", "classifier.3"),
        (r"fc8", "classifier.6"),
    ),
    "ResNet": (
        (r"(.*)\.downsample\.conv", r"\1.downsample.0"),
        (r"(.*)\.downsample\.bn", r"\1.downsample.1"),
    ),
    "DenseNet": ((r"(?!classifier)(.*)", r"features.\1"),),
    "MobileNetV2": (
        (r"stem\.conv", "features.0.0"),
        (r"stem\.bn", "features.0.1"),
        # The first block expands by 1 and therefore has no expansion.
        (r"blocks\.1\.depthwise\.conv", "features.1.conv.0.0"),
        (r"blocks\.1\.depthwise\.bn", "features.1.conv.0.1"),
        (r"blocks\.1\.project\.conv", "features.1.conv.1"),
        (r"blocks\.1\.project\.bn", "features.1.conv.2"),
        (r"blocks\.(\d+)\.expand\.conv", r"features.\1.conv.0.0"),
        (r"blocks\.(\d+)\.expand\.bn", r"features.\1.conv.0.1"),
        (r"blocks\.(\d+)\.depthwise\.conv", r"features.\1.conv.1.0"),
        (r"blocks\.(\d+)\.depthwise\.bn", r"features.\1.conv.1.1"),
        (r"blocks\.(\d+)\.project\.conv", r"features.\1.conv.2"),
        (r"blocks\.(\d+)\.project\.bn", r"features.\1.conv.3"),
        (r"head\.conv", "features.18.0"),
        (r"head\.bn", "features.18.1"),
        (r"classifier", "classifier.1"),
    ),
}
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
HEADS = {
    "AlexNet": "fc8",
    "VGG": "fc8",
    "ResNet": "fc",
    "DenseNet": "classifier",
    "MobileNetV2": "classifier",
}
# The convolution that reads the images, by its name in both layouts.
STEMS = {
    "AlexNet": "features.0",
    "VGG": "features.0",
    "ResNet": "conv1",
    "DenseNet": "features.conv0",
    "MobileNetV2": "features.0.0",
}
# The linear layer that reads a flattened map, and the convolution that the map's channels come from.
_FLATTENED = {"AlexNet": ("fc6", r"conv5"), "VGG": ("fc6", r"conv5_\d")}
_MOBILENET_STRIDED = (2, 4, 7, 14)

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


def rules(family: str, shapes: Shapes, blurs: Set[str]) -> list[Rule]:
    """The rule of every variable of a network.

    Args:
        family: name of the network's class: `AlexNet`, `VGG`, `ResNet`, `DenseNet` or `MobileNetV2`.
        shapes: shape of each of our variables by path.
        blurs: names of the BlurPool modules of the PyTorch network, i.e. the keys `*.filt` of its file without
            that ending. Empty for torchvision's network.

    Returns:
        One rule a variable, in the order of `shapes`.
    """
    modules = {path.rpartition(".")[0]: "" for path in shapes}
    plain = _vgg_names(modules) if family == "VGG" else {}
    for module in modules:
        name = plain.get(module) or _renamed(family, module)
        modules[module] = _behind_blurs(name, blurs, family)
    return [_rule(family, path, shapes, modules[path.rpartition(".")[0]]) for path in shapes]


def _rule(family: str, path: str, shapes: Shapes, module_name: str) -> Rule:
    module, _, leaf = path.rpartition(".")
    shape = shapes[path]
    flattened, source = _FLATTENED.get(family, (None, ""))
    if leaf == "kernel" and module == flattened:
        channels = [s[-1] for p, s in shapes.items() if re.fullmatch(source + r"\.kernel", p)][-1]
        side = math.isqrt(shape[0] // channels)
        split, axes = (shape[1], channels, side, side), (2, 3, 1, 0)
        torch_shape = shape[::-1]
    elif leaf == "kernel":
        # Spatial axes keep their order; PyTorch has outputs and inputs in front of them, we have them behind.
        axes = (*range(2, len(shape)), 1, 0)
        split = torch_shape = (shape[-1], shape[-2], *shape[:-2])
    else:
        split = torch_shape = shape
        axes = tuple(range(len(shape)))
    return Rule(f"{module_name}.{_LEAVES.get(leaf, leaf)}", path, torch_shape, split, axes, shape)


def _renamed(family: str, module: str) -> str:
    for pattern, name in _RENAMED[family]:
        match = re.fullmatch(pattern, module)
        if match:
            return match.expand(name)
    return module


def _behind_blurs(name: str, blurs: Set[str], family: str) -> str:
    """The reference's name of a torchvision module in a network with these blurs."""
    if f"{name}.0" in blurs:
        return f"{name}.1"
    if not blurs:
        return name
    if family == "MobileNetV2" and name == "classifier.1":
        return "classifier.0"  # the reference has no dropout in front of it
    parts = name.split(".")
    for depth, part in enumerate(parts):
        if part.isdigit():
            index = int(part)
            if family == "AlexNet" and name.startswith("features") and index and _lacks_first_relu(blurs):
                index -= 1
            for position in _positions(".".join(parts[:depth]), blurs):
                index += position <= index
            parts[depth] = str(index)
    return ".".join(parts)


def _positions(parent: str, blurs: Set[str]) -> list[int]:
    """Where blurs stand among the children of a module, in order."""
    children = (blur.rpartition(".") for blur in blurs)
    return sorted(int(child) for name, _, child in children if name == parent and child.isdigit())


def _lacks_first_relu(blurs: Set[str]) -> bool:
    """Whether these are the blurs of the reference's AlexNet with `pool_only`, which drops the ReLU of conv1."""
    return "features.2" in blurs and "features.4" not in blurs


def _vgg_stages(modules: Iterable[str]) -> dict[int, list[int]]:
    """The numbers of the convolutions in each stage of a VGG, both from 1."""
    stages: dict[int, list[int]] = {}
    for stage, number in sorted(set(re.findall(r"\bconv(\d)_(\d)\b", " ".join(modules)))):
        stages.setdefault(int(stage), []).append(int(number))
    return stages


def _vgg_names(modules: Mapping[str, str]) -> dict[str, str]:
    """torchvision's names: convolution, [batch norm,] ReLU in a row, and a pool after each stage."""
    step = 3 if "bn1_1" in modules else 2
    names, index = {}, 0
    for stage, numbers in _vgg_stages(modules).items():
        for number in numbers:
            names[f"conv{stage}_{number}"] = f"features.{index}"
            names[f"bn{stage}_{number}"] = f"features.{index + 1}"
            index += step
        index += 1
    return names


def blur_sites(family: str, shapes: Shapes, config: Any) -> dict[str, int]:
    """The BlurPool modules of the reference's anti-aliased network, and the channels of each.

    Args:
        family: as in `rules`.
        shapes: shape of each of our variables by path.
        config: the network's configuration (`model.config`), whose options decide where it blurs.
    """
    match family:
        case "AlexNet":
            first = () if config.pool_only else ("2" if config.relu_first else "1",)
            rest = ("2", "6", "14") if config.pool_only else ("4", "8", "16")
            convs = ("conv1",) * len(first) + ("conv1", "conv2", "conv5")
            places = zip((*first, *rest), convs, strict=True)
            return {f"features.{place}": shapes[f"{conv}.kernel"][-1] for place, conv in places}
        case "VGG":
            return _vgg_blurs(shapes)
        case "ResNet":
            return _resnet_blurs(shapes, config)
        case "DenseNet":
            stem = ("pool0",) if config.pool_only else ("ds0", "pool0")
            sites = {f"features.{place}": shapes["conv0.kernel"][-1] for place in stem}
            transitions = [p for p in shapes if re.fullmatch(r"transition\d+\.conv\.kernel", p)]
            return sites | {f"features.{p.split('.')[0]}.pool": shapes[p][-1] for p in transitions}
        case "MobileNetV2":
            kernels = {i: shapes[f"blocks.{i}.project.conv.kernel"] for i in _MOBILENET_STRIDED}
            return {f"features.{i}.conv.2": kernel[-2] for i, kernel in kernels.items()}
        case _:
            raise ValueError(f"no PyTorch names are known for networks of class {family}")


def _vgg_blurs(shapes: Shapes) -> dict[str, int]:
    step = 3 if "bn1_1.scale" in shapes else 2
    sites, index = {}, 0
    for stage, numbers in _vgg_stages(shapes).items():
        index += step * len(numbers) + 1
        sites[f"features.{index}"] = shapes[f"conv{stage}_1.kernel"][-1]
        index += 1
    return sites


def _resnet_blurs(shapes: Shapes, config: Any) -> dict[str, int]:
    stem: tuple[str, ...] = ("maxpool.1",) if config.pool_only else ("maxpool.0", "maxpool.2")
    sites: dict[str, int] = dict.fromkeys(stem, shapes["conv1.kernel"][-1])
    for stage, dilated in zip((2, 3, 4), dilated_stages(config), strict=True):
        if not dilated:
            block = f"layer{stage}.0"
            last = "conv3" if f"{block}.conv3.kernel" in shapes else "conv2"
            sites[f"{block}.{last}.0"] = shapes[f"{block}.{last}.kernel"][-2]
            sites[f"{block}.downsample.0"] = shapes[f"{block}.downsample.conv.kernel"][-2]
    return sites
