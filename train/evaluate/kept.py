"""What an evaluation can keep beside its figures: the crops that networks see, the arrays of the diagonal."""

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from aa_flax.consistency import Result
from aa_flax.consistency.views import centre
from aa_flax.files import write_atomically
from train.data import Batch
from train.errors import CommandError

DIAGONAL = ("probability", "best_other", "correct", "predictions")
# What file systems take as a name, in bytes.
LONGEST_NAME = 255


def keep_crops(
    batches: Iterable[Batch], directory: Path, crop: int, name: Callable[[int], str], failed: dict[str, str]
) -> Iterator[Batch]:
    """Passes batches on and writes the centre crop of each photo: what networks see, before mean and std.

    Args:
        batches: with "image" (n, side, side, 3), "index" and "mask" (False for what only fills the batch).
        directory: gets `NAME.png`; photos that are there already are written anew.
        crop: side in pixels.
        name: of a photo, by its index.
        failed: takes the name of each picture that cannot be written, and why: the figures are worth more.
    """
    for batch in batches:
        top = centre(batch["image"].shape[1], crop)
        seen = batch["image"][:, top : top + crop, top : top + crop]
        for pixels, index in zip(seen[batch["mask"]], batch["index"][batch["mask"]], strict=True):
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            try:
                write_atomically(directory / _picture_name(name(int(index))), buffer.getvalue())
            except OSError as error:
                failed[name(int(index))] = error.strerror or str(error)
        yield batch


def _picture_name(photo: str) -> str:
    """`PHOTO.png`, where no file system takes so long a name its beginning and a digest of the whole."""
    path = PurePosixPath(f"{photo}.png")
    if len(path.name.encode("utf-8", "surrogateescape")) > LONGEST_NAME:
        digest = hashlib.sha256(photo.encode("utf-8", "surrogateescape")).hexdigest()
        # A character has up to four bytes.
        path = path.with_name(f"{path.name[: LONGEST_NAME // 8]}-{digest[:16]}.png")
    return str(path)


def keep_diagonal(result: Result, directory: Path) -> None:
    """Writes the four arrays of the `diagonal` protocol as `NAME.npy`, each (photos, offsets).

    Raises:
        CommandError: an array cannot be written.
    """
    for name in DIAGONAL:
        buffer = io.BytesIO()
        np.save(buffer, result.arrays[name])
        try:
            write_atomically(directory / f"{name}.npy", buffer.getvalue())
        except OSError as error:
            raise CommandError(
                f"--save-diagonal {directory}: {name}.npy cannot be written: {error.strerror}"
            ) from error
