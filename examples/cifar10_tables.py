"""Tables and the picture of `examples.cifar10_study`, from its lines of JSON.

python -m examples.cifar10_tables docs/results/cifar10.jsonl docs/results/cifar10-networks.jsonl \
    --picture docs/results/cifar10.png

Runs are compared within a file: each holds what was trained for as many epochs with as large a batch.
"""

import dataclasses
import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import tyro
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from aa_flax.local_paths import check_local_paths

Line = dict[str, Any]
Key = tuple[str, str, str, int]
FIGURES = ("accuracy", "consistency")
AUGMENT = {"shift": "shifted images", "none": "no shifts"}
# Okabe and Ito's colours, told apart by people with any colour vision.
COLOURS = {0: "#000000", 2: "#56b4e9", 3: "#009e73", 4: "#d55e00", 5: "#cc79a7"}
NETWORK_COLOURS = ("#999999", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c564b")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tables:
    """Turn the study's results into Markdown on standard output."""

    results: tyro.conf.Positional[tuple[Path, ...]]
    """Outputs of the study; tables and a panel or two of the picture for each."""

    picture: Path | None = None
    """Also draw accuracy against consistency to this PNG file."""


def read(path: Path) -> dict[Key, list[Line]]:
    """Runs by (model, augmentation, recipe, filter size), each list in the order of seeds.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it holds anything but lines of the study.
    """
    cells: dict[Key, list[Line]] = defaultdict(list)
    for number, text in enumerate(path.read_text().splitlines(), 1):
        try:
            line = json.loads(text)
            cells[line["model"], line["augment"], line["recipe"], line["filter_size"]].append(line)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: not a run of examples.cifar10_study: {text[:40]!r}") from error
    return {key: sorted(lines, key=lambda line: line["seed"]) for key, lines in sorted(cells.items())}


def spread(lines: list[Line], figure: str) -> str:
    """Mean and standard deviation over the seeds."""
    values = [float(line[figure]) for line in lines]
    return f"{mean(values):.2f} ± {stdev(values):.2f}" if len(values) > 1 else f"{values[0]:.2f}"


def gain(plain: list[Line], blurred: list[Line], figure: str) -> str:
    """Mean difference of runs with the same seed, with its standard error."""
    before = {line["seed"]: float(line[figure]) for line in plain}
    after = {line["seed"]: float(line[figure]) for line in blurred}
    differences = [after[seed] - before[seed] for seed in after if seed in before]
    if len(differences) < 2:
        return f"{differences[0]:+.2f}" if differences else ""
    return f"{mean(differences):+.2f} ± {stdev(differences) / len(differences) ** 0.5:.2f}"


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
    """Every network: what 4 taps add to plain, trained with the same seeds."""
    rows = [
        "| network | training | plain | 4 taps | gain in accuracy | gain in consistency |",
        "|---|---|---|---|---|---|",
    ]
    for model, augment in sorted({(k[0], k[1]) for k in cells}):
        plain, blurred = (cells.get((model, augment, "scratch", taps)) for taps in (0, 4))
        if plain and blurred:
            both = [" / ".join(spread(lines, figure) for figure in FIGURES) for lines in (plain, blurred)]
            gains = [gain(plain, blurred, figure) for figure in FIGURES]
            rows.append(f"| {model} | {AUGMENT[augment]} | {' | '.join(both + gains)} |")
    return "\n".join(rows)


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
        drawn = {(key[0], key[3]): lines for key, lines in cells.items() if key[1:3] == (augment, "scratch")}
        draw_panel(axes, drawn)
        epochs = next(iter(drawn.values()))[0]["epochs"]
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


def main(tables: Tables) -> None:
    """Prints the tables that the results allow."""
    check_local_paths(tables)
    files = [read(path) for path in tables.results]
    for path, cells in zip(tables.results, files, strict=True):
        print(f"### {path.name}\n")
        for model in dict.fromkeys(key[0] for key in cells):
            if len({key[3] for key in cells if key[0] == model and key[2] == "scratch"}) > 2:
                print(filter_table(cells, model), end="\n\n")
        parts = [gain_table(cells), recipe_table(cells)]
        print("\n\n".join(part for part in parts if part), end="\n\n")
    if tables.picture is not None:
        draw(files, tables.picture)


if __name__ == "__main__":
    try:
        main(tyro.cli(Tables))
    except (OSError, ValueError) as error:
        print(f"cifar10_tables: {error}", file=sys.stderr)
        sys.exit(2)
