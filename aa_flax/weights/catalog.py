"""The published checkpoints and figures, as data, and how to get a checkpoint."""

import contextlib
import csv
import dataclasses
import fnmatch
import functools
import hashlib
import http.client
import os
import urllib.error
import urllib.parse
import urllib.request
from importlib import resources
from pathlib import Path
from typing import BinaryIO

from aa_flax.files import CHUNK_BYTES, Progress, cache_directory, file_sha256, whole_file, write_atomically
from aa_flax.local_paths import local_path
from aa_flax.models.specs import parse_spec, resolve_spec
from aa_flax.weights.config import PretrainedConfig

LICENSE = "CC BY-NC-SA 4.0"
_TIMEOUT_SECONDS = 30
# The largest published file, VGG-19, has 575 MB.
_MAX_BYTES = 2 << 30


class DownloadError(OSError):
    """A checkpoint could not be fetched; the message says how to use a file got in another way."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """A network whose figures have been published, with its checkpoint where there is one.

    Attributes:
        model: one of `list_models`.
        filter_size: taps of the blurs; None for the plain network.
        training: `scratch`, `finetuned` from torchvision's weights, or `torchvision` itself (the baseline).
        top1: accuracy on ImageNet's validation images, in percent.
        consistency: how often two crops of one image get one answer, in percent (Zhang 2019, section 4.1).
        sha256_prefix: first digits of the checkpoint's SHA-256, as many as its publisher tells; None where only
            figures are published.
        url: where the checkpoint is.
    """

    model: str
    filter_size: int | None
    training: str
    top1: float
    consistency: float
    sha256_prefix: str | None = None
    url: str | None = None

    @property
    def spec(self) -> str:
        """The network as `create_model` takes it."""
        return f"{self.model}_plain" if self.filter_size is None else f"{self.model}_lpf{self.filter_size}"

    @property
    def license(self) -> str | None:
        """The checkpoint's licence."""
        return LICENSE if self.url else None

    @property
    def source(self) -> dict[str, str | None]:
        """Where the checkpoint comes from, as `config.json` says it."""
        return {"url": self.url, "published": self.spec, "training": self.training}

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """The published figures, as `config.json` has them."""
        return {"published": {"top1": self.top1, "consistency": self.consistency}}

    @property
    def config(self) -> PretrainedConfig:
        """What `config.json` says of the converted checkpoint."""
        spec = resolve_spec(self.spec)
        return PretrainedConfig(spec=spec, source=self.source, license=self.license, metrics=self.metrics)

    @property
    def file_name(self) -> str | None:
        """The checkpoint's name."""
        return Path(urllib.parse.urlsplit(self.url).path).name if self.url else None


@functools.cache
def published() -> tuple[Published, ...]:
    """Everything published, by network, filter size and training.

    Source: the tables of github.com/adobe/antialiased-cnns, whose checkpoints are under CC BY-NC-SA 4.0.
    """
    text = resources.files("aa_flax.weights").joinpath("published.csv").read_text("utf-8")
    return tuple(
        Published(
            model=row["model"],
            filter_size=int(row["filter_size"]) or None,
            training=row["training"],
            top1=float(row["top1"]),
            consistency=float(row["consistency"]),
            sha256_prefix=row["sha256_prefix"] or None,
            url=row["url"] or None,
        )
        for row in csv.DictReader(text.splitlines())
    )


def list_published(pattern: str = "*") -> list[Published]:
    """The entries whose network's name or spec matches a shell pattern, such as `resnet*` or `*_lpf4`."""
    return [e for e in published() if fnmatch.fnmatch(e.model, pattern) or fnmatch.fnmatch(e.spec, pattern)]


def find(spec: str, training: str | None = None) -> Published:
    """The entry of a network.

    Args:
        spec: `<name>[_lpf<k>|_plain]`.
        training: `scratch`, `finetuned` or `torchvision`; None means the fine-tuned one where there are two, as in the
            reference.

    Raises:
        ValueError: unknown spec, or nothing published for it; the message lists what is.
    """
    name, filter_size = parse_spec(spec)
    entries = [e for e in published() if e.model == name]
    found = [e for e in entries if e.filter_size == filter_size and training in (None, e.training)]
    if not found:
        wanted = f"{spec} ({training})" if training else spec
        listed = ", ".join(f"{e.spec} ({e.training})" for e in entries)
        raise ValueError(f"nothing is published for {wanted}; there is {listed}")
    return min(found, key=lambda entry: entry.training)  # "finetuned" comes before "scratch"


