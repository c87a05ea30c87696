"""Networks from what lies on the disk: a converted directory, or a PyTorch file."""

from dataclasses import dataclass
from pathlib import Path

from aa_flax.models.base import Network
from aa_flax.models.registry import resolve_spec
from aa_flax.weights.mapping import convert_state_dict
from aa_flax.weights.store import PretrainedConfig, load_pretrained, read_config
from aa_flax.weights.torch_reader import read_torch_checkpoint
from train.errors import CommandError


@dataclass(frozen=True)
class OpenedNetwork:
    """A network with its weights, in eval mode, and what is known of them."""

    model: Network
    config: PretrainedConfig


def open_network(path: Path, spec: str | None = None) -> OpenedNetwork:
    """Reads a directory of `convert_weights.py` or `save_pretrained`, or a PyTorch checkpoint.

    Args:
        path: the directory or the file.
        spec: which network it is, such as "resnet50_lpf4"; a directory says so itself, and must agree.

    Raises:
        CommandError: an unknown network, nothing there, a broken file, weights of another network.
    """
    try:
        wanted = None if spec is None else str(resolve_spec(spec))
        if not path.is_dir():
            if spec is None or wanted is None:
                raise CommandError(f"{path} does not say which network it is of: give --model, such as resnet50_lpf4")
            model = convert_state_dict(read_torch_checkpoint(path), spec, what=str(path))
            return OpenedNetwork(model, PretrainedConfig(model=wanted, source={"file": path.name}))
        config = read_config(path)
        if wanted is not None and str(config.spec()) != wanted:
            raise CommandError(
                f"{path} holds {config.model}, not {wanted}: give its directory, or ask for {config.model}"
            )
        if config.in_channels != 3:
            raise CommandError(f"{path} takes images of {config.in_channels} channels; photos have 3")
        return OpenedNetwork(load_pretrained(path), config)
    except (OSError, ValueError) as error:
        raise CommandError(" ".join(str(error).split())) from error
