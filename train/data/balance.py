"""How many images each class has."""

import numpy as np

from train.data.sources import Source


def majority_rate(source: Source) -> float | None:
    """Share of the most frequent class, in percent: the accuracy of answering with it always.

    None where labels are only known as images are read.
    """
    labels: np.ndarray | None = getattr(source, "labels", None)
    if labels is None or not len(labels):
        return None
    return 100 * float(np.bincount(labels).max()) / len(labels)
