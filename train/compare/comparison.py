"""What a comparison has found: its networks, what separates each two of them, and which of that is more than chance."""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from aa_flax.consistency import Difference, Result, difference, holm
from train.measurable.network import Measurable
from train.page.numbers import front

# Differences are called larger than chance at this risk that any of them is not.
RISK = 0.05


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

    def minus(self, name: str, i: int, j: int) -> Difference:
        """Network i minus network j in one protocol."""
        if i < j:
            return self.differences[name][i, j]
        pair = self.differences[name][j, i]
        return dataclasses.replace(pair, value=-pair.value)

    def beyond(self, name: str, i: int, j: int) -> bool:
        """Whether what separates two networks is more than chance."""
        return self.adjusted[name, min(i, j), max(i, j)] < RISK

    @property
    def ahead(self) -> list[bool]:
        """Which networks no other one beats in both; without a consistency, in accuracy."""
        name = self.consistency
        return front([(row.results["accuracy"].value, row.results[name].value if name else 0.0) for row in self.rows])

    def title(self, name: str) -> str:
        """What tables and pictures call a protocol."""
        result = self.rows[0].results[name]
        if result.protocol == "accuracy":
            return "Accuracy"
        return f"{result.quantity[0].upper()}{result.quantity[1:]}, {result.protocol}"
