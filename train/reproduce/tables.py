"""The tables of a reproduction report: numbers, their marks, and how far measured ones are off."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from aa_flax.consistency import Estimate
from train.page.content import Cell, Table
from train.page.numbers import front, signed, spread
from train.reproduce.rows import AnyRow, Measured, Row, TimmRow, timed

OTHER_WEIGHTS = "\u2020"
NOT_MEASURED = Cell(text="\u2013", spoken="not measured")
NOT_PUBLISHED = Cell(text="\u2013", spoken="not published")
# What to say of a row on the Pareto front, off it, and outside.
_STANDING = {True: "on the Pareto front", False: "off the Pareto front", None: ""}
OTHER_CLASSES = Cell(text="\u2013", spoken="its classes are others than the photos'")


def comparison(caption: str, heading: str, rows: Sequence[tuple[str, Row]]) -> Table:
    """Published numbers of named rows and, where there are any, measured ones, with their marks.

    Args:
        caption: Line above the table.
        heading: What the names in the first column are.
        rows: Name and row; Pareto marks are among these rows.
    """
    published = _marked([row.place for _, row in rows])
    names = [
        Cell(text=name, bold=not top1.italic, italic=top1.italic, spoken=_standing(top1))
        for (name, _), (top1, _) in zip(rows, published, strict=True)
    ]
    columns = (heading, "Accuracy", "Consistency")
    lines = [(name, *cells) for name, cells in zip(names, published, strict=True)]
    if any(row.measured for _, row in rows):
        columns = (heading,)
        for quantity in ("Accuracy", "Consistency"):
            columns += (f"{quantity}, published", f"{quantity}, measured", "Difference")
        lines = [
            (name, top1, *found[:2], consistency, *found[2:])
            for (name, top1, consistency), found in zip(lines, _measured_cells([row for _, row in rows]), strict=True)
        ]
    return Table(caption=caption, columns=columns, rows=tuple(lines))


def timm(caption: str, rows: Sequence[TimmRow]) -> Table:
    """Published accuracies of timm's networks at their sizes; where there are any, measured ones and consistencies.

    Marks are as in `comparison`, but published numbers have no front: their consistency is missing.

    Args:
        caption: Line above the table.
        rows: A network and size each.
    """
    best = {name: max((getattr(row, name) or 0 for row in rows), default=0) for name in ("top1", "top5")}
    told = [[_published(getattr(row, name), best[name]) for name in ("top1", "top5")] for row in rows]
    sizes = [Cell(text=f"{row.preprocessing.crop}\u00a0of\u00a0{row.preprocessing.resize}") for row in rows]
    columns = ("Network", "Pixels", "Top-1", "Top-5")
    names = [Cell(text=row.name) for row in rows]
    lines = [(name, size, *cells) for name, size, cells in zip(names, sizes, told, strict=True)]
    if any(row.measured for row in rows):
        columns = ("Network", "Pixels", "Consistency, measured")
        for quantity in ("Top-1", "Top-5"):
            columns += (f"{quantity}, published", f"{quantity}, measured", "Difference")
        found = _measured_of_timm(rows)
        names = [
            replace(name, bold=ahead is True, italic=ahead is False, spoken=_STANDING[ahead])
            for name, (ahead, _) in zip(names, found, strict=True)
        ]
        lines = [
            (name, size, cells[0], top1, *cells[1:3], top5, *cells[3:])
            for name, size, (top1, top5), (_, cells) in zip(names, sizes, told, found, strict=True)
        ]
    return Table(caption=caption, columns=columns, rows=tuple(lines), words=frozenset({0, 1}))


def gains(caption: str, pairs: Sequence[tuple[Row, Row]]) -> Table:
    """Published numbers of plain and anti-aliased networks, and what anti-aliasing adds."""
    numbers = [
        (p.top1, a.top1, a.top1 - p.top1, p.consistency, a.consistency, a.consistency - p.consistency) for p, a in pairs
    ]
    best = [max(column) for column in zip(*numbers, strict=True)]
    lines = []
    for (plain, _), line in zip(pairs, numbers, strict=True):
        cells = [
            Cell(
                text=signed(number) if column in (2, 5) else f"{number:.2f}",
                bold=number == best[column],
                spoken="best of its column" if number == best[column] else "",
            )
            for column, number in enumerate(line)
        ]
        lines.append((Cell(text=plain.model), *cells))
    columns = ("Network", "Accuracy, plain", "Accuracy, anti-aliased", "Gain")
    columns += ("Consistency, plain", "Consistency, anti-aliased", "Gain")
    return Table(caption=caption, columns=columns, rows=tuple(lines))


def measured_networks(rows: Iterable[AnyRow]) -> Table | None:
    """Every measured row with its standard errors and where its weights came from."""
    lines = []
    for row in rows:
        found = row.measured
        if found:
            numbers = [spread(e) if e else "" for e in (found.top1, found.top5, found.consistency)]
            cells = [Cell(text=text) if text else OTHER_CLASSES for text in numbers]
            origin = found.weights if found.published else f"{found.weights}\u00a0{OTHER_WEIGHTS}"
            crop = f" at {row.preprocessing.crop}" if isinstance(row, TimmRow) else ""
            lines.append((Cell(text=row.spec), Cell(text=row.training + crop), *cells, Cell(text=origin)))
    if not lines:
        return None
    columns = ("Network", "Published as", "Top-1", "Top-5", "Consistency", "Weights")
    return Table(caption="Measured networks", columns=columns, rows=tuple(lines), words=frozenset({0, 1, 5}))


def costs(rows: Iterable[Row]) -> Table:
    """Time of a forward pass beside the plain network's, and what the time bought."""
    measured = timed(rows)
    plain = {row.model: (found, time) for row, found, time in measured if row.filter_size is None}
    lines = []
    for row, found, time in measured:
        texts = [row.spec, row.training, f"{time:.2f}", "", "", ""]
        if row.filter_size is not None and row.model in plain:
            base, base_time = plain[row.model]
            texts[3] = f"{time / base_time:.2f}\u00d7"
            texts[4] = signed(found.accuracy.value - base.accuracy.value)
            texts[5] = signed(found.consistency.value - base.consistency.value)
        lines.append(tuple(Cell(text=text) for text in texts))
    columns = ("Network", "Published as", "ms an image", "Time, plain = 1", "Accuracy gained", "Consistency gained")
    return Table(caption="Time of a forward pass", columns=columns, rows=tuple(lines), words=frozenset({0, 1}))


