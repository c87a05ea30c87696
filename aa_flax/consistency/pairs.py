"""Protocols that compare the predictions of two shifts or of several: crops, rolls, fractions."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from aa_flax.consistency.protocol import (
    Arrays,
    PerImage,
    ShiftProtocol,
    require_at_least,
    require_room,
)
from aa_flax.consistency.sweep import View
from aa_flax.consistency.views import FourierShifted, Rolled, Size, Window


@dataclass(frozen=True, kw_only=True)
class Pairs(ShiftProtocol):
    """Agreement of the predictions under two shifts of an image, or more, over several such pairs.

    The value is the share of pairs whose predictions agree; equal shifts count as agreement. With
    `views` shifts in place of two, all of them have to agree. With labels the result has the parts
    "consistent_correct" and "consistent_wrong", which sum to the value, and "agree_if_right": of
    all pairs with a right prediction among them, the share that agrees (left out where there is no
    such pair). Arrays: "predictions" and "offsets", (images, pairs, views) and
    (images, pairs, views, 2).

    Args:
        pairs: pairs drawn for each image; ignored where `given` holds them.
        views: shifts that are compared at once; 2 makes pairs of them.
        seed: of the random offsets.
        given: offsets instead of random ones: (pairs, views, 2) for all images, or
            (images, pairs, views, 2), looked up by the number of the image. The axes: pair, which
            of its shifts, (rows, columns).
    """

    pairs: int = 5
    views: int = 2
    seed: int = 0
    given: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, pairs=self.pairs)
        require_at_least(2, views=self.views)
        require_at_least(0, seed=self.seed)
        if self.given is None:
            return
        given = np.asarray(self.given)
        if given.ndim not in (3, 4) or given.shape[-2:] != (self.views, 2) or 0 in given.shape:
            last = f"pairs, {self.views}, 2"
            raise ValueError(f"given must have the shape ({last}) or (images, {last}); got {given.shape}")
        self.check_given(given)
        # As tuples, so that protocols compare equal exactly where they measure the same.
        object.__setattr__(self, "given", _tuples(given.tolist()))
        object.__setattr__(self, "pairs", given.shape[-3])

    @cached_property
    def _given(self) -> np.ndarray:
        return np.asarray(self.given)

    def check_given(self, given: np.ndarray) -> None:
        """ValueError where a given offset is none that the protocol could have drawn."""
        raise NotImplementedError

    def draw(self, index: np.ndarray) -> np.ndarray:
        """Random offsets (N, pairs, views, 2) for the images with these numbers."""
        raise NotImplementedError

    def offsets(self, index: np.ndarray) -> np.ndarray:
        if self.given is None:
            chosen = self.draw(index)
        elif self._given.ndim == 3:
            chosen = self._given[None]
        elif index.max() >= len(self._given):
            raise ValueError(f"given has offsets of {len(self._given)} images; index is {index.max()}")
        else:
            chosen = self._given[index]
        return chosen.reshape(len(chosen), -1, 2)

    def arrange(self, seen: PerImage, offsets: np.ndarray) -> PerImage:
        predictions = seen["predictions"]
        return {
            "predictions": predictions.reshape(len(predictions), -1, self.views),
            "offsets": offsets.reshape(len(offsets), -1, self.views, 2),
        }

    def reduce(self, arrays: Arrays) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        predictions = arrays["predictions"]
        same = (predictions == predictions[..., :1]).all(axis=-1)
        if "labels" not in arrays:
            return 100.0 * same.mean(axis=1), {}
        right = predictions == arrays["labels"][:, None, None]
        all_right, one_right = right.all(axis=-1), right.any(axis=-1)
        parts = {
            "consistent_correct": 100.0 * all_right.mean(axis=1),
            "consistent_wrong": 100.0 * (same & ~all_right).mean(axis=1),
        }
        if one_right.any():
            parts["agree_if_right"] = 100.0 * ratio(all_right.mean(axis=1), one_right.mean(axis=1))
        return 100.0 * same.mean(axis=1), parts


@dataclass(frozen=True, kw_only=True)
class Crop(Pairs):
    """Crop consistency with offsets of its own for each image.

    Two crops at offsets drawn from {0, ..., shifts - 1} on each axis, inside the centred window
    of `crop + shifts` pixels. Estimates what `Zhang2019` does with a smaller spread.

    Args:
        shifts: offsets on each axis. The images need `crop + shifts - 1` pixels a side.
    """

    name: ClassVar[str] = "crop"
    shared_by: ClassVar[int] = 1

    shifts: int = 32

    def __post_init__(self) -> None:
        require_at_least(1, shifts=self.shifts)
        super().__post_init__()

    def check_given(self, given: np.ndarray) -> None:
        if not np.issubdtype(given.dtype, np.integer):
            raise ValueError(f"given={given.dtype}: offsets of crops are whole pixels")
        if given.min() < 0 or given.max() >= self.shifts:
            raise ValueError(
                f"given lies in [{given.min()}, {given.max()}]; with shifts={self.shifts} "
                f"offsets lie in [0, {self.shifts - 1}]"
            )

    def view(self, side: Size) -> View:
        return centred_window(side, self.size, self.shifts)

    def draw(self, index: np.ndarray) -> np.ndarray:
        drawn = generators(self.seed, index // self.shared_by)
        return np.stack([each.integers(0, self.shifts, (self.pairs, self.views, 2)) for each in drawn])


@dataclass(frozen=True, kw_only=True)
class Zhang2019(Crop):
    """Crop consistency as the reference measures it: eight images share each pair of offsets.

    Images with the numbers 8i to 8i + 7 share, whatever the batch size; so the value depends, by
    definition, on which images are neighbours. The standard error is that over images and leaves
    out the spread that comes from sharing.
    """

    name: ClassVar[str] = "zhang2019"
    shared_by: ClassVar[int] = 8


@dataclass(frozen=True, kw_only=True)
class Circular(Pairs):
    """Agreement under circular shifts of the centre crop (APS, LPS).

    Args:
        max_shift: offsets are drawn from {-max_shift, ..., max_shift - 1} on each axis.
    """

    name: ClassVar[str] = "circular"

    max_shift: int = 32

    def __post_init__(self) -> None:
        require_at_least(1, max_shift=self.max_shift)
        super().__post_init__()

    def check_given(self, given: np.ndarray) -> None:
        if not np.issubdtype(given.dtype, np.integer):
            raise ValueError(f"given={given.dtype}: offsets of circular shifts are whole pixels")

    def view(self, side: Size) -> View:
        require_room(side, self.size, 0, "circular shifts")
        return Rolled(self.size)

    def draw(self, index: np.ndarray) -> np.ndarray:
        reach, shape = self.max_shift, (self.pairs, self.views, 2)
        return np.stack([each.integers(-reach, reach, shape) for each in generators(self.seed, index)])


@dataclass(frozen=True, kw_only=True)
class Fractional(Pairs):
    """Agreement under shifts by fractions of a pixel, in the Fourier domain.

    See `views.fourier_shift` for what is done at the Nyquist frequency. The network sees floats on
    the images' scale, not clipped to their range.

    Args:
        max_shift: offsets are uniform in [-max_shift, max_shift) pixels on each axis.
        periodic: shift the crop itself, around its own border, as the literature on alias-free
            networks does; by default the whole image is shifted and then cropped.
    """

    name: ClassVar[str] = "fractional"

    max_shift: float = 0.5
    periodic: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.max_shift < np.inf:
            raise ValueError(f"max_shift={self.max_shift}: must be positive and finite")
        super().__post_init__()

    def check_given(self, given: np.ndarray) -> None:
        if not np.isfinite(given.astype(np.float64)).all():
            raise ValueError("given has offsets that are not finite")

    def view(self, side: Size) -> View:
        require_room(side, self.size, 0, "fractional shifts")
        return FourierShifted(self.size, self.periodic)

    def draw(self, index: np.ndarray) -> np.ndarray:
        reach, shape = self.max_shift, (self.pairs, self.views, 2)
        return np.stack([each.uniform(-reach, reach, shape) for each in generators(self.seed, index)])


def centred_window(side: Size, size: Size, shifts: int) -> Window:
    """Crops at 0 to shifts - 1 inside the middle `size + shifts` pixels, or all if one is short."""
    require_room(side, size, shifts - 1, f"shifts={shifts}")
    top, left = (max(0, (length - own - shifts) // 2) for length, own in zip(side, size, strict=True))
    return Window(size, (top, left))


def ratio(numerators: np.ndarray, denominators: np.ndarray) -> np.ndarray:
    """Numbers, one for each image, whose mean is the ratio of the two means and whose spread is the ratio's.

    The ratio, linearised at its value: their standard error is that of a ratio estimate (Cochran, *Sampling
    Techniques*, 1977, section 6.4).
    """
    value = numerators.sum() / denominators.sum()
    return value + (numerators - value * denominators) / denominators.mean()


def _tuples(nested: Any) -> Any:
    return tuple(_tuples(each) for each in nested) if isinstance(nested, list) else nested


def generators(seed: int, numbers: np.ndarray) -> list[np.random.Generator]:
    """One source of randomness for each number, from the seed and that number alone.

    On the host: a device would have to be waited for, and would need a program for every shape.
    """
    return [np.random.default_rng((seed, int(number))) for number in numbers]
