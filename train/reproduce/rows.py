"""The rows of the published tables, the files that belong to them, and what was measured of them."""

import difflib
import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from aa_flax.consistency import Estimate
from aa_flax.weights import catalog
from aa_flax.weights.catalog import Published
from aa_flax.weights.config import Preprocessing
from train.errors import CommandError

IMAGENET_CLASSES = 1000
FILTER_NAMES = {None: "Baseline", 2: "Rect-2", 3: "Tri-3", 4: "Tri-4", 5: "Bin-5"}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured of one network.

    Attributes:
        identity: Network, hash of the weights, fingerprint of the photos, settings of the protocols:
            equal ones need no second measurement.
        top1: Accuracy on every photo once, percent; None of networks with other classes than the photos have.
        top5: The same with five guesses.
        consistency: Crop consistency by the `zhang2019` protocol, percent.
        images: Photos that count.
        unreadable: Photos that could not be read.
        weights: Where the weights came from, for people.
        published: Whether they are the published file; otherwise a difference from the published
            number says nothing about reproduction.
        milliseconds: Median time of a forward pass, per image; None where none was taken here.
        timing: What it was timed on and how; times of another machine are taken anew.
    """

    identity: dict[str, Any]
    top1: Estimate | None
    top5: Estimate | None
    consistency: Estimate
    images: int
    unreadable: int
    weights: str
    published: bool
    milliseconds: float | None
    timing: dict[str, Any]

    @property
    def accuracy(self) -> Estimate:
        """`top1` of a network that has the photos' classes."""
        assert self.top1 is not None
        return self.top1

    @property
    def place(self) -> tuple[float, float]:
        """Accuracy and consistency."""
        return self.accuracy.value, self.consistency.value


@dataclass(frozen=True, kw_only=True)
class Row(Published):
    """A published row.

    Attributes:
        top1: Published accuracy, percent.
        consistency: Published consistency, percent.
        measured: What was measured of it here; None where nothing was.
    """

    top1: float
    consistency: float
    measured: Measured | None = None

    @property
    def place(self) -> tuple[float, float]:
        """Published accuracy and consistency."""
        return self.top1, self.consistency

    @property
    def title(self) -> str:
        """What a person calls it."""
        return f"{self.spec} ({self.training})"

    @property
    def stem(self) -> str:
        """What tells it apart; file name of what was measured of it, and of a directory of its converted weights."""
        return f"{self.spec}_{self.training}"

    @property
    def filter_name(self) -> str:
        """What the reference's tables call the filter."""
        return FILTER_NAMES.get(self.filter_size, f"Bin-{self.filter_size}")


@dataclass(frozen=True, kw_only=True)
class TimmRow(Published):
    """A network of timm at one of its sizes, to which `preprocessing`, `top1` and `top5` belong.

    Attributes:
        measured: What was measured of it here; None where nothing was.
    """

    measured: Measured | None = None

    @property
    def title(self) -> str:
        """What a person calls it."""
        return f"{self.name} at {self.preprocessing.crop}"

    @property
    def stem(self) -> str:
        """File name of what was measured of it."""
        return f"{self.name}_{self.preprocessing.crop}"

    @property
    def knows_classes(self) -> bool:
        """Whether its classes are those of the photos, so that it has an accuracy."""
        return self.num_classes == IMAGENET_CLASSES

    @property
    def frame(self) -> Preprocessing:
        """How photos are prepared for shifted crops: in a frame as much larger than the crop as the reference's.

        That has 256 pixels around crops of 224. What a network's own preparation leaves around its crop is another
        share for each, and often nothing.
        """
        crop = self.preprocessing.crop
        return replace(self.preprocessing, resize=round(crop * 256 / 224))


AnyRow = Row | TimmRow


def published_rows() -> list[Row]:
    """The networks of `aa_flax.weights.catalog` whose consistency is published; ResNet-18 comes before ResNet-101."""
    rows = [Row(**vars(entry)) for entry in catalog.published() if entry.consistency is not None]
    return sorted(rows, key=lambda row: _natural(row.model))


def timm_rows() -> list[TimmRow]:
    """The networks of timm in `aa_flax.weights.catalog`, each at its one or two sizes, the smaller first."""
    rows = []
    for entry in catalog.published():
        if entry.repository is None:
            continue
        fields: dict[str, Any] = vars(entry) | {"test_preprocessing": None, "test_top1": None, "test_top5": None}
        rows.append(TimmRow(**fields))
        if entry.test_preprocessing is not None:
            larger = {"preprocessing": entry.test_preprocessing, "top1": entry.test_top1, "top5": entry.test_top5}
            rows.append(TimmRow(**fields | larger))
    return sorted(rows, key=lambda row: _natural(row.name))


def all_rows() -> list[AnyRow]:
    """The rows of all tables."""
    return [*published_rows(), *timm_rows()]


def choose(rows: Sequence[AnyRow], patterns: Sequence[str]) -> list[AnyRow]:
    """The rows whose network or spec matches one of the patterns; all without patterns.

    Raises:
        CommandError: A pattern that nothing matches.
    """

    def matches(row: AnyRow, pattern: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for name in (row.model, row.spec, row.name, row.title))

    for pattern in patterns:
        if not any(matches(row, pattern) for row in rows):
            models = list(dict.fromkeys(row.model for row in rows))
            close = difflib.get_close_matches(pattern, models) or models
            raise CommandError(f"--models {pattern!r} is none of the published networks; try {', '.join(close)}")
    return [row for row in rows if not patterns or any(matches(row, pattern) for pattern in patterns)]


def timed(rows: Iterable[Row]) -> list[tuple[Row, Measured, float]]:
    """The rows whose forward pass was timed here, with what was measured and the milliseconds."""
    found = [(row, row.measured) for row in rows if row.measured]
    return [(row, m, m.milliseconds) for row, m in found if m.milliseconds is not None]


def _natural(name: str) -> list[tuple[str, int]]:
    parts = re.findall(r"(\D*)(\d*)", name)
    return [(letters, int(digits or 0)) for letters, digits in parts]
