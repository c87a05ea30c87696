"""The pictures of a comparison: where networks stand, what separates them, what they cost."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D

from aa_flax.consistency import Difference, Estimate
from train.page.content import Figure
from train.page.drawing import COLOURS, MARKERS, PAPER, RULE, SOFT, Drawn, dot, label_points, time_axis
from train.page.style import LIGHT

# Each kind of network in the colour and shape of a series of the pages.
SERIES = {"plain": "torchvision", "anti-aliased": "finetuned", "other": "scratch"}
WORDS = {"plain": "plain", "anti-aliased": "anti-aliased", "other": "of other make"}
NORMAL_95 = 1.96


@dataclass(frozen=True, kw_only=True)
class Point:
    """A network in a picture.

    Attributes:
        name: what people call it.
        kind: a key of `SERIES`.
        accuracy: percent.
        consistency: percent.
        milliseconds: of a forward pass, per image.
        ahead: whether it is on the Pareto front.
    """

    name: str
    kind: str
    accuracy: Estimate
    consistency: Estimate
    milliseconds: float
    ahead: bool


def scatter(points: Sequence[Point], quantity: str, *, caption: str) -> Figure:
    """Accuracy against consistency with standard errors; a line joins the Pareto front."""

    def draw() -> Drawing:
        drawing = Drawing(figsize=(6.4, 4.6), layout="constrained")
        axis = drawing.subplots()
        ahead = sorted((point.accuracy.value, point.consistency.value) for point in points if point.ahead)
        axis.plot(*zip(*ahead, strict=True), color=RULE, linewidth=1.2, zorder=1)
        for point in points:
            x, y = point.accuracy.value, point.consistency.value
            colour = LIGHT[COLOURS[SERIES[point.kind]]]
            across, along = _finite(point.accuracy.stderr), _finite(point.consistency.stderr)
            axis.errorbar(x, y, xerr=across, yerr=along, color=colour, elinewidth=0.8, alpha=0.6, zorder=2)
            dot(axis, x, y, SERIES[point.kind], filled=point.ahead)
        axis.set_xlabel("Accuracy (%)")
        axis.set_ylabel(f"{quantity} (%)")
        axis.grid()
        axis.margins(x=0.16, y=0.12)
        _legend(drawing, points)
        places = [(point.name, point.accuracy.value, point.consistency.value) for point in points]
        label_points(axis, places, first="right")
        return drawing

    alt = "Scatter plot: accuracy to the right, consistency upwards."
    for point in points:
        place = f"accuracy {point.accuracy.value:.2f}, consistency {point.consistency.value:.2f}"
        alt += f" {point.name}: {place}{', on the Pareto front' if point.ahead else ''}."
    return Figure(name="scatter", caption=caption, alt=alt, picture=Drawn("scatter", draw))


def intervals(series: Mapping[str, Sequence[tuple[str, Difference, bool]]], first: str, *, caption: str) -> Figure:
    """What separates each network from the first: a point and its 95% interval, a panel for each quantity.

    Args:
        series: by quantity: name, difference, and whether it is more than chance.
        first: the network that the others are compared with.
        caption: line below the picture.
    """
    names = [name for name, _, _ in next(iter(series.values()))]

    def draw() -> Drawing:
        drawing = Drawing(figsize=(8.4, 0.36 * len(names) + 1.3), layout="constrained")
        axes = drawing.subplots(1, len(series), sharey=True, squeeze=False)[0]
        for axis, (quantity, found) in zip(axes, series.items(), strict=True):
            axis.axvline(0, color=SOFT, linewidth=1)
            for place, (_, pair, beyond) in enumerate(found):
                _interval(axis, place, pair, beyond)
            axis.set_title(quantity)
            axis.set_xlabel("points")
            axis.grid(axis="x")
            axis.tick_params(axis="y", length=0)
        axes[0].set_yticks(range(len(names)), names)
        axes[0].set_ylim(len(names) - 0.5, -0.5)
        return drawing

    alt = f"Differences from {first} with 95% intervals."
    for quantity, found in series.items():
        told = [
            f"{name} {pair.value + 0.0:+.2f} plus or minus {NORMAL_95 * _finite(pair.stderr):.2f}"
            for name, pair, _ in found
        ]
        alt += f" {quantity}: {', '.join(told)}."
    return Figure(name="differences", caption=caption, alt=alt, picture=Drawn("differences", draw))


def _interval(axis: Axes, place: int, pair: Difference, beyond: bool) -> None:
    colour = LIGHT["--link"]
    axis.errorbar(
        pair.value,
        place,
        xerr=NORMAL_95 * _finite(pair.stderr),
        fmt="o",
        color=colour,
        markerfacecolor=colour if beyond else PAPER,
        markersize=6,
        elinewidth=1.4,
        zorder=3,
    )


def cost(points: Sequence[Point], quantity: str, *, caption: str) -> Figure:
    """Accuracy and consistency over the time of a forward pass."""
    times = [point.milliseconds for point in points]

    def draw() -> Drawing:
        drawing = Drawing(figsize=(9.6, 4.2), layout="constrained")
        axes = drawing.subplots(1, 2)
        for axis, field in zip(axes, ("accuracy", "consistency"), strict=True):
            for point in points:
                dot(axis, point.milliseconds, getattr(point, field).value, SERIES[point.kind])
            time_axis(axis, max(times) / min(times))
            axis.set_ylabel("Accuracy (%)" if field == "accuracy" else f"{quantity} (%)")
        _legend(drawing, points)
        for axis, field in zip(axes, ("accuracy", "consistency"), strict=True):
            places = [(point.name, point.milliseconds, getattr(point, field).value) for point in points]
            label_points(axis, places, first="above")
        return drawing

    alt = "Time of a forward pass against accuracy and consistency."
    for point in points:
        alt += f" {point.name}: {point.milliseconds:.2f} ms an image."
    return Figure(name="cost", caption=caption, alt=alt, picture=Drawn("cost", draw))


def _legend(drawing: Drawing, points: Sequence[Point]) -> None:
    used = [kind for kind in SERIES if any(point.kind == kind for point in points)]
    handles = [
        Line2D([], [], linestyle="", marker=MARKERS[name], markersize=8, color=LIGHT[COLOURS[name]], label=WORDS[kind])
        for kind, name in ((kind, SERIES[kind]) for kind in used)
    ]
    drawing.legend(handles=handles, loc="outside lower left", ncols=3, fontsize=9)


def _finite(error: float) -> float:
    return 0.0 if math.isnan(error) else error
