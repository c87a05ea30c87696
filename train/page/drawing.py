"""How the report's pictures are drawn: the style, a marker a series, and the two file forms.

Every drawing becomes an inline SVG, whose colours turn into the page's variables so that it follows
a light or a dark page, and a PNG on white paper. Series differ in shape as well as in colour.
"""

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from train.page.style import LIGHT

INK, SOFT, RULE, PAPER = (LIGHT[f"--{name}"] for name in ("ink", "soft", "rule", "paper"))
COLOURS = {"torchvision": "--plain", "scratch": "--scratch", "finetuned": "--finetuned"}
MARKERS = {"torchvision": "s", "scratch": "o", "finetuned": "D"}
SERIES = {
    "torchvision": "plain",
    "scratch": "anti-aliased, trained from scratch",
    "finetuned": "anti-aliased, fine-tuned",
}

# What a picture shrinks to on a narrow screen; below that its type could not be read, and the figure scrolls.
SMALLEST = 0.7

STYLE: dict[Any, Any] = {
    "font.size": 10,
    "text.color": INK,
    # A dollar sign in a file's or class's name is a dollar sign.
    "text.parse_math": False,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "aa_flax",
}


def dot(axis: Axes, x: float, y: float, training: str, *, filled: bool = True, size: float = 7) -> None:
    """Mark a point in the shape and colour of its series."""
    colour = LIGHT[COLOURS[training]]
    axis.plot(
        x,
        y,
        MARKERS[training],
        color=colour,
        markerfacecolor=colour if filled else PAPER,
        markeredgewidth=1.4,
        markersize=size,
        zorder=3,
    )


# Where a name may stand beside its point: how far to the right and up, in points, and which side of it is fixed.
SIDES = {
    "right": ((8, 5), "left"),
    "left": ((-9, 4), "right"),
    "below": ((0, -12), "center"),
    "above": ((0, 12), "center"),
    "lower right": ((8, -7), "left"),
    "lower left": ((-9, -7), "right"),
}


def label_points(
    axis: Axes, names: Sequence[tuple[str, float, float]], taken: Sequence[tuple[float, float]] = (), *, first: str
) -> None:
    """Names points, each on the first side where it meets no point, no other name and no edge.

    To be called when all else is drawn: the picture's layout is found here, and kept.

    Args:
        axis: where the points are.
        names: text and place of each point.
        taken: other places to keep free.
        first: the side to try first, a key of `SIDES`.
    """
    figure = axis.get_figure()
    assert isinstance(figure, Drawing)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    dots = axis.transData.transform([*((x, y) for _, x, y in names), *taken])
    # A mark reaches about four points around its middle.
    reach = 4 * figure.dpi / 72
    met = [Bbox.from_extents(x - reach, y - reach, x + reach, y + reach) for x, y in dots]
    for text, x, y in names:
        tried = []
        for side in (first, *(side for side in SIDES if side != first)):
            offset, hold = SIDES[side]
            name = axis.annotate(
                text, (x, y), offset, textcoords="offset points", ha=hold, va="center", fontsize=8.5, zorder=4
            )
            box = name.get_window_extent()
            beyond = box.x0 < axis.bbox.x0 or box.x1 > axis.bbox.x1
            tried.append((box.count_overlaps(met) + beyond, len(tried), name, box))
            if not tried[-1][0]:
                break
        *_, best, box = min(tried)
        for _, _, name, _ in tried:
            if name is not best:
                name.remove()
        met.append(box)


def time_axis(axis: Axes, spread: float) -> None:
    """Linear from zero, or the noise of a clock would look like a cost; logarithmic where times differ by factors."""
    if spread > 4:
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("Time of a forward pass (ms an image)")
    axis.grid()
    axis.margins(x=0.18, y=0.12)
    if spread <= 4:
        axis.set_xlim(left=0)


def series_key(training: str, marker: str | None = None) -> Line2D:
    return Line2D(
        [],
        [],
        linestyle="",
        marker=marker or MARKERS[training],
        markersize=8,
        color=LIGHT[COLOURS[training]],
        label=SERIES[training],
    )


class Drawn:
    """A matplotlib figure as a picture of a page, drawn when it is needed.

    Args:
        name: Prefix of every id in the SVG.
        draw: Makes the figure; called within the report's style.
    """

    def __init__(self, name: str, draw: Callable[[], Drawing]) -> None:
        self._name = name
        self.draw = draw

    def png(self) -> bytes:
        """The picture on white paper."""
        buffer = io.BytesIO()
        with matplotlib.rc_context(STYLE):
            self.draw().savefig(buffer, format="png", dpi=150, facecolor=PAPER)
        return buffer.getvalue()

    def svg(self) -> str:
        """The picture as part of a page: no prolog, ids of its own, colours that follow the page."""
        buffer = io.StringIO()
        silent = {"Date": None, "Creator": None, "Format": None, "Type": None}
        with matplotlib.rc_context(STYLE):
            drawing = self.draw()
            drawing.savefig(buffer, format="svg", transparent=True, metadata=silent)
        text = buffer.getvalue()
        text = text[text.index("<svg") :].strip()
        # matplotlib names ids alike in every drawing; on one page they must differ.
        text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{self._name}-", text)
        least = SMALLEST * 72 * drawing.get_figwidth()
        text = text.replace("<svg ", f'<svg style="min-width:{least:.0f}pt" ', 1)
        for variable, colour in LIGHT.items():
            text = text.replace(colour, f"var({variable})")
        return text
