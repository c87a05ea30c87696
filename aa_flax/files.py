"""Files and directories that are written whole or not at all, what tells files apart, and where downloads are kept."""

import contextlib
import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from aa_flax.buckets import AnyPath, BucketPath
from aa_flax.local_paths import local_path

CHUNK_BYTES = 1 << 18

Progress = Callable[[int, int | None], None]
"""Called with the bytes done so far and in all, None where that is not known."""


def cache_directory() -> Path:
    """Where downloads are kept: `$AA_FLAX_CACHE`, else `aa_flax` in `$XDG_CACHE_HOME` or `~/.cache`.

    Raises:
        ValueError: `$AA_FLAX_CACHE` is an address such as gs://bucket/cache.
    """
    if chosen := os.environ.get("AA_FLAX_CACHE"):
        return local_path(chosen).expanduser()
    # The standard wants relative paths in it to be ignored.
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "aa_flax"


def file_sha256(path: Path, progress: Progress | None = None) -> str:
    """The SHA-256 of a file's bytes in hexadecimal digits."""
    digest, done, size = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            if progress:
                progress(done, size)
    return digest.hexdigest()


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A fresh file that becomes `path` when the block has ended well, and vanishes otherwise.

    Its readers see the old content or the new, never a part.

    Args:
        path: where to; its directory exists.

    Raises:
        OSError: the file cannot be written.
    """
    # Not made from the file's name, which may be as long as a name can be.
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_atomically(path: AnyPath, content: bytes) -> None:
    """Writes a file by `whole_file`, the directories above it being made, or an object of a bucket.

    Raises:
        OSError: the directory cannot be made or the file cannot be written.
    """
    if isinstance(path, BucketPath):
        path.write_bytes(content)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.write(content)


@contextlib.contextmanager
def whole_directory(directory: AnyPath, *, last: str) -> Iterator[Path]:
    """A fresh folder whose files move to a directory when the block has ended well, and vanish otherwise.

    Args:
        directory: where the files go, made when missing; other files in it stay. It may lie in a bucket.
        last: the file that moves last where the directory exists: without it the others count as nothing.

    Raises:
        FileExistsError: there was no such directory at the start, and another process has made it meanwhile.
        OSError: it cannot be written to.
    """
    if isinstance(directory, BucketPath):
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
            for file in sorted(Path(folder).iterdir(), key=lambda file: file.name == last):
                (directory / file.name).upload(file)
        return
    exists = directory.is_dir()
    # Within the directory, where it exists: its parent may lie on another disk, across which nothing moves at once.
    fresh = (directory if exists else directory.parent) / f".{directory.name}-{secrets.token_hex(4)}.tmp"
    try:
        fresh.parent.mkdir(parents=True, exist_ok=True)
        fresh.mkdir()
    except OSError as error:
        raise type(error)(f"{directory}: cannot be written to ({error}); give another directory") from error
    try:
        try:
            yield fresh
        except OSError as error:
            # It names a file of the fresh folder at best, which nobody knows.
            raise type(error)(f"{directory}: {error}") from error
        files = sorted(fresh.iterdir(), key=lambda file: file.name == last)
        for file in files:
            _flush(file)
        _flush(fresh)
        if exists:
            for file in files:
                os.replace(file, directory / file.name)
            _flush(directory)
        else:
            _move(fresh, directory)
            _flush(directory.parent)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _move(fresh: Path, directory: Path) -> None:
    try:
        os.rename(fresh, directory)
    except OSError as error:
        if not directory.exists():
            raise
        raise FileExistsError(
            f"{directory}: another process has written it meanwhile, and its files are kept; give another directory"
        ) from error


def _flush(path: Path) -> None:
    if os.name != "posix" and path.is_dir():
        return  # other systems cannot open a directory
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
