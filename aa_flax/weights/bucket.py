"""Weights that lie in a bucket, as files of this disk."""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from aa_flax.buckets import BucketPath, Written
from aa_flax.files import Progress, cache_directory, whole_directory
from aa_flax.weights.config import CONFIG_NAME, WEIGHTS_NAME
from aa_flax.weights.download import DownloadError


def fetch_from_bucket(address: str, *, progress: Progress | None = None) -> Path:
    """A directory of `save_pretrained`, or a file of weights, fetched where it is not what was fetched before.

    Args:
        address: such as gs://bucket/weights/resnet50_lpf4 or gs://bucket/resnet50.pth.
        progress: called with the bytes got so far and in all.

    Returns:
        The directory, or the file, in `cache_directory()`.

    Raises:
        FileNotFoundError: there is nothing of that name.
        DownloadError: (an OSError) the bucket cannot be read.
    """
    source = BucketPath(address)
    try:
        if source.name == WEIGHTS_NAME and (source.parent / CONFIG_NAME).is_file():
            source = source.parent
        whole = source.is_file()
        objects = [source] if whole else [source / WEIGHTS_NAME, source / CONFIG_NAME]
        states = [path.stat() for path in objects]
        kept = _place(str(source), states)
        if not kept.is_dir():
            _fetch(objects, states, kept, progress)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error.filename}: {error.strerror}") from error
    except OSError as error:
        raise DownloadError(f"{error.filename}: {error.strerror}") from error
    return kept / source.name if whole else kept


def _place(address: str, states: Sequence[Written]) -> Path:
    """Where these states of the objects are kept."""
    name = hashlib.sha256(address.encode()).hexdigest()[:16]
    return cache_directory() / "buckets" / name / "-".join(str(state.generation) for state in states)


def _fetch(objects: Sequence[BucketPath], states: Sequence[Written], kept: Path, progress: Progress | None) -> None:
    total, done = sum(state.size for state in states), 0
    # Another process may have been quicker, with the same bytes.
    with suppress(FileExistsError), whole_directory(kept, last=CONFIG_NAME) as fresh:
        for path, state in zip(objects, states, strict=True):
            path.download(fresh / path.name, generation=state.generation)
            done += state.size
            if progress:
                progress(done, total)
