"""How maps move with their images: segmentations, detections, the feature maps of classifiers."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from aa_flax.consistency.from_centre import FromCentre, Shift
from aa_flax.consistency.protocol import Arrays, Look, PerImage, require_at_least
from aa_flax.consistency.sweep import Predictor
from aa_flax.consistency.views import Size, fourier_shift
from aa_flax.dtypes import at_least_float32
from aa_flax.meshes import cut_alike, within_mesh_of

# Lobes of the windowed sine on each side: Karras et al. (2021) take as many for fractional shifts.
LOBES = 3
# By how many samples windows of both signs can reach over one that moves by whole samples.
_REACH = 2 * LOBES - 1


@dataclass(frozen=True, kw_only=True)
class Equivariance(FromCentre):
    """How far `f(shift(x))` is from `shift(f(x))`, for functions of images to maps (N, h, w, C): lower is better.

    The map moves by the image's shift divided by its stride. The value is the root mean square of the difference, as a
    percentage of that of `shift(f(x))`, averaged over shifts, then over images. Parts: "unmoved", the same percentage
    for a map that stays where it is; "argmax_agreement", the share of places whose largest channel is the same (left
    out for maps of one channel); "snr_db", the ratio of both powers over all images in decibels, higher is better (left
    out where nothing differs). Arrays, each (images, draws): "signal", "noise", "still", mean squares of the shifted
    map, of its difference from the map of the shifted image, and from the map that stays; "agreement"; and "offsets",
    (images, draws + 1, 2), the unshifted view first.

    Args:
        shift: `circular` and `fractional` take image and map as one period each, and move the map by Fourier transform
            (whole samples exactly). `crop` compares what two crops share, and interpolates between samples by a
            windowed sine of three lobes (whole samples exactly), which leaves an error of its own.
        max_shift: pixels on each axis. By default as many as a usual classifier's last map has to a sample.
        stride: of crops: pixels from sample to sample of the map. By default those of the crop by those of the map, of
            which one divides the other.
        margin: of crops: samples along the border of each map that are left out, where padding is seen.
    """

    name: ClassVar[str] = "equivariance"
    quantity: ClassVar[str] = "equivariance error"

    shift: Shift = "circular"
    max_shift: float = 32
    stride: float | None = None
    margin: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(0, margin=self.margin)
        if self.stride is not None and not 0 < self.stride < math.inf:
            raise ValueError(f"stride={self.stride}: must be positive and finite")
        if self.shift != "crop" and (self.stride is not None or self.margin):
            raise ValueError(f"stride and margin are for shift='crop'; shift={self.shift!r} takes the map as a period")

    def observe(self, look: Look, fn: Predictor, images: Any, offsets: np.ndarray, labels: Any) -> PerImage:
        still = look(fn, images, offsets[:, :1], None, readout=_read_maps)["maps"][:, 0]
        return look(fn, images, offsets[:, 1:], still, readout=_Compared(self.movement(still.shape[1:3])))

    def movement(self, sides: Size) -> "_Around | _Inside":
        """How maps with these sides (h, w) are moved; ValueError where they cannot be compared."""
        if self.shift != "crop":
            return _Around(self.size)
        strides = tuple(self.stride or own / side for own, side in zip(self.size, sides, strict=True))
        shown = f"maps of {sides[0]}x{sides[1]} for crops of {self.size[0]}x{self.size[1]}"
        if self.stride is None and not all(each.is_integer() or (1 / each).is_integer() for each in strides):
            raise ValueError(f"{shown}: neither divides the other; give stride=, or crops that the stride divides")
        for side, stride in zip(sides, strides, strict=True):
            reach = 0 if float(1 / stride).is_integer() else _REACH
            if side - 2 * self.margin - math.ceil(self.max_shift / stride) - reach < 1:
                raise ValueError(
                    f"{shown}: max_shift={self.max_shift} and margin={self.margin} leave nothing to compare; "
                    "lower them, or take larger crops"
                )
        return _Inside(strides, self.margin)

    def refuse_failures(self, arrays: Arrays) -> None:
        known = np.isfinite(arrays["signal"]).all(axis=1) & np.isfinite(arrays["noise"]).all(axis=1)
        dead = ((arrays["signal"] == 0) & (arrays["noise"] > 0)).any(axis=1)
        for failed, said in ((~known, "the network returned NaN or infinity"), (dead, "the map is zero everywhere")):
            if failed.any():
                first = arrays["index"][np.flatnonzero(failed)[0]]
                raise ValueError(f"{said} for {failed.sum()} images, the first with index {first}")

    def reduce(self, arrays: Arrays) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        signal, noise, still = (arrays[name].astype(np.float64) for name in ("signal", "noise", "still"))
        parts = {"unmoved": _percent(still, signal)}
        if "agreement" in arrays:
            parts["argmax_agreement"] = 100.0 * arrays["agreement"].astype(np.float64).mean(axis=1)
        if noise.any():
            parts["snr_db"] = _decibels(signal.mean(axis=1), noise.mean(axis=1))
        return _percent(noise, signal), parts


def _percent(differences: np.ndarray, signal: np.ndarray) -> np.ndarray:
    """Of each image, the mean ratio of the roots; nothing of nothing is nothing."""
    return 100.0 * np.sqrt(differences / np.where(signal == 0, 1, signal)).mean(axis=1)


def _decibels(signal: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Numbers, one for each image, with the mean of the ratio in decibels and the spread of the linearised ratio."""
    relative = signal / signal.mean() - noise / noise.mean()
    return 10 * math.log10(signal.mean() / noise.mean()) + 10 / math.log(10) * relative


