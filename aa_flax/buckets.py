"""Objects of a Google Cloud Storage bucket under the names of paths: gs://bucket/name.

Whoever takes a path that may lie in a bucket takes an `AnyPath` and gets it by `any_path`. Everything that goes wrong
with a bucket is an `OSError` with `filename` and a `strerror` of one line, as with a disk. An object appears whole or
not at all; a directory is the beginning of names, and exists as long as there are names that begin so.
"""

import contextlib
import dataclasses
import datetime
import errno
import fnmatch
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from aa_flax.bucket_client import as_errno, client, patience
from aa_flax.local_paths import local_path

# A path object has lost one of the two slashes.
_ADDRESS = re.compile(r"gs:/+(?P<bucket>[^/]+)/*(?P<name>.*)", re.DOTALL)


def any_path(path: "str | os.PathLike[str]") -> "AnyPath":
    """A path of this machine, or one in a bucket.

    Args:
        path: text such as `runs/one` or `gs://bucket/runs/one`, or a path object.

    Raises:
        ValueError: it has another scheme; the message says what to do.
    """
    text = os.fspath(path)
    return BucketPath(text) if is_in_bucket(text) else local_path(path)


def is_in_bucket(path: str | os.PathLike[str]) -> bool:
    """Whether it begins with `gs://`."""
    return _ADDRESS.match(os.fspath(path)) is not None


@dataclasses.dataclass(frozen=True)
class Written:
    """One state of an object.

    Attributes:
        generation: a number that every write changes.
        updated: when it was written, by the server's clock.
        size: bytes.
    """

    generation: int
    updated: datetime.datetime
    size: int

    @property
    def st_size(self) -> int:
        """Bytes, under the name that `os.stat` has for them."""
        return self.size


