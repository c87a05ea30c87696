"""One network's numbers for a reproduction: measured once, kept in a file, taken from it again."""

import hashlib
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial

from aa_flax.consistency import Estimate, Result, ShiftProtocol
from aa_flax.files import write_atomically
from aa_flax.models.specs import resolve_spec
from aa_flax.weights.config import PretrainedConfig
from aa_flax.weights.json_file import read_json
from aa_flax.weights.store import Preprocessing
from train.data import ImageFolder, evaluation_batches, open_photos, reflect_margin
from train.evaluate.scoring import protocols_for, score, whole_batch
from train.networks import as_function, open_network
from train.reproduce.published_weights import Weights
from train.reproduce.rows import Measured

FORMAT_VERSION = 1
CONSISTENCY = "zhang2019"
ESTIMATES = ("top1", "top5", "consistency")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How networks are measured and timed.

    Attributes:
        batch_size: Photos in a batch; never changes a percentage.
        seed: Of the random crops.
        workers: Loader processes.
        max_unreadable: Share of the photos that may be unreadable.
        timing_batch: Images in a timed forward pass.
        timing_repeats: Timed passes; the median counts.
    """

    batch_size: int
    seed: int
    workers: int
    max_unreadable: float
    timing_batch: int
    timing_repeats: int

    def protocols(self, preprocessing: Preprocessing) -> dict[str, ShiftProtocol]:
        """Accuracy and the reference's crop consistency, for images prepared in a way."""
        return protocols_for(
            ("accuracy", CONSISTENCY),
            preprocessing,
            margin=reflect_margin(preprocessing),
            seed=self.seed,
            device_batch=whole_batch(self.batch_size),
        )


@dataclass(frozen=True, kw_only=True)
class Photos:
    """The photos of a reproduction and what identifies them."""

    source: ImageFolder
    fingerprint: str


def open_validation(data: Path) -> Photos:
    """ImageNet's validation photos: `data/val`, or the directory of class folders itself.

    The fingerprint is of names, labels and sizes in bytes.

    Raises:
        CommandError: No photos there, or folders that are not ImageNet's classes.
    """
    root = data / "val" if (data / "val").is_dir() else data
    source = open_photos(root, PretrainedConfig(spec=resolve_spec("resnet50")))
    digest = hashlib.sha256()
    for index, label in enumerate(source.labels):
        digest.update(f"{source.name(index)}\0{label}\0{source.path(index).stat().st_size}\n".encode())
    return Photos(source=source, fingerprint=digest.hexdigest())


def identity(weights: Weights, photos: Photos, settings: Settings) -> dict[str, Any]:
    """Everything that decides a network's percentages; equal ones need no second measurement."""
    protocols = settings.protocols(weights.preprocessing)
    content = {
        "version": FORMAT_VERSION,
        "network": weights.spec,
        "weights": weights.sha256,
        "photos": photos.fingerprint,
        "preprocessing": asdict(weights.preprocessing),
        "protocols": {name: each.settings() for name, each in protocols.items()},
    }
    # What a file gives back: lists for tuples.
    return json.loads(json.dumps(content))


def comparable(known: Measured, photos: Photos, settings: Settings) -> bool:
    """Whether an earlier run measured these photos in this way, with whatever weights."""
    kept = known.identity
    try:
        rule: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in kept["preprocessing"].items()
        }
        protocols = settings.protocols(Preprocessing(**rule))
    except (KeyError, AttributeError, TypeError, ValueError):
        return False
    expected = {
        "version": FORMAT_VERSION,
        "photos": photos.fingerprint,
        "protocols": {name: each.settings() for name, each in protocols.items()},
    }
    return {name: kept.get(name) for name in expected} == json.loads(json.dumps(expected))


def timing_conditions(settings: Settings) -> dict[str, Any]:
    """What a time rests on."""
    device = jax.devices()[0]
    return {"device": device.device_kind, "batch": settings.timing_batch, "repeats": settings.timing_repeats}


def measure(
    weights: Weights,
    photos: Photos,
    settings: Settings,
    *,
    progress: Callable[[int], None],
) -> Measured:
    """Measures and times one network.

    Args:
        weights: What and where it is.
        photos: What to measure on.
        settings: How.
        progress: Called with the number of photos that are done.

    Raises:
        CommandError: Weights that do not load or give NaN; too many unreadable photos.
    """
    rule, margin = weights.preprocessing, reflect_margin(weights.preprocessing)
    network = as_function(open_network(weights.path, weights.spec).model)
    batches = evaluation_batches(
        photos.source,
        rule,
        global_batch=whole_batch(settings.batch_size),
        workers=settings.workers,
        max_bad_fraction=settings.max_unreadable,
        max_bad_option="--max-unreadable",
    )
    try:
        with jax.default_matmul_precision("highest"):
            result = score(network, batches, settings.protocols(rule), rule, margin=margin, progress=progress)
            milliseconds = time_forward(network, rule.crop, settings)
    finally:
        batches.close()
    accuracy = result.results["accuracy"]
    return Measured(
        identity=identity(weights, photos, settings),
        top1=_estimate(accuracy),
        top5=accuracy.parts["top5"],
        consistency=_estimate(result.results[CONSISTENCY]),
        images=len(result.index),
        unreadable=len(result.unreadable),
        weights=weights.label,
        published=weights.published,
        milliseconds=milliseconds,
        timing=timing_conditions(settings),
    )


def timed_anew(known: Measured, weights: Weights, settings: Settings) -> Measured:
    """The same percentages with the time that a forward pass takes here and now."""
    network = as_function(open_network(weights.path, weights.spec).model)
    with jax.default_matmul_precision("highest"):
        milliseconds = time_forward(network, weights.preprocessing.crop, settings)
    return replace(known, milliseconds=milliseconds, timing=timing_conditions(settings))


def time_forward(network: Partial, side: int, settings: Settings) -> float:
    """Median time of a compiled forward pass on this machine, in milliseconds per image.

    Args:
        network: Images (n, side, side, 3) to logits.
        side: Of the images, in pixels.
        settings: How many images and passes. One device is timed, whatever their number.
    """
    images = jax.numpy.asarray(np.random.default_rng(0).normal(size=(settings.timing_batch, side, side, 3)), "float32")
    jax.block_until_ready(_forward(network, images))
    seconds = []
    for _ in range(settings.timing_repeats):
        start = time.perf_counter()
        jax.block_until_ready(_forward(network, images))
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds) / settings.timing_batch


@jax.jit
def _forward(network: Partial, images: jax.Array) -> jax.Array:
    return network(images)


def write_measured(path: Path, found: Measured) -> None:
    """Keeps what was measured for the next run.

    Raises:
        OSError: The file cannot be written.
    """
    content = {**vars(found), **{name: getattr(found, name).as_dict() for name in ESTIMATES}}
    write_atomically(path, json.dumps(content, indent=1).encode())


def read_measured(path: Path) -> Measured | None:
    """What `write_measured` kept; None where nothing was, or the file is none of its."""
    try:
        content = read_json(path)
        found: dict[str, Any] = {field.name: content[field.name] for field in fields(Measured)}
        found.update({name: _from_json(found[name]) for name in ESTIMATES})
        return Measured(**found)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _estimate(result: Result) -> Estimate:
    return Estimate(result.value, result.stderr)


def _from_json(content: dict[str, Any]) -> Estimate:
    stderr = content["stderr"]
    return Estimate(float(content["value"]), math.nan if stderr is None else float(stderr))
