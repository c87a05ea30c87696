"""Directories that are written whole or not at all."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def complete_or_not_at_all(directory: Path, *, last: str) -> Iterator[Path]:
    """A fresh folder whose files move to a directory when the block has ended well, and vanish otherwise.

    Args:
        directory: where the files go, made when missing; other files in it stay.
        last: the file that moves last where the directory exists: without it the others count as nothing.

    Raises:
        FileExistsError: there was no such directory at the start, and another process has made it meanwhile.
        OSError: it cannot be written to.
    """
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
