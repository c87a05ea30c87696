"""Protocols whose shifts are fixed: the centre crop, every crop, the diagonal, all within m pixels."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from aa_flax.consistency.pairs import centred_window
from aa_flax.consistency.protocol import Arrays, PerImage, ShiftProtocol, require_at_least, require_room
from aa_flax.consistency.readouts import read_probabilities, read_ranks
from aa_flax.consistency.sweep import Readout, View
from aa_flax.consistency.views import FourierShifted, Size, Window, centre


@dataclass(frozen=True, kw_only=True)
class Accuracy(ShiftProtocol):
    """Top-1 accuracy of the centre crop; the part "top5" is the top-5 accuracy.

    Equal logits are ranked by class number, as arg-max does. A network of up to five classes has
    a top-5 accuracy of 100. Arrays: "predictions" and "ranks" (how many classes come before the
    label), each (images,).
    """

    name: ClassVar[str] = "accuracy"
    quantity: ClassVar[str] = "accuracy"
    needs_labels: ClassVar[bool] = True
    readout: ClassVar[Readout] = staticmethod(read_ranks)

    def view(self, side: Size) -> View:
        require_room(side, self.size, 0, "the centre crop")
        return centre_window(side, self.size, 0)

    def offsets(self, index: np.ndarray) -> np.ndarray:
        return np.zeros((1, 1, 2), np.int32)

    def arrange(self, seen: PerImage, offsets: np.ndarray) -> PerImage:
        return {name: array[:, 0] for name, array in seen.items()}

    def reduce(self, arrays: Arrays) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        ranks = arrays["ranks"]
        return 100.0 * (ranks == 0), {"top5": 100.0 * (ranks < 5)}


@dataclass(frozen=True, kw_only=True)
class Exact(ShiftProtocol):
    """Crop consistency without sampling: the mean over all pairs of the `shifts` x `shifts` crops.

    With n_c crops predicted as class c, an image has `sum_c (n_c / shifts^2)^2`. This is what
    `Zhang2019` and `Crop` estimate. With labels, the parts "consistent_correct" and
    "consistent_wrong". Array: "predictions", (images, shifts, shifts), rows first.

    Args:
        shifts: offsets on each axis; 32 means 1024 crops of each image.
    """

    name: ClassVar[str] = "exact"

    shifts: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, shifts=self.shifts)

    def view(self, side: Size) -> View:
        return centred_window(side, self.size, self.shifts)

    def offsets(self, index: np.ndarray) -> np.ndarray:
        return _grid(self.shifts)

    def arrange(self, seen: PerImage, offsets: np.ndarray) -> PerImage:
        grid = seen["predictions"].reshape(-1, self.shifts, self.shifts)
        return {"predictions": grid}

    def reduce(self, arrays: Arrays) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        predictions = arrays["predictions"].reshape(len(arrays["index"]), -1)
        crops = predictions.shape[1]
        share = np.array([((np.unique(row, return_counts=True)[1] / crops) ** 2).sum() for row in predictions])
        if "labels" not in arrays:
            return 100.0 * share, {}
        correct = (predictions == arrays["labels"][:, None]).mean(axis=1) ** 2
        return 100.0 * share, {"consistent_correct": 100.0 * correct, "consistent_wrong": 100.0 * (share - correct)}


@dataclass(frozen=True, kw_only=True)
class Diagonal(ShiftProtocol):
    """The network along the diagonal: crops at (0, 0), (1, 1), ..., (steps, steps).

    The value is the mean flip rate: how many of the `steps` neighbouring crops differ in their
    prediction (lower is better). The part "accuracy" is the mean over all offsets. Arrays, each
    (images, steps + 1): "predictions", "correct", "probability" (of the label), "best_other" (the
    largest probability of another class; 0 where there is none).

    Args:
        steps: the last offset. The images need `crop + steps` pixels a side.
    """

    name: ClassVar[str] = "diagonal"
    quantity: ClassVar[str] = "mean flip rate"
    needs_labels: ClassVar[bool] = True
    readout: ClassVar[Readout] = staticmethod(read_probabilities)

    steps: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, steps=self.steps)

    def view(self, side: Size) -> View:
        require_room(side, self.size, self.steps, f"steps={self.steps}")
        return centred_window(side, self.size, self.steps)

    def offsets(self, index: np.ndarray) -> np.ndarray:
        along = np.arange(self.steps + 1, dtype=np.int32)
        return np.stack([along, along], axis=1)[None]

    def reduce(self, arrays: Arrays) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        predictions = arrays["predictions"]
        flips = predictions[:, 1:] != predictions[:, :-1]
        return 100.0 * flips.mean(axis=1), {"accuracy": 100.0 * arrays["correct"].mean(axis=1)}


@dataclass(frozen=True, kw_only=True)
class WorstCase(ShiftProtocol):
    """Accuracy against the worst shift: images correct at every shift of up to `max_shift` pixels.

    All (2 max_shift + 1)^2 crops around the centre crop are tried. Parts: "within_0" (plain
    accuracy), ..., "within_<max_shift>" (the value), and "unchanged": images whose prediction is
    the same under every shift, right or wrong. Array: "predictions", (images, side, side) with
    side = 2 max_shift + 1.

    Args:
        max_shift: pixels on each axis. The images need that margin on every side of the centre crop.
    """

    name: ClassVar[str] = "worst"
    quantity: ClassVar[str] = "accuracy"
    needs_labels: ClassVar[bool] = True

    max_shift: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(0, max_shift=self.max_shift)

    def view(self, side: Size) -> View:
        require_room(side, self.size, 2 * self.max_shift, f"max_shift={self.max_shift}")
        return centre_window(side, self.size, self.max_shift)

    def offsets(self, index: np.ndarray) -> np.ndarray:
        return _grid(2 * self.max_shift + 1)

    def arrange(self, seen: PerImage, offsets: np.ndarray) -> PerImage:
        side = 2 * self.max_shift + 1
        return {"predictions": seen["predictions"].reshape(-1, side, side)}

    def reduce(self, arrays: Arrays) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        parts = _within(arrays["predictions"], arrays["labels"])
        named = {f"within_{steps}": percent for steps, percent in enumerate(parts)}
        return parts[-1], {**named, "unchanged": _unchanged(arrays["predictions"])}


@dataclass(frozen=True, kw_only=True)
class FractionalWorst(ShiftProtocol):
    """Accuracy against the worst shift by fractions of a pixel: images correct at every shift of a grid.

    The grid has the multiples of `step` up to `max_shift` pixels on each axis; shifts are made in
    the Fourier domain as in `Fractional`. Parts: "unshifted" (plain accuracy) and "unchanged":
    images whose prediction is the same under every shift, right or wrong. Array: "predictions",
    (images, side, side) with side = 2 max_shift / step + 1.

    Args:
        max_shift: pixels on each axis, a multiple of `step`.
        step: pixels between neighbouring shifts.
        periodic: shift the crop itself, around its own border, as in `Fractional`.
    """

    name: ClassVar[str] = "fractional_worst"
    quantity: ClassVar[str] = "accuracy"
    needs_labels: ClassVar[bool] = True

    max_shift: float = 1.0
    step: float = 0.5
    periodic: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.step < math.inf:
            raise ValueError(f"step={self.step}: must be positive and finite")
        steps = self.max_shift / self.step
        if not (0 <= steps < math.inf and math.isclose(steps, round(steps), abs_tol=1e-6)):
            raise ValueError(f"max_shift={self.max_shift}: must be a multiple of step={self.step}, 0 or more")

    @property
    def _steps(self) -> int:
        return round(self.max_shift / self.step)

    def view(self, side: Size) -> View:
        require_room(side, self.size, 0, "fractional shifts")
        return FourierShifted(self.size, self.periodic)

    def offsets(self, index: np.ndarray) -> np.ndarray:
        return (_grid(2 * self._steps + 1) - self._steps) * float(self.step)

    def arrange(self, seen: PerImage, offsets: np.ndarray) -> PerImage:
        side = 2 * self._steps + 1
        return {"predictions": seen["predictions"].reshape(-1, side, side)}

    def reduce(self, arrays: Arrays) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        parts = _within(arrays["predictions"], arrays["labels"])
        return parts[-1], {"unshifted": parts[0], "unchanged": _unchanged(arrays["predictions"])}


def _within(predictions: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    """Whether an image is right under all shifts of up to so many steps around the centre, in percent."""
    right, reach = predictions == labels[:, None, None], predictions.shape[1] // 2
    near = [slice(reach - steps, reach + steps + 1) for steps in range(reach + 1)]
    return [100.0 * right[:, part, part].all(axis=(1, 2)) for part in near]


def _unchanged(predictions: np.ndarray) -> np.ndarray:
    return 100.0 * (predictions == predictions[:, :1, :1]).all(axis=(1, 2))


def _grid(side: int) -> np.ndarray:
    rows, columns = np.meshgrid(np.arange(side, dtype=np.int32), np.arange(side, dtype=np.int32), indexing="ij")
    return np.stack([rows, columns], axis=-1).reshape(1, -1, 2)


def centre_window(side: Size, size: Size, reach: int) -> Window:
    """The centre crop at offset `reach`, so that offsets 0 to 2 reach move it by up to `reach`."""
    top, left = (centre(length, own) - reach for length, own in zip(side, size, strict=True))
    return Window(size, (top, left))
