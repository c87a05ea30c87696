"""safetensors files as views of the memory-mapped file, validated by the safetensors library."""

import json
import os
from collections.abc import Mapping
from mmap import ACCESS_READ, mmap
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors.numpy import save_file

from aa_flax.local_paths import local_path
from aa_flax.weights.errors import CheckpointError

_MAX_HEADER_BYTES = 100_000_000

_DTYPES = {
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "BF16": np.dtype(jnp.bfloat16),
    "I8": np.dtype("i1"),
    "I16": np.dtype("<i2"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "U8": np.dtype("u1"),
    "U16": np.dtype("<u2"),
    "U32": np.dtype("<u4"),
    "U64": np.dtype("<u8"),
    "BOOL": np.dtype("?"),
}


def begins_safetensors(head: bytes) -> bool:
    """Whether a file that begins with these bytes (nine at least) is meant to be safetensors."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _MAX_HEADER_BYTES


def read_safetensors(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors and the metadata of a safetensors file.

    Args:
        path: the file.

    Returns:
        Read-only views of the memory-mapped file by name (nothing is copied; bfloat16 as `ml_dtypes.bfloat16`), and
        the file's own metadata, empty where it has none.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is no valid safetensors file, or holds a type that NumPy lacks. It does not name
            the file when `read_torch_checkpoint` calls, which does so itself.
    """
    path = local_path(path)
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size < 9:
            raise CheckpointError("it is too short for a safetensors file: download or copy it again")
        try:
            with safetensors.safe_open(path, framework="np") as validated:
                metadata = validated.metadata() or {}
        except safetensors.SafetensorError as error:
            raise CheckpointError(
                f"it is a damaged or truncated safetensors file ({error}): download or copy it again"
            ) from error
        data = mmap(file.fileno(), 0, access=ACCESS_READ)
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    arrays = {}
    for key, entry in header.items():
        if entry["dtype"] not in _DTYPES:
            raise CheckpointError(f"its tensor {key[:60]!r} has the type {entry['dtype']}, which is not supported")
        begin = start + entry["data_offsets"][0]
        arrays[key] = np.ndarray(entry["shape"], _DTYPES[entry["dtype"]], buffer=data, offset=begin)
    return arrays, metadata


def write_safetensors(path: Path, arrays: Mapping[str, np.ndarray], metadata: tuple[str, str]) -> None:
    """Writes a safetensors file: the same arrays and metadata always give the same bytes.

    Args:
        path: the file.
        arrays: contiguous arrays by name.
        metadata: a name and what it says. One only: the library writes several in a random order.

    Raises:
        OSError: the file cannot be written.
    """
    path.touch()
    usual = path.stat().st_mode
    try:
        save_file(dict(arrays), path, metadata=dict([metadata]))
    except safetensors.SafetensorError as error:
        # The library's own error for a full disk is no OSError.
        raise OSError(f"{path.name} cannot be written ({error})") from error
    # The library lets nobody but the owner read what it writes.
    path.chmod(usual)
