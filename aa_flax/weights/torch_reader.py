"""Reads PyTorch checkpoints (and safetensors files) into NumPy arrays: without PyTorch, without running their code."""

import math
import os
import stat
from collections.abc import Mapping
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np

from aa_flax.weights.errors import CheckpointError
from aa_flax.weights.safetensors_file import begins_safetensors, read_safetensors
from aa_flax.weights.torch_files import LEGACY_MAGIC, LegacyFile, ZipFile, allowance
from aa_flax.weights.torch_globals import TensorRef

__all__ = ["CheckpointError", "read_torch_checkpoint"]

_Value = TypeVar("_Value")

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_MAX_WRAPPERS = 4
_LEGACY_START = LEGACY_MAGIC.to_bytes(10, "little")

# How other files begin that are taken for checkpoints, and what to do about each.
_OTHER_FILES: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "it is a Git LFS pointer, not the file itself: run `git lfs pull`"),
    (b"\x1f\x8b", "it is compressed with gzip: unpack it first"),
    (b"BZh", "it is compressed with bzip2: unpack it first"),
    (b"\xfd7zXZ", "it is compressed with xz: unpack it first"),
    (b"\x89HDF", "it is an HDF5 file, as Keras writes them"),
    (b"\x93NUMPY", "it is a NumPy file"),
    (b"PK", "it is an empty or truncated zip archive: download or copy it again"),
    (b"<", "it is a web page or XML: the download failed, try again"),
    (b"\x80", "it is a pickle that torch.save did not write: refused, because pickles can run code"),
)


