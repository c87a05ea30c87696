"""The pictures of a reproduction report: where networks stand, what they gain, what it costs."""

import math
import re
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D

from aa_flax.consistency import Estimate
from train.page.content import Figure
from train.page.drawing import COLOURS, INK, PAPER, RULE, SERIES, SOFT, Drawn, dot, label_points, series_key, time_axis
from train.page.numbers import front
from train.page.style import LIGHT
from train.reproduce.rows import Row, timed

QUANTITIES = {"top1": "Top-1 accuracy", "consistency": "Crop consistency"}

# The overview's panels: few enough networks in each that their names do not meet.
PANELS = {
    "VGG": r"vgg\d+$",
    "VGG with batch norm": r"vgg\d+_bn$",
    "ResNet": r"resnet",
    "ResNeXt and Wide ResNet": r"resnext|wide_resnet",
    "DenseNet": r"densenet",
    "AlexNet, MobileNetV2 and others": r"",
}

Pair = tuple[float, float]
# Where a row stands in the plane of accuracy and consistency, and both standard errors.
Mark = tuple[Row, Pair, Pair]


def scatter(model: str, rows: Sequence[Row], *, caption: str) -> Figure:
    """Accuracy against consistency; what was measured has a panel with axes of its own.

    Args:
        model: The network's name.
        rows: Its variants; the line that joins them goes in this order.
        caption: Line below the picture.
    """
    panels: dict[str, list[Mark]] = {"Published": [(row, row.place, (0.0, 0.0)) for row in rows]}
    measured = [(row, row.measured) for row in rows if row.measured]
    if measured:
        panels["Measured here"] = [(row, m.place, (_error(m.accuracy), _error(m.consistency))) for row, m in measured]

    def draw() -> Drawing:
        drawing = Drawing(figsize=(4.6 * len(panels) + 0.4, 3.7), layout="constrained")
        axes = drawing.subplots(1, len(panels), squeeze=False)[0]
        for axis, (heading, marks) in zip(axes, panels.items(), strict=True):
            _scatter_panel(axis, heading, marks)
        used = {row.training for row in rows}
        handles = [series_key(training) for training in SERIES if training in used]
        drawing.legend(handles=handles, loc="outside lower left", ncols=2, fontsize=9)
        for axis, marks in zip(axes, panels.values(), strict=True):
            label_points(axis, [(row.filter_name, *place) for row, place, _ in marks], first="right")
        return drawing

    alt = f"Scatter plot of {model}: accuracy to the right, consistency upwards."
    for heading, marks in panels.items():
        places = [f"{row.filter_name} accuracy {x:.2f} consistency {y:.2f}" for row, (x, y), _ in marks]
        alt += f" {heading}: {', '.join(places)}."
    name = f"scatter-{model}"
    return Figure(name=name, caption=caption, alt=alt, picture=Drawn(name, draw))


def overview(pairs: Sequence[tuple[Row, Row]], *, caption: str) -> Figure:
    """Every network as an arrow from its plain to its anti-aliased point, a panel for each family.

    Args:
        pairs: (plain, anti-aliased) for each network.
        caption: Line below the picture.
    """
    panels: dict[str, list[tuple[Row, Row]]] = {}
    for plain, blurred in pairs:
        panel = next(name for name, pattern in PANELS.items() if re.match(pattern, plain.model))
        panels.setdefault(panel, []).append((plain, blurred))
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)

    def draw() -> Drawing:
        drawing = Drawing(figsize=(5 * columns, 3.1 * rows + 0.4), layout="constrained")
        axes = list(drawing.subplots(rows, columns, squeeze=False).flat)
        for axis, (heading, arrows) in zip(axes, panels.items(), strict=False):
            _arrows(axis, heading, arrows)
        for axis in axes[len(panels) :]:
            axis.remove()
        handles = [series_key("torchvision"), series_key("finetuned")]
        drawing.legend(handles=handles, loc="outside lower left", ncols=2)
        for axis, arrows in zip(axes, panels.values(), strict=False):
            _name_arrows(axis, arrows)
        return drawing

    alt = (
        "Scatter plot of every network: accuracy to the right, consistency upwards, an arrow "
        "from plain to anti-aliased."
    )
    for a, b in [pair for arrows in panels.values() for pair in arrows]:
        alt += f" {a.model}: from {a.top1:.2f}, {a.consistency:.2f} to {b.top1:.2f}, {b.consistency:.2f}."
    return Figure(name="overview", caption=caption, alt=alt, picture=Drawn("overview", draw))


