"""What `aa_flax.antialias` did to a network, layer by layer."""

import dataclasses
from collections.abc import Iterator
from typing import Literal

STRIDE_1 = "stride 1"


@dataclasses.dataclass(frozen=True)
class Change:
    """One layer of the network and what became of it.

    Attributes:
        path: where the layer is, dotted from the model down.
        layer: what it is, such as `Conv 3x3 stride 2, 64 to 128`.
        action: `antialiased` or `skipped`.
        detail: where the blur went, or why the layer was skipped.
        left: the part of the layer's stride that no blur is made for, such as `stride 2 of 4`; empty for none.
        flops: floating point operations of a convolution before and after the change, its blur included: of the whole
            map where `example` told its size, otherwise of one output pixel. None for other layers.
        per_pixel: whether `flops` are those of one output pixel.
    """

    path: str
    layer: str
    action: Literal["antialiased", "skipped"]
    detail: str
    left: str = ""
    flops: tuple[int, int] | None = None
    per_pixel: bool = True

    def __str__(self) -> str:
        cost = f"{_cost(*self.flops)}{' a pixel' if self.per_pixel else ''}" if self.flops else ""
        return "; ".join(filter(None, (self.detail, f"{self.left} stays" if self.left else "", cost)))


@dataclasses.dataclass(frozen=True)
class SurgeryReport:
    """Every convolution, pool and resampling layer of a network; `print` shows it as a table.

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

    @property
    def flops(self) -> tuple[int, int] | None:
        """Floating point operations of the changed convolutions on the example, before and after; None without one."""
        counts = [c.flops for c in self.antialiased if c.flops and not c.per_pixel]
        return (sum(before for before, _ in counts), sum(after for _, after in counts)) if counts else None

    def __iter__(self) -> Iterator[Change]:
        return iter(self.changes)

    def __str__(self) -> str:
        dense = [c for c in self.skipped if c.detail == STRIDE_1]
        rows = [(c.path, c.layer, c.action, str(c)) for c in self.changes if c not in dense]
        widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
        lines = ["  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]]) for row in rows]
        if self.flops:
            lines.append(f"the changed convolutions on the example: {_cost(*self.flops)}")
        rest = len(self.skipped) - len(dense)
        lines.append(f"{len(self.antialiased)} antialiased, {rest} skipped, {len(dense)} with {STRIDE_1}")
        return "\n".join(lines)


def _cost(before: int, after: int) -> str:
    return f"{_short(before)} to {_short(after)} FLOPs (x{after / before:.1f})"


def _short(count: int) -> str:
    for unit, name in ((10**12, " T"), (10**9, " G"), (10**6, " M"), (10**3, " k")):
        if count >= unit:
            return f"{count / unit:.3g}{name}"
    return str(count)
