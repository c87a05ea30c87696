"""Tables and a picture of `examples.methods_comparison`, from its lines of JSON.

python -m examples.methods_tables docs/results/methods.jsonl --page docs/results-methods.md --pictures docs/results

Numbers are means over the seeds with their standard error; of a single seed, with that over the test images.
"""

import dataclasses
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

import tyro
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from aa_flax.local_paths import check_local_paths
from examples.cells import Line
from examples.cells import read as read_cells
from examples.methods_runs import METHODS, MODELS, Cell
from examples.page import put_into
from train.errors import CommandError

Key = tuple[str, str]
MEASURES = {
    "accuracy": "accuracy",
    "crop": "crop",
    "circular": "circular",
    "fractional": "fractional",
    "unchanged": "unchanged",
    "worst": "worst accuracy",
}
PANELS = {"crop": "crop consistency (%)", "circular": "circular consistency (%)", "unchanged": "unchanged (%)"}
# Okabe and Ito's colours, told apart by people with any colour vision; shapes repeat what they say.
COLOURS = ("#000000", "#e69f00", "#d55e00", "#56b4e9", "#0072b2", "#009e73", "#cc79a7", "#999999", "#8c564b", "#882255")
MARKERS = "osDv^<>Pp*"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tables:
    """Turn a comparison's results into Markdown on standard output."""

    results: tyro.conf.Positional[tuple[Path, ...]]
    """Outputs of the comparison; a table for each network of each file."""

    page: Path | None = None
    """Markdown file in which the tables take the place of those between its two marks, instead of standard output."""

    pictures: Path | None = None
    """Also draw accuracy against consistency to this directory, a PNG file for each of results."""


def read(path: Path) -> dict[Key, list[Line]]:
    """Runs by (model, method) in the order of the tables, each list in the order of seeds.

    Raises:
        CommandError: a line that is no run of the comparison.
    """
    found: dict[Key, list[Line]] = defaultdict(list)
    for cell, line in read_cells(path, Cell).items():
        found[cell.model, cell.method].append(line)
    models = [*MODELS, *sorted({model for model, _ in found} - set(MODELS))]
    order = [(model, method) for model in models for method in METHODS]
    return {key: sorted(found[key], key=lambda line: line["seed"]) for key in order if key in found}


def estimate(lines: list[Line], measure: str) -> tuple[float, float]:
    """Mean over the seeds and its standard error, of the runs that have trained."""
    values = [line[measure] for line in lines if measure in line]
    if len(values) > 1:
        return mean(values), stdev(values) / len(values) ** 0.5
    (line,) = (line for line in lines if measure in line)
    return line[measure], line["stderr"][measure]


def trained(lines: list[Line]) -> bool:
    """Whether a run gave a network that answers."""
    return any("accuracy" in line for line in lines)


def table(runs: dict[Key, list[Line]], model: str) -> str:
    """One network: a row for each method."""
    rows = [f"| {model} | seeds | {' | '.join(MEASURES.values())} | parameters | ms an update |"]
    rows.append("|---|---|" + "---|" * (len(MEASURES) + 2))
    for method in (method for name, method in runs if name == model):
        lines = runs[model, method]
        figures = ["did not train"] + ["-"] * (len(MEASURES) - 1)
        if trained(lines):
            figures = ["{:.2f} ± {:.2f}".format(*estimate(lines, measure)) for measure in MEASURES]
        cost = [f"{lines[0]['parameters']:,}", lap(lines)]
        rows.append(f"| {METHODS[method].title} | {len(lines)} | {' | '.join(figures + cost)} |")
    return "\n".join(rows)


def lap(lines: list[Line]) -> str:
    """Milliseconds an update: the mean over the runs, with its standard error where there are several."""
    laps = [line["update_ms"] for line in lines if line["update_ms"] is not None]
    error = f" ± {stdev(laps) / len(laps) ** 0.5:.2f}" if len(laps) > 1 else ""
    return f"{mean(laps):.2f}{error}" if laps else "-"


def terms(path: Path, runs: dict[Key, list[Line]]) -> str:
    """What the runs of a file have in common, in a sentence."""
    lines = [line for each in runs.values() for line in each]
    first, devices = lines[0], sorted({line["device"] for line in lines})
    side, trained_on, measured_on = first["side"], 50_000 // first["share"], 10_000 // first["share"]
    return (
        f"`{path.name}`: {len(lines)} runs of {first['epochs']} epochs over {trained_on:,} images of {side}x{side} "
        f"pixels in batches of {first['batch']} ({first['dtype']}), measured on {measured_on:,} images with "
        f"{first['pairs']} pairs each; shifts of up to {first['reach']} px for the worst; {', '.join(devices)}."
    )


def draw(runs: dict[Key, list[Line]], path: Path) -> None:
    """Accuracy against consistency: a row for each network, a column for each of three measures."""
    models = list(dict.fromkeys(model for model, _ in runs))
    figure = Figure(figsize=(4.6 * len(PANELS), 4.2 * len(models)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(models), len(PANELS), squeeze=False)
    for row, model in zip(axes, models, strict=True):
        for panel, (measure, label) in zip(row, PANELS.items(), strict=True):
            draw_panel(panel, {m: lines for (name, m), lines in runs.items() if name == model}, measure)
            panel.set(title=model, xlabel=label, ylabel="test accuracy (%)")
    if any(trained(lines) for lines in runs.values()):
        figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    figure.savefig(path, dpi=110)


def draw_panel(axes: Axes, runs: dict[str, list[Line]], measure: str) -> None:
    """The methods of one network; bars are standard errors."""
    for method, colour, marker in zip(METHODS, COLOURS, MARKERS, strict=False):
        if method in runs and trained(runs[method]):
            (x, xerr), (y, yerr) = (estimate(runs[method], each) for each in (measure, "accuracy"))
            title = METHODS[method].title
            axes.errorbar(x, y, xerr=xerr, yerr=yerr, fmt=marker, color=colour, elinewidth=0.8, label=title)
    axes.grid(alpha=0.3)


def main(tables: Tables) -> None:
    """Writes the tables that the results allow."""
    check_local_paths(tables)
    files = {path: runs for path in tables.results if (runs := read(path))}
    if not files:
        raise CommandError(f"no run in {', '.join(map(str, tables.results))}; examples.methods_comparison makes them")
    parts = []
    for path, runs in files.items():
        parts += [terms(path, runs), *(table(runs, model) for model in dict.fromkeys(model for model, _ in runs))]
    if tables.page is None:
        print("\n\n".join(parts))
    else:
        put_into(tables.page, "\n\n".join(parts), "examples.methods_tables")
    if tables.pictures is not None:
        tables.pictures.mkdir(parents=True, exist_ok=True)
        for path, runs in files.items():
            draw(runs, tables.pictures / f"{path.stem}.png")


if __name__ == "__main__":
    try:
        main(tyro.cli(Tables, description=__doc__))
    except (CommandError, OSError, ValueError) as error:
        print(f"methods_tables: {error}", file=sys.stderr)
        sys.exit(2)
