"""The common form of every protocol: arrays per image from a batch, then one result from them all."""

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from aa_flax.consistency.readouts import NOT_A_NUMBER, UNKNOWN_LABEL, read_predictions
from aa_flax.consistency.result import Result
from aa_flax.consistency.sweep import Predictor, Preprocess, Readout, View, sweep
from aa_flax.consistency.views import Size
from aa_flax.meshes import take_rows

PerImage = dict[str, Any]
Arrays = Mapping[str, np.ndarray]
Progress = Callable[[int, int], None]
Look = Callable[..., PerImage]


@dataclass(frozen=True, kw_only=True)
class ShiftProtocol:
    """A way to measure a network under shifts; a value with settings and no state.

    Args:
        crop: side in pixels of the crops the network sees, or (rows, columns).
        device_batch: how many crops may lie on the device at once. A batch of more images than
            this still runs one shift of all of them together. Never changes the value.
    """

    name: ClassVar[str]
    """The name in `PROTOCOLS`, in reports and on the command line."""
    quantity: ClassVar[str] = "consistency"
    """What the value is a percentage of; more is better, but for "mean flip rate"."""
    needs_labels: ClassVar[bool] = False
    """Whether labels must be given. Where they need not be, they add parts to the result."""
    readout: ClassVar[Readout] = staticmethod(read_predictions)

    crop: int | Size = 224
    device_batch: int = 64

    def __post_init__(self) -> None:
        crop = np.asarray(self.crop).tolist()
        sides = crop if isinstance(crop, list) else [crop, crop]
        if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
            raise ValueError(f"crop={self.crop}: must be a number of pixels, or (rows, columns)")
        object.__setattr__(self, "crop", tuple(crop) if isinstance(crop, list) else crop)
        require_at_least(1, device_batch=self.device_batch)

    @property
    def size(self) -> Size:
        """Rows and columns of the crop."""
        return (self.crop, self.crop) if isinstance(self.crop, int) else self.crop

    def settings(self) -> dict[str, Any]:
        """The fields that decide the value, ready for JSON and for `create_protocol`."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "device_batch"}

    def view(self, side: Size) -> View:
        """How images with these sides (rows, columns) are looked at; ValueError if too small."""
        raise NotImplementedError

    def offsets(self, index: np.ndarray) -> np.ndarray:
        """The shifts (N, S, 2) of the images with these numbers, or (1, S, 2) for all of them."""
        raise NotImplementedError

    def observe(self, look: Look, fn: Predictor, images: Any, offsets: np.ndarray, labels: Any) -> PerImage:
        """What a batch shows: `readout` of the network's answer to every view."""
        return look(fn, images, offsets, labels, readout=self.readout)

    def arrange(self, seen: PerImage, offsets: np.ndarray) -> PerImage:
        """Name and shape what a batch has shown; every array starts with the images."""
        del offsets
        return seen

    def refuse_failures(self, arrays: Arrays) -> None:
        """ValueError where the network has given no answer, which would pass for a stable one."""
        predictions = arrays["predictions"].reshape(len(arrays["index"]), -1)
        for code, said in (
            (NOT_A_NUMBER, "the network returned NaN"),
            (UNKNOWN_LABEL, "the label is none of the network's classes"),
        ):
            rows = np.flatnonzero((predictions == code).any(axis=1))
            if len(rows):
                first = f"index {arrays['index'][rows[0]]}"
                if code == UNKNOWN_LABEL:
                    first += f" and label {arrays['labels'][rows[0]]}"
                raise ValueError(f"{said} for {len(rows)} images, the first with {first}")

    def reduce(self, arrays: Arrays) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The percentage of each image, and further percentages of each image by name."""
        raise NotImplementedError

    def per_image(
        self,
        fn: Predictor,
        images: Any,
        *,
        index: Any,
        labels: Any = None,
        preprocess: Preprocess | None = None,
    ) -> PerImage:
        """Run one batch: the level for streaming.

        Args:
            fn: the network, see `aa_flax.consistency`.
            images: (N, H, W, C) float or integer pixels, larger than the crop where the protocol
                needs room. May be sharded over devices along N.
            index: (N,) the number of each image in the whole set, 0 for the first. Shifts are
                drawn from it, so that batch size and order do not matter.
            labels: (N,) class numbers, or None.
            preprocess: applied to the crops before `fn`, for instance `Normalise()`; give the same
                object each time, a new one compiles anew.

        Returns:
            Arrays with N entries each, not waited for where `fn` is compiled here. Drop the rows
            of padded images, concatenate over batches (`gather`) and call `summarise`.
        """
        images = _images(images)
        count = images.shape[0]
        index = np.asarray(_numbers("index", index, count))
        if index.min() < 0:
            raise ValueError(f"index has the number {index.min()}: images are numbered from 0")
        if labels is None and self.needs_labels:
            raise ValueError(f"labels=None: the protocol {self.name!r} needs the label of each image")
        labels = None if labels is None else _numbers("labels", labels, count)
        view = self.view((images.shape[1], images.shape[2]))
        offsets = self.offsets(index)
        offsets = np.broadcast_to(offsets, (count, *offsets.shape[1:]))
        look = functools.partial(sweep, view=view, preprocess=preprocess, device_batch=self.device_batch)
        seen = self.observe(look, fn, images, offsets, labels)
        known = {"index": index} if labels is None else {"index": index, "labels": labels}
        return {**known, **self.arrange(seen, offsets)}

    def summarise(self, arrays: Mapping[str, Any]) -> Result:
        """The result over all images, from the concatenated arrays of `per_image`.

        Raises:
            ValueError: no image; a network that returned NaN; a label outside its classes.
        """
        arrays = {name: np.asarray(array) for name, array in arrays.items()}
        self.refuse_failures(arrays)
        percent, parts = self.reduce(arrays)
        return Result.of(percent, parts, arrays, protocol=self.name, quantity=self.quantity, settings=self.settings())

    def measure(
        self,
        fn: Predictor,
        images: Any,
        labels: Any = None,
        *,
        preprocess: Preprocess | None = None,
        index: Any = None,
        progress: Progress | None = None,
    ) -> Result:
        """Measure images that are in memory: `per_image` over batches, then `summarise`.

        Args:
            fn: what is measured, as in `per_image`.
            images: (N, H, W, C), any array.
            labels: as in `per_image`.
            preprocess: as in `per_image`.
            index: (N,) numbers of the images, 0 to N - 1 by default.
            progress: called after each batch with the images done and their total.
        """
        count = len(_images(images, move=False))
        index = np.arange(count) if index is None else _numbers("index", index, count)
        labels = None if labels is None else _numbers("labels", labels, count)
        batch = self._batch(index)
        parts = []
        for start in range(0, count, batch):
            # The last batch is filled with its last image, so that one program serves them all.
            rows = np.minimum(np.arange(start, start + batch), count - 1)
            part = self.per_image(
                fn,
                images if batch == count else take_rows(images, rows),
                index=index[rows],
                labels=labels if labels is None or batch == count else take_rows(labels, rows),
                preprocess=preprocess,
            )
            done = min(start + batch, count)
            parts.append({name: np.asarray(array)[: done - start] for name, array in part.items()})
            if progress is not None:
                progress(done, count)
        return self.summarise(gather(parts))

    def _batch(self, index: np.ndarray) -> int:
        """Images to a batch: few where each has many shifts, so that progress is seen."""
        shifts = self.offsets(np.asarray(index[:1])).shape[1]
        return min(len(index), self.device_batch, max(1, 16 * self.device_batch // shifts))


def gather(batches: Iterable[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Concatenate what `per_image` returned for several batches, on the host."""
    fetched = [jax.device_get(dict(each)) for each in batches]
    if not fetched:
        raise ValueError("batches is empty: at least one batch of images is needed")
    return {name: np.concatenate([each[name] for each in fetched]) for name in fetched[0]}


