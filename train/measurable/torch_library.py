"""Networks of timm and torchvision, where PyTorch is installed."""

import difflib
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from aa_flax.weights.config import Preprocessing
from aa_flax.weights.torch.reader import read_torch_checkpoint
from train.errors import CommandError
from train.measurable.network import Input, Measurable, Run, Told, measurable


def open_timm(name: str, weights: Path | None, told: Told) -> Measurable:
    """A network of timm with its published weights, or those of a file.

    Args:
        name: as timm has it, such as `resnet50.a1_in1k`.
        weights: a state dict; without it timm fetches its own.
        told: what a person says.

    Raises:
        CommandError: timm is not installed or has no such network; its weights cannot be had, or do not fit.
    """
    timm = _library("timm", name)
    if ":" not in name and not timm.is_model(name):
        raise CommandError(_unknown("timm", name, timm.list_models()))
    heads = {} if told.classes is None else {"num_classes": told.classes}
    network = _made("timm", name, weights, lambda published: timm.create_model(name, pretrained=published, **heads))
    said = timm.data.resolve_model_data_config(network)
    channels, height, width = said["input_size"]
    if height != width or said["crop_mode"] != "center":
        raise CommandError(f"timm {name} takes {width}x{height} pixels cut {said['crop_mode']}: not a square centre")
    fields = {name: said[name] for name in ("interpolation", "mean", "std")}
    expected = Input(
        layout="nchw", channels=channels, preprocessing=Preprocessing.of_share(height, said["crop_pct"], **fields)
    )
    return _measurable(network, name, expected, weights, told, timm)


def open_torchvision(name: str, weights: Path | None, told: Told) -> Measurable:
    """A network of torchvision with its published weights, or those of a file.

    Args:
        name: as torchvision has it, and perhaps which of its weights: `resnet50`, `resnet50.IMAGENET1K_V1`.
        weights: a state dict, whose photos are prepared by ImageNet's rule unless told; without it torchvision
            fetches its own.
        told: what a person says.

    Raises:
        CommandError: torchvision is not installed or has no such network; its weights cannot be had, or do not fit.
    """
    library = _library("torchvision", name)
    stem, _, tag = name.partition(".")
    networks = library.models.list_models(module=library.models)
    if stem not in networks:
        raise CommandError(_unknown("torchvision", stem, networks))
    known = library.models.get_model_weights(stem).__members__
    if tag and tag not in known:
        raise CommandError(_unknown(f"torchvision's {stem}", tag, known))
    chosen = known[tag or "DEFAULT"]
    heads = {} if told.classes is None else {"num_classes": told.classes}

    def make(pretrained: bool) -> Any:
        return library.models.get_model(stem, weights=chosen if pretrained else None, **({} if pretrained else heads))

    network = _made("torchvision", name, weights, make)
    rule = chosen.transforms()
    published = Preprocessing(
        resize=rule.resize_size[0],
        crop=rule.crop_size[0],
        interpolation=rule.interpolation.value,
        mean=tuple(rule.mean),
        std=tuple(rule.std),
    )
    expected = Input(layout="nchw", preprocessing=published if weights is None else None)
    return _measurable(network, name, expected, weights, told, library)


def _library(package: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except (ImportError, RuntimeError, OSError) as error:
        # Builds of PyTorch and torchvision that do not fit each other fail in other ways than missing ones.
        reason = " ".join(str(error).split())
        raise CommandError(f"{name} needs {package} and PyTorch (pip install {package}): {reason}") from error


def _unknown(whose: str, name: str, known: Sequence[str] | Any) -> str:
    close = difflib.get_close_matches(name, known, n=4, cutoff=0.4) or list(known)[:4]
    return f"{whose} has no {name!r}; close to it: {', '.join(close)}"


def _made(library: str, name: str, weights: Path | None, make: Callable[[bool], Any]) -> Any:
    """The network with weights, in eval mode."""
    try:
        network = make(weights is None)
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CommandError(
            f"{library} cannot make {name} with its published weights ({reason}); --weights-file gives others"
        ) from error
    if weights is not None:
        _fill(network, weights)
    return network.eval()


def _fill(network: Any, path: Path) -> None:
    """Fills a PyTorch network strictly from a file, by the reader that runs nothing of it."""
    import torch  # pyright: ignore[reportMissingImports]

    try:
        arrays = read_torch_checkpoint(path)
    except (OSError, ValueError) as error:
        raise CommandError(" ".join(str(error).split())) from error
    # NumPy's own types alone: torch knows no bfloat16 of others. Its tensors may be written to, the file's may not.
    tensors = {
        name: torch.from_numpy(np.array(array, None if array.dtype.isbuiltin else np.float32))
        for name, array in arrays.items()
    }
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        first = [line.strip() for line in str(error).splitlines()][1:3]
        raise CommandError(f"{path} is not of this network: {' '.join(first)[:300]}") from error


def _measurable(
    network: Any, name: str, expected: Input, weights: Path | None, told: Told, library: ModuleType
) -> Measurable:
    import torch  # pyright: ignore[reportMissingImports]

    return measurable(
        _runner(network),
        expected,
        told,
        model=f"{library.__name__}/{name}",
        file=weights,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        described={
            "kind": library.__name__,
            "name": name,
            "weights": "published" if weights is None else str(weights),
            library.__name__: library.__version__,
            "torch": torch.__version__,
        },
    )


def _runner(network: Any) -> Run:
    import torch  # pyright: ignore[reportMissingImports]

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # Of GPUs: TensorFloat-32 rounds what float32 is asked for.
    torch.backends.cudnn.allow_tf32 = False
    network = network.to(device)

    @torch.inference_mode()
    def run(images: np.ndarray) -> np.ndarray:
        answer = network(torch.from_numpy(images).to(device))
        return answer.float().cpu().numpy() if isinstance(answer, torch.Tensor) else answer

    return run
