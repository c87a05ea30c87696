"""A network of any make as measurements take it: a function of images, and what is known of it.

Each kind says in an `Input` what its network takes, as far as it knows; a person says the rest in a `Told`. Both
together are a `Preprocessing`, and one call with random images shows what the network answers.
"""

import dataclasses
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from aa_flax.weights.config import Preprocessing
from aa_flax.weights.input_channels import channel_statistics
from train.errors import CommandError

Layout = Literal["nhwc", "nchw"]
Run = Callable[[np.ndarray], Any]
SIZE = 224
# Images no larger than this are small as they are, as CIFAR's: nothing is cut from their border.
LARGEST_UNCUT = 64


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a person says of a network that is not of this package; by default the network says it, or ImageNet's rule.

    Numbers of `mean` and `std` are for pixels from 0 to 1: those of a network that takes 0 to 255 are 0 and 0.0039216.
    """

    layout: Layout | None = None
    """Of the five kinds of networks above: order of the axes of the images. The network says it, where it can."""
    size: int | None = None
    """Of these: side of the images in pixels. The network says it, or it is 224."""
    resize: int | None = None
    """Of these: shorter side of a photo before that size is cut out of it. By default 8/7 of the size."""
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] | None = None
    """Of these: how photos are resized. By default bilinear."""
    mean: str | None = None
    """Of these: R,G,B, subtracted from pixels from 0 to 1, or one number for all. By default ImageNet's."""
    std: str | None = None
    """Of these: R,G,B, what they are divided by afterwards."""
    classes: int | None = None
    """Of these: number of classes. A network with another number is refused; timm and torchvision make it."""


@dataclass(frozen=True, kw_only=True)
class Input:
    """What a network says of its input; None where it says nothing.

    Attributes:
        layout: order of the axes.
        size: side of the images, fixed.
        channels: 3, or 1 for grey.
        batch: number of images, where only that one will do.
        dtype: of the images.
        preprocessing: how its publishers prepare images.
    """

    layout: Layout = "nhwc"
    size: int | None = None
    channels: int = 3
    batch: int | None = None
    dtype: Any = np.float32
    preprocessing: Preprocessing | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Measurable:
    """A network that can be measured.

    Attributes:
        model: what people call it.
        fn: (n, size, size, channels) float32 images, normalised, to (n, classes) logits: what
            `aa_flax.consistency` takes.
        preprocessing: how images are prepared.
        num_classes: logits.
        class_names: one for each, or None.
        file: where its weights are, or None.
        parameters: how many numbers they are, or None where nobody knows.
        described: what repeats it: what it is, versions of what runs it.
        notice: what readers of its figures have to know, a sentence without its name; None for nothing.
    """

    model: str
    fn: Callable[[Any], Any]
    preprocessing: Preprocessing
    num_classes: int
    class_names: tuple[str, ...] | None = None
    file: Path | None = None
    parameters: int | None = None
    described: dict[str, Any] = field(default_factory=dict)
    notice: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """What is known of it, for a report."""
        return {
            "model": self.model,
            **self.described,
            "num_classes": self.num_classes,
            "preprocessing": dataclasses.asdict(self.preprocessing),
            **({} if self.notice is None else {"notice": self.notice}),
        }


class HostFunction:
    """A function of NumPy arrays, called with images as it wants them: axes, dtype, number.

    Args:
        run: gives an array for an array.
        expected: what it takes.
        model: what people call it.

    Raises:
        CommandError: when called, if it gives no logits.
    """

    def __init__(self, run: Run, expected: Input, model: str) -> None:
        self._run, self._expected, self._model = run, expected, model
        self.gives_probabilities = False

    def __call__(self, images: Any) -> np.ndarray:
        """Images (n, height, width, channels) to logits (n, classes)."""
        images = np.asarray(images).astype(self._expected.dtype, copy=False)
        if self._expected.layout == "nchw":
            images = images.transpose(0, 3, 1, 2)
        together = self._expected.batch or len(images)
        pieces = [self._filled(images[start : start + together], together) for start in range(0, len(images), together)]
        logits = np.concatenate(pieces)
        if self.gives_probabilities:
            logits = np.log(np.maximum(logits, np.finfo(np.float32).tiny))
        return logits

    def _filled(self, images: np.ndarray, together: int) -> np.ndarray:
        """The answers for images that may be fewer than the network takes."""
        count = len(images)
        if count < together:
            images = np.concatenate([images, np.zeros((together - count, *images.shape[1:]), images.dtype)])
        logits = np.asarray(self._run(np.ascontiguousarray(images)))
        if logits.ndim != 2 or len(logits) != len(images) or not logits.shape[1] or logits.dtype.kind not in "fiu":
            raise CommandError(
                f"{self._model}, called with images {images.shape}, gives {logits.dtype} {logits.shape}, "
                f"no logits ({len(images)}, classes)"
            )
        return logits[:count]


