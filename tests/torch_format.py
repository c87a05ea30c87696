"""Writes PyTorch's file formats byte by byte, without PyTorch, so that tests can also write broken and hostile ones."""

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

STORAGES = {
    np.dtype("f2"): "HalfStorage",
    np.dtype("f4"): "FloatStorage",
    np.dtype("f8"): "DoubleStorage",
    np.dtype(jnp.bfloat16): "BFloat16Storage",
    np.dtype("i1"): "CharStorage",
    np.dtype("i2"): "ShortStorage",
    np.dtype("i4"): "IntStorage",
    np.dtype("i8"): "LongStorage",
    np.dtype("u1"): "ByteStorage",
    np.dtype("?"): "BoolStorage",
}


@dataclass(frozen=True)
class Global:
    """A name that the unpickler has to look up."""

    module: str
    name: str


@dataclass(frozen=True)
class Call:
    """A looked-up name, called with arguments; then perhaps given a state."""

    function: Global
    args: tuple
    state: Any = None


@dataclass(frozen=True)
class Persistent:
    """A value that the unpickler is handed from outside the pickle."""

    identity: tuple


@dataclass(frozen=True)
class Raw:
    """Instructions as they are."""

    code: bytes


REBUILD = Global("torch._utils", "_rebuild_tensor_v2")
ORDERED_DICT = Global("collections", "OrderedDict")


def dumps(value: Any) -> bytes:
    """A pickle of protocol 2."""
    return pickle.PROTO + b"\x02" + _emit(value) + pickle.STOP


def _emit(value: Any) -> bytes:
    match value:
        case None:
            return pickle.NONE
        case bool():
            return pickle.NEWTRUE if value else pickle.NEWFALSE
        case int():
            return _integer(value)
        case float():
            return pickle.BINFLOAT + struct.pack(">d", value)
        case str():
            data = value.encode()
            return pickle.BINUNICODE + struct.pack("<I", len(data)) + data
        case tuple():
            return pickle.MARK + b"".join(map(_emit, value)) + pickle.TUPLE
        case list():
            return pickle.EMPTY_LIST + pickle.MARK + b"".join(map(_emit, value)) + pickle.APPENDS
        case OrderedDict():
            return _emit(Call(ORDERED_DICT, ())) + _items(value)
        case dict():
            return pickle.EMPTY_DICT + _items(value)
        case Global(module, name):
            return pickle.GLOBAL + f"{module}\n{name}\n".encode()
        case Call(function, args, state):
            state_code = b"" if state is None else _emit(state) + pickle.BUILD
            return _emit(function) + _emit(args) + pickle.REDUCE + state_code
        case Persistent(identity):
            return _emit(identity) + pickle.BINPERSID
        case Raw(code):
            return code
    raise TypeError(f"cannot pickle {type(value)}")


def _integer(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return pickle.BININT + struct.pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return pickle.LONG1 + bytes([len(data)]) + data


def _items(value: dict) -> bytes:
    return pickle.MARK + b"".join(_emit(key) + _emit(item) for key, item in value.items()) + pickle.SETITEMS


def storage(key: str, dtype: Any, size: int, *, legacy: bool = False, view: tuple | None = None) -> Persistent:
    """The mention of a storage in a pickle."""
    name = Global("torch", STORAGES[np.dtype(dtype)])
    return Persistent(("storage", name, key, "cpu", size, *((view,) if legacy else ())))


def tensor(place: Persistent, shape: tuple, strides: tuple | None = None, offset: int = 0) -> Call:
    """The mention of a tensor in a pickle; strides and offset count elements."""
    if strides is None:
        strides = tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
    return Call(REBUILD, (place, offset, shape, strides, False, OrderedDict()))


def state_of(arrays: dict[str, np.ndarray], *, legacy: bool = False) -> OrderedDict:
    """A state dict in which every array has its own storage, keyed by its name."""
    return OrderedDict(
        (key, tensor(storage(key, array.dtype, array.size, legacy=legacy), array.shape))
        for key, array in arrays.items()
    )


def zip_file(root: Any, storages: dict[str, bytes], *, compress: bool = False, extra: dict | None = None) -> bytes:
    """A file in the format of 2020; `extra` adds or replaces members below the top folder."""
    members = {"data.pkl": root if isinstance(root, bytes) else dumps(root), "version": b"3\n"}
    members |= {f"data/{key}": data for key, data in storages.items()} | (extra or {})
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(f"archive/{name}", data)
    return buffer.getvalue()


MAGIC = 0x1950A86A20F9469CFC6C
SYSTEM = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}


def legacy_file(root: Any, storages: dict[str, tuple[int, bytes]], *, head: tuple = (MAGIC, 1001, SYSTEM)) -> bytes:
    """A file in the format of 2019; each storage is its number of elements and its bytes."""
    pickles = b"".join(map(dumps, head)) + (root if isinstance(root, bytes) else dumps(root)) + dumps(list(storages))
    return pickles + b"".join(struct.pack("<q", size) + data for size, data in storages.values())


def saved(arrays: dict[str, np.ndarray], *, legacy: bool = False) -> bytes:
    """A state dict as `torch.save` would write it."""
    if legacy:
        storages = {key: (array.size, array.tobytes()) for key, array in arrays.items()}
        return legacy_file(state_of(arrays, legacy=True), storages)
    return zip_file(state_of(arrays), {key: array.tobytes() for key, array in arrays.items()})
