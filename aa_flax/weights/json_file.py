"""JSON that others wrote: every way in which it can be wrong is a ValueError of one line."""

import json
import os
from typing import Any

from aa_flax.buckets import any_path

MAX_BYTES = 16 * 2**20
_MAX_DIGITS = 19


def read_json(path: str | os.PathLike[str], max_bytes: int = MAX_BYTES) -> Any:
    """The content of a JSON file.

    Args:
        path: the file.
        max_bytes: larger files are refused unread.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is too large, or what `parse_json` refuses. The message does not name the file.
    """
    path = any_path(path)
    size = path.stat().st_size
    if size > max_bytes:
        raise ValueError(f"it has {size:,} bytes, and {max_bytes:,} at most are read")
    return parse_json(path.read_bytes())


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is no JSON, nested too deeply, or holds a whole number of more than 64 bits or a text that is
            no Unicode: what would break whoever computes with it or prints it.
    """
    try:
        value = json.loads(text, parse_int=_whole_number)
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except UnicodeEncodeError as error:
        raise ValueError(f"it holds half a character, {error.object[error.start]!r}") from error
    return value


def _whole_number(digits: str) -> int:
    if len(digits.lstrip("-")) > _MAX_DIGITS or not -(2**63) <= (number := int(digits)) < 2**63:
        raise ValueError(f"the number {digits[:20]}{'...' if len(digits) > 20 else ''} has more than 64 bits")
    return number
