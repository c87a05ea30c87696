"""Where the weights of the published rows are: on this disk, or where they can be fetched from."""

import dataclasses
import difflib
import fnmatch
import urllib.error
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from aa_flax.files import file_sha256
from aa_flax.weights import catalog
from aa_flax.weights.catalog import DownloadError, Published
from aa_flax.weights.config import CONFIG_NAME, Preprocessing, PretrainedConfig, read_config
from aa_flax.weights.store import WEIGHTS_NAME
from train.errors import CommandError

# The published baselines are torchvision's first ImageNet weights of each network. Its file names
# end in the first digits of the file's SHA-256.
TORCHVISION_URL = "https://download.pytorch.org/models/"
TORCHVISION_FILES = {
    "alexnet": "alexnet-owt-7be5be79.pth",
    "vgg11": "vgg11-8a719046.pth",
    "vgg13": "vgg13-19584684.pth",
    "vgg16": "vgg16-397923af.pth",
    "vgg19": "vgg19-dcbb9e9d.pth",
    "vgg11_bn": "vgg11_bn-6002323d.pth",
    "vgg13_bn": "vgg13_bn-abd245e5.pth",
    "vgg16_bn": "vgg16_bn-6c64b313.pth",
    "vgg19_bn": "vgg19_bn-c79401a0.pth",
    "resnet18": "resnet18-f37072fd.pth",
    "resnet34": "resnet34-b627a593.pth",
    "resnet50": "resnet50-0676ba61.pth",
    "resnet101": "resnet101-63fe2227.pth",
    "resnet152": "resnet152-394f9c45.pth",
    "resnext50_32x4d": "resnext50_32x4d-7cdf4587.pth",
    "resnext101_32x8d": "resnext101_32x8d-8ba56ff5.pth",
    "wide_resnet50_2": "wide_resnet50_2-95faca4d.pth",
    "wide_resnet101_2": "wide_resnet101_2-32ee1156.pth",
    "densenet121": "densenet121-a639ec97.pth",
    "densenet161": "densenet161-8d451a50.pth",
    "densenet169": "densenet169-b2777c0a.pth",
    "densenet201": "densenet201-c1103571.pth",
    "mobilenet_v2": "mobilenet_v2-b0353104.pth",
}


class UnreachableError(Exception):
    """There is no connection; other downloads would fail as well."""


