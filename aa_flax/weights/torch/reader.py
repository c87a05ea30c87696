"""Reads PyTorch checkpoints (and safetensors files) into NumPy arrays: without PyTorch, without running their code."""

import contextlib
import math
import os
import stat
from collections.abc import Iterator, Mapping
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np

from aa_flax.local_paths import local_path
from aa_flax.weights.errors import CheckpointError
from aa_flax.weights.safetensors_file import begins_safetensors, read_safetensors
from aa_flax.weights.torch.files import LEGACY_MAGIC, LegacyFile, ZipFile, allowance
from aa_flax.weights.torch.globals import Opaque, TensorRef
from aa_flax.weights.torch.layout import below_prefix

__all__ = ["CheckpointError", "list_state_dicts", "read_torch_checkpoint"]

_Value = TypeVar("_Value")

# Where the weights themselves stand in a training checkpoint; averages and teachers have other names.
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_MAX_WRAPPERS = 4
_SHOWN = 8
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


def read_torch_checkpoint(
    path: str | os.PathLike[str], *, key: str | None = None, prefix: str | None = None
) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint by name, without PyTorch and without running anything that the file contains.

    Reads what `torch.save` has written since 2018 (zip and legacy format) and `.safetensors`, told apart by content.
    A training checkpoint is unwrapped (`state_dict`, `model_state_dict` or `model`, or the only state dict there is),
    and the `module.` that DataParallel adds to names is removed, also inside `features.module.`.

    Args:
        path: the file.
        key: which state dict of a training checkpoint, such as `state_dict_ema`; `list_state_dicts` has them.
        prefix: take the tensors alone whose names begin so, and take it away: `encoder_q.`, `backbone.`, `model.`.

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
    with _opened(path) as (size, container):
        if isinstance(container, dict):
            if key is not None:
                raise CheckpointError(
                    f"it is a safetensors file, which holds one state dict: leave out the key {key!r}"
                )
            return _chosen(container, prefix)
        references = _chosen(_unwrap(container.root, key), prefix)
        budget = _Budget(allowance(size))
        return {name: _array(name, reference, container, budget) for name, reference in references.items()}


def list_state_dicts(path: str | os.PathLike[str]) -> dict[str, int]:
    """The state dicts of a training checkpoint, for the `key` of `read_torch_checkpoint`.

    Args:
        path: the file.

    Returns:
        The number of tensors in each by its key, the one first that is read without a key; empty for a file that is
        a state dict itself.

    Raises:
        FileNotFoundError, CheckpointError: as `read_torch_checkpoint`.
    """
    with _opened(path) as (_, container):
        if isinstance(container, dict):
            return {}
        found = _state_dicts(container.root)
        first = [key for key in found if key in _preferred(found)]
        counts = {key: sum(isinstance(value, TensorRef) for value in found[key].values()) for key in [*first, *found]}
        return {key: count for key, count in counts.items() if key}


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[tuple[int, ZipFile | LegacyFile | dict[str, np.ndarray]]]:
    """A file's size and what is in it, the tensors themselves for safetensors; errors name the file."""
    path = local_path(path)
    # Opening a pipe would wait for a writer, perhaps forever.
    if not stat.S_ISREG(path.stat().st_mode):
        raise CheckpointError(f"{path}: it is no regular file: give the checkpoint file itself")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            yield size, _container(path, file, size)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _container(path: Path, file: BinaryIO, size: int) -> ZipFile | LegacyFile | dict[str, np.ndarray]:
    if size == 0:
        raise CheckpointError("it is empty: download or copy it again")
    data = mmap(file.fileno(), 0, access=ACCESS_READ)
    head = data[:512]
    if begins_safetensors(head):
        return read_safetensors(path)[0]
    if head.startswith(b"PK\x03\x04"):
        return ZipFile(file, data)
    if head.startswith(b"\x80") and _LEGACY_START in head[:32]:
        return LegacyFile(data)
    raise CheckpointError(_describe(head))


def _describe(head: bytes) -> str:
    for beginning, description in _OTHER_FILES:
        if head.lstrip().startswith(beginning):
            return description
    if head[257:262] == b"ustar":
        return "it is a tar archive: PyTorch before 0.1.10 wrote such; load and save it again with a newer PyTorch"
    kind = "a text file" if head.isascii() and b"\0" not in head else "of an unknown kind"
    return f"it is {kind}, not a PyTorch checkpoint or a safetensors file (or its beginning is damaged)"


def _unwrap(root: Any, key: str | None) -> dict[str, TensorRef]:
    """The state dict asked for, or the one that a training checkpoint is about."""
    if not isinstance(root, dict):
        raise CheckpointError(f"it holds {_kind(root)} where a state dict (names and tensors) is expected")
    found = _state_dicts(root)
    chosen = [key] if key is not None else _preferred(found)
    if len(chosen) > 1 or (key is not None and key not in found):
        listed = ", ".join(f"{name[:60]!r} ({len(found[name])} entries)" for name in list(found)[:_SHOWN] if name)
        problem = f"it has no state dict {key!r}" if key is not None else "it holds several state dicts"
        raise CheckpointError(
            f"{problem}: choose one as key (--key): {listed or 'it is one itself, leave the key out'}"
        )
    state = found[chosen[0]] if chosen else root
    others = [name for name, value in state.items() if not isinstance(value, TensorRef)]
    if not state or others:
        listed = ", ".join(f"{name[:60]!r} is {_kind(state[name])}" for name in others[:_SHOWN])
        raise CheckpointError(
            f"it holds no state dict of tensors alone ({listed or 'it is empty'}): save just the weights in PyTorch, "
            'torch.save(model.state_dict(), "weights.pth")'
        )
    return state


def _state_dicts(root: Any) -> dict[str, dict[str, Any]]:
    """Every dictionary with tensors in it that holds no other such, by its dotted path; "" is the root."""
    found: dict[str, dict[str, Any]] = {}
    # Each dictionary counts once, however often the pickle names it: that bounds the time.
    seen: set[int] = set()

    def search(value: Any, path: tuple[str, ...]) -> bool:
        if not isinstance(value, dict) or id(value) in seen or len(path) > _MAX_WRAPPERS:
            return False
        seen.add(id(value))
        within = [search(item, (*path, name)) for name, item in value.items()]
        if not any(within) and any(isinstance(item, TensorRef) for item in value.values()):
            found[".".join(path)] = value
            return True
        return any(within)

    search(root, ())
    return found


def _preferred(found: Mapping[str, Any]) -> list[str]:
    """The state dicts that a file may be about when nobody has said which."""
    usual = [path for path in found if all(part in _WRAPPERS for part in path.split("."))]
    return usual or list(found)


def _kind(value: Any) -> str:
    if isinstance(value, Opaque):
        return value.kind
    names = {dict: "a dictionary", list: "a list", tuple: "a tuple", str: "a text", TensorRef: "a single tensor"}
    return names.get(type(value), "None" if value is None else "a number" if np.isscalar(value) else "another object")


def _chosen(state: Mapping[str, _Value], prefix: str | None) -> dict[str, _Value]:
    return _without_data_parallel(state if prefix is None else below_prefix(state, prefix))


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
