"""The charts of a reproduction report: bars over all networks, and what anti-aliasing costs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D

from aa_flax.consistency import Estimate
from train.page.content import Figure
from train.page.drawing import (
    COLOURS,
    INK,
    PAPER,
    RULE,
    SERIES,
    Drawn,
    dot,
    label_points,
    series_key,
)
from train.page.style import LIGHT


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A network's two published values and, where measured, the measured ones (percent or None)."""

    label: str
    plain: float
    antialiased: float
    measured_plain: Estimate | None = None
    measured_antialiased: Estimate | None = None


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a network's forward pass takes and gives: milliseconds an image, percent, percent."""

    model: str
    filter_size: int | None
    training: str
    milliseconds: float
    top1: float
    consistency: float


def bars(name: str, bars_: Sequence[Bar], *, quantity: str, caption: str) -> Figure:
    """Two bars a network from zero, with the difference written at the end; measured as points.

    Args:
        name: File stem.
        bars_: The networks from top to bottom.
        quantity: What is drawn, e.g. "Top-1 accuracy".
        caption: Line below the picture.
    """

    def draw() -> Drawing:
        drawing = Drawing(figsize=(6.8, 0.42 * len(bars_) + 1.3), layout="constrained")
        axis = drawing.subplots()
        for row, bar in enumerate(bars_):
            _bar_pair(axis, row, bar)
        axis.set_yticks(range(len(bars_)), [bar.label for bar in bars_])
        axis.set_ylim(len(bars_) - 0.4, -0.6)
        axis.set_xlim(0, 106)
        axis.set_xticks(range(0, 101, 20))
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="x")
        axis.set_xlabel(f"{quantity} (%)")
        handles = [series_key("torchvision", "s"), series_key("finetuned", "s")]
        if any(bar.measured_plain or bar.measured_antialiased for bar in bars_):
            handles.append(_measured_key())
        drawing.legend(handles=handles, loc="outside upper left", ncols=3)
        return drawing

    alt = f"Bar chart of {quantity.lower()} for {len(bars_)} networks, plain and anti-aliased. "
    alt += " ".join(f"{bar.label}: {bar.plain:.2f} and {bar.antialiased:.2f} percent." for bar in bars_)
    return Figure(name=name, caption=caption, alt=alt, picture=Drawn(name, draw))


def cost(name: str, costs: Sequence[Cost], *, device: str, caption: str) -> Figure:
    """Accuracy and consistency over the time of a forward pass.

    Args:
        name: File stem.
        costs: Measured variants; the first of each `model` is joined by lines to its others.
        device: What the time was measured on.
        caption: Line below the picture.
    """

    def draw() -> Drawing:
        drawing = Drawing(figsize=(9.6, 4.2), layout="constrained")
        left, right = drawing.subplots(1, 2)
        fans: dict[str, list[Cost]] = {}
        for entry in costs:
            fans.setdefault(entry.model, []).append(entry)
        spread = max(e.milliseconds for e in costs) / min(e.milliseconds for e in costs)
        for axis, quantity in ((left, "top1"), (right, "consistency")):
            for variants in fans.values():
                _cost_fan(axis, variants, quantity)
            if spread > 4:
                axis.set_xscale("log")
                axis.xaxis.set_major_formatter("{x:g}")
            axis.set_xlabel("Time of a forward pass (ms an image)")
            axis.grid()
            axis.margins(x=0.18, y=0.12)
            if spread <= 4:
                # From zero, or the noise of a clock would look like a cost.
                axis.set_xlim(left=0)
        left.set_ylabel("Top-1 accuracy (%)")
        right.set_ylabel("Crop consistency (%)")
        used = {entry.training for entry in costs}
        drawing.legend(
            handles=[series_key(training) for training in SERIES if training in used],
            loc="outside lower left",
            ncols=3,
            fontsize=9,
        )
        for axis, quantity in ((left, "top1"), (right, "consistency")):
            _name_fans(axis, list(fans.values()), quantity)
        return drawing

    alt = f"Time of a forward pass on {device} against accuracy and consistency. " + " ".join(
        f"{e.model}, {e.filter_size or 0} taps: {e.milliseconds:.2f} ms an image, "
        f"accuracy {e.top1:.2f}, consistency {e.consistency:.2f}."
        for e in costs
    )
    return Figure(name=name, caption=caption, alt=alt, picture=Drawn(name, draw))


def _cost_fan(axis: Axes, variants: Sequence[Cost], quantity: str) -> None:
    """Lines from the first variant to the others, which bear their taps."""
    first, *others = variants
    start = (first.milliseconds, getattr(first, quantity))
    for entry in others:
        end = (entry.milliseconds, getattr(entry, quantity))
        axis.plot(*zip(start, end, strict=True), color=RULE, linewidth=1.2, zorder=1)
        dot(axis, *end, entry.training, size=12)
        axis.annotate(
            str(entry.filter_size or 0),
            end,
            ha="center",
            va="center",
            color=PAPER,
            zorder=5,
            fontsize=8.5,
            fontweight="bold",
        )
    dot(axis, *start, first.training)


def _name_fans(axis: Axes, fans: Sequence[Sequence[Cost]], quantity: str) -> None:
    """Each network's name beside the variant from which its lines lead."""
    names, taken = [], []
    for first, *others in fans:
        name = first.model if first.filter_size is None else f"{first.model} {first.filter_size}"
        names.append((name, first.milliseconds, getattr(first, quantity)))
        taken += [(entry.milliseconds, getattr(entry, quantity)) for entry in others]
    label_points(axis, names, taken, first="left")


def _bar_pair(axis: Axes, row: int, bar: Bar) -> None:
    kinds = (
        ("torchvision", bar.plain, bar.measured_plain, -0.19),
        ("finetuned", bar.antialiased, bar.measured_antialiased, 0.19),
    )
    for training, value, measured, offset in kinds:
        axis.barh(row + offset, value, 0.34, color=LIGHT[COLOURS[training]])
        if measured:
            axis.errorbar(
                measured.value,
                row + offset,
                xerr=0 if math.isnan(measured.stderr) else measured.stderr,
                fmt="o",
                color=INK,
                markerfacecolor=PAPER,
                markersize=5,
                elinewidth=1.2,
                zorder=3,
            )
    axis.annotate(
        f"{bar.antialiased - bar.plain:+.2f}",
        (max(bar.plain, bar.antialiased), row),
        (8, 0),
        textcoords="offset points",
        va="center",
        fontsize=9,
    )


def _measured_key() -> Line2D:
    return Line2D(
        [],
        [],
        linestyle="-",
        marker="o",
        color=INK,
        markerfacecolor=PAPER,
        label="measured here, with its standard error",
    )
