"""The closed list of names that PyTorch's pickles may ask for, and what each one means here."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from aa_flax.weights.errors import CheckpointError

_MAX_DIMENSIONS = 32
AS_WEIGHTS = (
    'If you trust the file, load it in PyTorch and save just the weights: torch.save(model.state_dict(), "weights.pth")'
)


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


@dataclass(frozen=True, slots=True)
class Opaque:
    """A harmless value that tensors do not need (a device, a NumPy scalar): its content is lost.

    Attributes:
        kind: what it is, for people.
    """

    kind: str = "another object"


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
        f"so that no code from a file can run. {AS_WEIGHTS}"
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


def _tensor_of_dtype(args: tuple) -> TensorRef | Opaque:
    match args:
        case (Storage() as storage, int(offset), shape, strides, _, _, np.dtype() as dtype, *_):
            return TensorRef(storage, dtype, offset, _sizes(shape), _sizes(strides))
        case (Storage(), int(), _, _, _, _, Opaque(), *_):
            return Opaque("a tensor of a number type that NumPy lacks")
    raise KeyError("unknown form of tensor")


def _sizes(value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple) or not all(type(size) is int for size in value):
        raise KeyError("shape or strides that are no tuple of integers")
    if len(value) > _MAX_DIMENSIONS:
        raise CheckpointError(f"it holds a tensor of {len(value)} dimensions")
    return value


def _parameter(args: tuple) -> TensorRef | Opaque:
    match args:
        case (TensorRef() | Opaque() as tensor, *_):
            return tensor
    raise KeyError("a parameter without a tensor")


def _with_attributes(args: tuple) -> TensorRef | Opaque:
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
# Number types that NumPy has no equivalent of, and the ways in which numbers may be quantised.
_OTHER_DTYPES = (
    *("complex32", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
    *("float4_e2m1fn_x2", "bits8", "bits16", "bits1x8", "bits2x4", "bits4x2"),
    *("qint8", "qint32", "quint8", "quint4x2", "quint2x4"),
    *(f"{sign}{bits}" for sign in ("int", "uint") for bits in range(1, 8)),
    *("per_tensor_affine", "per_tensor_symmetric", "per_channel_affine", "per_channel_symmetric"),
    "per_channel_affine_float_qparams",
)
_QUANTISED_STORAGES = {"QInt8Storage": "i1", "QUInt8Storage": "u1", "QInt32Storage": "<i4"} | dict.fromkeys(
    ("QUInt4x2Storage", "QUInt2x4Storage"), "u1"
)
# Tensors that are no run of plain numbers; nothing of this library's is ever stored so.
_OTHER_TENSORS = {
    "_rebuild_sparse_tensor": "a sparse tensor",
    "_rebuild_qtensor": "a quantised tensor",
    "_rebuild_nested_tensor": "a nested tensor",
    "_rebuild_meta_tensor_no_storage": "a tensor without values",
    "_rebuild_wrapper_subclass": "a tensor of another class",
    "_rebuild_device_tensor_from_numpy": "a tensor of another device",
    "_rebuild_device_tensor_from_cpu_tensor": "a tensor of another device",
}
_TENSOR_CLASSES = ("BFloat16", "Bool", "Byte", "Char", "Double", "Float", "Half", "Int", "Long", "Short")
_UNTYPED = StorageType(np.dtype("u1"))
_OPAQUE = Constructor(lambda args: Opaque())
_MAPPING = Constructor(lambda args: {})
_PYTHON_TYPES = (
    *("dict", "list", "tuple", "set", "frozenset", "slice", "range"),
    *("int", "float", "complex", "bool", "str", "bytes", "bytearray"),
    *("xrange", "long", "unicode"),  # as Python 2 and its pickle protocol call them
)
_PATHS = ("Posix", "Windows", "PurePosix", "PureWindows")
_LIBRARY_TYPES = (
    *("argparse.Namespace", "types.SimpleNamespace", "collections.deque", "decimal.Decimal", "fractions.Fraction"),
    *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")),
    # Python 3.13 wrote paths under the second name.
    *(f"pathlib{part}.{kind}Path" for part in ("", "._local") for kind in _PATHS),
)


def _opaque(kind: str) -> Constructor:
    return Constructor(lambda args: Opaque(kind))


# The closed list of names: nothing outside it can be asked for, nothing in it runs foreign code. It has all that
# torch.load(weights_only=True) knows, and the plain values of Python and NumPy that stand beside weights.
GLOBALS: Mapping[str, Any] = {
    **{f"torch.{name}": dtype for name, _, dtype in _DTYPES},
    **{f"torch.{name}": Opaque("a number type") for name in _OTHER_DTYPES},
    **{f"torch{on}.{name}": StorageType(dtype) for on in ("", ".cuda") for _, name, dtype in _DTYPES if name},
    **{f"torch.{name}": StorageType(np.dtype(dtype)) for name, dtype in _QUANTISED_STORAGES.items()},
    "torch.UntypedStorage": _UNTYPED,
    "torch.storage.UntypedStorage": _UNTYPED,
    "torch.storage.TypedStorage": Opaque(),
    "torch._utils._rebuild_tensor": Constructor(_tensor),
    "torch._utils._rebuild_tensor_v2": Constructor(_tensor),
    "torch._utils._rebuild_tensor_v3": Constructor(_tensor_of_dtype),
    "torch._utils._rebuild_parameter": Constructor(_parameter),
    "torch._utils._rebuild_parameter_with_state": Constructor(_parameter),
    **{f"torch._utils.{name}": _opaque(kind) for name, kind in _OTHER_TENSORS.items()},
    "torch._tensor._rebuild_from_type_v2": Constructor(_with_attributes),
    "torch.Tensor": Opaque(),
    **{
        f"torch{on}.{name}Tensor": Opaque()
        for on in ("", ".cuda", ".sparse", ".cuda.sparse")
        for name in _TENSOR_CLASSES
    },
    "torch.nn.parameter.Parameter": Opaque(),
    "torch.Size": Constructor(_size),
    "torch.device": _OPAQUE,
    "torch.serialization._get_layout": _OPAQUE,
    "collections.OrderedDict": Constructor(_ordered_dict),
    "collections.Counter": _MAPPING,
    "collections.defaultdict": _MAPPING,
    **dict.fromkeys(_LIBRARY_TYPES, _OPAQUE),
    "_codecs.encode": _OPAQUE,
    "numpy.dtype": _OPAQUE,
    "numpy.ndarray": Opaque(),
    **{f"numpy.{core}.multiarray.{name}": _OPAQUE for core in ("core", "_core") for name in ("scalar", "_reconstruct")},
    **{f"numpy.{core}.numeric._frombuffer": _OPAQUE for core in ("core", "_core")},
    **{f"{m}.{name}": _OPAQUE for m in ("builtins", "__builtin__") for name in _PYTHON_TYPES},
}
