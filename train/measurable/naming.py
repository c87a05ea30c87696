"""How a person names a network to be measured that is not of this package."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from train.errors import CommandError
from train.measurable.network import Measurable, Told
from train.measurable.onnx_file import open_onnx
from train.measurable.program import open_exported, open_function
from train.measurable.torch_library import open_timm, open_torchvision

KINDS = ("onnx", "timm", "torchvision", "exported", "fn")


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """A network that is not of this package, and what to know of it."""

    onnx: Path | None = None
    """ONNX file of a network of any make. Needs onnxruntime."""
    timm: str | None = None
    """Network of timm, such as resnet50.a1_in1k. Needs timm."""
    torchvision: str | None = None
    """Network of torchvision, such as resnet50 or resnet50.IMAGENET1K_V1. Needs torchvision."""
    weights_file: Path | None = None
    """Of timm and torchvision: a state dict (.pth, .safetensors) in place of the published weights."""
    exported: Path | None = None
    """Directory that aa_flax.export has written."""
    fn: str | None = None
    """Any function of images (n, height, width, channels), normalised, to logits: package.module:function."""
    told: Annotated[Told, tyro.conf.arg(name="")] = field(default_factory=Told)

    @property
    def named(self) -> str | None:
        """The option that names a network, or None.

        Raises:
            CommandError: several do.
        """
        named = [f"--{kind}" for kind in KINDS if getattr(self, kind) is not None]
        if len(named) > 1:
            raise CommandError(f"{' and '.join(named)} name a network each; give one")
        return named[0] if named else None

    def open(self) -> Measurable | None:
        """The network; None where none is named.

        Raises:
            CommandError: something is said that its kind has no use for; whatever the network is refused for.
        """
        if self.weights_file is not None and self.named not in ("--timm", "--torchvision"):
            raise CommandError("--weights-file is for --timm and --torchvision")
        if self.named is None:
            self._refuse_told()
        for name in ("size", "resize", "classes"):
            if (number := getattr(self.told, name)) is not None and number < 1:
                raise CommandError(f"{name} is {number}; it must be at least 1")
        if self.onnx is not None:
            return open_onnx(self.onnx, self.told)
        if self.timm is not None:
            return open_timm(self.timm, self.weights_file, self.told)
        if self.torchvision is not None:
            return open_torchvision(self.torchvision, self.weights_file, self.told)
        if self.exported is not None:
            return open_exported(self.exported, self.told)
        return None if self.fn is None else open_function(self.fn, self.told)

    def _refuse_told(self) -> None:
        for each in dataclasses.fields(Told):
            if getattr(self.told, each.name) is not None:
                raise CommandError(f"--{each.name} is for --onnx, --timm and so on; config.json has it of our networks")
