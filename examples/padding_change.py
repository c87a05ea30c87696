"""What another padding of the blurs changes in a network's answers.

    python -m examples.padding_change --weights out/mobilenet_v2_lpf4 --data imagenet/val --pad-type zero

For engines that cannot reflect: how far the logits move, and how many predictions change, on photos.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.progress import track

import aa_flax
from aa_flax import consistency
from aa_flax.local_paths import check_local_paths
from train.data import open_photos
from train.data.steps import ValSteps
from train.errors import CommandError
from train.networks import as_function


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Compare two paddings."""

    weights: Path
    """A directory that convert_weights.py or save_pretrained has written."""

    data: Path
    """Photos in class folders."""

    pad_type: Literal["reflect", "replicate", "zero", "circular"] = "zero"
    """Padding of the blurs in place of the trained one."""

    batch: int = 32
    """Photos that go through the network at once."""


def logits_of(config: Config, described: aa_flax.PretrainedConfig) -> tuple[np.ndarray, np.ndarray]:
    """Logits (2, N, classes) with the trained padding and with the other one, and the classes (N,)."""
    rule = described.preprocessing
    photos = open_photos(config.data, described)
    steps = ValSteps(photos, rule, rule.resize, config.batch, 0, 1)
    networks = [as_function(aa_flax.load_pretrained(config.weights, pad_type=p)) for p in (None, config.pad_type)]
    normalise = consistency.Normalise(tuple(rule.mean), tuple(rule.std))
    offset = (rule.resize - rule.crop) // 2
    window = slice(offset, offset + rule.crop)
    both, labels = [], []
    # The last batch is filled up with copies, which the mask leaves out.
    for i in track(range(len(steps)), described.model, console=Console(stderr=True)):
        batch = steps[i]
        images = normalise(jnp.asarray(batch["image"][:, window, window]))
        both.append(np.stack([jax.jit(network)(images) for network in networks])[:, batch["mask"]])
        labels.append(batch["label"][batch["mask"]])
    return np.concatenate(both, 1), np.concatenate(labels)


def main(config: Config) -> None:
    """Prints the change."""
    check_local_paths(config)
    described = aa_flax.read_config(config.weights)
    with jax.default_matmul_precision("highest"):
        logits, labels = logits_of(config, described)
    trained, other = logits
    before, after = logits.argmax(-1)
    print(f"{described.model} on {len(labels)} photos, {described.pad_type} against {config.pad_type}:")
    print(f"logits: standard deviation {trained.std():.2f}, root mean square of the change {_rms(other - trained):.2f}")
    print(f"predictions that change: {(before != after).sum()} ({100 * (before != after).mean():.1f} %)")
    print(f"top-1: {100 * (before == labels).mean():.1f} % against {100 * (after == labels).mean():.1f} %")


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.square(values).mean()))


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except (FileNotFoundError, ValueError, CommandError) as error:
        print(f"padding_change: {error}", file=sys.stderr)
        sys.exit(2)
