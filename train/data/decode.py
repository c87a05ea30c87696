"""Encoded image to RGB pixels, bit for bit what Pillow's `Image.open(...).convert("RGB")` gives.

The exception are pictures of more than eight bits a value, which Pillow's conversion cuts off at
255: of 16 bits the upper eight are taken, and what has no known white is unreadable.

JPEG goes through simplejpeg where that is known to give Pillow's bits (the same libjpeg-turbo
transform and up-sampling) in about 0.6 of the time; everything else goes through Pillow. EXIF
orientation is ignored, as it is by torchvision's default loader, which the published networks
were trained and measured with.
"""

import functools
import io
import logging
import os
import stat
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import simplejpeg
from PIL import Image

log = logging.getLogger(__name__)

# Pillow's own bound on what one image may ask for (about 179 million pixels, 0.5 GB of RGB).
MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 89_478_485)

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


@functools.cache
def simplejpeg_matches_pillow() -> bool:
    """Whether the installed simplejpeg and Pillow decode JPEG to the same bits.

    Both bundle a libjpeg-turbo, each its own version, so this is tried once per process on noise
    in the layouts that occur (three chroma subsamplings, progressive, grey) instead of assumed.
    """
    noise = np.random.default_rng(0).integers(0, 256, (37, 51, 3), dtype=np.uint8)
    layouts = [("RGB", {"subsampling": s, "progressive": p}) for s in (0, 1, 2) for p in (0, 1)]
    for mode, options in [*layouts, ("L", {})]:
        buffer = io.BytesIO()
        Image.fromarray(noise).convert(mode).save(buffer, "JPEG", quality=85, **options)
        data = buffer.getvalue()
        if not np.array_equal(simplejpeg.decode_jpeg(data), _decode_with_pillow(io.BytesIO(data))):
            log.warning("simplejpeg and Pillow decode JPEG differently here: using Pillow alone")
            return False
    return True


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


def _decode_with_pillow(file: BinaryIO) -> np.ndarray:
    size = ""
    try:
        with warnings.catch_warnings():
            # Large, odd or damaged metadata is of no interest; errors still raise.
            warnings.simplefilter("ignore")
            with Image.open(cast(BinaryIO, _Reader(file))) as image:
                size = f" for its {image.width}x{image.height} pixels"
                return _rgb(image)
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


def _rgb(image: Image.Image) -> np.ndarray:
    """(height, width, 3) uint8 pixels of an opened image of any mode."""
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


def _decode_with_simplejpeg(data: bytes) -> np.ndarray | None:
    """The pixels, or None where Pillow has to decide (CMYK, damage, not a JPEG, no memory)."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        if colorspace not in ("YCbCr", "Gray", "RGB") or int(height) * int(width) > MAX_PIXELS:
            return None
        return simplejpeg.decode_jpeg(data)
    except (ValueError, MemoryError):
        return None


def decode_rgb(data: bytes) -> np.ndarray:
    """Pixels of an encoded image.

    Args:
        data: the file's bytes, in any format that Pillow reads.

    Returns:
        (height, width, 3) uint8, possibly read-only.

    Raises:
        UnreadableImageError: the bytes are no image, a damaged or oversized one, or one of floating-point or
            32-bit values.
    """
    if data[:2] == b"\xff\xd8" and simplejpeg_matches_pillow():
        pixels = _decode_with_simplejpeg(data)
        if pixels is not None:
            return pixels
    return _decode_with_pillow(io.BytesIO(data))


def read_rgb(path: Path) -> np.ndarray:
    """Pixels of an image file: `decode_rgb` of its bytes.

    Raises:
        UnreadableImageError: as `decode_rgb`, and where the file cannot be read, is empty or larger than
            `MAX_BYTES`.
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
                return _decode_with_pillow(file)
            data = file.read(MAX_READ_WHOLE)
    except OSError as error:
        raise UnreadableImageError(f"cannot be read: {error.strerror}") from error
    if not data:
        raise UnreadableImageError("empty file")
    return decode_rgb(data)
