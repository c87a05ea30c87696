"""What an evaluation can keep beside its figures: the crops that networks see, the arrays of the diagonal."""

import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from aa_flax.consistency import Result
from aa_flax.consistency.views import centre
from train.data import Batch
from train.errors import CommandError
from train.files import write_atomically

DIAGONAL = ("probability", "best_other", "correct", "predictions")


def keep_crops(batches: Iterable[Batch], directory: Path, crop: int, name: Callable[[int], str]) -> Iterator[Batch]:
    """Passes batches on and writes the centre crop of each photo: what networks see, before mean and std.

    Args:
      batches: with "image" (n, side, side, 3), "index" and "mask" (False for what only fills the batch).
      directory: gets `NAME.png`; photos that are there already are written anew.
      crop: side in pixels.
      name: of a photo, by its index.

    Raises:
      CommandError: a picture cannot be written.
    """
    for batch in batches:
        top = centre(batch["image"].shape[1], crop)
        seen = batch["image"][:, top : top + crop, top : top + crop]
        for pixels, index in zip(seen[batch["mask"]], batch["index"][batch["mask"]], strict=True):
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            _write("--save-images", directory, f"{name(int(index))}.png", buffer.getvalue())
        yield batch


def keep_diagonal(result: Result, directory: Path) -> None:
    """Writes the four arrays of the `diagonal` protocol as `NAME.npy`, each (photos, offsets).

    Raises:
      CommandError: an array cannot be written.
    """
    for name in DIAGONAL:
        buffer = io.BytesIO()
        np.save(buffer, result.arrays[name])
        _write("--save-diagonal", directory, f"{name}.npy", buffer.getvalue())


def _write(option: str, directory: Path, name: str, content: bytes) -> None:
    try:
        write_atomically(directory / name, content)
    except OSError as error:
        raise CommandError(f"{option} {directory}: {name} cannot be written: {error.strerror}") from error
