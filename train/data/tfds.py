"""TFDS data sets as array_record, read without TensorFlow; `python -m train prepare` writes them."""

from pathlib import Path
from typing import Any

from train.data.sources import EncodedSource
from train.errors import CommandError

SPLITS = {"imagenet2012": ("train", "validation"), "cifar10": ("train", "test")}


def open_tfds(name: str, directory: Path) -> tuple[EncodedSource, EncodedSource, tuple[str, ...]]:
    """The training and validation images of a prepared data set, and its class names.

    Args:
        name: a key of `SPLITS`.
        directory: what was `--dir` of `prepare` (the directory that TFDS calls data_dir).

    Raises:
        CommandError: no such data set there, or one that was written in another file format.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=directory)
    except tfds.core.DatasetNotFoundError as error:
        raise _not_prepared(name, directory) from error
    if not builder.is_prepared():
        raise _not_prepared(name, directory)
    return open_builder(builder, SPLITS[name])


def _not_prepared(name: str, directory: Path) -> CommandError:
    return CommandError(
        f"{directory} holds no prepared {name}; write it with: python -m train prepare --name {name} --dir {directory}"
    )


def open_builder(builder: Any, splits: tuple[str, str]) -> tuple[EncodedSource, EncodedSource, tuple[str, ...]]:
    """`open_tfds` for a TFDS builder at hand."""
    import tensorflow_datasets as tfds

    written = builder.info.file_format
    if written is not tfds.core.FileFormat.ARRAY_RECORD:
        raise CommandError(
            f"{builder.data_path} is written as {written.value if written else 'nothing'}, which "
            "gives no random access; write it anew with `python -m train prepare`"
        )
    raw = {"image": tfds.decode.SkipDecoding()}
    train, val = (
        EncodedSource(builder.as_data_source(split=split, decoders=raw), f"{builder.name}/{split}") for split in splits
    )
    return train, val, tuple(builder.info.features["label"].names)
