"""The two containers that `torch.save` has written: the zip archive (2020) and the legacy stream (2019).

Both give the value of their pickle and say where in the file each storage lies; the numbers stay in the memory map.
"""

import struct
import zipfile
import zlib
from mmap import mmap
from typing import Any, BinaryIO

from aa_flax.weights.errors import CheckpointError
from aa_flax.weights.torch.globals import Storage
from aa_flax.weights.torch.pickled import MAX_PICKLE_BYTES, PickleReader

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_LOCAL_HEADER_BYTES = 30
_ENCRYPTED = 0x1
_AGAIN = "download or copy it again"
# What zipfile raises on damaged archives.
_ZIP_ERRORS = (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, struct.error)


def allowance(file_bytes: int) -> int:
    """Bytes that the content of a file may grow to, by compression or by repetition, before it counts as a bomb."""
    return 64 * 2**20 + 16 * file_bytes


class ZipFile:
    """A checkpoint in PyTorch's zip format.

    Args:
        file: the open file.
        data: the same file, memory-mapped.

    Attributes:
        root: the value of its pickle.

    Raises:
        CheckpointError: not a checkpoint, damaged, big-endian, or more than plain values and tensors.
    """

    def __init__(self, file: BinaryIO, data: mmap):
        self._data = data
        self._budget = allowance(len(data))
        self._located: dict[str, tuple[bytes | mmap, int]] = {}
        try:
            self._archive = zipfile.ZipFile(file)
        except _ZIP_ERRORS as error:
            raise CheckpointError(f"it is a damaged or truncated zip archive ({error}): {_AGAIN}") from error
        self._members: dict[str, zipfile.ZipInfo] = {}
        for info in self._archive.infolist():
            # Readers differ in which of two they take.
            if info.filename in self._members:
                raise CheckpointError(f"it has two parts of the name {info.filename[:60]!r}: refused, {_AGAIN}")
            self._members[info.filename] = info
        self._prefix = self._find_prefix()
        self._check_byte_order()
        pickled = self._members[self._prefix + "data.pkl"]
        if pickled.file_size > MAX_PICKLE_BYTES:
            raise CheckpointError(f"its pickle is larger than {MAX_PICKLE_BYTES:,} bytes")
        buffer, start = self._content(pickled)
        self.root: Any = PickleReader(buffer, start, start + pickled.file_size).load()

    def locate(self, storage: Storage) -> tuple[bytes | mmap, int]:
        """The buffer in which a whole storage lies and where it begins there, in bytes."""
        if storage.key not in self._located:
            member = self._members.get(f"{self._prefix}data/{storage.key}")
            if member is None:
                raise CheckpointError(f"its storage {storage.key[:60]!r} is missing: the file is damaged, {_AGAIN}")
            expected = storage.total * storage.dtype.itemsize
            if member.file_size != expected:
                raise CheckpointError(
                    f"its storage {storage.key[:60]!r} has {member.file_size:,} bytes where its pickle says "
                    f"{expected:,}: the file is damaged, {_AGAIN}"
                )
            self._located[storage.key] = self._content(member)
        return self._located[storage.key]

    def _find_prefix(self) -> str:
        found = [name[: -len("data.pkl")] for name in self._members if name.endswith("/data.pkl")]
        prefixes = [prefix for prefix in found if prefix.count("/") == 1]
        if len(prefixes) != 1:
            raise CheckpointError("it is a zip archive, but not one that torch.save wrote (it has no data.pkl)")
        prefix = prefixes[0]
        if any(name == prefix + "constants.pkl" or name.startswith(prefix + "code/") for name in self._members):
            raise CheckpointError(
                "it is a TorchScript archive, which carries code. If you trust it, save just the weights in PyTorch: "
                'torch.save(torch.jit.load("in.pt").state_dict(), "weights.pth")'
            )
        return prefix

    def _check_byte_order(self) -> None:
        member = self._members.get(self._prefix + "byteorder")
        if member is None:
            return
        buffer, start = self._content(member)
        order = bytes(buffer[start : start + min(member.file_size, 20)])
        if order != b"little":
            raise CheckpointError(
                f"its numbers have the byte order {order!r}; only b'little' is read. "
                "Load and save it again with PyTorch on a little-endian machine"
            )

    def _content(self, member: zipfile.ZipInfo) -> tuple[bytes | mmap, int]:
        name = member.filename[:60]
        if member.flag_bits & _ENCRYPTED:
            raise CheckpointError(f"its part {name!r} is encrypted: unpack and store it without a password")
        header = self._data[max(0, member.header_offset) : member.header_offset + _LOCAL_HEADER_BYTES]
        if len(header) < _LOCAL_HEADER_BYTES or not header.startswith(b"PK\x03\x04"):
            raise CheckpointError(f"its part {name!r} is not where the archive says: the file is damaged, {_AGAIN}")
        if member.compress_type == zipfile.ZIP_DEFLATED:
            return self._inflated(member), 0
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise CheckpointError(f"its part {name!r} is stored in a way that PyTorch does not read")
        start = member.header_offset + _LOCAL_HEADER_BYTES + sum(struct.unpack("<HH", header[26:30]))
        stop = start + member.file_size
        if stop > len(self._data):
            raise CheckpointError(f"it ends in the middle of its part {name!r}: the file is truncated, {_AGAIN}")
        with memoryview(self._data) as view, view[start:stop] as content:
            # PyTorch leaves the sum 0 where it was told not to compute it.
            if member.CRC not in (0, zlib.crc32(content)):
                raise CheckpointError(f"its part {name!r} is damaged (wrong check sum): {_AGAIN}")
        return self._data, start

    def _inflated(self, member: zipfile.ZipInfo) -> bytes:
        name = member.filename[:60]
        self._budget -= member.file_size
        if self._budget < 0:
            raise CheckpointError(f"its part {name!r} unpacks to {member.file_size:,} bytes: refused as a zip bomb")
        try:
            with self._archive.open(member) as stream:
                content = stream.read(member.file_size + 1)
        except (*_ZIP_ERRORS, zlib.error, EOFError) as error:
            raise CheckpointError(f"its part {name!r} is damaged ({error}): {_AGAIN}") from error
        if len(content) != member.file_size:
            raise CheckpointError(f"its part {name!r} does not unpack to the size that the archive says: {_AGAIN}")
        return content


