"""The closed list of names that PyTorch's pickles may ask for, and what each one means here."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from aa_flax.weights.errors import CheckpointError

_MAX_DIMENSIONS = 32


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of numbers in the file that tensors look into.

    Attributes:
        key: the storage's name in the file.
        dtype: type of its elements (bytes where the file leaves it untyped).
        start: first element of the part that is seen (0 but in old files with storage views).
        size: number of elements seen.
        total: number of elements in the file under `key`.
    """

    key: str
    dtype: np.dtype
    start: int
    size: int
    total: int


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor of the file: offset and strides count elements of `dtype`."""

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Opaque:
    """A harmless value that tensors do not need (a device, a NumPy scalar): its content is lost."""


@dataclass(frozen=True, slots=True)
class StorageType:
    dtype: np.dtype


@dataclass(frozen=True, slots=True)
class Constructor:
    build: Callable[[tuple], Any]


def refusal(name: str) -> str:
    """What to say about a file that asks for something outside the table."""
    return (
        f"refused, because its pickle asks for {name!r}: only tensors and plain values are read, "
        "so that no code from a file can run. If you trust the file, load it in PyTorch and save "
        'just the weights: torch.save(model.state_dict(), "weights.pth")'
    )


def update(target: dict[str, Any], items: Iterable[tuple[Any, Any]]) -> None:
    """Sets the items of a dictionary whose keys are strings, and drops the others."""
    for key, value in items:
        # Other keys name no tensor, and the hash of a nested tuple may take forever.
        if isinstance(key, str):
            target[key] = value


def _ordered_dict(args: tuple) -> dict[str, Any]:
    result: dict[str, Any] = {}
    match args:
        case ():
            return result
        case (list(pairs),) if all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs):
            update(result, pairs)  # how Python 2 wrote it
            return result
    raise KeyError("unknown form of OrderedDict")


def _tensor(args: tuple) -> TensorRef:
    match args:
        case (Storage() as storage, int(offset), shape, strides, *_):
            return TensorRef(storage, storage.dtype, offset, _sizes(shape), _sizes(strides))
    raise KeyError("unknown form of tensor")


def _tensor_of_dtype(args: tuple) -> TensorRef:
    match args:
        case (Storage() as storage, int(offset), shape, strides, _, _, np.dtype() as dtype, *_):
            return TensorRef(storage, dtype, offset, _sizes(shape), _sizes(strides))
    raise KeyError("unknown form of tensor")


def _sizes(value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple) or not all(type(size) is int for size in value):
        raise KeyError("shape or strides that are no tuple of integers")
    if len(value) > _MAX_DIMENSIONS:
        raise CheckpointError(f"it holds a tensor of {len(value)} dimensions")
    return value


def _parameter(args: tuple) -> TensorRef:
    match args:
        case (TensorRef() as tensor, *_):
            return tensor
    raise KeyError("a parameter without a tensor")


def _with_attributes(args: tuple) -> TensorRef:
    match args:
        case (Constructor(build), _, tuple(inner), *_) if build in _TENSOR_BUILDERS:
            return build(inner)
    raise KeyError("unknown form of tensor with attributes")


def _size(args: tuple) -> tuple[int, ...]:
    match args:
        case (shape,):
            return _sizes(shape)
    raise KeyError("unknown form of torch.Size")


_TENSOR_BUILDERS = (_tensor, _tensor_of_dtype, _parameter)

# Torch's name of the type, its name of the storage class where there is one, the same in NumPy.
_DTYPES: tuple[tuple[str, str | None, np.dtype], ...] = (
    ("float16", "HalfStorage", np.dtype("<f2")),
    ("float32", "FloatStorage", np.dtype("<f4")),
    ("float64", "DoubleStorage", np.dtype("<f8")),
    ("bfloat16", "BFloat16Storage", np.dtype(jnp.bfloat16)),
    ("int8", "CharStorage", np.dtype("i1")),
    ("int16", "ShortStorage", np.dtype("<i2")),
    ("int32", "IntStorage", np.dtype("<i4")),
    ("int64", "LongStorage", np.dtype("<i8")),
    ("uint8", "ByteStorage", np.dtype("u1")),
    ("uint16", None, np.dtype("<u2")),
    ("uint32", None, np.dtype("<u4")),
    ("uint64", None, np.dtype("<u8")),
    ("bool", "BoolStorage", np.dtype("?")),
    ("complex64", "ComplexFloatStorage", np.dtype("<c8")),
    ("complex128", "ComplexDoubleStorage", np.dtype("<c16")),
)
_UNTYPED = StorageType(np.dtype("u1"))
_OPAQUE = Constructor(lambda args: Opaque())
_MAPPING = Constructor(lambda args: {})
_PYTHON_TYPES = ("dict", "list", "set", "int", "float", "bool", "str")

# The closed list of names: nothing outside it can be asked for, nothing in it runs foreign code.
GLOBALS: Mapping[str, Any] = {
    **{f"torch.{name}": dtype for name, _, dtype in _DTYPES},
    **{f"torch.{storage}": StorageType(dtype) for _, storage, dtype in _DTYPES if storage},
    "torch.UntypedStorage": _UNTYPED,
    "torch.storage.UntypedStorage": _UNTYPED,
    "torch._utils._rebuild_tensor": Constructor(_tensor),
    "torch._utils._rebuild_tensor_v2": Constructor(_tensor),
    "torch._utils._rebuild_tensor_v3": Constructor(_tensor_of_dtype),
    "torch._utils._rebuild_parameter": Constructor(_parameter),
    "torch._utils._rebuild_parameter_with_state": Constructor(_parameter),
    "torch._tensor._rebuild_from_type_v2": Constructor(_with_attributes),
    "torch.Tensor": Opaque(),
    "torch.nn.parameter.Parameter": Opaque(),
    "torch.Size": Constructor(_size),
    "torch.device": _OPAQUE,
    "collections.OrderedDict": Constructor(_ordered_dict),
    "collections.defaultdict": _MAPPING,
    "argparse.Namespace": _OPAQUE,
    "_codecs.encode": _OPAQUE,
    "numpy.dtype": _OPAQUE,
    "numpy.ndarray": Opaque(),
    **{f"numpy.{core}.multiarray.{name}": _OPAQUE for core in ("core", "_core") for name in ("scalar", "_reconstruct")},
    **{f"{m}.{name}": _OPAQUE for m in ("builtins", "__builtin__") for name in _PYTHON_TYPES},
}