@dataclass(frozen=True)
class Checkpoint:
    """A published row with the file that belongs to it.

    Attributes:
        published: The catalogue's entry; baselines have torchvision's file added.
    """

    published: Published

    @property
    def key(self) -> tuple[str, str]:
        """Spec and training: what tells the rows apart."""
        return self.published.spec, self.published.training

    @property
    def name(self) -> str:
        """What a person calls it."""
        return f"{self.published.spec} ({self.published.training})"

    @property
    def stem(self) -> str:
        """File name of its results, and of a directory of its converted weights."""
        return "_".join(self.key)


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A network's weights on the disk.

    Attributes:
        spec: Which network.
        path: A directory or a PyTorch file, for `open_network`.
        sha256: Of everything in it that decides what the network computes.
        published: Whether it is the published file, or was converted from it.
        preprocessing: How its images are prepared.
        label: What to call it in a report.
    """

    spec: str
    path: Path
    sha256: str
    published: bool
    preprocessing: Preprocessing
    label: str


def checkpoints() -> list[Checkpoint]:
    """All published rows, in the order of the catalogue."""
    return [Checkpoint(_with_file(entry)) for entry in catalog.published()]


def choose(found: Sequence[Checkpoint], patterns: Sequence[str]) -> list[Checkpoint]:
    """The checkpoints of networks or specs that match one of the patterns; all without patterns.

    Raises:
        CommandError: A pattern that nothing matches.
    """

    def matches(checkpoint: Checkpoint, pattern: str) -> bool:
        names = (checkpoint.published.model, checkpoint.published.spec, checkpoint.name)
        return any(fnmatch.fnmatchcase(name, pattern) for name in names)

    for pattern in patterns:
        if not any(matches(checkpoint, pattern) for checkpoint in found):
            models = list(dict.fromkeys(checkpoint.published.model for checkpoint in found))
            close = difflib.get_close_matches(pattern, models) or models
            raise CommandError(f"--models {pattern!r} is none of the published networks; try {', '.join(close)}")
    return [c for c in found if not patterns or any(matches(c, pattern) for pattern in patterns)]


def find(root: Path, checkpoint: Checkpoint) -> Weights | None:
    """Looks for a row's weights below a directory.

    In this order: the published file by its name; directories of converted weights by that name
    without its ending, by spec and training ("resnet50_lpf4_scratch"), by spec alone. The last
    belong to the row whose file they were converted from. Converted from any other file they stand
    for the row of the spec's family table, and count as unpublished weights.

    Raises:
        CommandError: A file by the published name that has another hash, or a broken directory.
    """
    entry = checkpoint.published
    assert entry.file_name is not None
    assert entry.sha256_prefix is not None
    file = root / entry.file_name
    if file.is_file():
        digest = file_sha256(file)
        if not digest.startswith(entry.sha256_prefix):
            raise CommandError(f"{file} is damaged: its SHA-256 begins with {digest[:8]}; delete it to fetch it again")
        return Weights(
            spec=entry.spec,
            path=file,
            sha256=digest,
            published=True,
            preprocessing=Preprocessing(),
            label=file.name,
        )
    for directory in (root / file.stem, root / checkpoint.stem):
        if (directory / CONFIG_NAME).is_file():
            return _converted(directory, checkpoint)
    directory = root / entry.spec
    if (directory / CONFIG_NAME).is_file() and _belongs(_config(directory), checkpoint):
        return _converted(directory, checkpoint)
    return None


def where_expected(checkpoint: Checkpoint) -> str:
    """What `find` looks for, for people."""
    file = checkpoint.published.file_name
    return f"no {file} and no directory {checkpoint.published.spec} converted from it"


def download(root: Path, checkpoint: Checkpoint, progress: Callable[[int, int | None], None]) -> Weights:
    """Fetches a row's published file into a directory.

    Args:
        root: Where to.
        checkpoint: Which.
        progress: Called with the bytes got so far and in all.

    Raises:
        UnreachableError: There is no connection.
        CommandError: The file could not be had whole.
    """
    try:
        catalog.download(checkpoint.published, root, progress)
    except DownloadError as error:
        cause = error.__cause__
        offline = isinstance(cause, urllib.error.URLError) and not isinstance(cause, urllib.error.HTTPError)
        if offline or isinstance(cause, TimeoutError):
            raise UnreachableError("no connection to fetch it") from error
        raise CommandError(str(error)) from error
    found = find(root, checkpoint)
    assert found is not None
    return found


def _with_file(entry: Published) -> Published:
    if entry.url is not None:
        return entry
    name = TORCHVISION_FILES[entry.model]
    prefix = name.removesuffix(".pth").rpartition("-")[2]
    return dataclasses.replace(entry, url=TORCHVISION_URL + name, sha256_prefix=prefix)


def _config(directory: Path) -> PretrainedConfig:
    try:
        return read_config(directory)
    except (OSError, ValueError) as error:
        raise CommandError(" ".join(str(error).split())) from error


def _source_hash(config: PretrainedConfig) -> str:
    """SHA-256 of the file that weights were converted from, as far as they know it."""
    return str(config.source.get("sha256") or "")


def _belongs(config: PretrainedConfig, checkpoint: Checkpoint) -> bool:
    """Whether a directory named by its spec stands for this row among those of the spec."""
    rows = [c for c in checkpoints() if c.published.spec == checkpoint.published.spec]
    digest = _source_hash(config)
    origin = [c for c in rows if digest.startswith(c.published.sha256_prefix or "-")]
    return checkpoint == (origin[0] if origin else max(rows, key=lambda c: c.published.training))


def _converted(directory: Path, checkpoint: Checkpoint) -> Weights:
    config = _config(directory)
    weights = directory / WEIGHTS_NAME
    if not weights.is_file():
        raise CommandError(f"{weights}: not found beside {CONFIG_NAME}; convert the weights again")
    published = _source_hash(config).startswith(checkpoint.published.sha256_prefix or "-")
    origin = config.source.get("file")
    return Weights(
        spec=checkpoint.published.spec,
        path=directory,
        sha256=f"{file_sha256(weights)}-{file_sha256(directory / CONFIG_NAME)}",
        published=published,
        preprocessing=config.preprocessing,
        label=f"{directory.name} from {origin}" if origin else directory.name,
    )
