"""Files from public servers by plain https: whole and of the right SHA-256, or not at all."""

import contextlib
import dataclasses
import hashlib
import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, BinaryIO

from aa_flax.files import CHUNK_BYTES, Progress, file_sha256, whole_file, write_atomically

TIMEOUT_SECONDS = 30
# The largest published file, seresnextaa201d_32x8d with 11,821 classes, has 690 MB.
_MAX_BYTES = 2 << 30


class DownloadError(OSError):
    """A file could not be fetched; the message names each address with its reason.

    Attributes:
        offline: whether no server was reached at all, so that another try would fail as well.
        refused: whether one answered that the file is not for everybody.
    """

    def __init__(self, message: str, *, offline: bool = False, refused: bool = False):
        super().__init__(message)
        self.offline, self.refused = offline, refused


class SourceError(Exception):
    """Why one address did not give the file."""

    def __init__(self, reason: str, *, offline: bool = False, refused: bool = False):
        super().__init__(reason)
        self.offline, self.refused = offline, refused


@dataclasses.dataclass(frozen=True)
class FirstUse:
    """The whole SHA-256 that a file had when it was first used, beyond the few digits that are published.

    Attributes:
        record: the file that keeps it.
        prefix: its published digits; none where nothing is published.
    """

    record: Path
    prefix: str

    def objection(self, digest: str) -> str | None:
        """What speaks against a file of this digest."""
        if not digest.startswith(self.prefix):
            return f"its SHA-256 begins with {digest[:8]} instead of {self.prefix}: it was altered"
        kept = self.record.read_text("utf-8", "replace").strip()[:64] if self.record.is_file() else digest
        if kept != digest:
            return f"its SHA-256 is {digest}, but was {kept!r} at first use ({self.record}): one of them was altered"
        return None

    def keep(self, digest: str) -> None:
        """Records the digest, unless one is recorded."""
        if not self.record.exists():
            write_atomically(self.record, f"{digest}\n".encode())


def download(
    addresses: Sequence[str],
    path: Path,
    *,
    sha256_prefix: str = "",
    what: str = "",
    otherwise: str = "",
    progress: Progress | None = None,
) -> str:
    """Gets a file from the first address that gives it, unless it is there already: then nothing is asked.

    Args:
        addresses: where it is, tried in this order.
        path: where to keep it.
        sha256_prefix: with what its SHA-256 has to begin.
        what: what to call it in errors; by default its name.
        otherwise: what the error says of a file got in another way.
        progress: called with the bytes got so far and in all (None if the server does not say).

    Returns:
        The SHA-256. At every call it has to begin as published, and to be wholly what it was at first use, which a
        file beside it with the ending `.sha256` keeps.

    Raises:
        DownloadError: (an OSError) no address gave it, or it cannot be kept; nothing is left of it.
    """
    first_use = FirstUse(path.with_name(path.name + ".sha256"), sha256_prefix)
    failures: list[tuple[str, SourceError]] = []
    with _disk_of(path):
        if path.is_file() and first_use.objection(digest := file_sha256(path)) is None:
            # A cache for many may be read-only.
            with contextlib.suppress(PermissionError):
                first_use.keep(digest)
            return digest
        path.parent.mkdir(parents=True, exist_ok=True)
        for address in addresses:
            try:
                with whole_file(path) as file:
                    digest = stream(address, file, progress=progress)[0]
                    if objection := first_use.objection(digest):
                        raise SourceError(objection)
                    first_use.keep(digest)
                return digest
            except SourceError as error:
                failures.append((address, error))
    told = "; ".join(f"{address}: {error}" for address, error in failures)
    raise DownloadError(
        f"cannot download {what or path.name}: {told}{otherwise and '. ' + otherwise}",
        offline=all(error.offline for _, error in failures),
        refused=any(error.refused for _, error in failures),
    )


def stream(
    address: str, file: IO[bytes] | BinaryIO, *, progress: Progress | None = None, most: int | None = None
) -> tuple[str, dict[str, str]]:
    """Writes what a server sends to a file, to the last byte or not at all.

    Args:
        address: of the file; redirects are followed, from https to https only.
        file: where to.
        progress: see `download`.
        most: bytes that no honest server exceeds.

    Returns:
        The SHA-256, and the headers of every answer on the way by their names in small letters.

    Raises:
        SourceError: the address does not give the file whole, or another one than the server announced.
        OSError: the file cannot be written.
    """
    most = _MAX_BYTES if most is None else most
    redirects = _Redirects()
    with contextlib.ExitStack() as stack:
        with _reasons():
            request = urllib.request.Request(address, headers={"User-Agent": "aa_flax"})
            opened = urllib.request.build_opener(redirects).open(request, timeout=TIMEOUT_SECONDS)
            response = stack.enter_context(opened)
        headers = redirects.headers | {name.lower(): value for name, value in response.headers.items()}
        announced = response.headers.get("Content-Length", "")
        total = int(announced) if announced.isdigit() else None
        digest, done = hashlib.sha256(), 0
        for chunk in _chunks(response):
            file.write(chunk)
            digest.update(chunk)
            done += len(chunk)
            if done > most:
                raise SourceError("the server sends more than any such file has")
            if progress:
                progress(done, total)
    if total is not None and done != total:
        raise SourceError(f"the connection broke off after {done} of {total} bytes")
    # What the Hugging Face Hub says of large files: their SHA-256.
    promised = headers.get("x-linked-etag", "").strip('W/"')
    if re.fullmatch(r"[0-9a-f]{64}", promised) and promised != digest.hexdigest():
        raise SourceError(f"its SHA-256 begins with {digest.hexdigest()[:8]}, the server promised {promised[:8]}")
    return digest.hexdigest(), headers


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Keeps the headers of answers that point elsewhere, and leaves https for nothing else."""

    def __init__(self):
        self.headers: dict[str, str] = {}

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if not newurl.startswith(("https:", f"{req.type}:")):
            raise SourceError(f"it redirects to an address without encryption, {newurl[:80]}")
        self.headers |= {name.lower(): value for name, value in headers.items()}
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    while True:
        with _reasons():
            chunk = response.read(CHUNK_BYTES)
        if not chunk:
            return
        yield chunk


@contextlib.contextmanager
def _reasons() -> Iterator[None]:
    """What goes wrong on the way to a server and back, in few words."""
    try:
        yield
    except urllib.error.HTTPError as error:
        error.close()
        refused = error.code in (401, 403)
        raise SourceError(f"the server answers {error.code} {error.reason}".rstrip(), refused=refused) from error
    except (OSError, http.client.HTTPException) as error:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(cause, TimeoutError):
            raise SourceError(f"no answer within {TIMEOUT_SECONDS} seconds", offline=True) from error
        if isinstance(error, urllib.error.URLError):
            raise SourceError(f"no connection ({cause})", offline=True) from error
        raise SourceError(f"the connection broke off ({str(error) or type(error).__name__})") from error


@contextlib.contextmanager
def _disk_of(path: Path) -> Iterator[None]:
    """What goes wrong on this disk."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise DownloadError(f"cannot keep downloads in {path.parent}: {reason}; set AA_FLAX_CACHE") from error
