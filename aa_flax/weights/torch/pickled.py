"""PyTorch's pickles as plain values: a closed pickle machine that cannot run code.

Python's own unpickler imports what a file names and calls it. Here nothing is imported: a name
either stands in the table `globals.GLOBALS`, with a meaning given there, or the file is
refused. Only the instructions that `torch.save` writes are known, tensors come back as `TensorRef`
(where the numbers lie, not the numbers), and time and memory stay proportional to the file, so
that neither nested pickles nor invented sizes can do harm.
"""

import pickle
import struct
from collections.abc import Callable, Mapping
from mmap import mmap
from typing import Any

import numpy as np

from aa_flax.weights.errors import CheckpointError
from aa_flax.weights.torch.globals import (
    AS_WEIGHTS,
    GLOBALS,
    Constructor,
    Opaque,
    Storage,
    StorageType,
    refusal,
    update,
)

MAX_PICKLE_BYTES = 16 * 2**20
_MAX_STEPS = 1_000_000
_MAX_NAME = 1_000


class PickleReader:
    """Reads one pickle after the other from a buffer.

    Args:
        buffer: the bytes, possibly memory-mapped.
        start: where the first pickle begins.
        end: where the bytes end that may be read.

    Attributes:
        position: the place after the last pickle that was read.
        storages: every storage met so far, by key.
    """

    def __init__(self, buffer: bytes | mmap, start: int, end: int):
        self.position = start
        self.storages: dict[str, Storage] = {}
        self._buffer = buffer
        self._end = end
        self._limit = min(end, start + MAX_PICKLE_BYTES)
        self._steps = 0
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def load(self) -> Any:
        """One pickle's value: dict, list, tuple, str, number, `TensorRef` or `Opaque`.

        Raises:
            CheckpointError: the pickle is malformed, too large, or asks for anything unknown.
        """
        self._stack, self._marks, self._memo = [], [], {}
        try:
            while (code := self._take(1)) != pickle.STOP:
                self._charge(1)
                if code not in _ACTIONS:
                    raise CheckpointError(
                        f"its pickle uses the instruction {code!r}, which no tensor and no plain value needs: refused. "
                        f"The file holds something else too, or is damaged; {AS_WEIGHTS}"
                    )
                _ACTIONS[code](self)
            return self._stack.pop()
        except (IndexError, KeyError, UnicodeDecodeError) as error:
            raise CheckpointError(
                f"its pickle is malformed near byte {self.position}: the file is damaged, download or copy it again"
            ) from error

    def _charge(self, steps: int) -> None:
        self._steps += steps
        if self._steps > _MAX_STEPS:
            raise CheckpointError(f"its pickle takes more than {_MAX_STEPS:,} steps: not a checkpoint of a network")

    def _take(self, count: int) -> bytes:
        stop = self.position + count
        if count < 0 or stop > self._limit:
            if 0 <= count <= self._end - self.position:
                raise CheckpointError(f"its pickle is larger than {MAX_PICKLE_BYTES:,} bytes")
            raise CheckpointError(
                "it ends in the middle of its pickle: the file is truncated or damaged, download or copy it again"
            )
        data = self._buffer[self.position : stop]
        self.position = stop
        return data

    def _number(self, layout: str) -> Any:
        return struct.unpack(layout, self._take(struct.calcsize(layout)))[0]

    def _line(self) -> str:
        stop = self._buffer.find(b"\n", self.position, min(self._limit, self.position + _MAX_NAME))
        if stop < 0:
            raise KeyError("no end of a name")
        line = self._take(stop - self.position).decode("ascii")
        self.position += 1
        return line

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _begin(self) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def _since_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._marks.pop()
        return items

    def _last(self, count: int) -> tuple:
        if len(self._stack) < count:
            raise IndexError("empty stack")
        return tuple(self._stack.pop() for _ in range(count))[::-1]

    def _remember(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _add(self, items: list[Any]) -> None:
        # Members are dropped unseen: the hash of a nested tuple may take forever.
        if not isinstance(self._stack[-1], Opaque):
            raise KeyError("members added to something else than a set")

    def _freeze(self) -> None:
        self._since_mark()
        self._push(Opaque("a set"))

    def _append(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Opaque):
            raise KeyError("append to something else than a list")

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict | Opaque) or len(items) % 2:
            raise KeyError("items set on something else than a dictionary")
        if isinstance(target, dict):
            update(target, zip(items[::2], items[1::2], strict=True))

    def _global(self, name: str) -> None:
        if name not in GLOBALS:
            raise CheckpointError(refusal(name))
        self._push(GLOBALS[name])

    def _call(self) -> None:
        function, args = self._last(2)
        if not isinstance(function, Constructor) or not isinstance(args, tuple):
            raise KeyError("call of something that is no constructor")
        # A remembered list costs two bytes to name again, but its full length to copy.
        self._charge(sum(len(arg) for arg in args if isinstance(arg, list)))
        self._push(function.build(args))

    def _build(self) -> None:
        target, _ = self._last(2)
        if not isinstance(target, dict | Opaque):
            raise KeyError("state set on something else than a container")
        # The state itself (`_metadata` of a state dict) says nothing about the tensors.
        self._push(target)

    def _persistent(self) -> None:
        match self._stack.pop():
            case ("storage", StorageType(dtype), str(key), _, int(total), *view):
                self._push(self._storage(key, dtype, total, view))
            case ("module", *_):
                raise CheckpointError(refusal("the source code of a module"))
            case _:
                raise KeyError("unknown persistent id")

    def _storage(self, key: str, dtype: np.dtype, total: int, view: list[Any]) -> Storage:
        match view:
            case [] | [None]:
                start, size = 0, total
            case [(str(), int(start), int(size))]:
                pass
            case _:
                raise KeyError("unknown storage view")
        if not (0 <= start <= start + size <= total < 2**48):
            raise CheckpointError(f"its storage {key[:60]!r} has the impossible size {total}")
        known = self.storages.setdefault(key, Storage(key, dtype, 0, total, total))
        if (known.dtype, known.total) != (dtype, total):
            raise CheckpointError(f"it describes its storage {key[:60]!r} in two ways")
        return Storage(key, dtype, start, size, total)


