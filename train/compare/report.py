"""What a comparison has found, as a page and as JSON."""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from aa_flax.consistency import Difference, Result, difference, holm
from train.compare import figures
from train.compare.figures import Point
from train.data.balance import is_unbalanced
from train.environment import environment
from train.measurable.network import Measurable
from train.page.content import Block, Cell, Page, Section, Table, code, plain
from train.page.numbers import front, signed, spread

# Differences are called larger than chance at this risk that any of them is not.
RISK = 0.05
MARK = "\u2217"
SMALL_SET = 5000


@dataclass(frozen=True, eq=False)
class Row:
    """One network of a comparison.

    Attributes:
        network: what was measured.
        results: by protocol.
        milliseconds: of a forward pass, per image.
    """

    network: Measurable
    results: dict[str, Result]
    milliseconds: float

    @property
    def name(self) -> str:
        """What people call it."""
        return self.network.model

    @property
    def megabytes(self) -> float | None:
        """Of the file of its weights."""
        return None if self.network.file is None else self.network.file.stat().st_size / 1e6


@dataclass(frozen=True, eq=False)
class Comparison:
    """A finished comparison.

    Attributes:
        rows: the networks, in the order in which they were named.
        data: directory of the photos.
        options: of the command, as plain values.
        device: what ran the networks.
        unreadable: why photos could not be measured, by name.
    """

    rows: Sequence[Row]
    data: str
    options: dict[str, Any]
    device: str
    unreadable: dict[str, str]

    @property
    def protocols(self) -> list[str]:
        """Names of what was measured, accuracy first."""
        return list(self.rows[0].results)

    @property
    def consistency(self) -> str | None:
        """The protocol that pictures and the Pareto front are of: the first that is a consistency."""
        named = (name for name, each in self.rows[0].results.items() if each.quantity == "consistency")
        return next(named, None)

    @property
    def images(self) -> int:
        """How many photos were measured."""
        return self.rows[0].results["accuracy"].images

    @cached_property
    def differences(self) -> dict[str, dict[tuple[int, int], Difference]]:
        """By protocol and numbers of two networks, the first less than the second: first minus second."""
        pairs = list(itertools.combinations(range(len(self.rows)), 2))
        return {
            name: {
                (a, b): difference(self.rows[a].results[name].per_image, self.rows[b].results[name].per_image)
                for a, b in pairs
            }
            for name in self.protocols
        }

    @cached_property
    def adjusted(self) -> dict[tuple[str, int, int], float]:
        """P-values adjusted for the number of all tests."""
        keys = [(name, a, b) for name, found in self.differences.items() for a, b in found]
        values = holm([self.differences[name][a, b].p for name, a, b in keys])
        return dict(zip(keys, values.tolist(), strict=True))

    @property
    def places(self) -> list[tuple[float, float]]:
        """Accuracy and consistency of each network."""
        name = self.consistency
        assert name is not None
        return [(row.results["accuracy"].value, row.results[name].value) for row in self.rows]

    @property
    def ahead(self) -> list[bool]:
        """Which networks no other one beats in both; without a consistency, in accuracy."""
        if self.consistency is None:
            return front([(row.results["accuracy"].value, 0.0) for row in self.rows])
        return front(self.places)


def title_of(result: Result) -> str:
    """What a table calls a measurement."""
    if result.protocol == "accuracy":
        return "Accuracy"
    return f"{result.quantity[0].upper()}{result.quantity[1:]}, {result.protocol}"


def build(found: Comparison) -> Page:
    """The report as a page."""
    tests = len(found.adjusted)
    sections = [
        Section(title="Networks", blocks=(_networks(found), *_scatter(found))),
        Section(title="Differences", blocks=_differences(found, tests)),
        Section(title="Cost", blocks=_cost(found)),
        Section(title="What was measured", blocks=_conditions(found)),
    ]
    return Page(
        title=f"{len(found.rows)} networks on {found.images:,} photos", lead=_lead(found), sections=tuple(sections)
    )


def _lead(found: Comparison) -> tuple[str, ...]:
    lead = [
        "Every network was shown the same photos under the same shifts. Numbers are percent ± their standard error "
        "over photos; **bold** names are on the Pareto front, where no other network is at least as good in accuracy "
        "and consistency and better in one."
    ]
    if found.images < SMALL_SET:
        lead.append(
            f"{found.images:,} photos are few: networks whose standard errors overlap may still differ, and others may "
            "not. The differences below are those of the same photos, and say which are more than chance."
        )
    labels = found.rows[0].results["accuracy"].arrays["labels"]
    if is_unbalanced(np.unique(labels, return_counts=True)[1].tolist()):
        lead.append("One class has far more photos than the others: accuracy is mostly its accuracy.")
    return tuple(lead)


def _networks(found: Comparison) -> Table:
    columns = ["Network", "Accuracy", "Top-5"]
    columns += [title_of(result) for name, result in found.rows[0].results.items() if name != "accuracy"]
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


def _points(found: Comparison) -> list[Point]:
    name = found.consistency
    assert name is not None
    return [
        Point(
            name=row.name,
            kind=_kind(row.network),
            accuracy=row.results["accuracy"],
            consistency=row.results[name],
            milliseconds=row.milliseconds,
            ahead=ahead,
        )
        for row, ahead in zip(found.rows, found.ahead, strict=True)
    ]


def _kind(network: Measurable) -> str:
    if network.described.get("kind") != "aa_flax":
        return "other"
    return "plain" if str(network.described["spec"]).endswith("_plain") else "anti-aliased"


def _scatter(found: Comparison) -> tuple[Block, ...]:
    if found.consistency is None:
        return ()
    caption = "Up and to the right is better. Lines are standard errors; hollow points are off the Pareto front."
    return (figures.scatter(_points(found), title_of(found.rows[0].results[found.consistency]), caption=caption),)


