"""`make demo`: a plain and an anti-aliased network learn the digits; which of them keeps its mind when one moves?

Both see the digits only where they lie: no shifted copies in training. Both start from the same seed, see the same
batches and have the same number of parameters. The runs, the picture and a page on which one moves digits oneself go
to out/demo.
"""

import dataclasses
import shutil
import sys
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
import tyro
from flax import nnx
from matplotlib import pyplot as plt
from rich.table import Table

from aa_flax import consistency
from aa_flax.files import write_atomically
from aa_flax.local_paths import check_local_paths
from train.console import open_console
from train.data import Dataset, open_dataset
from train.errors import CommandError
from train.explain.interactive import Explained, interactive_page
from train.explain.record import describe
from train.explain.shift_views import Photo, choose_classes, look
from train.fit import command as fit
from train.fit.config import LogConfig
from train.fit.display import duration
from train.fit.presets import preset
from train.fit.record import FILE_NAME, read_record
from train.fit.runlog import read_scores
from train.fit.trained import load_network
from train.networks import as_function

NAMES = ("plain", "anti-aliased")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Train a plain and an anti-aliased network on scikit-learn's digits and compare them."""

    network: str = "mobilenet_v2"
    """Which network of the zoo."""

    filter_size: int = 4
    """Taps of the anti-aliased one's filters."""

    epochs: int = 5
    """Passes over the 1,437 training digits."""

    seed: int = 0
    """Of the initial weights and the order of the digits."""

    output: Path = Path("out/demo")
    """Where the runs, the picture and the page go."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a trained network showed on the digits that were held out.

    Attributes:
        model: the network.
        scores: accuracy and crop consistency in percent, with standard errors.
        predictions: (images, shifts) the answers as a digit moves along the diagonal.
    """

    model: nnx.Module
    scores: dict[str, float]
    predictions: np.ndarray


def run(config: Config) -> int:
    """Trains, measures, prints a table, draws the picture and writes the page."""
    check_local_paths(config)
    console = open_console()
    started = time.monotonic()
    outcomes = {}
    for name, suffix in zip(NAMES, ("plain", f"lpf{config.filter_size}"), strict=True):
        console.print(f"training the {name} {config.network}", style="bold")
        outcomes[name] = _outcome(config, f"{config.network}_{suffix}")
    console.print(_table(outcomes))
    picture = config.output / "demo.png"
    _draw(outcomes, config, picture)
    page = config.output / "explain.html"
    _write_page(outcomes, open_dataset(preset("digits", config.network).data), page)
    console.print(f"{picture} · {duration(time.monotonic() - started)}")
    console.print(f"{page}: open it, and move three digits by hand")
    return 0


def _outcome(config: Config, spec: str) -> Outcome:
    """Trains a network from scratch and measures it."""
    run_dir = config.output / spec
    shutil.rmtree(run_dir, ignore_errors=True)
    recipe = dataclasses.replace(
        preset("digits", spec),
        epochs=config.epochs,
        validate_every=config.epochs,
        seed=config.seed,
        run_dir=run_dir,
        log=LogConfig(tensorboard=False),
    )
    fit.run(recipe, report=False)
    scores = read_scores(run_dir)
    if not scores:
        raise CommandError("the demo was stopped before its networks were trained; it starts afresh next time")
    _, model, _ = load_network(run_dir, read_record(run_dir / FILE_NAME))
    dataset = open_dataset(recipe.data)
    images, labels = held_out(dataset)
    rule = dataset.preprocessing
    moved = consistency.Diagonal(crop=rule.crop, steps=2 * dataset.margin, device_batch=len(images)).measure(
        model,
        images,
        labels,
        preprocess=consistency.Normalise(rule.mean, rule.std),
    )
    return Outcome(model, scores[max(scores)], moved.arrays["predictions"])


def held_out(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """The digits that were not trained on, with the room at their border into which they move, and their labels."""
    pixels = [dataset.val[i] for i in range(len(dataset.val))]
    images = np.stack([image for image, _ in pixels])
    room = (dataset.margin, dataset.margin)
    return np.pad(images, ((0, 0), room, room, (0, 0)), mode="reflect"), np.array([label for _, label in pixels])


def _table(outcomes: dict[str, Outcome]) -> Table:
    table = Table(title="held-out digits", title_justify="left")
    table.add_column("")
    table.add_column("accuracy", justify="right")
    table.add_column("crop consistency", justify="right")
    for name, outcome in outcomes.items():
        cells = [f"{outcome.scores[key]:.2f} ± {outcome.scores[f'{key}_stderr']:.2f}" for key in KEYS]
        table.add_row(name, *cells)
    return table


KEYS = ("accuracy", "consistency")


def _draw(outcomes: dict[str, Outcome], config: Config, path: Path) -> None:
    """Bars of both measures, and how the answers change as the digits move."""
    figure, (bars, curve) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    colours: dict[str, str] = dict(zip(NAMES, ("#b0503c", "#2f6f9f"), strict=True))
    for i, (name, outcome) in enumerate(outcomes.items()):
        places = np.arange(len(KEYS)) + (i - 0.5) * 0.36
        heights = [outcome.scores[key] for key in KEYS]
        errors = [outcome.scores[f"{key}_stderr"] for key in KEYS]
        drawn = bars.bar(places, heights, 0.34, yerr=errors, capsize=3, color=colours[name], label=name)
        bars.bar_label(drawn, fmt="%.1f", padding=3)
        middle = outcome.predictions.shape[1] // 2
        shifts = np.arange(outcome.predictions.shape[1]) - middle
        same = 100 * (outcome.predictions == outcome.predictions[:, middle : middle + 1]).mean(0)
        curve.plot(shifts, same, marker="o", color=colours[name], label=name)
    bars.set_xticks(range(len(KEYS)), ["accuracy", "crop consistency"])
    bars.set_ylabel("percent of held-out digits")
    bars.set_ylim(0, 112)
    curve.set_xlabel("digit moved along the diagonal by (pixels)")
    curve.set_ylabel("answer unchanged (percent)")
    curve.set_ylim(0, 104)
    curve.grid(alpha=0.3)
    curve.legend(loc="lower center", frameon=False)
    figure.suptitle(f"{config.network} on 32x32 digits, trained without shifted copies")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _write_page(outcomes: dict[str, Outcome], dataset: Dataset, path: Path) -> None:
    """The three digits of which the networks, taken together, change their minds most often along the diagonal."""
    images, labels = held_out(dataset)
    rule, names = dataset.preprocessing, dataset.class_names
    changes = sum((each.predictions[:, 1:] != each.predictions[:, :-1]).sum(1) for each in outcomes.values())
    networks = {name: as_function(each.model) for name, each in outcomes.items()}
    explained = []
    for index in np.argsort(-np.asarray(changes), kind="stable")[:3]:
        photo = Photo(images[index], rule.crop)
        views = [
            look(name, network, photo, rule, batch=photo.last**2 + 1, progress=lambda _: None)
            for name, network in networks.items()
        ]
        record = describe(f"a {names[labels[index]]}", views, choose_classes(views, 4), names)
        explained.append(Explained(photo, record))
    page = interactive_page("Digits, moved pixel by pixel", explained, milliseconds=250)
    write_atomically(path, page.encode())


if __name__ == "__main__":
    try:
        sys.exit(run(tyro.cli(Config, prog="python -m examples.demo")))
    except (CommandError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
