"""`python -m train prepare`: writes a TFDS data set as array_record, once; `tfds.py` reads it."""

import importlib.util
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from train.data.tfds import SPLITS
from train.errors import CommandError


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
