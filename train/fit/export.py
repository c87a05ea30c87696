"""`python -m train export`: the weights of a run as a directory that `aa_flax.load_pretrained` reads."""

import dataclasses
import sys

import tyro

from aa_flax.printable import printable
from aa_flax.weights.class_names import imagenet_wnids
from aa_flax.weights.store import save_pretrained
from train.errors import CommandError
from train.fit.licences import licence_of
from train.fit.record import DATASET, FILE_NAME, Record, preprocessing_of, read_record
from train.fit.rundir import has_checkpoints
from train.fit.runlog import Scores, read_scores
from train.fit.storage import quiet_storage_library
from train.fit.trained import Kind, Which, load_network
from train.local_paths import Place


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Write the weights of a run as config.json and model.safetensors.

    python -m train export runs/resnet50_lpf4-zhang2019 --output weights/resnet50_lpf4
    """

    run: tyro.conf.Positional[Place]
    """Directory of the run."""

    output: Place
    """Directory to write, made when missing; gs://bucket/name is one in a bucket."""

    checkpoint: Which = "latest"
    """Which checkpoint: the newest, the one with the best validation accuracy, or the one of a step."""

    weights: Kind = "auto"
    """ema: the moving average; raw: the weights themselves; auto: the average where the run has one."""

    license: str | None = None
    """Licence of the weights, written into config.json, such as Apache-2.0."""

    overwrite: bool = False
    """Replace weights that are in the output directory."""


def run(config: Config) -> int:
    """Exports, and prints where to.

    Raises:
        CommandError: no run, no such or no sound checkpoint, or an output that cannot be written.
    """
    quiet_storage_library()
    record = read_record(config.run / FILE_NAME)
    if not has_checkpoints(config.run):
        raise CommandError(f"{config.run} has no checkpoint yet: there is nothing to export")
    for name in DATASET:
        if name not in record.dataset:
            raise CommandError(f"{config.run / FILE_NAME} is not the record of a run: dataset has no field {name!r}")
    scores = _scores(config)
    step, model, ema = load_network(
        config.run, record, scores=scores, checkpoint=config.checkpoint, weights=config.weights
    )
    dataset = record.dataset
    parents = [record.parent] if record.parent else []
    licence, note = licence_of(config.license, [parent.get("license") for parent in parents])
    try:
        save_pretrained(
            model,
            config.output,
            preprocessing=preprocessing_of(dataset),
            class_names=dataset["class_names"],
            source={
                "trained_by": "python -m train fit",
                "data": data_name(record),
                "preset": record.config.preset,
                "step": step,
                "weights": "ema" if ema else "raw",
                "git": record.environment.get("git"),
                **({"parents": parents} if parents else {}),
            },
            license=licence,
            metrics=scores.get(step, {}),
            overwrite=config.overwrite,
        )
    except (OSError, ValueError) as error:
        raise CommandError(f"--output {config.output}: {getattr(error, 'strerror', None) or error}") from error
    kind = "moving average" if ema else "weights"
    print(printable(f"{config.output}: {record.config.model}, {kind} of step {step:,}"))
    if note:
        print(printable(note))
    print(f"use it: aa_flax.load_pretrained({str(config.output)!r})")
    return 0


def data_name(record: Record) -> str:
    """What the training images are called; folders of other classes than ImageNet's by their directory."""
    name, directory = record.dataset["name"], record.config.data.dir
    if name == "imagenet" and directory is not None and not set(record.dataset["class_names"]) <= set(imagenet_wnids()):
        return directory.expanduser().absolute().name
    return name


def _scores(config: Config) -> Scores:
    """Validation results by step; where they are damaged and nothing is chosen by them, none."""
    try:
        return read_scores(config.run)
    except CommandError as error:
        if config.checkpoint == "best":
            raise
        print(printable(f"no metrics are written: {error}"), file=sys.stderr)
        return {}