def _read_maps(answers: jax.Array, known: None, part: jax.Array) -> dict[str, jax.Array]:
    count, together = part.shape[:2]
    if answers.ndim != 4 or answers.shape[0] != count * together or 0 in answers.shape:
        raise ValueError(
            f"fn must return maps (images, h, w, C); for {count * together} images it returned {answers.shape}"
        )
    maps = answers.reshape(count, together, *answers.shape[1:])
    return {"maps": maps.astype(at_least_float32(maps.dtype))}


@dataclass(frozen=True)
class _Compared:
    """The readout of shifted views, which knows the maps of the unshifted ones."""

    moves: "_Around | _Inside"

    def __call__(self, answers: jax.Array, known: jax.Array, part: jax.Array) -> dict[str, jax.Array]:
        maps = _read_maps(answers, None, part)["maps"]
        with within_mesh_of(maps):
            return jax.vmap(jax.vmap(self._one, in_axes=(None, 0, 0)))(known, maps, cut_alike(part, maps))

    def _one(self, still: jax.Array, moved: jax.Array, offset: jax.Array) -> dict[str, jax.Array]:
        """Maps (h, w, C) of an image and of that image shifted by an offset (2,)."""
        wanted, inside = self.moves(still, offset)
        mean = partial(jnp.mean, where=inside)
        seen = {"signal": mean(wanted**2), "noise": mean((moved - wanted) ** 2), "still": mean((still - wanted) ** 2)}
        if still.shape[-1] > 1:
            seen["agreement"] = mean(moved.argmax(-1, keepdims=True) == wanted.argmax(-1, keepdims=True))
        return seen


@dataclass(frozen=True)
class _Around:
    """Moves a map as its image was moved around its border, both being one period."""

    size: Size

    def __call__(self, still: jax.Array, offset: jax.Array) -> tuple[jax.Array, jax.Array]:
        sides, size = jnp.array(still.shape[:2]), jnp.array(self.size)
        # Multiplied first: what is a whole number of samples leaves exactly no rest.
        along = offset * sides
        whole = jnp.round(along / size).astype(jnp.int32)
        rest = along - whole * size
        rolled = jnp.roll(still, whole, axis=(0, 1))
        moved = jnp.where((rest != 0).any(), fourier_shift(rolled, rest / size), rolled)
        return moved, jnp.ones((*still.shape[:2], 1), bool)


@dataclass(frozen=True)
class _Inside:
    """Moves a map against the shift of the crop, and says which of its places are known then."""

    strides: tuple[float, ...]
    margin: int

    def __call__(self, still: jax.Array, offset: jax.Array) -> tuple[jax.Array, jax.Array]:
        (rows, row_known), (columns, column_known) = (
            _interpolation(side, each, stride, self.margin)
            for side, each, stride in zip(still.shape[:2], offset, self.strides, strict=True)
        )
        matrices = rows.astype(still.dtype), columns.astype(still.dtype)
        moved = jnp.einsum("qp,prc,sr->qsc", matrices[0], still, matrices[1], precision="highest")
        return moved, (row_known[:, None] & column_known)[..., None]


def _interpolation(side: int, offset: jax.Array, stride: float, margin: int) -> tuple[jax.Array, jax.Array]:
    """The matrix that reads a map `offset / stride` samples further on, and which of its rows are inside the map."""
    whole = jnp.round(offset / stride).astype(jnp.int32)
    rest = (offset - whole * stride) / stride
    places = jnp.arange(side)
    gaps = places - places[:, None] - whole
    distances = gaps - rest
    windowed = jnp.sinc(distances) * jnp.sinc(distances / LOBES)
    weights = jnp.where(rest == 0, gaps == 0, jnp.where(jnp.abs(distances) < LOBES, windowed, 0))
    # Both signs of a rest have their sample beyond the middle, and one sample less on the other side.
    before = jnp.where(rest == 0, 0, jnp.where(rest > 0, LOBES - 1, LOBES))
    after = jnp.where(rest == 0, 0, _REACH - before)
    first, last = places + whole - before, places + whole + after
    inside = (jnp.minimum(first, places) >= margin) & (jnp.maximum(last, places) < side - margin)
    return jnp.where(inside[:, None], weights / weights.sum(axis=1, keepdims=True), 0), inside