class BucketPath(os.PathLike[str]):
    """A path in a bucket, with the methods of `pathlib.Path` that make sense there.

    Args:
        address: such as gs://bucket/some/name.

    Raises:
        ValueError: it names no bucket.
    """

    def __init__(self, address: str):
        match = _ADDRESS.match(address)
        if match is None:
            raise ValueError(f"{address}: an address in a bucket begins with gs://BUCKET/")
        self._bucket, self._name = match["bucket"], "/".join(part for part in match["name"].split("/") if part)

    def __str__(self) -> str:
        return f"gs://{self._bucket}/{self._name}".rstrip("/")

    __fspath__ = __str__

    def __repr__(self) -> str:
        return f"BucketPath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BucketPath) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __truediv__(self, name: str) -> "BucketPath":
        return BucketPath(f"{self}/{name}")

    @property
    def name(self) -> str:
        """What stands behind the last slash."""
        return PurePosixPath(self._name).name

    @property
    def parent(self) -> "BucketPath":
        """What stands before it."""
        return BucketPath(f"gs://{self._bucket}/{self._name.rpartition('/')[0]}")

    def absolute(self) -> "BucketPath":
        """Itself: there is no working directory."""
        return self

    def check_bucket(self) -> None:
        """Sees that there is such a bucket, and that it answers.

        Raises:
            OSError: no such bucket, no credentials, no permission, no answer.
        """
        with self._errors(f"there is no bucket {self._bucket}"):
            client().get_bucket(self._bucket, **patience(first=True))

    def stat(self) -> Written:
        """Generation, time and size.

        Raises:
            FileNotFoundError: there is no such object.
            OSError: as every method, where the bucket cannot be reached.
        """
        with self._errors():
            blob = self._blob()
            blob.reload(**patience())
            return _written(blob)

    def is_file(self) -> bool:
        """Whether there is an object of this name."""
        with self._errors():
            return self._blob().exists(**patience())

    def is_dir(self) -> bool:
        """Whether there are objects below this name."""
        with self._errors(f"there is no bucket {self._bucket}"):
            return bool(list(client().list_blobs(self._bucket, prefix=self._below(), max_results=1, **patience())))

    def exists(self) -> bool:
        """Whether there is anything of or below this name."""
        return self.is_file() or self.is_dir()

    def iterdir(self) -> Iterator["BucketPath"]:
        """What lies directly below this name, in the order of names."""
        below = self._below()
        with self._errors(f"there is no bucket {self._bucket}"):
            listed = client().list_blobs(self._bucket, prefix=below, delimiter="/", **patience())
            names = {blob.name for blob in listed} | set(listed.prefixes)
        for name in sorted({name.removeprefix(below).rstrip("/") for name in names} - {""}):
            yield self / name

    def glob(self, pattern: str) -> Iterator["BucketPath"]:
        """What lies directly below this name and fits the pattern."""
        return (path for path in self.iterdir() if fnmatch.fnmatchcase(path.name, pattern))

    def read_bytes(self) -> bytes:
        """The content of the object, compared with its checksum.

        Raises:
            FileNotFoundError: there is no such object.
        """
        with self._errors():
            return self._blob().download_as_bytes(**patience())

    def read_text(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """The content as text."""
        return self.read_bytes().decode(encoding, errors)

    def write_bytes(self, content: bytes, *, generation: int | None = None) -> Written:
        """Writes the object, whole or not at all.

        Args:
            content: the whole content.
            generation: what must be there: an older state by its number, or nothing by 0.

        Raises:
            FileExistsError: something else is there.
        """
        with self._errors(f"there is no bucket {self._bucket}"):
            blob = self._blob()
            # A write is the same however often it is repeated, unless it depends on what is there.
            blob.upload_from_string(
                content, "application/octet-stream", if_generation_match=generation, checksum="crc32c", **patience()
            )
            return _written(blob)

    def upload(self, file: Path) -> None:
        """Writes the content of a local file."""
        with self._errors(f"there is no bucket {self._bucket}"):
            self._blob().upload_from_filename(str(file), checksum="crc32c", **patience())

    def upload_tree(self, folder: Path) -> None:
        """Writes every file of a local folder below this name."""
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            (self / file.relative_to(folder).as_posix()).upload(file)

    def download(self, file: Path, *, generation: int | None = None) -> None:
        """Writes the content to a local file, compared with its checksum.

        Args:
            file: the file.
            generation: the state that must be there.

        Raises:
            FileNotFoundError: there is no such object.
            FileExistsError: another state is there.
        """
        with self._errors():
            self._blob().download_to_filename(str(file), if_generation_match=generation, **patience())

    def append(self, part: "BucketPath", *, generation: int) -> Written:
        """Puts another object of the bucket behind what is there; nothing of either travels.

        Args:
            part: the other object, which stays.
            generation: the state that must be there.

        Raises:
            FileExistsError: another state is there.
        """
        with self._errors():
            blob = self._blob()
            blob.compose([blob, part._blob()], if_generation_match=generation, **patience())
            return _written(blob)

    def touch(self) -> None:
        """Writes an empty object."""
        self.write_bytes(b"")

    def mkdir(self, parents: bool = True, exist_ok: bool = True) -> None:
        """Does nothing: a directory is only the beginning of names."""

    def unlink(self, missing_ok: bool = False, *, generation: int | None = None) -> None:
        """Removes the object.

        Args:
            missing_ok: be content where there is none.
            generation: the state that must be there.

        Raises:
            FileNotFoundError: there is no such object.
            FileExistsError: another state is there.
        """
        with contextlib.suppress(*([FileNotFoundError] if missing_ok else [])), self._errors():
            self._blob().delete(if_generation_match=generation, **patience())

    def tree(self) -> list["BucketPath"]:
        """All objects below this name, in the order of names."""
        return [BucketPath(f"gs://{self._bucket}/{blob.name}") for blob in self._tree()]

    def rmtree(self) -> None:
        """Removes everything below this name."""
        for path in self.tree():
            path.unlink(missing_ok=True)

    def move_tree(self, target: "BucketPath", *, first: Sequence[str] = ()) -> None:
        """Moves everything below this name, object by object.

        Args:
            target: where to, in the same bucket.
            first: what goes first, where somebody might stop between two objects.
        """
        blobs = {blob.name.removeprefix(self._below()): blob for blob in self._tree()}
        with self._errors():
            bucket = client().bucket(self._bucket)
            for name in sorted(blobs, key=lambda name: (name not in first, name)):
                bucket.copy_blob(blobs[name], bucket, f"{target._below()}{name}", **patience())
                blobs[name].delete(**patience())

    def _tree(self) -> list[Any]:
        with self._errors():
            return list(client().list_blobs(self._bucket, prefix=self._below(), **patience()))

    def _below(self) -> str:
        return f"{self._name}/" if self._name else ""

    def _blob(self) -> Any:
        return client().bucket(self._bucket).blob(self._name)

    @contextlib.contextmanager
    def _errors(self, missing: str = "there is no such object") -> Iterator[None]:
        """Errors of the client as those of a disk."""
        try:
            yield
        except ImportError as error:
            raise self._error(
                errno.ENOSYS, "buckets need more packages: pip install 'aa_flax[gcs]', or mount it with gcsfuse"
            ) from error
        except Exception as error:
            known = as_errno(error, missing)
            if known is None:
                raise
            raise self._error(*known) from error

    def _error(self, number: int, reason: str) -> OSError:
        return OSError(number, reason, str(self))


AnyPath = Path | BucketPath


def _written(blob: Any) -> Written:
    return Written(generation=int(blob.generation), updated=blob.updated, size=int(blob.size))