def verdict(measured: Estimate, published: float) -> tuple[str, str]:
    """The difference from the published number, and what to say of it aloud."""
    difference = measured.value - published
    if math.isnan(measured.stderr):
        return f"{signed(difference)} ?", "one photo has no standard error"
    if abs(difference) <= measured.stderr:
        return f"{signed(difference)} within", "within one standard error"
    if not measured.stderr:
        return f"{signed(difference)} beyond", "the standard error is zero"
    ratio = abs(difference) / measured.stderr
    return f"{signed(difference)} beyond ({ratio:.1f}\u00d7)", f"{ratio:.1f} standard errors away"


def _marked(places: Sequence[tuple[float, float]]) -> list[tuple[Cell, Cell]]:
    """Accuracy and consistency: italic off the front, bold where best of the column."""
    best = tuple(max(column) for column in zip(*places, strict=True))
    rows = []
    for place, ahead in zip(places, front(places), strict=True):
        pair = [
            Cell(
                text=f"{number:.2f}",
                bold=number == highest,
                italic=not ahead,
                spoken="best of its column" if number == highest else "",
            )
            for number, highest in zip(place, best, strict=True)
        ]
        rows.append((pair[0], pair[1]))
    return rows


def _measured_cells(rows: Sequence[Row]) -> list[tuple[Cell, Cell, Cell, Cell]]:
    """Measured accuracy, its difference, measured consistency, its difference, for each row."""
    marks = iter(_marked([row.measured.place for row in rows if row.measured]))
    lines = []
    for row in rows:
        measured = row.measured
        if measured is None:
            lines.append((NOT_MEASURED,) * 4)
            continue
        top1, consistency = next(marks)
        lines.append(
            (
                replace(top1, text=_measured_text(measured, measured.accuracy)),
                _difference(measured.accuracy, row.top1),
                replace(consistency, text=_measured_text(measured, measured.consistency)),
                _difference(measured.consistency, row.consistency),
            )
        )
    return lines


def _published(number: float | None, best: float) -> Cell:
    if number is None:
        return NOT_PUBLISHED
    return Cell(text=f"{number:.2f}", bold=number == best, spoken="best of its column" if number == best else "")


def _measured_of_timm(rows: Sequence[TimmRow]) -> list[tuple[bool | None, tuple[Cell, ...]]]:
    """Whether a row is on the front (None where it has no place), and its cells: consistency, the two accuracies,
    each with its difference."""
    placed = [row for row in rows if row.measured and row.measured.top1]
    marks = iter(_marked([row.measured.place for row in placed if row.measured])) if placed else iter(())
    best = max((row.measured.top5.value for row in placed if row.measured and row.measured.top5), default=0.0)
    lines: list[tuple[bool | None, tuple[Cell, ...]]] = []
    for row in rows:
        found = row.measured
        if found is None:
            lines.append((None, (NOT_MEASURED,) * 5))
            continue
        consistency = Cell(text=_measured_text(found, found.consistency))
        if found.top1 is None or found.top5 is None:
            lines.append((None, (consistency, *(OTHER_CLASSES,) * 4)))
            continue
        top1, mark = next(marks)
        top5 = replace(_published(found.top5.value, best), italic=top1.italic)
        cells = (
            replace(mark, text=consistency.text),
            replace(top1, text=_measured_text(found, found.top1)),
            NOT_PUBLISHED if row.top1 is None else _difference(found.top1, row.top1),
            replace(top5, text=_measured_text(found, found.top5)),
            NOT_PUBLISHED if row.top5 is None else _difference(found.top5, row.top5),
        )
        lines.append((not top1.italic, cells))
    return lines


def _measured_text(measured: Measured, estimate: Estimate) -> str:
    return spread(estimate) + ("" if measured.published else f" {OTHER_WEIGHTS}")


def _difference(measured: Estimate, published: float) -> Cell:
    text, spoken = verdict(measured, published)
    return Cell(text=text, spoken=spoken)


def _standing(cell: Cell) -> str:
    return _STANDING[not cell.italic]
