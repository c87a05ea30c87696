"""One network's numbers for a reproduction: measured once, kept in a file, taken from it again."""

import hashlib
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping
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
from aa_flax.weights.store import Preprocessing, load_pretrained
from train.data import ImageFolder, evaluation_batches, open_photos, reflect_margin
from train.errors import CommandError
from train.evaluate.scoring import Score, protocols_for, score, whole_batch
from train.networks import as_function
from train.reproduce.published_weights import ACCURACY, CONSISTENCY, Weights
from train.reproduce.rows import Measured

FORMAT_VERSION = 2
ESTIMATES = ("top1", "top5", "consistency")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How networks are measured and timed."""

    batch_size: int = 32
    """Photos in a batch; changes speed and memory, never the percentages."""
    seed: int = 0
    """Of the random crops."""
    workers: int = 0
    """Loader processes; 0 decodes in threads of this one."""
    max_unreadable: float = 0.01
    """Stop once more than this share of the photos has turned out to be unreadable."""
    timing_batch: int = 16
    """Images in a timed forward pass."""
    timing_repeats: int = 10
    """Timed passes; the median counts."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "timing_batch", "timing_repeats"):
            if getattr(self, name) < 1:
                option = name.replace("_", "-")
                raise CommandError(f"--{option} is {getattr(self, name)}; it must be at least 1")
        for name in ("workers", "seed"):
            if getattr(self, name) < 0:
                raise CommandError(f"--{name} is {getattr(self, name)}; it must be 0 or more")
        if not 0 <= self.max_unreadable <= 1:
            raise CommandError(f"--max-unreadable is {self.max_unreadable}; it must be from 0 to 1")

    def protocols(self, preparations: Mapping[str, Preprocessing]) -> dict[str, ShiftProtocol]:
        """Accuracy and the reference's crop consistency, each for images prepared in its way.

        Args:
            preparations: `Weights.preparations`.
        """
        return {
            name: protocols_for(
                (name,),
                rule,
                margin=reflect_margin(rule),
                seed=self.seed,
                device_batch=whole_batch(self.batch_size),
            )[name]
            for name, rule in preparations.items()
        }


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
    content = {
        "network": weights.spec,
        "weights": weights.sha256,
        "preparations": {name: asdict(rule) for name, rule in weights.preparations.items()},
        **_way(weights.preparations, photos, settings),
    }
    return _as_kept(content)


def comparable(known: Measured, photos: Photos, settings: Settings) -> bool:
    """Whether an earlier run measured these photos in this way, with whatever weights."""
    kept = known.identity
    try:
        preparations = {name: _preparation(rule) for name, rule in kept["preparations"].items()}
        expected = _as_kept(_way(preparations, photos, settings))
    except (KeyError, AttributeError, TypeError, ValueError, CommandError):
        return False
    return {name: kept.get(name) for name in expected} == expected


def _way(preparations: Mapping[str, Preprocessing], photos: Photos, settings: Settings) -> dict[str, Any]:
    protocols = settings.protocols(preparations)
    return {
        "version": FORMAT_VERSION,
        "photos": photos.fingerprint,
        "protocols": {name: each.settings() for name, each in protocols.items()},
    }


def _as_kept(content: dict[str, Any]) -> dict[str, Any]:
    """What a file gives back: lists for tuples."""
    return json.loads(json.dumps(content))


def _preparation(kept: dict[str, Any]) -> Preprocessing:
    fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in kept.items()}
    return Preprocessing(**fields)


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
    network = _network(weights)
    found: dict[str, Result] = {}
    with jax.default_matmul_precision("highest"):
        for rule, names in passes(weights).items():
            scored = _pass(network, dict.fromkeys(names, rule), rule, photos, settings, progress)
            found |= scored.results
        milliseconds = time_forward(network, weights.crop, settings)
    accuracy = found.get(ACCURACY)
    return Measured(
        identity=identity(weights, photos, settings),
        top1=None if accuracy is None else _estimate(accuracy),
        top5=None if accuracy is None else accuracy.parts["top5"],
        consistency=_estimate(found[CONSISTENCY]),
        images=len(scored.index),
        unreadable=len(scored.unreadable),
        weights=weights.label,
        published=weights.published,
        milliseconds=milliseconds,
        timing=timing_conditions(settings),
    )


def passes(weights: Weights) -> dict[Preprocessing, list[str]]:
    """Which protocols see photos that are prepared in the same way: the photos are read once for each way."""
    found: dict[Preprocessing, list[str]] = {}
    for name, rule in weights.preparations.items():
        found.setdefault(rule, []).append(name)
    return found


def _pass(
    network: Partial,
    preparations: Mapping[str, Preprocessing],
    rule: Preprocessing,
    photos: Photos,
    settings: Settings,
    progress: Callable[[int], None],
) -> Score:
    batches = evaluation_batches(
        photos.source,
        rule,
        global_batch=whole_batch(settings.batch_size),
        workers=settings.workers,
        max_bad_fraction=settings.max_unreadable,
        max_bad_option="--max-unreadable",
    )
    try:
        protocols = settings.protocols(preparations)
        return score(network, batches, protocols, rule, margin=reflect_margin(rule), progress=progress)
    finally:
        batches.close()


def _network(weights: Weights) -> Partial:
    try:
        return as_function(load_pretrained(weights.path, spec=weights.spec))
    except (OSError, ValueError) as error:
        raise CommandError(" ".join(str(error).split())) from error


def timed_anew(known: Measured, weights: Weights, settings: Settings) -> Measured:
    """The same percentages with the time that a forward pass takes here and now."""
    network = _network(weights)
    with jax.default_matmul_precision("highest"):
        milliseconds = time_forward(network, weights.crop, settings)
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
    estimates = {name: getattr(found, name) for name in ESTIMATES}
    content = {**vars(found), **{name: each and each.as_dict() for name, each in estimates.items()}}
    write_atomically(path, json.dumps(content, indent=1).encode())


def read_measured(path: Path) -> Measured | None:
    """What `write_measured` kept; None where nothing was, or the file is none of its."""
    try:
        content = read_json(path)
        found: dict[str, Any] = {field.name: content[field.name] for field in fields(Measured)}
        found.update({name: found[name] and _from_json(found[name]) for name in ESTIMATES})
        return Measured(**found) if found["consistency"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _estimate(result: Result) -> Estimate:
    return Estimate(result.value, result.stderr)


def _from_json(content: dict[str, Any]) -> Estimate:
    stderr = content["stderr"]
    return Estimate(float(content["value"]), math.nan if stderr is None else float(stderr))