_Action = Callable[[PickleReader], None]


def _constant(value: Any) -> _Action:
    return lambda reader: reader._push(value)


def _fixed(layout: str) -> _Action:
    return lambda reader: reader._push(reader._number(layout))


def _sized(layout: str, decode: Callable[[bytes], Any]) -> _Action:
    return lambda reader: reader._push(decode(reader._take(reader._number(layout))))


def _skipped(layout: str) -> _Action:
    def skip(reader: PickleReader) -> None:
        reader._number(layout)

    return skip


def _put(layout: str) -> _Action:
    return lambda reader: reader._remember(reader._number(layout))


def _get(layout: str) -> _Action:
    return lambda reader: reader._push(reader._memo[reader._number(layout)])


def _tuple_of(count: int) -> _Action:
    return lambda reader: reader._push(reader._last(count))


def _text(data: bytes) -> str:
    # Python pickles lone surrogates, which no terminal takes: they become escapes.
    return data.decode("utf-8", "surrogatepass").encode("utf-8", "backslashreplace").decode("utf-8")


def _text_of_python2(data: bytes) -> str:
    return data.decode("latin-1")


def _integer(data: bytes) -> int:
    return int.from_bytes(data, "little", signed=True)


def _stack_global(reader: PickleReader) -> None:
    match reader._last(2):
        case (str(module), str(name)):
            reader._global(f"{module}.{name}")
        case _:
            raise KeyError("a global without a name")


_ACTIONS: Mapping[bytes, _Action] = {
    pickle.PROTO: _skipped("<B"),
    pickle.FRAME: _skipped("<Q"),
    pickle.NONE: _constant(None),
    pickle.NEWTRUE: _constant(True),
    pickle.NEWFALSE: _constant(False),
    pickle.BININT: _fixed("<i"),
    pickle.BININT1: _fixed("<B"),
    pickle.BININT2: _fixed("<H"),
    pickle.BINFLOAT: _fixed(">d"),
    pickle.LONG1: _sized("<B", _integer),
    pickle.SHORT_BINUNICODE: _sized("<B", _text),
    pickle.BINUNICODE: _sized("<I", _text),
    pickle.BINUNICODE8: _sized("<Q", _text),
    pickle.SHORT_BINSTRING: _sized("<B", _text_of_python2),
    pickle.BINSTRING: _sized("<i", _text_of_python2),
    pickle.SHORT_BINBYTES: _sized("<B", bytes),
    pickle.BINBYTES: _sized("<I", bytes),
    pickle.BINBYTES8: _sized("<Q", bytes),
    pickle.BYTEARRAY8: _sized("<Q", bytes),
    pickle.BINPUT: _put("<B"),
    pickle.LONG_BINPUT: _put("<I"),
    pickle.MEMOIZE: lambda reader: reader._remember(len(reader._memo)),
    pickle.BINGET: _get("<B"),
    pickle.LONG_BINGET: _get("<I"),
    pickle.EMPTY_DICT: lambda reader: reader._push({}),
    pickle.EMPTY_LIST: lambda reader: reader._push([]),
    pickle.EMPTY_SET: _constant(Opaque("a set")),
    pickle.ADDITEMS: lambda reader: reader._add(reader._since_mark()),
    pickle.FROZENSET: lambda reader: reader._freeze(),
    pickle.EMPTY_TUPLE: _constant(()),
    pickle.MARK: lambda reader: reader._begin(),
    pickle.TUPLE: lambda reader: reader._push(tuple(reader._since_mark())),
    pickle.TUPLE1: _tuple_of(1),
    pickle.TUPLE2: _tuple_of(2),
    pickle.TUPLE3: _tuple_of(3),
    pickle.APPEND: lambda reader: reader._append([*reader._last(1)]),
    pickle.APPENDS: lambda reader: reader._append(reader._since_mark()),
    pickle.SETITEM: lambda reader: reader._set_items([*reader._last(2)]),
    pickle.SETITEMS: lambda reader: reader._set_items(reader._since_mark()),
    pickle.GLOBAL: lambda reader: reader._global(f"{reader._line()}.{reader._line()}"),
    pickle.STACK_GLOBAL: _stack_global,
    pickle.REDUCE: lambda reader: reader._call(),
    pickle.NEWOBJ: lambda reader: reader._call(),
    pickle.BUILD: lambda reader: reader._build(),
    pickle.BINPERSID: lambda reader: reader._persistent(),
}
