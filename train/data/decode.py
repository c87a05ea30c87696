"""Encoded image to RGB pixels, bit for bit those of `aa_flax.preprocessing.pixels`, which are Pillow's.

JPEG goes through simplejpeg where that is known to give Pillow's bits (the same libjpeg-turbo
transform and up-sampling) in about 0.6 of the time; everything else goes through Pillow.
"""

import functools
import io
import logging
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from aa_flax.preprocessing import pixels

log = logging.getLogger(__name__)


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
        if not np.array_equal(simplejpeg.decode_jpeg(data), pixels.decode_bytes(data)):
            log.warning("simplejpeg and Pillow decode JPEG differently here: using Pillow alone")
            return False
    return True


def _decode_with_simplejpeg(data: bytes) -> np.ndarray | None:
    """The pixels, or None where Pillow has to decide (CMYK, damage, not a JPEG, no memory)."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        if colorspace not in ("YCbCr", "Gray", "RGB") or int(height) * int(width) > pixels.MAX_PIXELS:
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
        found = _decode_with_simplejpeg(data)
        if found is not None:
            return found
    return pixels.decode_bytes(data)


def read_rgb(path: Path) -> np.ndarray:
    """Pixels of an image file: `decode_rgb` of its bytes.

    Raises:
        UnreadableImageError: as `decode_rgb`, and where the file cannot be read, is empty or larger than any picture.
    """
    return pixels.read(path, decode_rgb)
