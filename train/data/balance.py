"""How many images each class has, and what is odd about it."""

from collections.abc import Sequence

import numpy as np

from train.data.sources import Source, some

# A class with this many times the images of the mean class is the one that decides an accuracy.
TIMES_MEAN = 1.5


def majority_rate(source: Source) -> float | None:
    """Share of the most frequent class, in percent: the accuracy of answering with it always.

    None where labels are only known as images are read.
    """
    labels: np.ndarray | None = getattr(source, "labels", None)
    if labels is None or not len(labels):
        return None
    return 100 * float(np.bincount(labels).max()) / len(labels)


def remarks(train: Source, val: Source, class_names: Sequence[str]) -> list[str]:
    """Lines about classes of a data set that a person should know of before training on it.

    Args:
        train: the training images.
        val: those to measure with.
        class_names: name of each class.
    """
    trained, measured = _counts(train, len(class_names)), _counts(val, len(class_names))
    if trained is None or measured is None:
        return []
    lines = []
    present = np.flatnonzero(trained)
    if len(present) == 1:
        lines.append(
            f"all training images are of one class, {class_names[int(present[0])]}: there is nothing to tell apart"
        )
    for which, missing in (
        ("training images, but none for validation: their accuracy is not measured", (trained > 0) & (measured == 0)),
        ("validation images, but none for training: they cannot be learned", (trained == 0) & (measured > 0)),
    ):
        if missing.any():
            names = [class_names[int(i)] for i in np.flatnonzero(missing)]
            lines.append(f"{len(names)} of {len(class_names)} classes have {which}: {some(names)}")
    if is_unbalanced(measured[measured > 0]):
        lines.append(
            f"{100 * measured.max() / measured.sum():.1f} % of the validation images are of one class, "
            f"{class_names[int(measured.argmax())]}: that is the accuracy of answering with it always"
        )
    return lines


def is_unbalanced(counts: Sequence[int] | np.ndarray) -> bool:
    """Whether one class has so many more images than the mean class that it decides the accuracy."""
    return bool(np.max(counts) > TIMES_MEAN * np.mean(counts))


def _counts(source: Source, classes: int) -> np.ndarray | None:
    labels: np.ndarray | None = getattr(source, "labels", None)
    return None if labels is None else np.bincount(labels, minlength=classes)
