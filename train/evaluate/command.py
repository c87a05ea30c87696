"""`python -m train evaluate`: accuracy and shift consistency of any network on a folder of photos."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import tyro

from aa_flax.buckets import AnyPath, BucketPath
from aa_flax.consistency import ShiftProtocol
from aa_flax.files import write_atomically
from aa_flax.weights.config import PretrainedConfig
from train.console import open_console, progress
from train.data import Batch, Batches, ImageFolder, evaluation_batches, open_photos, reflect_margin
from train.errors import CommandError
from train.evaluate.kept import keep_crops, keep_diagonal
from train.evaluate.moving import equivariance_for
from train.evaluate.report import Evaluation, as_json, print_table
from train.evaluate.scoring import Predictor, Score, protocols_for, read_offsets, score, whole_batch
from train.local_paths import Place
from train.measurable.naming import Foreign
from train.measurable.network import Measurable
from train.networks import as_function, open_network

# Options that only networks of this package have.
OWN = ("model", "weights", "dtype", "pad_type", "equivariance")


@dataclass(frozen=True)
class Config:
    """Measures a network on a folder of photos, CLASS/*.jpg, and prints a table.

    The photos are decoded once; every shift is cut out on the device. Folders named by ImageNet's
    WordNet ids get the standard class numbers, other folders are numbered in alphabetical order.
    """

    data: Path
    """Directory of class folders, for instance /data/imagenet/val."""
    model: str | None = None
    """Network, such as resnet50_lpf4. Without --weights, its published weights are fetched."""
    weights: str | None = None
    """Directory of convert_weights.py or `python -m train export`; or .pth, .safetensors, gs://bucket/name,
    hf://owner/name, https."""
    foreign: Annotated[Foreign, tyro.conf.arg(name="")] = field(default_factory=Foreign)
    batch_size: int = 32
    """Photos in a batch; changes speed and memory, never the figures."""
    protocols: str = "accuracy,crop"
    """What to measure, separated by commas; docs/measuring.md explains each."""
    views: int = 2
    """How many shifts have to agree, for the protocols that otherwise compare two: crop, zhang2019, circular,
    fractional."""
    equivariance: str | None = None
    """Measures as well how the network's last map moves with the photo, under shifts that are circular, fractional or
    crop: one or several, separated by commas."""
    output: Place | None = None
    """Where to write the figures, per-image predictions and what repeats the run, as JSON; perhaps gs://bucket/name."""
    save_images: Path | None = None
    """Directory for the centre crop of every photo as the network sees it, PHOTO.png."""
    save_diagonal: Path | None = None
    """Directory for the four arrays of the protocol `diagonal`, each (photos, offsets): probability.npy,
    best_other.npy, correct.npy, predictions.npy. Measures that protocol too."""
    offsets: Path | None = None
    """JSON file of crop offsets to use instead of random ones: (pairs, 2, 2) numbers, or an
    object that holds them as "offsets" or "shift_offsets"."""
    seed: int = 0
    """Of the random offsets."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the layers compute in; float32 uses the highest precision of the device."""
    pad_type: Literal["reflect", "replicate", "zero", "circular"] | None = None
    """Padding of every blur in place of the one that the network was trained with."""
    workers: int = 0
    """Loader processes; 0 decodes in threads of this one."""
    max_unreadable: float = 0.1
    """Stop once more than this share of the photos has turned out to be unreadable."""


def run(config: Config) -> int:
    """Measures, prints the table, writes the report.

    Raises:
        CommandError: something in `config` cannot be used; the message says what.
    """
    _check(config)
    offsets = None if config.offsets is None else read_offsets(config.offsets)
    opened = _open(config)
    pretrained, preprocessing = opened.pretrained, opened.pretrained.preprocessing
    protocols = _protocols(config, opened, offsets)
    photos = open_photos(config.data, pretrained)
    batches = evaluation_batches(
        photos,
        preprocessing,
        global_batch=whole_batch(config.batch_size),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        workers=config.workers,
        max_bad_fraction=config.max_unreadable,
        max_bad_option="--max-unreadable",
    )
    failed: dict[str, str] = {}
    result = _score(config, opened, batches, protocols, photos, failed)
    evaluation = Evaluation(
        pretrained=pretrained,
        weights=opened.file,
        options=config,
        photos=photos,
        score=result,
        reasons=batches.bad.found,
    )
    if jax.process_index() == 0:
        try:
            if config.output is not None:
                _write(config.output, as_json(evaluation))
            if config.save_diagonal is not None:
                keep_diagonal(result.results["diagonal"], config.save_diagonal)
        finally:
            # A disk that has filled up meanwhile must not cost the figures.
            print_table(evaluation, open_console())
    if failed:
        photo, reason = next(iter(failed.items()))
        raise CommandError(
            f"--save-images {config.save_images}: {len(failed)} of {len(photos)} pictures could not be written, "
            f"{photo} first: {reason}; all figures above are complete"
        )
    return 0


def _protocols(config: Config, opened: "_Opened", offsets: Any) -> dict[str, ShiftProtocol]:
    """What is measured, by name, with the settings that fit the network's images."""
    preprocessing = opened.pretrained.preprocessing
    settings: dict[str, Any] = {
        "margin": reflect_margin(preprocessing),
        "seed": config.seed,
        "device_batch": whole_batch(config.batch_size),
    }
    protocols = protocols_for(_names(config), preprocessing, views=config.views, offsets=offsets, **settings)
    if config.equivariance is not None:
        assert opened.maps is not None
        protocols |= equivariance_for(_listed(config.equivariance), opened.maps, preprocessing, **settings)
    return protocols


def _names(config: Config) -> list[str]:
    """The protocols to measure, each once."""
    names = _listed(config.protocols)
    return names if config.save_diagonal is None else list(dict.fromkeys([*names, "diagonal"]))


def _listed(text: str) -> list[str]:
    """Names separated by commas, each once."""
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


@dataclass(frozen=True)
class _Opened:
    """What is known of the network, its logits, its last map where it has one, and the file of its weights."""

    pretrained: PretrainedConfig | Measurable
    fn: Predictor
    maps: Predictor | None
    file: Path | None


def _open(config: Config) -> _Opened:
    foreign = config.foreign.open()
    if foreign is not None:
        return _Opened(foreign, foreign.fn, None, foreign.file)
    name, spec = (config.model, None) if config.weights is None else (config.weights, config.model)
    assert name is not None
    option = "--model" if config.weights is None else "--weights"
    dtype = None if config.dtype == "float32" else config.dtype
    opened = open_network(name, spec, option=option, dtype=dtype, pad_type=config.pad_type)
    return _Opened(opened.config, as_function(opened.model), as_function(opened.model, "features"), opened.file)


def _score(
    config: Config,
    opened: _Opened,
    batches: Batches,
    protocols: dict[str, ShiftProtocol],
    photos: ImageFolder,
    failed: dict[str, str],
) -> Score:
    stream: Iterable[Batch] = batches
    preprocessing = opened.pretrained.preprocessing
    if config.save_images is not None:
        stream = keep_crops(batches, config.save_images, preprocessing.crop, photos.name, failed)
    try:
        with progress(open_console(stderr=True), "photos") as bar, jax.default_matmul_precision(_precision(config)):
            task = bar.add_task("measuring", total=-(-len(photos) // jax.process_count()))
            return score(
                opened.fn,
                stream,
                protocols,
                preprocessing,
                margin=reflect_margin(preprocessing),
                maps=opened.maps,
                progress=lambda count: bar.advance(task, count),
            )
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise CommandError(f"the device's memory does not hold --batch-size {config.batch_size}; lower it") from error
    finally:
        batches.close()


def _check(config: Config) -> None:
    if config.batch_size < 1:
        raise CommandError(f"--batch-size is {config.batch_size}; it must be at least 1")
    if config.workers < 0:
        raise CommandError(f"--workers is {config.workers}; it must be 0 or more")
    if config.views < 2:
        raise CommandError(f"--views is {config.views}; it must be at least 2")
    if config.views > 2 and config.offsets is not None:
        raise CommandError(
            f"--offsets {config.offsets} are of pairs, and --views {config.views} draws its own; drop one"
        )
    if config.seed < 0:
        raise CommandError(f"--seed is {config.seed}; it must be 0 or more")
    if not 0 <= config.max_unreadable <= 1:
        raise CommandError(f"--max-unreadable is {config.max_unreadable}; it must be from 0 to 1")
    own = [f"--{name}" for name in OWN if getattr(config, name) not in (None, "float32")]
    if config.foreign.named and own:
        raise CommandError(f"{own[0]} is for networks of this package, and {config.foreign.named} is none")
    if not config.foreign.named and config.model is None and config.weights is None:
        raise CommandError(
            "give --weights DIRECTORY, --model NAME for published weights, or a network that is not of this package: "
            "--onnx FILE, --timm NAME, --torchvision NAME, --exported DIRECTORY, --fn MODULE:FUNCTION"
        )
    output = config.output
    if isinstance(output, BucketPath):
        _check_bucket(output)
    elif output is not None and (output.is_dir() or not os.access(output.absolute().parent, os.W_OK)):
        raise CommandError(f"--output {output} cannot be written: it must be a file in a directory that can be written")
    for option, directory in (("--save-images", config.save_images), ("--save-diagonal", config.save_diagonal)):
        if directory is not None and directory.exists() and not directory.is_dir():
            raise CommandError(f"{option} {directory} is a file; give a directory")


def _precision(config: Config) -> str:
    return "highest" if config.dtype == "float32" else "default"


def _check_bucket(output: BucketPath) -> None:
    try:
        output.check_bucket()
    except OSError as error:
        raise CommandError(f"--output {output} cannot be written: {error.strerror}") from error


def _write(path: AnyPath, report: dict[str, Any]) -> None:
    try:
        write_atomically(path, json.dumps(report, indent=1).encode())
    except OSError as error:
        raise CommandError(f"--output {path} cannot be written: {error.strerror}") from error
