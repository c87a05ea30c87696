"""Decoding equals Pillow's bits; whatever is no image is an UnreadableImageError."""

import io
import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from aa_flax.preprocessing import pixels
from aa_flax.preprocessing.pixels import UnreadableImageError
from train.data import decode
from train.data.decode import decode_rgb, read_rgb, simplejpeg_matches_pillow


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
        ("RGBA", "WEBP", {}),
        ("LA", "PNG", {}),
        ("P", "PNG", {"transparency": 3}),
        ("P", "GIF", {"transparency": 3}),
        ("1", "TIFF", {}),
        ("CMYK", "TIFF", {}),
        ("YCbCr", "TIFF", {}),
        ("RGB", "BMP", {}),
        ("RGB", "WEBP", {}),
        ("RGB", "TIFF", {}),
        ("L", "PPM", {}),
    ],
)
def test_every_kind_decodes_to_pillows_bits(mode, kind, options):
    data = encoded(photo().convert(mode), kind, **options)
    pixels = decode_rgb(data)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, pillow_rgb(data))


EVERY_16_BITS = np.arange(2**16, dtype=np.uint16).reshape(256, 256)


def as_rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None].astype(np.uint8), 3, axis=-1)


def deep_png(values: np.ndarray) -> bytes:
    """A PNG of 16-bit values (height, width, channels), which Pillow cannot write in colour."""
    height, width, channels = values.shape
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))]
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    packed = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def grey_tiff(data: bytes, *, bits: int, width: int, height: int, photometric: int = 1, order: str = "<") -> bytes:
    """An uncompressed TIFF with one channel."""
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height, 279: len(data)}
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items())
    start = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, 8 + len(data))
    return start + data + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_of_16_bits_the_upper_eight_are_taken(kind):
    data = encoded(Image.fromarray(EVERY_16_BITS), kind)
    np.testing.assert_array_equal(decode_rgb(data), as_rgb(EVERY_16_BITS >> 8))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_pngs_of_16_bits_in_grey_and_colour_with_and_without_transparency(channels):
    values = np.random.default_rng(0).integers(0, 2**16, (7, 9, channels), dtype=np.uint16)
    expected = (values >> 8).astype(np.uint8)
    expected = expected[..., :3] if channels > 2 else as_rgb(expected[..., 0])
    np.testing.assert_array_equal(decode_rgb(deep_png(values)), expected)


@pytest.mark.parametrize("order", ["<", ">"])
def test_tiffs_of_16_bits_in_both_orders_of_bytes(order):
    data = EVERY_16_BITS.astype(f"{order}u2").tobytes()
    decoded = decode_rgb(grey_tiff(data, bits=16, width=256, height=256, order=order))
    np.testing.assert_array_equal(decoded, as_rgb(EVERY_16_BITS >> 8))


def test_a_tiff_whose_white_is_zero_is_turned_round():
    data = EVERY_16_BITS.astype("<u2").tobytes()
    decoded = decode_rgb(grey_tiff(data, bits=16, width=256, height=256, photometric=0))
    np.testing.assert_array_equal(decoded, as_rgb((2**16 - 1 - EVERY_16_BITS) >> 8))


def test_a_tiff_of_12_bits():
    values = np.arange(2**12)
    packed = b"".join(f"{a:03x}{b:03x}".encode() for a, b in values.reshape(-1, 2))
    decoded = decode_rgb(grey_tiff(bytes.fromhex(packed.decode()), bits=12, width=64, height=64))
    np.testing.assert_array_equal(decoded, as_rgb((values >> 4).reshape(64, 64)))


@pytest.mark.parametrize(("dtype", "mode"), [(np.int32, "I"), (np.float32, "F")])
def test_values_without_a_known_white_are_unreadable(dtype, mode):
    data = encoded(Image.fromarray(EVERY_16_BITS.astype(dtype)), "TIFF")
    with pytest.raises(UnreadableImageError, match=f"mode {mode}, whose black and white are unknown: save it"):
        decode_rgb(data)


@settings(max_examples=25)
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


@settings(max_examples=60)
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
    monkeypatch.setattr(pixels, "MAX_PIXELS", 45 * 61 - 1)
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


def sparse(path: Path, size: int, head: bytes = b"") -> Path:
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size)
    return path


def test_a_file_larger_than_any_picture_is_not_read(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(pixels, "decode", lambda file: pytest.fail("was read"))
    with pytest.raises(UnreadableImageError, match=r"a file of 50,000,000,000 bytes is larger than any picture"):
        read_rgb(sparse(tmp_path / "huge.jpg", 50_000_000_000))


@pytest.mark.parametrize(
    ("head", "reason"),
    [(b"", "not an image that Pillow knows"), (encoded(photo(3, 5), "BMP"), None)],
    ids=["zeros", "bmp with zeros behind it"],
)
def test_of_a_large_file_no_more_is_read_than_its_header_asks_for(tmp_path: Path, head, reason):
    path = sparse(tmp_path / "large.bmp", 500_000_000, head)
    tracemalloc.start()
    try:
        if reason:
            with pytest.raises(UnreadableImageError, match=reason):
                read_rgb(path)
        else:
            np.testing.assert_array_equal(read_rgb(path), pillow_rgb(head))
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def test_no_part_of_a_file_fills_the_memory(tmp_path: Path):
    # Pillow reads this kind at once.
    with pytest.raises(UnreadableImageError, match="one of its parts is larger than 67,108,864 bytes"):
        read_rgb(sparse(tmp_path / "large.webp", 500_000_000, encoded(photo(), "WEBP")))


@pytest.mark.parametrize("kind", ["JPEG", "GIF"])
@pytest.mark.parametrize("size", [2**25, 500_000_000])
def test_a_search_through_a_damaged_file_ends(tmp_path: Path, kind, size):
    # The header of a JPEG is cut within its tables, that of a GIF before the first block.
    head = encoded(photo(), "JPEG")[:300] if kind == "JPEG" else b"GIF89a\x05\x00\x05\x00\x00\x00\x00"
    with pytest.raises(UnreadableImageError, match=r"no picture is found in 1,000,000 steps|cannot load this image"):
        read_rgb(sparse(tmp_path / "large.jpg", size, head))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_too_little_memory_is_a_reason(monkeypatch, kind):
    def full(*_, **__):
        raise MemoryError

    data = encoded(photo(), kind)
    assert simplejpeg_matches_pillow()
    monkeypatch.setattr(decode.simplejpeg, "decode_jpeg", full)
    monkeypatch.setattr(Image.Image, "convert", full)
    with pytest.raises(UnreadableImageError, match="not enough memory for its 61x45 pixels"):
        decode_rgb(data)


def test_a_reason_is_never_empty(monkeypatch):
    def damaged(*_, **__):
        raise ValueError

    data = encoded(photo(), "PNG")
    monkeypatch.setattr(Image.Image, "convert", damaged)
    with pytest.raises(UnreadableImageError, match="Pillow: ValueError"):
        decode_rgb(data)
