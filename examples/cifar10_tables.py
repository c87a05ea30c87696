"""Tables, verdicts and the picture of `examples.cifar10_study`, from its lines of JSON.

python -m examples.cifar10_tables docs/results/cifar10{,-nine,-networks,-long}.jsonl
    --page docs/results-cifar10.md --picture docs/results/cifar10.png

Runs are compared within a file: each holds what was trained for as many epochs with as large a batch. Seeds are the
units: another one has other first weights, another order and other shifts. A seed gives the plain and the anti-aliased
network the same of all three, so that a gain is that of a pair, and its interval Student's for paired samples.
"""

import dataclasses
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

import numpy as np
import tyro
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.special import stdtr, stdtrit

from aa_flax.consistency import difference, holm
from aa_flax.local_paths import check_local_paths
from aa_flax.models.registry import MODELS
from examples.cells import Line
from examples.cells import read as read_cells
from examples.cifar10_study import Run
from examples.page import put_into
from train.errors import CommandError

Key = tuple[str, str, str, int]
FIGURES = ("accuracy", "consistency")
AUGMENT = {"shift": "shifted images", "none": "no shifts"}
# Okabe and Ito's colours, told apart by people with any colour vision.
COLOURS = {0: "#000000", 2: "#56b4e9", 3: "#009e73", 4: "#d55e00", 5: "#cc79a7"}
NETWORK_COLOURS = ("#999999", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c564b")
CHANCE = 0.05


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tables:
    """Turn the study's results into Markdown on standard output."""

    results: tyro.conf.Positional[tuple[Path, ...]]
    """Outputs of the study; tables and a panel or two of the picture for each that there is."""

    page: Path | None = None
    """Markdown file in which the tables take the place of those between its two marks, instead of standard output."""

    picture: Path | None = None
    """Also draw accuracy against consistency to this PNG file."""


def read(path: Path) -> dict[Key, list[Line]]:
    """Runs by (model, augmentation, recipe, filter size), each list in the order of seeds.

    Raises:
        CommandError: a line that is no run of the study.
    """
    cells: dict[Key, list[Line]] = defaultdict(list)
    for run, line in read_cells(path, Run).items():
        cells[run.model, run.augment, run.recipe, run.filter_size].append(line)
    order = list(MODELS)
    ordered = sorted(cells, key=lambda key: (order.index(key[0]), *key[1:]))
    return {key: sorted(cells[key], key=lambda line: line["seed"]) for key in ordered}


def spread(lines: list[Line], figure: str) -> str:
    """Mean and standard deviation over the seeds."""
    values = [float(line[figure]) for line in lines if figure in line]
    if not values:
        return "did not train"
    return f"{mean(values):.2f} ± {stdev(values):.2f}" if len(values) > 1 else f"{values[0]:.2f}"


class Gain(NamedTuple):
    """What anti-aliasing adds to a figure.

    Attributes:
        value: mean of the differences of runs with the same seed, in points.
        reach: half of the interval that holds the mean over all seeds with 95 %; None for a single seed.
        p: how likely a mean at least so far from zero would be if anti-aliasing changed nothing; None likewise.
    """

    value: float
    reach: float | None = None
    p: float | None = None

    def __str__(self) -> str:
        return f"{self.value:+.2f}" if self.reach is None else f"{self.value:+.2f} ± {self.reach:.2f}"

    def verdict(self, together: float | None) -> str:
        """In a word, by a p-value that allows for all tests of the table."""
        if self.p is None or together is None:
            return "one seed cannot tell"
        if self.p >= CHANCE:
            return "not beyond chance"
        word = "rose" if self.value > 0 else "fell"
        return f"{word} (p {together:.2g})" if together < CHANCE else f"{word}, taken alone (p {self.p:.2g})"


def gain(plain: list[Line], blurred: list[Line], figure: str) -> Gain | None:
    """The gain by Student's t for paired samples; None where no seed has both."""
    before = {line["seed"]: float(line[figure]) for line in plain if figure in line}
    after = {line["seed"]: float(line[figure]) for line in blurred if figure in line}
    differences = [after[seed] - before[seed] for seed in after if seed in before]
    if len(differences) < 2:
        return Gain(differences[0]) if differences else None
    value, error, free = mean(differences), stdev(differences) / len(differences) ** 0.5, len(differences) - 1
    if error == 0:
        return Gain(value, 0.0, float(value == 0))
    p = 2 * stdtr(free, -abs(value) / error)
    return Gain(value, float(stdtrit(free, 0.975)) * error, float(p))


def name(taps: int) -> str:
    """What the tables call a filter size."""
    return f"{taps} taps" if taps else "plain"


def filter_table(cells: dict[Key, list[Line]], model: str) -> str:
    """One network: every filter size, each augmentation a pair of columns."""
    augments = [a for a in AUGMENT if any(k[:3] == (model, a, "scratch") for k in cells)]
    sizes = sorted({k[3] for k in cells if k[0] == model and k[2] == "scratch"})
    head = "".join(f" accuracy, {AUGMENT[a]} | consistency, {AUGMENT[a]} |" for a in augments)
    rows = [f"| {model} | seeds |{head}", "|---|---|" + "---|---|" * len(augments)]
    for taps in sizes:
        lines = [cells.get((model, a, "scratch", taps), []) for a in augments]
        values = "".join(f" {spread(each, f) if each else '-'} |" for each in lines for f in FIGURES)
        rows.append(f"| {name(taps)} | {max(map(len, lines))} |{values}")
    return "\n".join(rows)


def gain_table(cells: dict[Key, list[Line]]) -> str:
    """Every network: what 4 taps add to plain, and in which networks that is more than chance."""
    pairs = {}
    for model, augment in dict.fromkeys(key[:2] for key in cells):
        plain, blurred = (cells.get((model, augment, "scratch", taps), []) for taps in (0, 4))
        gains = [each for figure in FIGURES if (each := gain(plain, blurred, figure))]
        if gains:
            pairs[model, augment] = (plain, blurred), gains
    if not pairs:
        return ""
    tests = [each for _, gains in pairs.values() for each in gains]
    judged = dict(zip(tests, adjusted(tests), strict=True))
    head = "| network | training | seeds | plain | 4 taps | gain in accuracy | gain in consistency |"
    rows = [f"{head} accuracy | consistency |", "|---" * 9 + "|"]
    for (model, augment), (both, gains) in pairs.items():
        figures = [" / ".join(spread(lines, figure) for figure in FIGURES) for lines in both]
        words = [*figures, *map(str, gains), *(each.verdict(judged[each]) for each in gains)]
        rows.append(f"| {model} | {AUGMENT[augment]} | {min(map(len, both))} | {' | '.join(words)} |")
    return "\n".join(rows) + "\n\n" + summary([gains for _, gains in pairs.values()], judged)


def adjusted(gains: list[Gain]) -> list[float | None]:
    """P-values by Holm's method for all gains that have one."""
    known = iter(holm([each.p for each in gains if each.p is not None]))
    return [None if each.p is None else float(next(known)) for each in gains]


def summary(pairs: list[list[Gain]], judged: dict[Gain, float | None]) -> str:
    """How many networks gained and lost, and whether all together did: each network then counts once."""
    sentences = []
    for figure, gains in zip(FIGURES, zip(*pairs, strict=True), strict=True):
        known = [each for each in gains if (judged[each] or 0) < CHANCE and each.p is not None]
        rose, fell = (sum(sign * each.value > 0 for each in known) for sign in (1, -1))
        together = ""
        if len(gains) > 5:  # fewer signs could all be equal by chance
            mean_gain = difference(np.array([each.value for each in gains]), np.zeros(len(gains)))
            together = f" (over the networks it changed by {mean_gain.value:+.2f} points, p {mean_gain.p:.2g})"
        sentences.append(f"{figure} rose in {rose} of {len(gains)} and fell in {fell}{together}")
    return f"Over all tests of the table together: {', '.join(sentences)}."


def recipe_table(cells: dict[Key, list[Line]]) -> str:
    """Fine-tuning the plain network's weights beside training from scratch."""
    rows = ["| network | training | recipe | epochs | accuracy | consistency |", "|---|---|---|---|---|---|"]
    for model, augment, recipe, taps in cells:
        if recipe == "finetune":
            for other in ("scratch", "longer", "finetune"):
                lines = cells.get((model, augment, other, taps))
                if lines:
                    values = " | ".join(spread(lines, figure) for figure in FIGURES)
                    row = f"| {model}, {name(taps)} | {AUGMENT[augment]} | {other} | {lines[0]['epochs']} | {values} |"
                    rows.append(row)
    return "\n".join(rows) if len(rows) > 2 else ""


def draw(files: list[dict[Key, list[Line]]], path: Path) -> None:
    """Accuracy against consistency, a panel for each file and augmentation; bars are the standard deviation."""
    panels = [(cells, a) for cells in files for a in AUGMENT if any(key[1:3] == (a, "scratch") for key in cells)]
    if not panels:
        raise ValueError("no run from scratch to draw")
    figure = Figure(figsize=(5.6 * len(panels), 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (cells, augment) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        alike = {(key[0], key[3]): lines for key, lines in cells.items() if key[1:3] == (augment, "scratch")}
        learned = {key: [line for line in lines if "accuracy" in line] for key, lines in alike.items()}
        drawn = {key: lines for key, lines in learned.items() if lines}
        draw_panel(axes, drawn)
        epochs = next(iter(alike.values()))[0]["epochs"]
        title = f"CIFAR-10, {epochs} epochs, {AUGMENT[augment]}"
        axes.set(title=title, xlabel="crop consistency (%)", ylabel="test accuracy (%)")
    figure.savefig(path, dpi=110)


def draw_panel(axes: Axes, cells: dict[tuple[str, int], list[Line]]) -> None:
    """The runs of each (network, filter size); a line joins those of a network, and plain is hollow.

    Colours tell filter sizes apart where there is one network, else networks.
    """
    models = list(dict.fromkeys(model for model, _ in cells))
    alone = len(models) == 1
    for model, colour in zip(models, NETWORK_COLOURS, strict=False):
        sizes = sorted(taps for name, taps in cells if name == model)
        means = [[mean(line[f] for line in cells[model, taps]) for f in FIGURES[::-1]] for taps in sizes]
        axes.plot(*zip(*means, strict=True), color=colour, linewidth=1.5, label=None if alone else model)
        for taps, point in zip(sizes, means, strict=True):
            accuracy, consistency = ([float(line[f]) for line in cells[model, taps]] for f in FIGURES)
            bars = {"xerr": stdev(consistency), "yerr": stdev(accuracy)} if len(accuracy) > 1 else {}
            fill = {} if taps else {"markerfacecolor": "white"}
            look = {"color": COLOURS[taps], "label": name(taps)} if alone else {"color": colour}
            axes.errorbar(*point, fmt="o", elinewidth=0.8, **look, **fill, **bars)
    axes.grid(alpha=0.3)
    title = models[0] if alone else "hollow: plain; filled: " + ", ".join(name(k) for k in {k for _, k in cells} - {0})
    axes.legend(title=title, fontsize=8, title_fontsize=8, loc="lower right")


def terms(path: Path, cells: dict[Key, list[Line]]) -> str:
    """What the runs of a file have in common."""
    lines = [line for each in cells.values() for line in each]
    scratch = [line for line in lines if line["recipe"] == "scratch"] or lines
    devices = sorted({line["device"] for line in lines})
    return (
        f"[{path.name}](results/{path.name}): {len(lines)} runs, {scratch[0]['epochs']} epochs in batches of "
        f"{scratch[0]['batch']}; {', '.join(devices)}."
    )


def section(path: Path, cells: dict[Key, list[Line]]) -> str:
    """All that a file has to say."""
    scratch = {key: lines for key, lines in cells.items() if key[2] == "scratch"}
    models = dict.fromkeys(key[0] for key in scratch)
    sized = [model for model in models if len({key[3] for key in scratch if key[0] == model}) > 2]
    named = " and ".join(models) if len(models) < 3 else f"{len(models)} networks"
    epochs = next(iter(scratch.values()))[0]["epochs"]
    parts = [f"## {named}, {epochs} epochs", terms(path, cells), *(filter_table(cells, model) for model in sized)]
    parts += [gain_table(cells), recipe_table(cells)]
    return "\n\n".join(part for part in parts if part)


def main(tables: Tables) -> None:
    """Writes the tables that the results allow."""
    check_local_paths(tables)
    files = {path: cells for path in tables.results if (cells := read(path))}
    if not files:
        raise CommandError("the results hold no run")
    text = "\n\n".join(section(path, cells) for path, cells in files.items())
    if tables.page is None:
        print(text)
    else:
        put_into(tables.page, text, "examples.cifar10_tables")
    if tables.picture is not None:
        draw(list(files.values()), tables.picture)


if __name__ == "__main__":
    try:
        main(tyro.cli(Tables))
    except (CommandError, OSError, ValueError) as error:
        print(f"cifar10_tables: {error}", file=sys.stderr)
        sys.exit(2)