def read_torch_checkpoint(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint by name, without PyTorch and without running anything that the file contains.

    Reads what `torch.save` has written since 2018 (zip and legacy format) and `.safetensors`, told apart by content.
    A training checkpoint is unwrapped (`state_dict`, `model_state_dict` or `model`; whatever stands beside them is
    dropped), and the `module.` that DataParallel adds to names is removed, also inside `features.module.`.

    Args:
        path: the file.

    Returns:
        Arrays in the file's order, in their stored type and PyTorch's layout, bfloat16 as `ml_dtypes.bfloat16`. They
        are read-only views of the memory-mapped file: nothing is copied, and the file must stay as it is while they
        are in use. Tensors that share a storage share memory here too. (Only compressed archives, which PyTorch never
        writes, are unpacked into memory.)

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: (a ValueError) the file is no checkpoint, is damaged, asks for anything but tensors and plain
            values, or holds no or several state dicts; the message says what to do.
    """
    path = Path(path)
    # Opening a pipe would wait for a writer, perhaps forever.
    if not stat.S_ISREG(path.stat().st_mode):
        raise CheckpointError(f"{path}: it is no regular file: give the checkpoint file itself")
    try:
        with path.open("rb") as file:
            return _read(path, file)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _read(path: Path, file: BinaryIO) -> dict[str, np.ndarray]:
    size = os.fstat(file.fileno()).st_size
    if size == 0:
        raise CheckpointError("it is empty: download or copy it again")
    data = mmap(file.fileno(), 0, access=ACCESS_READ)
    head = data[:512]
    if begins_safetensors(head):
        return _without_data_parallel(read_safetensors(path)[0])
    if head.startswith(b"PK\x03\x04"):
        container = ZipFile(file, data)
    elif head.startswith(b"\x80") and _LEGACY_START in head[:32]:
        container = LegacyFile(data)
    else:
        raise CheckpointError(_describe(head))
    references = _without_data_parallel(_unwrap(container.root))
    budget = _Budget(allowance(size))
    return {key: _array(key, reference, container, budget) for key, reference in references.items()}


def _describe(head: bytes) -> str:
    for beginning, description in _OTHER_FILES:
        if head.lstrip().startswith(beginning):
            return description
    if head[257:262] == b"ustar":
        return "it is a tar archive: PyTorch before 0.1.10 wrote such; load and save it again with a newer PyTorch"
    kind = "a text file" if head.isascii() and b"\0" not in head else "of an unknown kind"
    return f"it is {kind}, not a PyTorch checkpoint or a safetensors file (or its beginning is damaged)"


def _unwrap(root: Any) -> dict[str, TensorRef]:
    """The state dict within a training checkpoint."""
    for _ in range(_MAX_WRAPPERS):
        if not isinstance(root, dict):
            raise CheckpointError(f"it holds {_kind(root)} where a state dict (names and tensors) is expected")
        inner = [key for key in _WRAPPERS if isinstance(root.get(key), dict) and _may_hold_tensors(root[key])]
        if len(inner) > 1:
            raise CheckpointError(f"it holds several state dicts ({', '.join(inner)}): save the one you mean by itself")
        if not inner:
            break
        root = root[inner[0]]
    others = [key for key, value in root.items() if not isinstance(value, TensorRef)]
    if not root or others:
        listed = ", ".join(f"{key[:60]!r} is {_kind(root[key])}" for key in others[:8])
        raise CheckpointError(
            f"it holds no state dict of tensors alone ({listed or 'it is empty'}): save just the weights in PyTorch, "
            'torch.save(model.state_dict(), "weights.pth")'
        )
    return root


def _may_hold_tensors(value: dict[str, Any]) -> bool:
    return any(isinstance(item, TensorRef | dict) for item in value.values())


def _kind(value: Any) -> str:
    names = {dict: "a dictionary", list: "a list", tuple: "a tuple", str: "a text", TensorRef: "a single tensor"}
    return names.get(type(value), "None" if value is None else "a number" if np.isscalar(value) else "another object")


def _without_data_parallel(state: Mapping[str, _Value]) -> dict[str, _Value]:
    """Takes `module.` away from the front of names and from behind `features.`, where DataParallel puts it."""
    result: dict[str, _Value] = {}
    for key, value in state.items():
        name = key.removeprefix("module.")
        if name.startswith("features.module."):
            name = "features." + name.removeprefix("features.module.")
        if name in result:
            raise CheckpointError(f"it holds {name[:60]!r} twice, with and without the prefix 'module.'")
        result[name] = value
    return result


class _Budget:
    """Bytes that all tensors together may show, so that overlapping ones cannot add up without end."""

    def __init__(self, left: int):
        self._left = left

    def spend(self, key: str, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise CheckpointError(f"its tensor {key[:60]!r} is out of proportion to the file: refused")


def _array(key: str, tensor: TensorRef, container: ZipFile | LegacyFile, budget: _Budget) -> np.ndarray:
    """The tensor as a view of the file, after checking that it stays within its storage."""
    shape, strides, itemsize = tensor.shape, tensor.strides, tensor.dtype.itemsize
    if len(shape) != len(strides) or min((*shape, *strides, tensor.offset), default=0) < 0:
        raise CheckpointError(f"its tensor {key[:60]!r} has an impossible shape, stride or offset: the file is damaged")
    budget.spend(key, math.prod(max(size, 1) for size in shape) * itemsize)
    if 0 in shape:
        return np.empty(shape, tensor.dtype)
    storage = tensor.storage
    last = tensor.offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if (last + 1) * itemsize > storage.size * storage.dtype.itemsize:
        raise CheckpointError(f"its tensor {key[:60]!r} reaches beyond its storage: the file is damaged")
    buffer, start = container.locate(storage)
    array = np.ndarray(
        shape,
        tensor.dtype,
        buffer=buffer,
        offset=start + storage.start * storage.dtype.itemsize + tensor.offset * itemsize,
        # The stride of an axis of size 1 means nothing and may be any number.
        strides=[stride * itemsize if size > 1 else itemsize for size, stride in zip(shape, strides, strict=True)],
    )
    if array.dtype == bool and (array.view(np.uint8) > 1).any():
        raise CheckpointError(f"its tensor {key[:60]!r} of booleans holds other values: the file is damaged")
    return array
