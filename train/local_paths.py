"""Files of this machine, which are whole or not there."""

import os
import secrets
from pathlib import Path
from typing import Any

from aa_flax.local_paths import check_local_paths
from train.errors import CommandError


def require_local_paths(options: Any, prefix: str = "--") -> None:
    """`aa_flax.local_paths.check_local_paths` for a command's options.

    Raises:
        CommandError: names the option that is an address such as gs://bucket/run.
    """
    try:
        check_local_paths(options, prefix)
    except ValueError as error:
        raise CommandError(str(error)) from None


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that its readers see the old content or the new, never a part.

    Args:
        path: Where to; the directories above it are made.
        content: All of it.

    Raises:
        OSError: The directory cannot be made or the file cannot be written; no part is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not made from the file's name, which may be as long as a name can be.
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with part.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
