"""The tables of a comparison: its networks, what separates them, how photos are prepared for each."""

from train.compare.comparison import Comparison
from train.page.content import Cell, Table
from train.page.numbers import change, spread

# Behind a difference that is more than chance.
MARK = "\u2217"


def networks(found: Comparison) -> Table:
    """Accuracy, consistency and cost of each network."""
    columns = ["Network", "Accuracy", "Top-5"]
    columns += [found.title(name) for name in found.protocols if name != "accuracy"]
    columns += ["Parameters, millions", "File, MB", "ms an image"]
    lines = []
    for row, ahead in zip(found.rows, found.ahead, strict=True):
        cells = [Cell(text=row.name, bold=ahead, spoken="on the Pareto front" if ahead else "")]
        cells += [Cell(text=spread(row.results["accuracy"])), Cell(text=spread(row.results["accuracy"].parts["top5"]))]
        cells += [Cell(text=spread(result)) for name, result in row.results.items() if name != "accuracy"]
        millions = None if row.network.parameters is None else row.network.parameters / 1e6
        for number in (millions, row.megabytes, row.milliseconds):
            cells.append(Cell(text="\u2013", spoken="not known") if number is None else Cell(text=f"{number:.2f}"))
        lines.append(tuple(cells))
    return Table(caption="Networks, in percent", columns=tuple(columns), rows=tuple(lines))


def matrix(found: Comparison, name: str) -> Table:
    """What separates each two networks in one protocol."""
    lines = []
    for i, row in enumerate(found.rows):
        cells = [Cell(text=row.name)]
        for j in range(len(found.rows)):
            cells.append(Cell(text="") if i == j else _difference(found, name, i, j))
        lines.append(tuple(cells))
    title = found.title(name)
    lower = "; less is better" if found.rows[0].results[name].quantity == "mean flip rate" else ""
    columns = (f"{title}{lower}", *(row.name for row in found.rows))
    return Table(caption=f"{title}: row minus column", columns=columns, rows=tuple(lines))


def _difference(found: Comparison, name: str, i: int, j: int) -> Cell:
    pair, beyond = found.minus(name, i, j), found.beyond(name, i, j)
    text = change(pair)
    if not beyond:
        return Cell(text=text)
    return Cell(text=f"{text}\u00a0{MARK}", bold=True, spoken="more than chance")


def preparations(found: Comparison) -> Table:
    """How photos are prepared for each network, and what it was made from."""
    lines = []
    for row in found.rows:
        rule = row.network.preprocessing
        prepared = f"{rule.crop} of {rule.resize}, {rule.interpolation}"
        file = "\u2013" if row.network.file is None else str(row.network.file)
        texts = [row.name, str(row.network.described.get("kind", "")), prepared, f"{row.network.num_classes:,}", file]
        lines.append(tuple(Cell(text=text) for text in texts))
    columns = ("Network", "Kind", "Pixels", "Classes", "File")
    return Table(caption="How photos are prepared", columns=columns, rows=tuple(lines), words=frozenset({0, 1, 2, 4}))
