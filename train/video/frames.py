"""The frames of a video as arrays: a folder of pictures, or one animated picture."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import ImageSequence

from aa_flax.preprocessing import pixels
from aa_flax.preprocessing.geometry import evaluation_crop
from aa_flax.preprocessing.pixels import UnreadableImageError
from aa_flax.weights.config import Preprocessing
from train.data.datasets import reflect_margin
from train.data.decode import read_rgb
from train.data.sources import IMAGE_SUFFIXES
from train.errors import CommandError


def read_frames(path: Path, preprocessing: Preprocessing, most: int) -> np.ndarray:
    """Frames of one video, each prepared as a photo is for an evaluation.

    Args:
        path: a folder of pictures, in the order of the numbers in their names, or an animated GIF, PNG or WebP.
        preprocessing: of the network; as in `explain`, frames without room for shifts are reflected at their border.
        most: how many frames are read, from the first.

    Returns:
        (frames, side, side, 3) uint8.

    Raises:
        CommandError: nothing there, a picture that cannot be read, fewer than two frames.
    """
    rule, margin = preprocessing, reflect_margin(preprocessing)
    frames = []
    for picture in _pictures(path, most):
        try:
            frame = evaluation_crop(
                picture, resize=rule.resize, big=rule.resize, crop=rule.crop, interpolation=rule.interpolation
            )
        except UnreadableImageError as error:
            raise CommandError(f"--video {path}: {error}") from error
        frames.append(np.pad(frame, ((margin, margin), (margin, margin), (0, 0)), mode="reflect"))
    if len(frames) < 2:
        raise CommandError(f"--video {path}: {len(frames)} frame{'s' * (len(frames) != 1)}; a video has two or more")
    return np.stack(frames)


def _pictures(path: Path, most: int) -> Iterator[np.ndarray]:
    read = path
    try:
        if not path.is_dir() and not path.is_file():
            raise CommandError(f"--video {path}: there is no such file or folder")
        if not path.is_dir():
            # Every frame as it is seen: what formats keep of one is laid over the one before.
            with path.open("rb") as file, pixels.opened(file) as image:
                for frame in itertools.islice(ImageSequence.Iterator(image), most):
                    yield pixels.rgb(frame)
            return
        found = [each for each in path.iterdir() if each.suffix.lower() in IMAGE_SUFFIXES]
        for read in sorted(found, key=_by_number)[:most]:
            yield read_rgb(read)
    except OSError as error:
        raise CommandError(f"--video {read}: {error.strerror}") from error
    except UnreadableImageError as error:
        raise CommandError(f"--video {read}: {error}") from error


def _by_number(path: Path) -> list[tuple[int, int | str]]:
    """So that frame_10.png comes after frame_9.png."""
    parts = re.split(r"(\d+)", path.name)
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts]
