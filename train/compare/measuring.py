"""Networks measured side by side: every photo is decoded once, shown to all, and what they answered is kept.

What is kept is a file for each network and each stretch of photos, so that a comparison that was stopped, or gets
another network, measures what is missing and nothing else.
"""

import dataclasses
import hashlib
import io
import json
import re
import statistics
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial

from aa_flax.consistency import Result, ShiftProtocol
from aa_flax.files import file_sha256, write_atomically
from aa_flax.weights.json_file import read_json
from train.data import ImageFolder, evaluation_batches, open_photos, reflect_margin
from train.errors import CommandError
from train.evaluate.scoring import Predictor, look, on_all_devices, protocols_for, whole_batch
from train.measurable.network import Measurable

FORMAT_VERSION = 1
# Photos that are measured before anything is written.
STRETCH = 64


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How networks are measured and timed.

    Attributes:
        protocols: names of `aa_flax.consistency.PROTOCOLS`.
        batch_size: photos in a batch; never changes a percentage.
        seed: of the random shifts.
        max_unreadable: share of the photos that may be unreadable.
        timing_batch: images in a timed forward pass.
        timing_repeats: timed passes; the median counts.
    """

    protocols: tuple[str, ...]
    batch_size: int
    seed: int
    max_unreadable: float
    timing_batch: int
    timing_repeats: int


@dataclass(frozen=True, eq=False)
class Entrant:
    """A network with its labels and protocols, and the place of what it has answered.

    Attributes:
        network: what is measured.
        photos: the folder as this network's classes read it.
        protocols: by name.
        directory: has its answers.
    """

    network: Measurable
    photos: ImageFolder
    protocols: dict[str, ShiftProtocol]
    directory: Path

    @property
    def margin(self) -> int:
        """Pixels by which its images are enlarged."""
        return reflect_margin(self.network.preprocessing)

    @property
    def way(self) -> tuple[Any, ...]:
        """How photos are prepared for it, but for what the device does: networks with equal ones share batches."""
        rule = self.network.preprocessing
        return dataclasses.astuple(dataclasses.replace(rule, mean=(0.0,), std=(1.0,)))

    @cached_property
    def fn(self) -> Predictor:
        """The network on all devices."""
        return on_all_devices(self.network.fn)

    def kept(self, start: int) -> Path:
        """The file of the stretch that begins with a photo."""
        return self.directory / f"{start:07}.npz"


class Stretch:
    """Photos next to each other as a source of their own.

    Args:
        photos: the whole folder.
        start: the first of them.
        keep: whether they are asked for several times: then each is decoded once, and its pixels are kept.
    """

    def __init__(self, photos: ImageFolder, start: int, *, keep: bool) -> None:
        self._photos, self._start, self._keep = photos, start, keep
        self._count = min(STRETCH, len(photos) - start)
        self._decoded: dict[int, tuple[np.ndarray, int]] = {}

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        if index in self._decoded:
            return self._decoded[index]
        decoded = self._photos[self._start + index]
        if self._keep:
            self._decoded[index] = decoded
        return decoded

    def name(self, index: int) -> str:
        return self._photos.name(self._start + index)


def enter(network: Measurable, root: Path, settings: Settings, directory: Path) -> Entrant:
    """A network as an entrant.

    Args:
        network: what is measured.
        root: of the photos.
        settings: how.
        directory: of all answers; the entrant's own is named after all that decides them.

    Raises:
        CommandError: photos that do not fit its classes, protocols that do not fit its images.
    """
    photos = open_photos(root, network)
    protocols = protocols_for(
        settings.protocols,
        network.preprocessing,
        margin=reflect_margin(network.preprocessing),
        seed=settings.seed,
        device_batch=whole_batch(settings.batch_size),
    )
    content = {
        "version": FORMAT_VERSION,
        "network": {**network.as_dict(), "model": None},
        "weights": None if network.file is None else file_sha256(network.file),
        "photos": _fingerprint(photos),
        "protocols": {name: each.settings() for name, each in protocols.items()},
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]
    stem = re.sub(r"[^\w.-]+", "-", network.model)[:60]
    return Entrant(network, photos, protocols, directory / f"{stem}-{digest}")


def _fingerprint(photos: ImageFolder) -> str:
    """Of names, labels and sizes in bytes."""
    digest = hashlib.sha256()
    for index, label in enumerate(photos.labels):
        digest.update(
            f"{photos.name(index)}\0{label}\0{photos.path(index).stat().st_size}\n".encode(errors="surrogateescape")
        )
    return digest.hexdigest()


@dataclass
class Unreadable:
    """Photos that no network was shown, and why.

    Attributes:
        photos: how many there are.
        share: of them that may be unreadable.
        reasons: by name.
    """

    photos: int
    share: float
    reasons: dict[str, str] = field(default_factory=dict)

    def add(self, found: dict[str, str]) -> None:
        """Takes note of some, and of what is too much.

        Raises:
            CommandError: they are more than the allowed share.
        """
        self.reasons.update(found)
        if len(self.reasons) > self.share * self.photos:
            name, reason = next(iter(self.reasons.items()))
            raise CommandError(
                f"{len(self.reasons)} of {self.photos} photos are unreadable, more than the share of --max-unreadable "
                f"({self.share:g}); the first is {name} ({reason})"
            )


def measure_all(
    entrants: Sequence[Entrant], settings: Settings, *, progress: Callable[[int], None] = lambda count: None
) -> dict[str, str]:
    """Measures what is not kept yet.

    Args:
        entrants: all on the same folder.
        settings: how.
        progress: called with the number of photos that are done.

    Returns:
        Why photos were unreadable, by name, as far as they were met in this run.

    Raises:
        CommandError: too many unreadable photos.
    """
    photos = entrants[0].photos
    bad = Unreadable(len(photos), settings.max_unreadable)
    for start in range(0, len(photos), STRETCH):
        missing = [entrant for entrant in entrants if read_stretch(entrant, start) is None]
        ways = dict.fromkeys(entrant.way for entrant in missing)
        decoded = Stretch(photos, start, keep=len(ways) > 1)
        for way in ways:
            _measure_stretch([each for each in missing if each.way == way], decoded, start, settings, bad)
        progress(len(decoded))
    return bad.reasons


def _measure_stretch(
    entrants: Sequence[Entrant], decoded: Stretch, start: int, settings: Settings, bad: Unreadable
) -> None:
    """Shows some photos to networks that want them prepared in the same way, and writes what they answered."""
    batches = evaluation_batches(
        decoded,
        entrants[0].network.preprocessing,
        global_batch=whole_batch(settings.batch_size),
        max_bad_fraction=1.0,
    )
    seen: list[list[dict[str, np.ndarray]]] = [[] for _ in entrants]
    try:
        for batch in batches:
            rows, position = np.flatnonzero(batch["mask"]), batch["index"] + start
            for entrant, found in zip(entrants, seen, strict=True):
                # Beyond the last photo are rows that only fill the batch.
                label = entrant.photos.labels[np.minimum(position, len(entrant.photos) - 1)]
                asked = {**batch, "index": position, "label": label}
                arrays = look(
                    entrant.fn, asked, entrant.protocols, entrant.network.preprocessing, margin=entrant.margin
                )
                flat = {f"{name}/{key}": array for name, part in arrays.items() for key, array in part.items()}
                found.append({key: np.asarray(array)[rows] for key, array in flat.items()})
    finally:
        batches.close()
    bad.add(batches.bad.found)
    for entrant, found in zip(entrants, seen, strict=True):
        buffer = io.BytesIO()
        whole: dict[str, Any] = {key: np.concatenate([part[key] for part in found]) for key in found[0]}
        np.savez(buffer, allow_pickle=False, **whole)
        write_atomically(entrant.kept(start), buffer.getvalue())


def read_stretch(entrant: Entrant, start: int) -> dict[str, np.ndarray] | None:
    """What an entrant answered; None where nothing is kept, or no whole file."""
    try:
        with np.load(entrant.kept(start), allow_pickle=False) as arrays:
            found = dict(arrays)
        _ = [found[f"{name}/index"] for name in entrant.protocols]
        return found
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def results(entrant: Entrant) -> dict[str, Result]:
    """What an entrant's answers on all photos amount to, by protocol.

    Raises:
        CommandError: no photo could be read; a network that returned NaN.
    """
    parts = [read_stretch(entrant, start) for start in range(0, len(entrant.photos), STRETCH)]
    found = [part for part in parts if part is not None]
    if not sum(len(part[f"{name}/index"]) for part in found for name in entrant.protocols):
        raise CommandError("no photo could be read")
    gathered = {key: np.concatenate([part[key] for part in found]) for key in found[0]}
    summed = {}
    for name, protocol in entrant.protocols.items():
        arrays = {key.partition("/")[2]: array for key, array in gathered.items() if key.startswith(f"{name}/")}
        try:
            summed[name] = protocol.summarise(arrays)
        except ValueError as error:
            raise CommandError(f"{entrant.network.model}, protocol {name}: {error}") from error
    return summed


def time_all(
    entrants: Sequence[Entrant],
    settings: Settings,
    kept: Path,
    *,
    progress: Callable[[], None] = lambda: None,
) -> list[float]:
    """Median time of each network's forward pass on this machine, in milliseconds per image.

    The networks take turns, so that a machine that is busy for a while slows all of them. Times of an earlier run with
    the same networks, on such a machine, are taken from it: there is no sense in comparing times of different runs.

    Args:
        entrants: what is timed.
        settings: how many images and passes. One device is timed, whatever their number.
        kept: file with the times.
        progress: called after each round.
    """
    conditions = {
        "networks": [entrant.directory.name for entrant in entrants],
        "device": jax.devices()[0].device_kind,
        "batch": settings.timing_batch,
        "repeats": settings.timing_repeats,
    }
    try:
        found = read_json(kept)
        if found["conditions"] == conditions:
            return [float(number) for number in found["milliseconds"]]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    seconds: list[list[float]] = [[] for _ in entrants]
    for number in range(settings.timing_repeats + 1):
        for entrant, taken in zip(entrants, seconds, strict=True):
            taken.append(_once(entrant.network, settings.timing_batch))
        if number:
            progress()
    # The first round compiles.
    milliseconds = [1000 * statistics.median(taken[1:]) / settings.timing_batch for taken in seconds]
    write_atomically(kept, json.dumps({"conditions": conditions, "milliseconds": milliseconds}, indent=1).encode())
    return milliseconds


def _once(network: Measurable, count: int) -> float:
    rule = network.preprocessing
    shape = (count, rule.crop, rule.crop, len(rule.mean))
    images = np.random.default_rng(0).standard_normal(shape, np.float32)
    start = time.perf_counter()
    if isinstance(network.fn, Partial):
        jax.block_until_ready(_forward(network.fn, images))
    else:
        np.asarray(network.fn(images))
    return time.perf_counter() - start


@jax.jit
def _forward(network: Partial, images: jax.Array) -> jax.Array:
    return network(images)
