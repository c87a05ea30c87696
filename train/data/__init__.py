"""Data for training and evaluation.

`open_dataset(DataConfig(...))` gives a `Dataset`; `train_batches` and `val_batches` iterate over
it, uint8 batches whose content depends on the seed and the step number alone. `augment.py` holds
what then happens on the device, `sources.py` the kinds of storage, `steps.py` the order, `transforms.py` the exact
host-side geometry. See `docs/data.md`.
"""

from train.data.datasets import Augmentation, DataConfig, Dataset, open_dataset, reflect_margin
from train.data.loader import (
    BadImages,
    Batch,
    Batches,
    evaluation_batches,
    steps_per_epoch,
    train_batches,
    val_batches,
)
from train.data.sources import ArraySource, EncodedSource, ImageFolder, Source, open_photos

__all__ = [
    "ArraySource",
    "Augmentation",
    "BadImages",
    "Batch",
    "Batches",
    "DataConfig",
    "Dataset",
    "EncodedSource",
    "ImageFolder",
    "Source",
    "evaluation_batches",
    "open_dataset",
    "open_photos",
    "reflect_margin",
    "steps_per_epoch",
    "train_batches",
    "val_batches",
]
