"""What :func:`aa_flax.antialias` did to a network, layer by layer."""

import dataclasses
from collections.abc import Iterator
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Change:
    """One layer of the network and what became of it.

    Attributes:
        path: where the layer is, dotted from the model down.
        layer: what it is, such as ``Conv 3x3 stride 2, 64 to 128``.
        action: ``antialiased`` or ``skipped``.
        detail: where the blur went, or why the layer was skipped.
    """

    path: str
    layer: str
    action: Literal["antialiased", "skipped"]
    detail: str


@dataclasses.dataclass(frozen=True)
class SurgeryReport:
    """Every convolution, pool and resampling layer of a network; ``print`` shows it as a table.

    Attributes:
        changes: one entry for each layer, in the model's order.
    """

    changes: tuple[Change, ...]

    @property
    def antialiased(self) -> tuple[Change, ...]:
        """The layers whose stride is now behind a blur."""
        return tuple(c for c in self.changes if c.action == "antialiased")

    @property
    def skipped(self) -> tuple[Change, ...]:
        """The layers left as they were."""
        return tuple(c for c in self.changes if c.action == "skipped")

    def __iter__(self) -> Iterator[Change]:
        return iter(self.changes)

    def __str__(self) -> str:
        dense = [c for c in self.skipped if c.detail == STRIDE_1]
        rows = [(c.path, c.layer, c.action, c.detail) for c in self.changes if c not in dense]
        widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
        lines = ["  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]]) for row in rows]
        rest = len(self.skipped) - len(dense)
        lines.append(f"{len(self.antialiased)} antialiased, {rest} skipped, {len(dense)} with {STRIDE_1}")
        return "\n".join(lines)


STRIDE_1 = "stride 1"
