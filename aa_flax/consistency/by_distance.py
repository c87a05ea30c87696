"""Agreement as a function of how far apart two crops are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from aa_flax.consistency.pairs import centred_window, generators
from aa_flax.consistency.protocol import Arrays, PerImage, ShiftProtocol, require_at_least
from aa_flax.consistency.result import Estimate
from aa_flax.consistency.sweep import View
from aa_flax.consistency.views import Size


@dataclass(frozen=True, kw_only=True)
class Distance(ShiftProtocol):
    """How often two crops agree that are exactly d pixels apart along one axis.

    For every d, the axis is rows or columns with equal chance, and the pair lies anywhere in the
    window of `shifts` x `shifts` offsets with equal chance. The value is the mean over distances;
    the curve is in the parts "1", "2", ... Arrays: "predictions" (images, distances, pairs, 2)
    and "offsets" (images, distances, pairs, 2, 2).

    Args:
        shifts: offsets on each axis, as in `Crop`.
        distances: pixels, each in 1..shifts - 1. By default powers of two and `shifts - 1`.
        pairs: pairs drawn for each image and distance.
        seed: of the random offsets.
    """

    name: ClassVar[str] = "distance"

    shifts: int = 32
    distances: Sequence[int] | None = None
    pairs: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(2, shifts=self.shifts)
        require_at_least(1, pairs=self.pairs)
        require_at_least(0, seed=self.seed)
        farthest = self.shifts - 1
        powers = {2**i for i in range(farthest.bit_length())} | {farthest}
        distances = tuple(sorted(powers)) if self.distances is None else tuple(self.distances)
        if not distances or min(distances) < 1 or max(distances) > farthest or len(set(distances)) < len(distances):
            raise ValueError(f"distances={distances}: must be different numbers from 1 to shifts - 1 = {farthest}")
        object.__setattr__(self, "distances", distances)

    def view(self, side: Size) -> View:
        return centred_window(side, self.size, self.shifts)

    def offsets(self, index: np.ndarray) -> np.ndarray:
        assert self.distances is not None
        far = tuple(self.distances)
        drawn = np.stack([_apart(rng, far, self.pairs, self.shifts) for rng in generators(self.seed, index)])
        return drawn.reshape(len(drawn), -1, 2)

    def arrange(self, seen: PerImage, offsets: np.ndarray) -> PerImage:
        shape = (len(offsets), -1, self.pairs, 2)
        return {
            "predictions": seen["predictions"].reshape(shape),
            "offsets": offsets.reshape(*shape, 2),
        }

    def reduce(self, arrays: Arrays) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        assert self.distances is not None
        first, second = np.moveaxis(arrays["predictions"], -1, 0)
        curve = 100.0 * (first == second).mean(axis=2)
        return curve.mean(axis=1), {str(d): curve[:, i] for i, d in enumerate(self.distances)}


def agreement_by_distance(grids: np.ndarray) -> dict[int, Estimate]:
    """The exact curve that `Distance` estimates, from the predictions of `Exact`.

    Args:
        grids: (images, shifts, shifts), `result.arrays["predictions"]` of `Exact`.

    Returns:
        For each d from 1 to shifts - 1, the share of agreeing pairs d apart along rows or columns.
    """
    grids = np.asarray(grids)
    if grids.ndim != 3 or grids.shape[1] != grids.shape[2]:
        raise ValueError(f"grids must have the shape (images, shifts, shifts); got {grids.shape}")
    curve = {}
    for apart in range(1, grids.shape[1]):
        rows = (grids[:, apart:] == grids[:, :-apart]).mean(axis=(1, 2))
        columns = (grids[:, :, apart:] == grids[:, :, :-apart]).mean(axis=(1, 2))
        curve[apart] = Estimate.over_images(50.0 * (rows + columns))
    return curve


def _apart(rng: np.random.Generator, distances: tuple[int, ...], pairs: int, shifts: int) -> np.ndarray:
    """(distances, pairs, 2, 2): a place for the first crop, and the second d further on."""
    shape = (len(distances), pairs)
    gap = np.broadcast_to(np.array(distances)[:, None], shape)
    by_rows = rng.integers(0, 2, shape)[..., None, None] == 1
    along, across = rng.integers(0, shifts - gap), rng.integers(0, shifts, shape)
    pair = np.stack([np.stack([along, across], -1), np.stack([along + gap, across], -1)], -2)
    return np.where(by_rows, pair, pair[..., ::-1])