def bars(field: str, pairs: Sequence[tuple[Row, Row]], *, caption: str) -> Figure:
    """Two bars a network from zero, with the difference written at the end; measured as points.

    Args:
        field: What is drawn, a key of `QUANTITIES`.
        pairs: (plain, anti-aliased) for each network, from top to bottom.
        caption: Line below the picture.
    """
    quantity = QUANTITIES[field]

    def draw() -> Drawing:
        drawing = Drawing(figsize=(6.8, 0.42 * len(pairs) + 1.3), layout="constrained")
        axis = drawing.subplots()
        for place, pair in enumerate(pairs):
            _bar_pair(axis, place, pair, field)
        axis.set_yticks(range(len(pairs)), [plain.model for plain, _ in pairs])
        axis.set_ylim(len(pairs) - 0.4, -0.6)
        axis.set_xlim(0, 106)
        axis.set_xticks(range(0, 101, 20))
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="x")
        axis.set_xlabel(f"{quantity} (%)")
        handles = [series_key("torchvision", "s"), series_key("finetuned", "s")]
        if any(row.measured for pair in pairs for row in pair):
            handles.append(_measured_key())
        drawing.legend(handles=handles, loc="outside upper left", ncols=3)
        return drawing

    alt = f"Bar chart of {quantity.lower()} for {len(pairs)} networks, plain and anti-aliased."
    for a, b in pairs:
        alt += f" {a.model}: {getattr(a, field):.2f} and {getattr(b, field):.2f} percent."
    name = f"bars-{field}"
    return Figure(name=name, caption=caption, alt=alt, picture=Drawn(name, draw))


def cost(rows: Sequence[Row], *, device: str, caption: str) -> Figure:
    """Measured accuracy and consistency over the time of a forward pass.

    Args:
        rows: Those that were timed are drawn; the first of each network is joined by lines to its others.
        device: What the time was measured on.
        caption: Line below the picture.
    """
    points = timed(rows)
    times = [time for _, _, time in points]

    def draw() -> Drawing:
        drawing = Drawing(figsize=(9.6, 4.2), layout="constrained")
        axes = drawing.subplots(1, 2)
        networks = dict.fromkeys(row.model for row, _, _ in points)
        # By quantity and network: the variants and where they stand.
        fans = {
            field: [
                [(row, (time, getattr(found, field).value)) for row, found, time in points if row.model == model]
                for model in networks
            ]
            for field in QUANTITIES
        }
        for axis, (field, quantity) in zip(axes, QUANTITIES.items(), strict=True):
            for fan in fans[field]:
                _cost_fan(axis, fan)
            time_axis(axis, max(times) / min(times))
            axis.set_ylabel(f"{quantity} (%)")
        used = {row.training for row, _, _ in points}
        drawing.legend(
            handles=[series_key(training) for training in SERIES if training in used],
            loc="outside lower left",
            ncols=3,
            fontsize=9,
        )
        for axis, field in zip(axes, QUANTITIES, strict=True):
            _name_fans(axis, fans[field])
        return drawing

    alt = f"Time of a forward pass on {device} against accuracy and consistency."
    for row, found, time in points:
        alt += f" {row.model}, {row.filter_size or 0} taps: {time:.2f} ms an image, "
        alt += "accuracy {:.2f}, consistency {:.2f}.".format(*found.place)
    return Figure(name="cost", caption=caption, alt=alt, picture=Drawn("cost", draw))


def _error(estimate: Estimate) -> float:
    return 0.0 if math.isnan(estimate.stderr) else estimate.stderr