def measurable(
    run: Run,
    expected: Input,
    told: Told,
    *,
    model: str,
    described: dict[str, Any],
    class_names: Sequence[str] | None = None,
    file: Path | None = None,
    parameters: int | None = None,
) -> Measurable:
    """A network from a function of NumPy arrays and what is known of its input.

    A network that ends in a softmax gives probabilities; their logarithms are measured.

    Args:
        run: gives logits for images as `expected` has them.
        expected: what the network says.
        told: what a person says.
        model: what people call it.
        described: for reports.
        class_names: one for each logit, if known.
        file: where its weights are.
        parameters: how many.

    Raises:
        CommandError: what was told contradicts the network, or it fails on such images, or gives no logits.
    """
    preprocessing = _preprocessing(expected, told, model)
    fn = HostFunction(run, expected, model)
    answer = _first_answer(fn, (2, preprocessing.crop, preprocessing.crop, expected.channels), model)
    classes = answer.shape[1]
    if told.classes not in (None, classes):
        raise CommandError(f"{model} gives {classes} numbers an image, and classes={told.classes} was asked for")
    if class_names is not None and len(class_names) != classes:
        raise CommandError(f"{model} gives {classes} numbers an image, and names {len(class_names)} classes")
    sums = answer.sum(axis=1, dtype=np.float64)
    fn.gives_probabilities = classes > 1 and answer.min() >= 0 and bool(np.allclose(sums, 1, atol=1e-3))
    last = {"ends_in": "probabilities"} if fn.gives_probabilities else {}
    return Measurable(
        model=model,
        fn=fn,
        preprocessing=preprocessing,
        num_classes=classes,
        class_names=None if class_names is None else tuple(class_names),
        file=file,
        parameters=parameters,
        described={**described, "layout": expected.layout, **last},
    )


def input_of_shape(shape: Sequence[Any], told: Told, model: str, **known: Any) -> Input:
    """What the shape of a network's input says.

    Args:
        shape: numbers where a side is fixed, anything else where it is free.
        told: may have the layout.
        model: what to call it in errors.
        **known: further fields.

    Raises:
        CommandError: no images, or none that photos can be made of.
    """
    sides = [side if isinstance(side, int) and side > 0 else None for side in shape]
    shown = f"({', '.join('?' if side is None else str(side) for side in sides)})"
    if len(sides) != 4:
        raise CommandError(f"{model} takes arrays {shown}; images have four axes, with their channels second or last")
    axes: dict[Layout, int] = {"nchw": 1, "nhwc": 3}
    fitting: list[Layout] = [layout for layout, axis in axes.items() if sides[axis] in (1, 3)]
    layout = told.layout or (fitting[0] if len(fitting) == 1 else None)
    if layout is None:
        open_question = any(sides[axis] is None for axis in axes.values()) or len(fitting) == 2
        why = (
            "channels may be second or last: give layout, nchw or nhwc"
            if open_question
            else "neither has 1 or 3 channels"
        )
        raise CommandError(f"{model} takes arrays {shown}: {why}")
    channels = sides.pop(axes[layout])
    if channels not in (1, 3, None):
        raise CommandError(
            f"{model} takes arrays {shown}: in the layout {layout} they have {channels} channels, not 1 or 3"
        )
    batch, height, width = sides
    if height != width:
        raise CommandError(f"{model} takes images of {height}x{width} pixels; those cut from photos are square")
    return Input(layout=layout, size=height, channels=channels or 3, batch=batch, **known)


def _preprocessing(expected: Input, told: Told, model: str) -> Preprocessing:
    known = expected.preprocessing
    size = told.size or expected.size or (known.crop if known else SIZE)
    if expected.size not in (None, size):
        raise CommandError(f"{model} takes images of {expected.size} pixels a side, and size={size} was asked for")
    if known is not None:
        resize = round(known.resize * size / known.crop)
    else:
        resize = size if size <= LARGEST_UNCUT else round(size * 8 / 7)
    numbers = {}
    for name in ("mean", "std"):
        standard = channel_statistics(getattr(Preprocessing, name), expected.channels)
        published = getattr(known, name) if known else standard
        numbers[name] = _numbers(name, getattr(told, name), expected.channels) or published
        if len(numbers[name]) != expected.channels:
            raise CommandError(f"{model} takes {expected.channels} channels, and {name} is {numbers[name]}")
    interpolation = told.interpolation or (known or Preprocessing()).interpolation
    try:
        return Preprocessing(resize=told.resize or resize, crop=size, interpolation=interpolation, **numbers)
    except ValueError as error:
        raise CommandError(f"{model}: {error}") from error


def _numbers(name: str, text: str | None, channels: int) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        numbers = tuple(float(number) for number in text.split(","))
    except ValueError:
        raise CommandError(f"{name} is {text!r}; it must be numbers such as 0.5,0.5,0.5") from None
    return numbers * channels if len(numbers) == 1 else numbers


def _first_answer(fn: HostFunction, shape: tuple[int, ...], model: str) -> np.ndarray:
    images = np.random.default_rng(0).standard_normal(shape, np.float32)
    try:
        return fn(images)
    except CommandError:
        raise
    except Exception as error:
        # Whatever a stranger's network raises: a wrong shape is a RuntimeError here and a TypeError there.
        place = traceback.extract_tb(error.__traceback__)[-1]
        reason = " ".join(str(error).split())[:300]
        raise CommandError(
            f"{model}, called with images {shape}, failed: {type(error).__name__}: {reason} "
            f"({Path(place.filename).name}:{place.lineno})"
        ) from error
