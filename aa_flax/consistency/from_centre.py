"""Protocols that compare shifted views with the unshifted one: what they have in common, and that for answers."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np

from aa_flax.consistency.fixed import centre_window
from aa_flax.consistency.pairs import generators
from aa_flax.consistency.protocol import Arrays, Look, PerImage, ShiftProtocol, require_at_least, require_room
from aa_flax.consistency.readouts import read_predictions, read_probabilities
from aa_flax.consistency.sweep import Predictor, View
from aa_flax.consistency.views import FourierShifted, Rolled, Size

Shift = Literal["crop", "circular", "fractional"]


@dataclass(frozen=True, kw_only=True)
class FromCentre(ShiftProtocol):
    """Shifted views of an image beside the unshifted one, which comes first.

    Args:
        shift: `crop` cuts another crop out of the image, `circular` rolls the centre crop, both by
            whole pixels from {-max_shift, ..., max_shift}; `fractional` moves the centre crop around
            its own border by any amount from [-max_shift, max_shift).
        max_shift: pixels on each axis.
        draws: shifts drawn for each image.
        seed: of the random shifts.
    """

    shift: Shift = "crop"
    max_shift: float = 4
    draws: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, draws=self.draws)
        require_at_least(0, seed=self.seed)
        if self.shift not in get_args(Shift):
            raise ValueError(f"shift={self.shift!r}: must be one of {', '.join(get_args(Shift))}")
        if not 0 < self.max_shift < np.inf:
            raise ValueError(f"max_shift={self.max_shift}: must be positive and finite")
        if self.shift != "fractional" and self.max_shift != round(self.max_shift):
            raise ValueError(f"max_shift={self.max_shift}: shift={self.shift!r} moves by whole pixels")

    def view(self, side: Size) -> View:
        if self.shift == "crop":
            reach = round(self.max_shift)
            require_room(side, self.size, 2 * reach, f"max_shift={reach}")
            return centre_window(side, self.size, 0)
        require_room(side, self.size, 0, f"shift={self.shift!r}")
        return Rolled(self.size) if self.shift == "circular" else FourierShifted(self.size, periodic=True)

    def offsets(self, index: np.ndarray) -> np.ndarray:
        """No shift, then those that were drawn."""
        shape, reach = (self.draws, 2), self.max_shift
        if self.shift == "fractional":
            drawn = [rng.uniform(-reach, reach, shape) for rng in generators(self.seed, index)]
        else:
            drawn = [rng.integers(-round(reach), round(reach) + 1, shape) for rng in generators(self.seed, index)]
        return np.stack([np.concatenate([np.zeros((1, 2), each.dtype), each]) for each in drawn])

    def arrange(self, seen: PerImage, offsets: np.ndarray) -> PerImage:
        return {**seen, "offsets": offsets}


@dataclass(frozen=True, kw_only=True)
class Unshifted(FromCentre):
    """How often a shifted view gets the answer of the unshifted one.

    The part "probability_change" is by how much the probability of that answer changes, whichever
    way, in points, on average. Arrays, each (images, draws + 1) with the unshifted view first:
    "predictions", "probability" (of the class predicted for the unshifted view), and "offsets",
    (images, draws + 1, 2).
    """

    name: ClassVar[str] = "unshifted"

    def observe(self, look: Look, fn: Predictor, images: Any, offsets: np.ndarray, labels: Any) -> PerImage:
        first = look(fn, images, offsets[:, :1], labels, readout=read_predictions)["predictions"][:, 0]
        seen = look(fn, images, offsets, first, readout=read_probabilities)
        return {name: seen[name] for name in ("predictions", "probability")}

    def reduce(self, arrays: Arrays) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        predictions, probability = arrays["predictions"], arrays["probability"].astype(np.float64)
        same = predictions[:, 1:] == predictions[:, :1]
        change = np.abs(probability[:, 1:] - probability[:, :1])
        return 100.0 * same.mean(axis=1), {"probability_change": 100.0 * change.mean(axis=1)}
