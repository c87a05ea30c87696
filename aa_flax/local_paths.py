"""Paths of this machine: addresses of buckets and hubs are refused, where they would become folders called `gs:`."""

import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# A scheme has two letters or more, so that Windows' drives are none. As a Path, gs://a/b is gs:/a/b.
_SCHEME = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):/+(?P<rest>.*)", re.DOTALL)


def local_path(path: str | os.PathLike[str]) -> Path:
    """The path, unless it begins with a scheme such as `gs://`, `s3://`, `hf://` or `file://`.

    Args:
        path: text or a path object, in which one of the two slashes is lost.

    Raises:
        ValueError: it has a scheme; the message says what to do.
    """
    text = os.fspath(path)
    match = _SCHEME.match(text)
    if match is None:
        return Path(path)
    scheme, rest = match["scheme"], match["rest"]
    if scheme == "file":
        remedy = f"leave the scheme out: /{rest}"
    elif scheme == "hf":
        remedy = "only weights are named so, as in aa_flax.load_pretrained: download other files first"
    elif scheme == "gs":
        bucket, _, name = rest.partition("/")
        remedy = f"mount the bucket (gcsfuse --implicit-dirs {bucket} DIRECTORY), and give DIRECTORY/{name}"
    else:
        remedy = "copy it to a local directory, or mount the bucket as one, and give that"
    raise ValueError(f"{scheme}://{rest}: no path of this machine, and {scheme}:// is not supported here; {remedy}")


def check_local_paths(options: Any, prefix: str = "--") -> None:
    """Applies `local_path` to every path among the options of a command.

    Args:
        options: a dataclass, whose paths may lie in tuples and in dataclasses of their own.
        prefix: what stands before an option's name on the command line.

    Raises:
        ValueError: names the option.
    """
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        name = f"{prefix}{field.name.replace('_', '-')}"
        if dataclasses.is_dataclass(value):
            check_local_paths(value, f"{name}.")
        for each in _flat(value):
            if isinstance(each, Path):
                try:
                    local_path(each)
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from None


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple):
        for each in value:
            yield from _flat(each)
    else:
        yield value
