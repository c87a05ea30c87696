"""Decoding equals Pillow's bits; whatever is no image is an UnreadableImageError."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from train.data import decode
from train.data.decode import UnreadableImageError, decode_rgb, read_rgb, simplejpeg_matches_pillow


def photo(height: int = 45, width: int = 61, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pillow_rgb(data: bytes) -> np.ndarray:
    """torchvision's default loader."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def test_simplejpeg_is_in_use_here():
    assert simplejpeg_matches_pillow()


@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [
        *(("RGB", "JPEG", {"quality": q, "subsampling": s}) for q in (30, 95) for s in (0, 1, 2)),
        ("RGB", "JPEG", {"progressive": True}),
        ("RGB", "JPEG", {"keep_rgb": True}),
        ("L", "JPEG", {}),
        ("CMYK", "JPEG", {}),
        ("RGBA", "PNG", {}),
        ("P", "PNG", {}),
        ("1", "PNG", {}),
        ("I;16", "PNG", {}),
        ("RGB", "BMP", {}),
        ("RGB", "WEBP", {}),
        ("RGB", "TIFF", {}),
        ("L", "PPM", {}),
    ],
)
def test_every_kind_decodes_to_pillows_bits(mode, kind, options):
    image = photo()
    image = Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 200) if mode == "I;16" else image.convert(mode)
    data = encoded(image, kind, **options)
    pixels = decode_rgb(data)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, pillow_rgb(data))


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    quality=st.integers(1, 100),
    subsampling=st.sampled_from((0, 1, 2)),
    progressive=st.booleans(),
)
def test_jpeg_of_any_size_decodes_to_pillows_bits(height, width, quality, subsampling, progressive):
    data = encoded(photo(height, width), quality=quality, subsampling=subsampling, progressive=progressive)
    np.testing.assert_array_equal(decode_rgb(data), pillow_rgb(data))


def test_exif_orientation_is_ignored_as_by_torchvision():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(photo(20, 40), exif=exif)
    assert decode_rgb(data).shape == (20, 40, 3)
    np.testing.assert_array_equal(decode_rgb(data), pillow_rgb(data))


def test_pillow_alone_gives_the_same(monkeypatch):
    data = encoded(photo())
    fast = decode_rgb(data)
    monkeypatch.setattr(decode, "simplejpeg_matches_pillow", lambda: False)
    np.testing.assert_array_equal(decode_rgb(data), fast)


def test_trailing_bytes_are_for_pillow_to_judge():
    data = encoded(photo()) + b"appended by a camera" * 9
    np.testing.assert_array_equal(decode_rgb(data), pillow_rgb(data))


@pytest.mark.parametrize(
    "data",
    [
        b"this is no image\n",
        b"\xff\xd8\xff\xe0" + bytes(40),
        encoded(photo())[:400],
        encoded(photo(), "PNG")[:-40],
        encoded(photo(), "BMP")[:60],
        b"GIF89a",
    ],
    ids=["text", "jpeg start", "cut jpeg", "cut png", "cut bmp", "gif head"],
)
def test_what_is_no_whole_image_is_unreadable(data):
    with pytest.raises(UnreadableImageError):
        decode_rgb(data)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_damage_never_raises_anything_else(data):
    kind = data.draw(st.sampled_from(("JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM", "GIF")))
    content = bytearray(encoded(photo(9, 11), kind))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        pixels = decode_rgb(content)
    except UnreadableImageError:
        return
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3


def test_an_image_larger_than_the_bound_is_unreadable(monkeypatch):
    monkeypatch.setattr(decode, "MAX_PIXELS", 45 * 61 - 1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", (45 * 61 - 1) // 2)
    with pytest.raises(UnreadableImageError, match="decompression bomb"):
        decode_rgb(encoded(photo()))


def test_files(tmp_path: Path):
    (tmp_path / "whole.jpg").write_bytes(encoded(photo()))
    assert read_rgb(tmp_path / "whole.jpg").shape == (45, 61, 3)
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(UnreadableImageError, match="empty file"):
        read_rgb(tmp_path / "empty.jpg")
    with pytest.raises(UnreadableImageError, match="cannot be read"):
        read_rgb(tmp_path / "missing.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(UnreadableImageError, match="no regular file"):
        read_rgb(tmp_path / "pipe.jpg")