def require_at_least(least: int, **named: int) -> None:
    """ValueError naming the first argument that is no whole number of at least `least`."""
    for name, value in named.items():
        if not isinstance(value, int | np.integer) or value < least:
            raise ValueError(f"{name}={value}: must be a whole number of at least {least}")


def require_room(side: Size, size: Size, room: int, reason: str) -> None:
    """ValueError unless the image has `room` pixels more than the crop on both axes."""
    if side[0] < size[0] + room or side[1] < size[1] + room:
        raise ValueError(
            f"images of {side[0]}x{side[1]} pixels are too small: crop={size[0]}x{size[1]} and "
            f"{reason} need at least {size[0] + room}x{size[1] + room}"
        )


def _images(images: Any, move: bool = True) -> Any:
    shape, dtype = np.shape(images), getattr(images, "dtype", None)
    if len(shape) != 4 or 0 in shape:
        raise ValueError(f"images must have the shape (N, H, W, C), none zero; got {shape}")
    if dtype is None or not jnp.issubdtype(dtype, jnp.number):
        raise ValueError(f"images must be an array of numbers; got {type(images).__name__} {dtype}")
    images = jnp.asarray(images) if move else images
    return images


def _numbers(name: str, given: Any, count: int) -> Any:
    array = given if isinstance(given, jax.Array) else np.asarray(given)
    if array.shape != (count,) or not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(f"{name} must be {count} integers, one for each image; got {array.dtype} {array.shape}")
    return array
