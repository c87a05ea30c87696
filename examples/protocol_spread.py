"""How much the offsets that a seed draws move the crop consistency of one network.

    python -m examples.protocol_spread --model mobilenet_v2_plain --weights DIRECTORY --data IMAGEFOLDER

Every crop of every photo is predicted once (`exact`). A run of `zhang2019` or `crop` with any seed only looks up the
answers at the offsets that it draws, so that hundreds of seeds cost nothing more. Prints the exact value, and mean and
standard deviation over the seeds with offsets shared by eight photos (`zhang2019`) and with offsets of each photo's own
(`crop`); the mean of many seeds must come to the exact value.
"""

import dataclasses
import sys
from pathlib import Path

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from aa_flax.consistency import Crop, Exact, Normalise, Zhang2019
from aa_flax.local_paths import check_local_paths
from train.data import open_photos
from train.data.steps import ValSteps
from train.errors import CommandError
from train.networks import as_function, open_network

SHIFTS = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Measure the spread of crop consistency over seeds."""

    model: str
    """Which network, e.g. mobilenet_v2_plain."""

    weights: str
    """Its weights: a directory that convert_weights.py has written, or a PyTorch file."""

    data: Path
    """Photos in class folders."""

    photos: int = 48
    """How many are taken, evenly over the folder; 1024 forward passes each."""

    seeds: int = 50
    """Runs of each protocol."""

    batch: int = 32
    """Crops that go through the network at once."""


def all_predictions(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """What is predicted at every offset, (photos, 32, 32), and the percentage that `Exact` gives each photo."""
    network = open_network(config.weights, config.model)
    rule = network.config.preprocessing
    folder = open_photos(config.data, network.config)
    chosen = np.linspace(0, len(folder) - 1, min(config.photos, len(folder))).astype(int)
    steps = ValSteps(folder, rule, rule.resize, 1, 0, 1)
    fn, preprocess = as_function(network.model), Normalise(tuple(rule.mean), tuple(rule.std))
    protocol = Exact(crop=rule.crop, shifts=SHIFTS, device_batch=config.batch)
    grids, values = [], []
    for photo in track(chosen, config.model, console=Console(stderr=True)):
        batch = steps[int(photo)]
        if not batch["mask"][0]:
            raise CommandError(f"{folder.path(int(photo))} cannot be read: mend or remove it")
        result = protocol.measure(fn, batch["image"], preprocess=preprocess)
        grids.append(result.arrays["predictions"][0])
        values.append(result.value)
    return np.stack(grids), np.array(values)


def over_seeds(grids: np.ndarray, kind: type[Crop], seeds: int) -> np.ndarray:
    """The value of each of the runs of a protocol, read from the predictions at all offsets."""
    index = np.arange(len(grids))
    values = []
    for seed in range(seeds):
        offsets = kind(seed=seed, shifts=SHIFTS).draw(index)
        seen = grids[index[:, None, None], offsets[..., 0], offsets[..., 1]]
        values.append(100.0 * (seen[..., 0] == seen[..., 1]).mean())
    return np.array(values)


def main(config: Config) -> None:
    """Prints the table."""
    check_local_paths(config)
    with jax.default_matmul_precision("highest"):
        grids, exact = all_predictions(config)
    table = Table("protocol", "mean %", "spread over seeds", "error of the mean", "from exact, in errors")
    table.add_row("exact", f"{exact.mean():.3f}", "", "", "")
    for kind in (Zhang2019, Crop):
        values = over_seeds(grids, kind, config.seeds)
        spread = values.std(ddof=1)
        error = spread / np.sqrt(len(values))
        distance = (values.mean() - exact.mean()) / error if error else 0.0
        table.add_row(kind.name, f"{values.mean():.3f}", f"{spread:.3f}", f"{error:.3f}", f"{distance:+.2f}")
    console = Console()
    console.print(table)
    console.print(f"{config.model}: {len(grids)} photos, {config.seeds} seeds")


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except (CommandError, ValueError) as error:
        print(f"protocol_spread: {error}", file=sys.stderr)
        sys.exit(2)