def _differences(found: Comparison, tests: int) -> tuple[Block, ...]:
    explained = (
        "Row minus column, in points, ± the standard error of the differences, photo by photo. "
        f"**{MARK}** marks what is more than chance: the sign-flip test on the pairs of answers (for accuracy it is "
        "McNemar's exact test: if neither network were better, each photo's two results could as well be exchanged), "
        f"adjusted by Holm's method for all {tests} tests of this page together, at {RISK:.0%}."
    )
    blocks: list[Block] = [explained]
    blocks += [_matrix(found, name) for name in found.protocols]
    if found.consistency is not None and len(found.rows) > 1:
        first = found.rows[0].name
        caption = f"Differences from {plain(first)}, with 95% intervals; filled points are more than chance."
        series = {
            title_of(found.rows[0].results[name]): [
                (row.name, _against_first(found, name, number), found.adjusted[name, 0, number] < RISK)
                for number, row in enumerate(found.rows)
                if number
            ]
            for name in ("accuracy", found.consistency)
        }
        blocks.append(figures.intervals(series, first, caption=caption))
    return tuple(blocks)


def _against_first(found: Comparison, name: str, number: int) -> Difference:
    return _turned(found.differences[name][0, number])


def _turned(pair: Difference) -> Difference:
    return dataclasses.replace(pair, value=-pair.value)


def _matrix(found: Comparison, name: str) -> Table:
    result = found.rows[0].results[name]
    lines = []
    for i, row in enumerate(found.rows):
        cells = [Cell(text=row.name)]
        for j in range(len(found.rows)):
            if i == j:
                cells.append(Cell(text=""))
                continue
            a, b = min(i, j), max(i, j)
            pair = found.differences[name][a, b]
            beyond = found.adjusted[name, a, b] < RISK
            text = _with_error(pair if i < j else _turned(pair)) + (f"\u00a0{MARK}" if beyond else "")
            cells.append(Cell(text=text, bold=beyond, spoken="more than chance" if beyond else ""))
        lines.append(tuple(cells))
    lower = "; less is better" if result.quantity == "mean flip rate" else ""
    columns = (f"{title_of(result)}{lower}", *(row.name for row in found.rows))
    return Table(caption=f"{title_of(result)}: row minus column", columns=columns, rows=tuple(lines))


def _with_error(pair: Difference) -> str:
    return signed(pair.value) if np.isnan(pair.stderr) else f"{signed(pair.value)} ± {pair.stderr:.2f}"


def _cost(found: Comparison) -> tuple[Block, ...]:
    batch, repeats = found.options["timing_batch"], found.options["timing_repeats"]
    said = (
        f"The median of {repeats} forward passes over {batch} images on {plain(found.device)}, the networks taking "
        "turns. Each is run by what it came with: JAX compiles networks of this package, onnxruntime runs ONNX files, "
        "PyTorch its own. So times of different kinds compare their makers too."
    )
    if found.consistency is None:
        return (said,)
    caption = "Up and to the left is better."
    return (said, figures.cost(_points(found), title_of(found.rows[0].results[found.consistency]), caption=caption))


def _conditions(found: Comparison) -> tuple[Block, ...]:
    lines = []
    for row in found.rows:
        rule = row.network.preprocessing
        prepared = f"{rule.crop} of {rule.resize}, {rule.interpolation}"
        file = "\u2013" if row.network.file is None else str(row.network.file)
        texts = [row.name, str(row.network.described.get("kind", "")), prepared, f"{row.network.num_classes:,}", file]
        lines.append(tuple(Cell(text=text) for text in texts))
    columns = ("Network", "Kind", "Pixels", "Classes", "File")
    blocks: list[Block] = [
        f"{found.images:,} photos of {code(found.data)}, seed {found.options['seed']}; `compare.json` has the answers "
        "for each photo and what repeats the run.",
        Table(caption="How photos are prepared", columns=columns, rows=tuple(lines), words=frozenset({0, 1, 2, 4})),
    ]
    if found.unreadable:
        names = "; ".join(f"{name} ({reason})" for name, reason in list(found.unreadable.items())[:10])
        more = f" and {len(found.unreadable) - 10} more" if len(found.unreadable) > 10 else ""
        blocks.append(f"Unreadable, not counted ({len(found.unreadable)}): {plain(names)}{more}.")
    return tuple(blocks)


def as_json(found: Comparison) -> dict[str, Any]:
    """All figures, the answers for each photo, and what repeats the run."""
    networks = []
    for row, ahead in zip(found.rows, found.ahead, strict=True):
        networks.append(
            {
                "model": row.name,
                "protocols": {name: result.as_dict() for name, result in row.results.items()},
                "parameters": row.network.parameters,
                "milliseconds": row.milliseconds,
                "on_the_front": ahead,
                "per_image": {
                    name: {"percent": result.per_image.tolist(), "predictions": _few(result.arrays["predictions"])}
                    for name, result in row.results.items()
                },
                "network": row.network.as_dict(),
            }
        )
    names = [row.name for row in found.rows]
    return {
        "images": found.images,
        "networks": networks,
        "differences": [
            {
                "protocol": name,
                "first": names[a],
                "second": names[b],
                **pair.as_dict(),
                "p": pair.p,
                "p_adjusted": found.adjusted[name, a, b],
            }
            for name, pairs in found.differences.items()
            for (a, b), pair in pairs.items()
        ],
        "unreadable": found.unreadable,
        "repeat": {"options": found.options, **environment()},
    }


def _few(predictions: np.ndarray) -> list[Any] | None:
    """Predictions where they are few; those of every shift would be more than anybody reads."""
    return predictions.tolist() if predictions[:1].size <= 64 else None