def _scatter_panel(axis: Axes, heading: str, marks: Sequence[Mark]) -> None:
    places = [place for _, place, _ in marks]
    axis.plot(*zip(*places, strict=True), color=RULE, lw=1, zorder=1)
    for (row, place, errors), ahead in zip(marks, front(places), strict=True):
        if any(errors):
            axis.errorbar(
                *place, xerr=errors[0], yerr=errors[1], color=LIGHT[COLOURS[row.training]], elinewidth=0.9, zorder=2
            )
        dot(axis, *place, row.training, filled=ahead)
    axis.set_title(heading)
    _percent_axes(axis)
    axis.margins(x=0.22, y=0.14)


def _percent_axes(axis: Axes) -> None:
    axis.set_xlabel(f"{QUANTITIES['top1']} (%)")
    axis.set_ylabel(f"{QUANTITIES['consistency']} (%)")
    axis.locator_params(nbins=6)
    axis.grid()


def _arrows(axis: Axes, heading: str, pairs: Sequence[tuple[Row, Row]]) -> None:
    for plain, blurred in pairs:
        axis.annotate(
            "",
            blurred.place,
            plain.place,
            arrowprops={"arrowstyle": "->", "color": SOFT, "shrinkA": 4, "shrinkB": 4},
        )
        for row in (plain, blurred):
            dot(axis, *row.place, row.training)
    axis.set_title(heading)
    _percent_axes(axis)
    axis.margins(x=0.2, y=0.2)


def _name_arrows(axis: Axes, pairs: Sequence[tuple[Row, Row]]) -> None:
    """Names the plain ends; neither the other ends nor the arrows may be covered."""
    along = [step / 12 for step in range(1, 13)]
    arrows = [
        (a.top1 + t * (b.top1 - a.top1), a.consistency + t * (b.consistency - a.consistency))
        for a, b in pairs
        for t in along
    ]
    label_points(axis, [(a.model, *a.place) for a, _ in pairs], arrows, first="below")


def _bar_pair(axis: Axes, place: int, pair: tuple[Row, Row], field: str) -> None:
    values = [getattr(row, field) for row in pair]
    for row, value, offset in zip(pair, values, (-0.19, 0.19), strict=True):
        axis.barh(place + offset, value, 0.34, color=LIGHT[COLOURS[row.training]])
        if row.measured:
            estimate: Estimate = getattr(row.measured, field)
            axis.errorbar(
                estimate.value,
                place + offset,
                xerr=_error(estimate),
                fmt="o",
                color=INK,
                markerfacecolor=PAPER,
                markersize=5,
                elinewidth=1.2,
                zorder=3,
            )
    axis.annotate(
        f"{values[1] - values[0]:+.2f}",
        (max(values), place),
        (8, 0),
        textcoords="offset points",
        va="center",
        fontsize=9,
    )


def _measured_key() -> Line2D:
    label = "measured here, with its standard error"
    return Line2D([], [], linestyle="-", marker="o", color=INK, markerfacecolor=PAPER, label=label)


def _cost_fan(axis: Axes, variants: Sequence[tuple[Row, Pair]]) -> None:
    """Lines from the first variant to the others, which bear their taps."""
    (first, start), *others = variants
    for row, end in others:
        axis.plot(*zip(start, end, strict=True), color=RULE, linewidth=1.2, zorder=1)
        dot(axis, *end, row.training, size=12)
        taps = str(row.filter_size or 0)
        axis.annotate(taps, end, ha="center", va="center", color=PAPER, zorder=5, fontsize=8.5, fontweight="bold")
    dot(axis, *start, first.training)


def _name_fans(axis: Axes, fans: Sequence[Sequence[tuple[Row, Pair]]]) -> None:
    """Each network's name beside the variant from which its lines lead."""
    names, taken = [], []
    for (first, start), *others in fans:
        name = first.model if first.filter_size is None else f"{first.model} {first.filter_size}"
        names.append((name, *start))
        taken += [end for _, end in others]
    label_points(axis, names, taken, first="left")
