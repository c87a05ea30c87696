"""The pictures of `python -m train explain`: curves, maps of every shift, and their animation."""

import io
from collections.abc import Callable, Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from PIL import Image

from train.explain.shift_views import Photo, View
from train.page.drawing import INK, PAPER, STYLE

# Okabe and Ito's colours for all kinds of colour vision; curves differ in their dashes as well.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
OTHER = "#c4c9cf"
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))

Shown = Mapping[int, str]


def probabilities(views: Sequence[View], shown: Shown) -> bytes:
    """A PNG of the shown classes' probabilities along the diagonal, a panel for each network.

    Args:
        views: one or more networks.
        shown: names of the classes to draw, by index, the most important first.
    """
    with matplotlib.rc_context(STYLE):
        drawing = Drawing(figsize=(4.8 * len(views) + 0.4, 4.2), layout="constrained")
        for axis, view in zip(_row(drawing, len(views)), views, strict=True):
            _curves(axis, view, shown)
            axis.set_title(f"{view.name}\n{_changes(view)}")
        drawing.legend(handles=_curve_keys(shown), loc="outside lower center", ncols=2)
        return _png(drawing)


def shift_maps(views: Sequence[View], shown: Shown) -> bytes:
    """A PNG of the prediction at every shift, a map for each network. Arguments as above."""
    with matplotlib.rc_context(STYLE):
        drawing = Drawing(figsize=(4.4 * len(views) + 0.4, 6.2), layout="constrained")
        for axis, view in zip(_row(drawing, len(views)), views, strict=True):
            _map(axis, view, shown)
            axis.set_title(f"{view.name}\ntwo shifts agree {view.consistency:.1f} % of the time")
        keys = [key for key, share in _patches(views, shown) if share]
        drawing.legend(handles=keys, title=_shares_title(views), loc="outside lower center", ncols=2)
        return _png(drawing)


def animation(
    views: Sequence[View],
    shown: Shown,
    photo: Photo,
    *,
    milliseconds: int,
    step: Callable[[], None],
) -> bytes:
    """A GIF: the photo moves along the diagonal and back, and so do a mark on curves and maps.

    Args:
        views, shown: as above.
        photo: what moves.
        milliseconds: how long each shift is shown.
        step: called after each drawn shift.
    """
    with matplotlib.rc_context({**STYLE, "font.size": 9, "axes.titlesize": 9}):
        drawing = Drawing(figsize=(3.6 + 3.7 * len(views), 5.6), dpi=90, layout="constrained")
        canvas = FigureCanvasAgg(drawing)
        grid = drawing.add_gridspec(2, 1 + len(views), width_ratios=[1, *[1.15] * len(views)])
        picture = drawing.add_subplot(grid[:, 0])
        picture.set_axis_off()
        image = picture.imshow(photo.at(0))
        title = picture.set_title("")
        marks: list[Line2D] = []
        cursors: list[Line2D] = []
        headings = []
        for column, view in enumerate(views, start=1):
            top, below = drawing.add_subplot(grid[0, column]), drawing.add_subplot(grid[1, column])
            _curves(top, view, shown)
            headings.append(top.set_title(f"{view.name}\n"))
            _map(below, view, shown)
            cursors.append(top.axvline(0, color=INK, linewidth=1.2))
            marks += below.plot(0, 0, "o", color=PAPER, markeredgecolor=INK, markersize=8, clip_on=False)
        *named, (other, share) = _patches(views, shown)
        keys = [*(key for key, _ in named), *([other] if share else [])]
        heading = _shares_title(views)
        drawing.legend(handles=keys, title=heading, loc="outside lower center", ncols=3, fontsize=8, title_fontsize=8)
        frames = []
        for offset in range(photo.last + 1):
            image.set_data(photo.at(offset))
            title.set_text(f"what the networks see:\na crop, moved by {offset} px")
            for cursor in cursors:
                cursor.set_xdata([offset, offset])
            for heading, view in zip(headings, views, strict=True):
                heading.set_text(f"{view.name}\n{_answer(view, offset, shown)}")
            for mark in marks:
                mark.set_data([offset], [offset])
            canvas.draw()
            frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))
            # The layout is found once; finding it anew for each frame would make it tremble.
            drawing.set_layout_engine("none")
            step()
        return _gif(frames, milliseconds)