def identify(sha256: str) -> Published | None:
    """The entry whose checkpoint has this SHA-256, if it is a published one."""
    matches = (e for e in published() if e.sha256_prefix and sha256.startswith(e.sha256_prefix))
    return next(matches, None)


def fetch(
    spec: str,
    *,
    training: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Path:
    """The published checkpoint of a network as a local file, downloaded at first use.

    Args:
        spec: `<name>[_lpf<k>]`.
        training: `scratch` or `finetuned`; None means the fine-tuned one where there are two.
        cache_dir: where to keep the file; None means `cache_directory()`.
        progress: called with the bytes got so far and in all (None if the server does not say).

    Returns:
        The file. At every call its SHA-256 has to begin as published, with few digits, and to be wholly what it was
        at first use, which a file beside it with the ending `.sha256` keeps.

    Raises:
        ValueError: unknown spec, or no checkpoint is published for it.
        DownloadError: (an OSError) the file could not be had whole; nothing is left of it.
    """
    entry = find(spec, training)
    if entry.url is None:
        raise ValueError(
            f"{entry.spec} has no published checkpoint here, as it is torchvision's: "
            "save torchvision's weights to a file and convert that"
        )
    return download(entry, local_path(cache_dir) if cache_dir else cache_directory(), progress)


def download(entry: Published, directory: Path, progress: Progress | None = None) -> Path:
    """Gets an entry's checkpoint into a directory, unless it is there already; see `fetch`."""
    if not (entry.url and entry.sha256_prefix and entry.file_name):
        raise ValueError(f"{entry.spec} ({entry.training}) has no checkpoint")
    path = directory / entry.file_name
    first_use = FirstUse(path.with_name(path.name + ".sha256"), entry.sha256_prefix)
    try:
        if path.is_file() and first_use.objection(digest := file_sha256(path)) is None:
            # A cache for many may be read-only.
            with contextlib.suppress(PermissionError):
                first_use.keep(digest)
            return path
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DownloadError(f"cannot keep downloads in {directory}: {error}; set AA_FLAX_CACHE") from error
    try:
        with whole_file(path) as file:
            digest = _stream(entry.url, file, progress)
            if objection := first_use.objection(digest):
                raise DownloadError(objection)
            first_use.keep(digest)
    except (OSError, http.client.HTTPException) as error:
        raise DownloadError(
            f"cannot download {entry.url}: {_reason(error)}. If you have the file, copy it to {path}, or convert it: "
            f"python convert_weights.py FILE --model {entry.spec} --output DIRECTORY"
        ) from error
    return path


@dataclasses.dataclass(frozen=True)
class FirstUse:
    """The whole SHA-256 that a file had when it was first used, beyond the few digits that are published.

    Attributes:
        record: the file that keeps it.
        prefix: its published digits.
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


def _stream(url: str, file: BinaryIO, progress: Progress | None) -> str:
    """Writes what a server sends to a file, to the last byte or not at all; its SHA-256."""
    request = urllib.request.Request(url, headers={"User-Agent": "aa_flax"})
    with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:
        announced = response.headers.get("Content-Length", "")
        total = int(announced) if announced.isdigit() else None
        digest, done = hashlib.sha256(), 0
        while chunk := response.read(CHUNK_BYTES):
            file.write(chunk)
            digest.update(chunk)
            done += len(chunk)
            if done > _MAX_BYTES:
                raise DownloadError("the server sends more than any checkpoint has")
            if progress:
                progress(done, total)
        if total is not None and done != total:
            raise DownloadError(f"the connection broke off after {done} of {total} bytes")
    return digest.hexdigest()


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answers {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return f"no connection ({error.reason})"
    return str(error) or type(error).__name__
