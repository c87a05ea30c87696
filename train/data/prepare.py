"""TFDS data sets as array_record: written once with `python -m train prepare`, read without TensorFlow."""

import importlib.util
import logging
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from train.data.sources import EncodedSource
from train.errors import CommandError

log = logging.getLogger(__name__)

SPLITS = {"imagenet2012": ("train", "validation"), "cifar10": ("train", "test")}


@dataclass(frozen=True)
class Config:
    """Downloads (or takes from tar files at hand) a TFDS data set and writes it as array_record.

    Writing needs TensorFlow (`pip install tensorflow-cpu importlib_resources`); training from the
    result does not. ImageNet cannot be downloaded: get ILSVRC2012_img_train.tar and
    ILSVRC2012_img_val.tar from image-net.org and name their directory with --manual-dir.
    """

    name: Literal["imagenet2012", "cifar10"]
    """The TFDS data set."""
    dir: Path
    """Where to write; give the same directory as --data.dir to `python -m train fit`."""
    manual_dir: Path | None = None
    """The directory with ImageNet's two tar files."""


TARS = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")


def run(config: Config) -> int:
    """Writes the data set; a finished one is left as it is."""
    if importlib.util.find_spec("tensorflow") is None:
        raise CommandError(
            f"writing {config.name} needs TensorFlow, which is not installed: "
            "pip install tensorflow-cpu importlib_resources (reading needs neither)"
        )
    if config.name == "imagenet2012":
        _check_tars(config.manual_dir)
    import tensorflow_datasets as tfds

    download = tfds.download.DownloadConfig(
        manual_dir=None if config.manual_dir is None else config.manual_dir.expanduser()
    )
    builder = tfds.builder(config.name, data_dir=config.dir.expanduser(), file_format="array_record")
    try:
        builder.download_and_prepare(download_config=download)
    except (OSError, RuntimeError) as error:
        raise CommandError(f"writing {config.name} to {config.dir} failed: {error}") from error
    for split in SPLITS[config.name]:
        print(f"{split}: {builder.info.splits[split].num_examples} images in {builder.data_path}")
    where = shlex.quote(str(config.dir))
    print(f"train with: python -m train fit ... --data.name tfds_{config.name} --data.dir {where}")
    return 0


def _check_tars(manual_dir: Path | None) -> None:
    if manual_dir is None:
        raise CommandError(f"imagenet2012 needs --manual-dir, the directory of {' and '.join(TARS)}")
    missing = [tar for tar in TARS if not (manual_dir.expanduser() / tar).is_file()]
    if missing:
        raise CommandError(f"--manual-dir {manual_dir} has no {' and no '.join(missing)}")


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
