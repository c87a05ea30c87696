"""Networks from what lies on the disk, a converted directory or a PyTorch file, and as functions of arrays."""

import logging
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.tree_util import Partial

from aa_flax.models.base import Network
from aa_flax.models.specs import resolve_spec
from aa_flax.weights.mapping import convert_state_dict
from aa_flax.weights.store import WEIGHTS_NAME, PretrainedConfig, load_pretrained, read_config
from aa_flax.weights.torch.reader import read_torch_checkpoint
from train.errors import CommandError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenedNetwork:
    """A network with its weights, in eval mode, and what is known of them."""

    model: Network
    config: PretrainedConfig


def _other_filter(config: PretrainedConfig) -> str | None:
    """A sentence where weights were converted from a network with another filter; None where they were not.

    Weights that have been trained since have another source.
    """
    taps, wanted = config.source.get("filter_size"), config.spec.filter_size
    converted = config.source.get("layout") in ("reference", "torchvision") and "filter_size" in config.source
    if not converted or not (taps is None or type(taps) is int) or taps == wanted:
        return None
    return (
        f"these weights were made for {_blur(taps)}, {config.model} has {_blur(wanted)}: "
        "its accuracy is lost until it is fine-tuned (python -m train fit --preset finetune)"
    )


def _blur(taps: int | None) -> str:
    return "no blur" if taps is None else f"blurs of {taps} tap{'s' * (taps != 1)}"


def refuse_run(path: Path, option: str) -> None:
    """Refuses the directory of a run where weights are wanted: which of its checkpoints is meant is not said.

    Raises:
        CommandError: says how to export them.
    """
    if (path / "checkpoints").is_dir() and not (path / WEIGHTS_NAME).exists():
        quoted = shlex.quote(str(path))
        raise CommandError(
            f"{option} {path} is the directory of a run: export its weights first: "
            f"python -m train export {quoted} --output DIR"
        )


def describe(path: Path, option: str) -> PretrainedConfig:
    """What a directory of weights says of them, with a warning where they were made for another filter.

    Args:
        path: the directory.
        option: what to call it in errors.

    Raises:
        CommandError: the directory of a run, or a network that does not take photos.
        OSError, ValueError: nothing there, or nothing that can be read.
    """
    refuse_run(path, option)
    config = read_config(path)
    if config.in_channels not in (1, 3):
        raise CommandError(f"{path} takes images of {config.in_channels} channels; photos have 3, or 1 in grey")
    if (notice := _other_filter(config)) is not None:
        log.warning("%s: %s", path, notice)
    return config


def open_network(path: Path, spec: str | None = None) -> OpenedNetwork:
    """Reads a directory of `convert_weights.py` or `save_pretrained`, or a PyTorch checkpoint.

    Args:
        path: the directory or the file.
        spec: which network it is, such as "resnet50_lpf4"; a directory says so itself, and must agree.

    Raises:
        CommandError: an unknown network, nothing there, a broken file, weights of another network.
    """
    try:
        wanted = None if spec is None else resolve_spec(spec)
        if not path.is_dir():
            if spec is None or wanted is None:
                raise CommandError(f"{path} does not say which network it is of: give --model, such as resnet50_lpf4")
            model = convert_state_dict(read_torch_checkpoint(path), spec, what=str(path))
            return OpenedNetwork(model, PretrainedConfig(spec=wanted, source={"file": path.name}))
        config = describe(path, "weights:")
        if wanted is not None and config.model != str(wanted):
            raise CommandError(
                f"{path} holds {config.model}, not {wanted}: give its directory, or ask for {config.model}"
            )
        return OpenedNetwork(load_pretrained(path), config)
    except (OSError, ValueError) as error:
        raise CommandError(" ".join(str(error).split())) from error


def as_function(model: nnx.Module) -> Partial:
    """A network as measurements take it: a function of arrays, with its weights as arguments."""
    graph, state = nnx.split(model)

    def forward(arrays: Any, images: jax.Array) -> Any:
        return nnx.merge(graph, arrays)(images)  # type: ignore[operator]

    return Partial(forward, nnx.as_pure(state))
