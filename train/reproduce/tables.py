"""The tables of a reproduction report: numbers, their marks, and how far measured ones are off."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from aa_flax.consistency import Estimate
from train.page.content import Cell, Table
from train.page.numbers import front, signed, spread
from train.reproduce.rows import Measured, Row, timed

OTHER_WEIGHTS = "\u2020"
NOT_MEASURED = Cell(text="\u2013", spoken="not measured")


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


def measured_networks(rows: Iterable[Row]) -> Table | None:
    """Every measured row with its standard errors and where its weights came from."""
    lines = []
    for row in rows:
        found = row.measured
        if found:
            numbers = [spread(e) for e in (found.top1, found.top5, found.consistency)]
            origin = found.weights if found.published else f"{found.weights}\u00a0{OTHER_WEIGHTS}"
            texts = [row.spec, row.training, *numbers, origin]
            lines.append(tuple(Cell(text=text) for text in texts))
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
            texts[4] = signed(found.top1.value - base.top1.value)
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
                replace(top1, text=_measured_text(measured, measured.top1)),
                _difference(measured.top1, row.top1),
                replace(consistency, text=_measured_text(measured, measured.consistency)),
                _difference(measured.consistency, row.consistency),
            )
        )
    return lines


def _measured_text(measured: Measured, estimate: Estimate) -> str:
    return spread(estimate) + ("" if measured.published else f" {OTHER_WEIGHTS}")


def _difference(measured: Estimate, published: float) -> Cell:
    text, spoken = verdict(measured, published)
    return Cell(text=text, spoken=spoken)


def _standing(cell: Cell) -> str:
    return "off the Pareto front" if cell.italic else "on the Pareto front"
