"""Networks by the names of their weights, and as functions of arrays."""

import contextlib
import dataclasses
import logging
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.tree_util import Partial

from aa_flax.buckets import AnyPath, BucketPath
from aa_flax.models.base import Network
from aa_flax.models.specs import changed_spec, resolve_spec
from aa_flax.progress import progress
from aa_flax.weights.config import WEIGHTS_NAME, PretrainedConfig
from aa_flax.weights.names import Weights, kind_of, obtain
from aa_flax.weights.store import load_weights
from train.errors import CommandError

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class OpenedNetwork:
    """A network with its weights, in eval mode, and what is known of them.

    Attributes:
        model: the network.
        config: what is known of its weights, and what it is now.
        file: they, on this disk.
    """

    model: Network
    config: PretrainedConfig
    file: Path


def other_filter(config: PretrainedConfig) -> str | None:
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


def refuse_run(path: AnyPath, option: str) -> None:
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


def named_weights(name: str | os.PathLike[str], spec: str | None = None, *, option: str = "--weights") -> Weights:
    """The weights of a name, with a word on stderr where they are fetched.

    Args:
        name: a directory, a file, a published name, a repository or an address; see `aa_flax.load_pretrained`.
        spec: which network a file is of that does not say so itself.
        option: what to call the name in errors.

    Raises:
        CommandError: the directory of a run.
        OSError, ValueError: no such weights.
    """
    kind = kind_of(name)
    if kind == "local":
        refuse_run(Path(name), option)
        return obtain(name, spec=spec)
    try:
        with progress() as step:
            return obtain(name, spec=spec, progress=step(f"getting {os.fspath(name)}"))
    except FileNotFoundError:
        # Where the bucket cannot be asked, what was missing first is told.
        with contextlib.suppress(OSError):
            if kind == "bucket":
                refuse_run(BucketPath(os.fspath(name)), option)
        raise


def open_network(
    name: str | os.PathLike[str],
    spec: str | None = None,
    *,
    option: str = "--weights",
    dtype: str | None = None,
    pad_type: str | None = None,
) -> OpenedNetwork:
    """The network of a name, for photos; a warning where its weights were made for another filter.

    Args:
        name: see `named_weights`.
        spec: which network it is, such as "resnet50_lpf4"; what says so itself must agree.
        option: what to call the name in errors.
        dtype: what its layers compute in.
        pad_type: padding of every blur in place of the one that it was trained with.

    Raises:
        CommandError: an unknown network, nothing there, a broken file, weights of another network or not for photos.
    """
    with _named(option):
        wanted = None if spec is None else str(resolve_spec(spec.partition(".")[0]))
        weights = named_weights(name, spec, option=option)
        if wanted is not None and weights.config.model != wanted:
            raise CommandError(
                f"--model {spec} contradicts {name}, which holds {weights.config.model}: leave --model out, or convert "
                "the weights for that network"
            )
        check_photos(weights.config, name)
        model = load_weights(weights, dtype=dtype, pad_type=pad_type)
    config = model.provenance.config
    check_photos(config, name)
    if pad_type is not None:
        config = dataclasses.replace(config, spec=changed_spec(config.spec, pad_type=pad_type))
    if (notice := other_filter(config)) is not None:
        log.warning("%s: %s", name, notice)
    return OpenedNetwork(model, config, weights.path)


def check_photos(config: PretrainedConfig, name: str | os.PathLike[str]) -> None:
    """Refuses weights for images of other channels than photos have.

    Raises:
        CommandError: names the channels.
    """
    if config.in_channels not in (1, 3):
        raise CommandError(f"{name} takes images of {config.in_channels} channels; photos have 3, or 1 in grey")


@contextlib.contextmanager
def _named(option: str) -> Iterator[None]:
    """Errors of weights as one line that names the option."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise CommandError(f"{option}: {' '.join(str(error).split())}") from error


def as_function(model: nnx.Module, method: str = "__call__") -> Partial:
    """A network, or a method of it, as measurements take it: a function of arrays, with its weights as arguments."""
    graph, state = nnx.split(model)

    def forward(arrays: Any, images: jax.Array) -> Any:
        return getattr(nnx.merge(graph, arrays), method)(images)

    return Partial(forward, nnx.as_pure(state))