class LegacyFile:
    """A checkpoint in PyTorch's format of before version 1.6: five pickles, then the storages one after the other.

    Args:
        data: the memory-mapped file.

    Attributes:
        root: the value of the fourth pickle.

    Raises:
        CheckpointError: damaged, big-endian, or more than plain values and tensors.
    """

    def __init__(self, data: mmap):
        self._data = data
        reader = PickleReader(data, 0, len(data))
        if reader.load() != LEGACY_MAGIC:
            raise CheckpointError("it is a pickle, but not one that torch.save wrote")
        if (protocol := reader.load()) != _LEGACY_PROTOCOL:
            shown = protocol if isinstance(protocol, int) else "something else"
            raise CheckpointError(f"its format has the number {shown} where {_LEGACY_PROTOCOL} is known")
        system = reader.load()
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise CheckpointError(
                "its numbers are not known to be little-endian: "
                "load and save it again with PyTorch on a little-endian machine"
            )
        self.root: Any = reader.load()
        self._starts = self._find_storages(reader, reader.load())

    def locate(self, storage: Storage) -> tuple[mmap, int]:
        """The buffer in which a whole storage lies and where it begins there, in bytes."""
        if storage.key not in self._starts:
            raise CheckpointError(f"its storage {storage.key[:60]!r} is missing: the file is damaged, {_AGAIN}")
        return self._data, self._starts[storage.key]

    def _find_storages(self, reader: PickleReader, keys: Any) -> dict[str, int]:
        if not isinstance(keys, list):
            raise CheckpointError(f"its list of storages is malformed: {_AGAIN}")
        starts: dict[str, int] = {}
        position = reader.position
        for key in keys:
            storage = reader.storages.get(key) if isinstance(key, str) else None
            if storage is None or key in starts:
                raise CheckpointError(f"its list of storages does not fit its pickle: {_AGAIN}")
            count = int.from_bytes(self._data[position : position + 8], "little", signed=True)
            starts[key] = position + 8
            position = starts[key] + storage.total * storage.dtype.itemsize
            if position > len(self._data):
                raise CheckpointError(f"it ends in the middle of its storage {key[:60]!r}: truncated, {_AGAIN}")
            if count != storage.total:
                raise CheckpointError(
                    f"its storage {key[:60]!r} has {count:,} elements where its pickle says {storage.total:,}: {_AGAIN}"
                )
        return starts
