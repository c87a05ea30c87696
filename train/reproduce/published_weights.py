"""Where the weights of the published rows are: on this disk, or where they can be fetched from."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from aa_flax.files import file_sha256
from aa_flax.weights import names
from aa_flax.weights.config import CONFIG_NAME, WEIGHTS_NAME, Preprocessing, PretrainedConfig, read_config
from aa_flax.weights.download import DownloadError
from train.errors import CommandError
from train.reproduce.rows import AnyRow, Row, TimmRow, published_rows

ACCURACY, CONSISTENCY = BOTH = ("accuracy", "zhang2019")


class UnreachableError(Exception):
    """There is no connection; other downloads would fail as well."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A network's weights on the disk.

    Attributes:
        spec: Which network.
        path: A directory or a PyTorch file, for `open_network`.
        sha256: Of everything in it that decides what the network computes.
        published: Whether it is the published file, or was converted from it.
        preparations: How photos are prepared for each protocol that can be measured of it.
        label: What to call it in a report.
    """

    spec: str
    path: Path
    sha256: str
    published: bool
    preparations: dict[str, Preprocessing]
    label: str

    @property
    def crop(self) -> int:
        """Side of its images, in pixels; the same for all protocols."""
        return self.preparations[CONSISTENCY].crop


def find(root: Path, row: AnyRow) -> Weights | None:
    """Looks for a row's weights below a directory.

    Those of timm by their name, "resnetaa50.a1h_in1k": a directory, of timm's layout or converted, or a file.

    Others in this order: the published file by its name; directories of converted weights by that name
    without its ending, by spec and training ("resnet50_lpf4_scratch"), by spec alone. The last
    belong to the row whose file they were converted from. Converted from any other file they stand
    for the row of the spec's family table, and count as unpublished weights.

    Raises:
        CommandError: A file by the published name that has another hash, or a broken directory.
    """
    if isinstance(row, TimmRow):
        found = [path for path in (root / row.name, root / row.file_name) if path.exists()]
        return _of_timm(row, lambda: names.obtain(found[0], spec=row.name), found[0]) if found else None
    file = root / row.file_name
    if file.is_file():
        digest = file_sha256(file)
        if not digest.startswith(row.sha256_prefix):
            raise CommandError(f"{file} is damaged: its SHA-256 begins with {digest[:8]}; delete it to fetch it again")
        return Weights(
            spec=row.spec,
            path=file,
            sha256=digest,
            published=True,
            preparations=dict.fromkeys(BOTH, Preprocessing()),
            label=file.name,
        )
    for directory in (root / file.stem, root / row.stem):
        if (directory / CONFIG_NAME).is_file():
            return _converted(directory, row)
    directory = root / row.spec
    if (directory / CONFIG_NAME).is_file() and _belongs(_config(directory), row):
        return _converted(directory, row)
    return None


def where_expected(row: AnyRow) -> str:
    """What `find` looks for, for people."""
    if isinstance(row, TimmRow):
        return f"no directory {row.name} and no {row.file_name}"
    return f"no {row.file_name} and no directory {row.spec} converted from it"


def download(root: Path, row: AnyRow, progress: Callable[[int, int | None], None]) -> Weights:
    """Fetches a row's published file into a directory; repositories of timm into the cache, by their commit.

    Args:
        root: Where to.
        row: Which.
        progress: Called with the bytes got so far and in all.

    Raises:
        UnreachableError: There is no connection.
        CommandError: The file could not be had whole.
    """
    try:
        if isinstance(row, TimmRow):
            return _of_timm(row, lambda: names.obtain_published(row.name, progress=progress))
        names.fetch(row, root, progress)
    except DownloadError as error:
        if error.offline:
            raise UnreachableError("no connection to fetch it") from error
        raise CommandError(str(error)) from error
    found = find(root, row)
    assert found is not None
    return found


def _of_timm(row: TimmRow, obtain: Callable[[], names.Weights], path: Path | None = None) -> Weights:
    """A network of timm, found at a path or, without one, fetched."""
    try:
        found = obtain()
        digest = found.sha256 or file_sha256(found.path)
    except DownloadError:
        raise
    except (OSError, ValueError) as error:
        raise CommandError(" ".join(str(error).split())) from error
    if found.config.num_classes != row.num_classes:
        raise CommandError(
            f"{path or found.path} has {found.config.num_classes} classes, {row.name} has {row.num_classes}"
        )
    shifted = {CONSISTENCY: row.frame}
    return Weights(
        spec=row.spec,
        path=path or found.path.parent,
        sha256=digest,
        published=path is None or found.config.source.get("url") == row.url,
        preparations={ACCURACY: row.preprocessing, **shifted} if row.knows_classes else shifted,
        label=path.name if path else str(row.repository),
    )


def _config(directory: Path) -> PretrainedConfig:
    try:
        return read_config(directory)
    except (OSError, ValueError) as error:
        raise CommandError(" ".join(str(error).split())) from error


def _source_hash(config: PretrainedConfig) -> str:
    """SHA-256 of the file that weights were converted from, as far as they know it."""
    return str(config.source.get("sha256") or "")


def _belongs(config: PretrainedConfig, row: Row) -> bool:
    """Whether a directory named by its spec stands for this row among those of the spec."""
    rows = [each for each in published_rows() if each.spec == row.spec]
    digest = _source_hash(config)
    origin = [each.training for each in rows if digest.startswith(each.sha256_prefix or "-")]
    return row.training == (origin[0] if origin else max(each.training for each in rows))


def _converted(directory: Path, row: Row) -> Weights:
    config = _config(directory)
    weights = directory / WEIGHTS_NAME
    if not weights.is_file():
        raise CommandError(f"{weights}: not found beside {CONFIG_NAME}; convert the weights again")
    published = _source_hash(config).startswith(row.sha256_prefix or "-")
    origin = config.source.get("file")
    return Weights(
        spec=row.spec,
        path=directory,
        sha256=f"{file_sha256(weights)}-{file_sha256(directory / CONFIG_NAME)}",
        published=published,
        preparations=dict.fromkeys(BOTH, config.preprocessing),
        label=f"{directory.name} from {origin}" if origin else directory.name,
    )
