"""Files that grow at their end, on a disk and in a bucket."""

import errno
import secrets
import time
from typing import Protocol

from aa_flax.buckets import AnyPath, BucketPath, Written

# A bucket takes about one change a second of an object, and each takes some tenths of one.
UPLOAD_SECONDS = 15.0


class Growing(Protocol):
    """What is written to a line at a time."""

    def write(self, text: str, /) -> object: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


def open_growing(path: AnyPath) -> Growing:
    """A text file to which lines are added; on a disk each is in the file as soon as it is written.

    Raises:
        OSError: here and in each method, it cannot be written.
    """
    return GrowingObject(path) if isinstance(path, BucketPath) else path.open("a", encoding="utf-8", buffering=1)


class GrowingObject:
    """An object of a bucket that grows at its end.

    What is new goes there as an object of its own, which the storage service puts behind what is there already:
    nothing is written twice. It goes there every now and then, and when it is told to.

    Args:
        path: the object, which may exist.
    """

    def __init__(self, path: BucketPath):
        self._path, self._fresh = path, bytearray()
        # Left by a process that was killed between two requests.
        for part in path.parent.glob(f"{path.name}.part-*"):
            part.unlink(missing_ok=True)
        self._state = path.stat() if path.is_file() else None
        self._sent = time.monotonic()

    def write(self, content: str | bytes) -> None:
        """Adds to the end."""
        self._fresh += content.encode() if isinstance(content, str) else content
        if time.monotonic() - self._sent > UPLOAD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Sends what is new, and returns when it is there."""
        if self._fresh:
            content = bytes(self._fresh)
            # It is gone where the directory was removed; a run goes on in a new one.
            known = self._state if self._state is None or self._path.is_file() else None
            self._state = self._begin(content) if known is None else self._append(content, known)
            self._fresh.clear()
        self._sent = time.monotonic()

    def close(self) -> None:
        """Sends what is new."""
        self.flush()

    def _begin(self, content: bytes) -> Written:
        try:
            return self._path.write_bytes(content, generation=0)
        except FileExistsError:
            return self._ours(len(content))

    def _append(self, content: bytes, state: Written) -> Written:
        part = self._path.parent / f"{self._path.name}.part-{secrets.token_hex(4)}"
        part.write_bytes(content)
        try:
            return self._path.append(part, generation=state.generation)
        except FileExistsError:
            return self._ours(state.size + len(content))
        finally:
            part.unlink(missing_ok=True)

    def _ours(self, size: int) -> Written:
        """The state of the object where it is what our own request has made, whose answer was lost on the way.

        Raises:
            FileExistsError: somebody else has written it.
        """
        state = self._path.stat()
        if state.size != size:
            raise FileExistsError(errno.EEXIST, "another process has written to it", str(self._path))
        return state
