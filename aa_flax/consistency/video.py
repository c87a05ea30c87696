"""Stability on a video: how often predictions of neighbouring frames differ, and what jitter alone would explain."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from aa_flax.consistency.fixed import centre_window
from aa_flax.consistency.pairs import generators
from aa_flax.consistency.protocol import Arrays, PerImage, ShiftProtocol, require_at_least, require_room
from aa_flax.consistency.result import Estimate, Result
from aa_flax.consistency.sweep import View
from aa_flax.consistency.views import Size


@dataclass(frozen=True, kw_only=True)
class Video(ShiftProtocol):
    """How often the prediction changes between neighbouring frames, beside what a still camera's jitter would explain.

    Images are the frames of one video, `index` their order; all of them are needed. The value is
    the share of pairs of neighbours whose centre crops are predicted differently, fewer is better.
    The part "jitter" is how often two crops of one frame differ, as if only the camera had moved
    (the mean over both frames of each pair of neighbours), the part "beyond" the value less that:
    what else is new in the next frame. Arrays: "predictions" (frames, 1 + 2 pairs), the centre crop
    first, then the crops of the pairs; "offsets" (frames, 1 + 2 pairs, 2). `per_image` of the
    result is for each pair of neighbours.

    Frames depend on each other, so the standard errors are `by_blocks`: `nan` for fewer than five
    frames. Of several videos, take the error over videos, `over_videos`.

    Args:
        jitter: crops of one frame lie up to this many pixels from its centre crop, on each axis.
        pairs: pairs of crops of each frame.
        seed: of the random crops.
    """

    name: ClassVar[str] = "video"
    quantity: ClassVar[str] = "changes"

    jitter: int = 2
    pairs: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, jitter=self.jitter, pairs=self.pairs)
        require_at_least(0, seed=self.seed)

    def view(self, side: Size) -> View:
        require_room(side, self.size, 2 * self.jitter, f"jitter={self.jitter}")
        return centre_window(side, self.size, self.jitter)

    def offsets(self, index: np.ndarray) -> np.ndarray:
        shape = (2 * self.pairs, 2)
        drawn = np.stack([each.integers(0, 2 * self.jitter + 1, shape) for each in generators(self.seed, index)])
        still = np.full((len(drawn), 1, 2), self.jitter)
        return np.concatenate([still, drawn], axis=1)

    def arrange(self, seen: PerImage, offsets: np.ndarray) -> PerImage:
        return {**seen, "offsets": offsets}

    def reduce(self, arrays: Arrays) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        still, crops = arrays["predictions"][:, 0], arrays["predictions"][:, 1:]
        changed = 100.0 * (still[1:] != still[:-1])
        differ = 100.0 * (crops[:, ::2] != crops[:, 1::2]).mean(axis=1)
        # Of each pair of neighbours the mean of both, so that changes and jitter are compared pair by pair.
        shaken = (differ[1:] + differ[:-1]) / 2
        return changed, {"jitter": shaken, "beyond": changed - shaken}

    def summarise(self, arrays: Mapping[str, Any]) -> Result:
        """The result of one video, from the concatenated arrays of `per_image`, in any order.

        Raises:
            ValueError: fewer than two frames, or one that is missing; a network that returned NaN.
        """
        index = np.asarray(arrays["index"])
        order = np.argsort(index)
        if len(index) < 2:
            raise ValueError(f"a video has two frames or more; got {len(index)}")
        if gaps := np.flatnonzero(np.diff(index[order]) != 1).tolist():
            raise ValueError(f"the frame after number {index[order][gaps[0]]} is missing, or there twice")
        ordered = {name: np.asarray(array)[order] for name, array in arrays.items()}
        result = super().summarise(ordered)
        changed, others = self.reduce(ordered)
        parts = {name: by_blocks(series) for name, series in others.items()}
        return dataclasses.replace(result, stderr=by_blocks(changed).stderr, parts=parts)


def by_blocks(percent: np.ndarray) -> Estimate:
    """The mean of a series whose neighbours depend on each other, with a standard error that knows it.

    The series is cut into stretches, about as many as each has members; the error is that over the
    stretches' means (batch means). It is too small where what happens lasts longer than a stretch.

    Args:
        percent: (n,) the series, in its order.
    """
    means = np.array([part.mean() for part in np.array_split(percent, math.isqrt(len(percent)))])
    return Estimate(float(percent.mean()), Estimate.over_images(means).stderr)


def over_videos(results: Sequence[Result]) -> dict[str, Estimate]:
    """Means over videos, each of which counts the same, with the standard error over videos.

    Args:
        results: of `Video`, one for each.

    Returns:
        "changes", "jitter" and "beyond".
    """
    values = {
        "changes": [each.value for each in results],
        **{name: [each.parts[name].value for each in results] for name in ("jitter", "beyond")},
    }
    return {name: Estimate.over_images(np.array(each)) for name, each in values.items()}