def _curves(axis: Axes, view: View, shown: Shown) -> None:
    steps = np.arange(len(view.diagonal))
    for index, colour, dashes in zip(shown, COLOURS, DASHES, strict=False):
        axis.plot(steps, 100 * view.diagonal[:, index], color=colour, linestyle=dashes, linewidth=1.8)
    axis.set_ylim(-2, 102)
    axis.set_xlim(0, steps[-1])
    axis.set_xlabel("crop moved along the diagonal (px)")
    axis.set_ylabel("probability (%)")
    axis.grid()


def _map(axis: Axes, view: View, shown: Shown) -> None:
    place = np.full(view.grid.shape[-1], len(shown))
    place[list(shown)] = np.arange(len(shown))
    palette = ListedColormap([*COLOURS[: len(shown)], OTHER])
    axis.imshow(place[view.predictions], cmap=palette, vmin=-0.5, vmax=len(shown) + 0.5, interpolation="nearest")
    axis.locator_params(integer=True)
    axis.set_xlabel("crop moved right (px)")
    axis.set_ylabel("crop moved down (px)")
    axis.spines[:].set_visible(False)


def _curve_keys(shown: Shown) -> list[Line2D]:
    return [
        Line2D([], [], color=colour, linestyle=dashes, linewidth=1.8, label=name)
        for name, colour, dashes in zip(shown.values(), COLOURS, DASHES, strict=False)
    ]


def _patches(views: Sequence[View], shown: Shown) -> list[tuple[Patch, float]]:
    """Keys of the shown classes and of all others, naming their shares of each network's shifts; the largest share."""
    names, colours = [*shown.values(), "other classes"], [*COLOURS[: len(shown)], OTHER]
    shares = []
    for view in views:
        counts = np.bincount(view.predictions.ravel(), minlength=view.grid.shape[-1])[list(shown)]
        shares.append(np.append(counts, view.predictions.size - counts.sum()) / view.predictions.size)
    keys = []
    for name, colour, percent in zip(names, colours, 100 * np.transpose(shares), strict=True):
        label = " | ".join(f"{each:.0f} %" for each in percent)
        keys.append((Patch(color=colour, label=f"{name} ({label})"), float(percent.max())))
    return keys


def _shares_title(views: Sequence[View]) -> str:
    """What the percentages in the keys of `_patches` are."""
    return "predicted class (share of all shifts" + (", left to right)" if len(views) > 1 else ")")


def _answer(view: View, offset: int, shown: Shown) -> str:
    """What the network says at a step of the diagonal."""
    index = int(view.diagonal[offset].argmax())
    return f"{shown.get(index, 'another class')}, {100 * view.diagonal[offset, index]:.0f} %"


def _changes(view: View) -> str:
    times = "once" if view.flips == 1 else f"{view.flips} times"
    return f"the prediction changes {times} in {len(view.diagonal) - 1} steps"


def _row(drawing: Drawing, count: int) -> Sequence[Axes]:
    return drawing.subplots(1, count, squeeze=False)[0]


def _png(drawing: Drawing) -> bytes:
    buffer = io.BytesIO()
    drawing.savefig(buffer, format="png", dpi=150, facecolor=PAPER, bbox_inches="tight")
    return buffer.getvalue()


def _gif(frames: Sequence[Image.Image], milliseconds: int) -> bytes:
    """An endless loop, forwards and back, in one palette so that colours do not flicker."""
    palette = frames[len(frames) // 2].quantize(256, dither=Image.Dither.NONE)
    flat = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    first, *others = [*flat, *flat[-2:0:-1]]
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=others, duration=milliseconds, loop=0, optimize=False)
    return buffer.getvalue()
