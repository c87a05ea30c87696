"""What networks answered, kept on disk: a file for each network and each stretch of photos.

So a comparison that was stopped, or gets another network, measures what is missing and nothing else.
"""

import dataclasses
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np

from aa_flax.consistency import Result, ShiftProtocol
from aa_flax.files import file_sha256, write_atomically
from train.compare.settings import Settings
from train.data import ImageFolder, open_photos, reflect_margin
from train.errors import CommandError
from train.evaluate.scoring import Predictor, on_all_devices, protocols_for, whole_batch
from train.measurable.network import Measurable

FORMAT_VERSION = 1
# Photos of one file: they are measured before anything is written.
STRETCH = 64

# The arrays of each protocol, a row for each photo.
Answers = dict[str, dict[str, np.ndarray]]


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


def write_stretch(entrant: Entrant, start: int, answers: Answers) -> None:
    """Keeps what an entrant answered on the photos of a stretch."""
    flat: dict[str, Any] = {f"{name}/{key}": array for name, part in answers.items() for key, array in part.items()}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **flat)
    write_atomically(entrant.kept(start), buffer.getvalue())


def read_stretch(entrant: Entrant, start: int) -> Answers | None:
    """What an entrant answered; None where nothing is kept, or no whole file."""
    found: Answers = {name: {} for name in entrant.protocols}
    try:
        with np.load(entrant.kept(start), allow_pickle=False) as arrays:
            for path, array in arrays.items():
                name, _, key = path.partition("/")
                found[name][key] = array
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return found if all("index" in part for part in found.values()) else None


def joined(parts: Sequence[Answers]) -> Answers:
    """Answers on photos next to each other as one."""
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def results(entrant: Entrant) -> dict[str, Result]:
    """What an entrant's answers on all photos amount to, by protocol.

    Raises:
        CommandError: no photo could be read; a network that returned NaN.
    """
    stretches = [read_stretch(entrant, start) for start in range(0, len(entrant.photos), STRETCH)]
    found = [answers for answers in stretches if answers is not None]
    if not sum(len(part["index"]) for answers in found for part in answers.values()):
        raise CommandError("no photo could be read")
    whole, summed = joined(found), {}
    for name, protocol in entrant.protocols.items():
        try:
            summed[name] = protocol.summarise(whole[name])
        except ValueError as error:
            raise CommandError(f"{entrant.network.model}, protocol {name}: {error}") from error
    return summed
