"""Encoded image to RGB pixels, bit for bit what Pillow's `Image.open(...).convert("RGB")` gives.

JPEG goes through simplejpeg where that is known to give Pillow's bits (the same libjpeg-turbo
transform and up-sampling) in about 0.6 of the time; everything else goes through Pillow. EXIF
orientation is ignored, as it is by torchvision's default loader, which the published networks
were trained and measured with.
"""

import functools
import io
import logging
import stat
import warnings
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

log = logging.getLogger(__name__)

# Pillow's own bound on what one image may ask for (about 179 million pixels, 0.5 GB of RGB).
MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 89_478_485)


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
        if not np.array_equal(simplejpeg.decode_jpeg(data), _decode_with_pillow(data)):
            log.warning("simplejpeg and Pillow decode JPEG differently here: using Pillow alone")
            return False
    return True


def _decode_with_pillow(data: bytes) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            # Large, odd or damaged metadata is of no interest; errors still raise.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                return np.asarray(image.convert("RGB"))
    except Image.UnidentifiedImageError:
        raise UnreadableImageError("not an image that Pillow knows") from None
    except (
        # Pillow's readers raise these on damaged files; SyntaxError and EOFError are theirs too.
        OSError,
        ValueError,
        TypeError,
        IndexError,
        KeyError,
        SyntaxError,
        EOFError,
        OverflowError,
        NotImplementedError,
        MemoryError,
        Image.DecompressionBombError,
    ) as error:
        raise UnreadableImageError(f"Pillow: {error}") from error


def _decode_with_simplejpeg(data: bytes) -> np.ndarray | None:
    """The pixels, or None where Pillow has to decide (CMYK, damage, not a JPEG)."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        if colorspace not in ("YCbCr", "Gray", "RGB") or int(height) * int(width) > MAX_PIXELS:
            return None
        return simplejpeg.decode_jpeg(data)
    except ValueError:
        return None


def decode_rgb(data: bytes) -> np.ndarray:
    """Pixels of an encoded image.

    Args:
      data: the file's bytes, in any format that Pillow reads.

    Returns:
      (height, width, 3) uint8, possibly read-only.

    Raises:
      UnreadableImageError: the bytes are no image, or a damaged or oversized one.
    """
    if data[:2] == b"\xff\xd8" and simplejpeg_matches_pillow():
        pixels = _decode_with_simplejpeg(data)
        if pixels is not None:
            return pixels
    return _decode_with_pillow(data)


def read_rgb(path: Path) -> np.ndarray:
    """Pixels of an image file: `decode_rgb` of its bytes.

    Raises:
      UnreadableImageError: as `decode_rgb`, and where the file cannot be read or is empty.
    """
    try:
        # A pipe or a device would block or never end.
        if not stat.S_ISREG(path.stat().st_mode):
            raise UnreadableImageError("no regular file")
        data = path.read_bytes()
    except OSError as error:
        raise UnreadableImageError(f"cannot be read: {error.strerror}") from error
    if not data:
        raise UnreadableImageError("empty file")
    return decode_rgb(data)
