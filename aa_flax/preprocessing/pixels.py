"""A picture's file as RGB pixels, bit for bit what Pillow's `Image.open(...).convert("RGB")` gives.

The exception are pictures of more than eight bits a value, which Pillow's conversion cuts off at 255: of 16 bits the
upper eight are taken, and what has no known white is unreadable. EXIF orientation is ignored, as it is by the default
loaders of torchvision and timm, which the published networks were trained and measured with.
"""

import io
import os
import stat
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

# Pillow's own bound on what one image may ask for, where nobody has changed it (0.5 GB of RGB).
MAX_PIXELS = 2 * 89_478_485

# What so many pixels take without compression, in RGB of 16 bits: no picture's file is larger.
MAX_BYTES = 6 * MAX_PIXELS

# Larger files are not read whole, nor is a larger part of one: the header comes first, and says what else is wanted.
MAX_READ_WHOLE = 2**26

# Pillow looks for the next part of a damaged file byte by byte, in a sparse one for minutes. A picture of a million
# strips is none that anybody has.
MAX_READS = 1_000_000

# Pillow's modes of eight bits a value or less, which its conversion to RGB takes as they are.
MODES_OF_8_BITS = frozenset(
    ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBX", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV", "LAB")
)
# TIFF's tags.
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0


class UnreadableImageError(Exception):
    """An image that cannot be used; the message says why, without the image's name."""


def pillow() -> Any:
    """Pillow's module `Image`, which is loaded when the first photo is.

    Raises:
        ImportError: it is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError('photos need Pillow: pip install "aa_flax[photos]"') from error
    return Image


class _Reader:
    """A file that ends a search without an end, and gives no part that would fill the memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._left = file, MAX_READS

    def read(self, size: int = -1) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise OSError(f"no picture is found in {MAX_READS:,} steps")
        data = self._file.read(min(size, MAX_READ_WHOLE + 1) if size >= 0 else MAX_READ_WHOLE + 1)
        if len(data) > MAX_READ_WHOLE:
            raise OSError(f"one of its parts is larger than {MAX_READ_WHOLE:,} bytes")
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def decode(file: BinaryIO) -> np.ndarray:
    """Pixels of an opened file.

    Returns:
        (height, width, 3) uint8.

    Raises:
        UnreadableImageError: no image that Pillow reads, a damaged or oversized one, or one of floating-point or
            32-bit values.
    """
    with opened(file) as image:
        return rgb(image)


@contextmanager
def opened(file: BinaryIO) -> Iterator[Any]:
    """An image of Pillow's; whatever its readers find wrong, then or later, is an `UnreadableImageError`."""
    Image, size = pillow(), ""
    try:
        with warnings.catch_warnings():
            # Large, odd or damaged metadata is of no interest; errors still raise.
            warnings.simplefilter("ignore")
            with Image.open(_Reader(file)) as image:
                size = f" for its {image.width}x{image.height} pixels"
                yield image
    except Image.UnidentifiedImageError:
        raise UnreadableImageError("not an image that Pillow knows") from None
    except MemoryError as error:
        raise UnreadableImageError(f"not enough memory{size}") from error
    except (
        # Pillow's readers raise these on damaged files; SyntaxError and EOFError are theirs too.
        OSError,
        ValueError,
        TypeError,
        IndexError,
        KeyError,
        SyntaxError,
        EOFError,
        ArithmeticError,
        NotImplementedError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
    ) as error:
        raise UnreadableImageError(f"Pillow: {error}" if str(error) else f"Pillow: {type(error).__name__}") from error


def rgb(image: Any) -> np.ndarray:
    """(height, width, 3) uint8 pixels of an image of Pillow's, of any mode.

    Raises:
        UnreadableImageError: of floating-point or 32-bit values.
    """
    if image.mode in MODES_OF_8_BITS:
        return np.asarray(image.convert("RGB"))
    # Grey of 16 bits is I;16, or in the readers of these formats I, whose values they scale to 16 bits.
    if not (image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))):
        raise UnreadableImageError(
            f"values of Pillow's mode {image.mode}, whose black and white are unknown: save it with 8 or 16 bits"
        )
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(BITS_PER_SAMPLE, (16,))[0]
    grey = (np.asarray(image) >> (bits - 8)).astype(np.uint8)
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        grey = ~grey
    return np.repeat(grey[..., None], 3, axis=-1)


def decode_bytes(data: bytes) -> np.ndarray:
    """`decode` of a file's content."""
    return decode(io.BytesIO(data))


def read(path: Path, decode_whole: Callable[[bytes], np.ndarray] = decode_bytes) -> np.ndarray:
    """Pixels of an image file.

    Args:
        path: the file.
        decode_whole: a faster way to the same pixels of a file that is small enough to be read at once.

    Raises:
        UnreadableImageError: as `decode`, and where the file cannot be read, is empty or larger than `MAX_BYTES`.
    """
    try:
        # A pipe or a device would block or never end.
        if not stat.S_ISREG(path.stat().st_mode):
            raise UnreadableImageError("no regular file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_BYTES:
                raise UnreadableImageError(f"a file of {size:,} bytes is larger than any picture ({MAX_BYTES:,})")
            if size > MAX_READ_WHOLE:
                return decode(file)
            data = file.read(MAX_READ_WHOLE)
    except OSError as error:
        raise UnreadableImageError(f"cannot be read: {error.strerror}") from error
    if not data:
        raise UnreadableImageError("empty file")
    return decode_whole(data)
