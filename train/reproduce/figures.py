"""The pictures of a reproduction report: where networks stand, what they gain, what it costs."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from train.page.content import Figure
from train.page.drawing import (
    COLOURS,
    RULE,
    SERIES,
    SOFT,
    Drawn,
    dot,
    label_points,
    series_key,
)
from train.page.style import LIGHT


@dataclass(frozen=True, kw_only=True)
class Point:
    """A network in the plane of accuracy and consistency.

    Attributes:
        label: What to write beside it.
        training: "torchvision" (plain), "scratch" or "finetuned".
        top1: Accuracy in percent.
        consistency: Crop consistency in percent.
        top1_error: Standard error of `top1`, 0 where there is none.
        consistency_error: Standard error of `consistency`, 0 where there is none.
        front: Whether no other point of its table is better; drawn filled.
    """

    label: str
    training: str
    top1: float
    consistency: float
    top1_error: float = 0.0
    consistency_error: float = 0.0
    front: bool = True


def scatter(name: str, title: str, panels: Sequence[tuple[str, Sequence[Point]]], *, caption: str) -> Figure:
    """Accuracy against consistency, one panel for each group of points.

    Args:
        name: File stem.
        title: The network's name, for the description.
        panels: Heading and points of every panel; each has axes of its own.
        caption: Line below the picture.
    """

    def draw() -> Drawing:
        drawing = Drawing(figsize=(4.6 * len(panels) + 0.4, 3.7), layout="constrained")
        axes = drawing.subplots(1, len(panels), squeeze=False)[0]
        for axis, (heading, points) in zip(axes, panels, strict=True):
            _scatter_panel(axis, heading, points)
        used = {point.training for _, points in panels for point in points}
        handles = [series_key(training) for training in SERIES if training in used]
        drawing.legend(handles=handles, loc="outside lower left", ncols=2, fontsize=9)
        for axis, (_, points) in zip(axes, panels, strict=True):
            label_points(axis, [(p.label, p.top1, p.consistency) for p in points], first="right")
        return drawing

    alt = f"Scatter plot of {title}: accuracy to the right, consistency upwards. " + " ".join(
        f"{heading}: {_spoken(points)}." for heading, points in panels
    )
    return Figure(name=name, caption=caption, alt=alt, picture=Drawn(name, draw))


def overview(name: str, panels: Sequence[tuple[str, Sequence[tuple[Point, Point]]]], *, caption: str) -> Figure:
    """Every network as an arrow from its plain to its anti-aliased point, a panel for each family.

    Args:
        name: File stem.
        panels: A family's name, and (plain, anti-aliased) for each of its networks.
        caption: Line below the picture.
    """
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)

    def draw() -> Drawing:
        drawing = Drawing(figsize=(5 * columns, 3.1 * rows + 0.4), layout="constrained")
        axes = list(drawing.subplots(rows, columns, squeeze=False).flat)
        for axis, (heading, pairs) in zip(axes, panels, strict=False):
            _arrows(axis, heading, pairs)
        for axis in axes[len(panels) :]:
            axis.remove()
        handles = [series_key("torchvision"), series_key("finetuned")]
        drawing.legend(handles=handles, loc="outside lower left", ncols=2)
        for axis, (_, pairs) in zip(axes, panels, strict=False):
            _name_arrows(axis, pairs)
        return drawing

    alt = _overview_alt([pair for _, pairs in panels for pair in pairs])
    return Figure(name=name, caption=caption, alt=alt, picture=Drawn(name, draw))


def _scatter_panel(axis: Axes, heading: str, points: Sequence[Point]) -> None:
    scratch = [point for point in points if point.training != "finetuned"]
    axis.plot([p.top1 for p in scratch], [p.consistency for p in scratch], color=RULE, lw=1, zorder=1)
    for point in points:
        _mark(axis, point)
    axis.set_title(heading)
    _percent_axes(axis)
    axis.margins(x=0.22, y=0.14)


def _percent_axes(axis: Axes) -> None:
    axis.set_xlabel("Top-1 accuracy (%)")
    axis.set_ylabel("Crop consistency (%)")
    axis.locator_params(nbins=6)
    axis.grid()


def _mark(axis: Axes, point: Point) -> None:
    if point.top1_error or point.consistency_error:
        axis.errorbar(
            point.top1,
            point.consistency,
            xerr=point.top1_error,
            yerr=point.consistency_error,
            color=LIGHT[COLOURS[point.training]],
            elinewidth=0.9,
            zorder=2,
        )
    dot(axis, point.top1, point.consistency, point.training, filled=point.front)


def _arrows(axis: Axes, heading: str, pairs: Sequence[tuple[Point, Point]]) -> None:
    for plain, blurred in pairs:
        axis.annotate(
            "",
            (blurred.top1, blurred.consistency),
            (plain.top1, plain.consistency),
            arrowprops={"arrowstyle": "->", "color": SOFT, "shrinkA": 4, "shrinkB": 4},
        )
        _mark(axis, plain)
        _mark(axis, blurred)
    axis.set_title(heading)
    _percent_axes(axis)
    axis.margins(x=0.2, y=0.2)


def _name_arrows(axis: Axes, pairs: Sequence[tuple[Point, Point]]) -> None:
    """Names the plain ends; neither the other ends nor the arrows may be covered."""
    along = [step / 12 for step in range(1, 13)]
    arrows = [
        (a.top1 + t * (b.top1 - a.top1), a.consistency + t * (b.consistency - a.consistency))
        for a, b in pairs
        for t in along
    ]
    label_points(axis, [(a.label, a.top1, a.consistency) for a, _ in pairs], arrows, first="below")


def _spoken(points: Sequence[Point]) -> str:
    return ", ".join(f"{p.label} accuracy {p.top1:.2f} consistency {p.consistency:.2f}" for p in points)


def _overview_alt(pairs: Sequence[tuple[Point, Point]]) -> str:
    moves = " ".join(
        f"{a.label}: from {a.top1:.2f}, {a.consistency:.2f} to {b.top1:.2f}, {b.consistency:.2f}." for a, b in pairs
    )
    return (
        "Scatter plot of every network: accuracy to the right, consistency upwards, an arrow "
        f"from plain to anti-aliased. {moves}"
    )
