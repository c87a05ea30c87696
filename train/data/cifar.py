"""CIFAR-10 kept as JPEG files: `train/CLASS/*.jpg` and `test/CLASS/*.jpg`, in a tar or extracted."""

import hashlib
import logging
import lzma
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
from rich.progress import track

from aa_flax.files import file_sha256
from aa_flax.preprocessing.pixels import UnreadableImageError
from train.console import open_console
from train.data.cache import ArrayCache
from train.data.decode import decode_rgb
from train.data.sources import ArraySource
from train.errors import CommandError

log = logging.getLogger(__name__)

CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
SPLITS = ("train", "test")
# A picture of 32x32 pixels takes some 3 kB with everything a camera might add.
MAX_PICTURE_BYTES = 2**20


def open_cifar10(location: Path, cache_directory: Path) -> tuple[ArraySource, ArraySource]:
    """The training and test images, decoded once and memory-mapped from then on.

    Args:
        location: the tar file, a directory that holds exactly one `cifar10*.tar*`, or the
            extracted directory (with `train` and `test` in it).
        cache_directory: below which the decoded arrays (185 MB) are kept.

    Raises:
        CommandError: nothing of the kind at `location`, or a damaged or incomplete file.
    """
    location = _find(location)
    fingerprint = _fingerprint(location)
    cache = ArrayCache(cache_directory / f"cifar10-{fingerprint[:16]}")
    if not cache.is_good():
        arrays = _decode(location)
        about = {"source": str(location.resolve()), "fingerprint": fingerprint}
        try:
            cache.write(arrays.items(), about)
        except OSError as error:
            raise CommandError(
                f"the decoded images are not kept: {error}; --data.cache-dir takes one with 200 MB of room"
            ) from error
    train, test = (
        ArraySource(
            cache.path(f"{split}_images"),
            np.load(cache.path(f"{split}_labels")),
            f"cifar10/{split}",
        )
        for split in SPLITS
    )
    return train, test


def _find(location: Path) -> Path:
    if location.is_file():
        return location
    if not location.is_dir():
        raise CommandError(f"data directory {location} does not exist")
    if all((location / split).is_dir() for split in SPLITS):
        return location
    tars = sorted(location.glob("cifar10*.tar*"))
    if len(tars) != 1:
        raise CommandError(f"{location} holds neither train/ and test/ nor one cifar10*.tar* file (found {len(tars)})")
    return tars[0]


def _fingerprint(location: Path) -> str:
    """Changes when the images do: the tar's sum, or the names, sizes and times of the files."""
    if location.is_file():
        return file_sha256(location)
    digest = hashlib.sha256()
    for path in sorted(location.glob("*/*/*.jpg")):
        status = path.stat()
        digest.update(f"{path.relative_to(location)} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()


def _encoded_images(location: Path) -> Iterator[tuple[str, bytes]]:
    """(`SPLIT/CLASS/FILE.jpg`, bytes) of every image, in the order they are stored."""
    if location.is_dir():
        for path in location.glob("*/*/*.jpg"):
            name = path.relative_to(location).as_posix()
            _check_size(location, name, path.stat().st_size)
            yield name, path.read_bytes()
        return
    try:
        with tarfile.open(location, "r|*") as archive:
            for member in archive:
                if member.isfile() and member.name.endswith(".jpg"):
                    _check_size(location, member.name, member.size)
                    file = archive.extractfile(member)
                    assert file is not None
                    yield "/".join(PurePosixPath(member.name).parts[-3:]), file.read()
    except (tarfile.TarError, lzma.LZMAError, EOFError, OSError, MemoryError) as error:
        raise CommandError(f"{location} is not a whole tar file: {str(error) or type(error).__name__}") from error


def _check_size(location: Path, name: str, size: int) -> None:
    if size > MAX_PICTURE_BYTES:
        raise CommandError(f"{location}: {name} has {size:,} bytes, which is no picture of 32x32 pixels")


def _decode(location: Path) -> dict[str, np.ndarray]:
    found: dict[str, list[tuple[str, np.ndarray]]] = {split: [] for split in SPLITS}
    images = track(
        _encoded_images(location),
        description="decoding CIFAR-10 (once)",
        total=60_000,
        console=open_console(stderr=True),
    )
    for name, data in images:
        split = name.split("/")[0]
        if split not in found:
            raise CommandError(f"{location}: {name} belongs to neither train/ nor test/")
        try:
            found[split].append((name, decode_rgb(data)))
        except UnreadableImageError as error:
            raise CommandError(f"{location}: {name} is damaged: {error}") from error
    arrays = {}
    for split, pairs in found.items():
        if not pairs:
            raise CommandError(f"{location} has no images {split}/CLASS/*.jpg")
        pairs.sort(key=lambda pair: pair[0])
        labels = [_label(location, name) for name, _ in pairs]
        shapes = {pixels.shape for _, pixels in pairs}
        if shapes != {(32, 32, 3)}:
            raise CommandError(f"{location}: {split} has images of shapes {sorted(shapes)}, not 32x32")
        arrays[f"{split}_images"] = np.stack([pixels for _, pixels in pairs])
        arrays[f"{split}_labels"] = np.array(labels, np.int32)
    return arrays


def _label(location: Path, name: str) -> int:
    folder = name.split("/")[1]
    if folder not in CLASSES:
        raise CommandError(f"{location}: {name} is in none of CIFAR-10's classes {CLASSES}")
    return CLASSES.index(folder)
