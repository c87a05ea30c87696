"""Geometry: bit for bit what Pillow does when asked the way torchvision asks it."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from aa_flax.preprocessing.geometry import centre_offset, evaluation_crop, resized_shape
from aa_flax.preprocessing.pixels import UnreadableImageError
from train.data.transforms import Box, crop_and_resize, random_resized_box


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def pillow_evaluation(pixels: np.ndarray, resize: int, crop: int, kind: str = "bilinear") -> np.ndarray:
    """SPEC section 3, written with Pillow alone."""
    image = Image.fromarray(pixels)
    width, height = image.size
    if width <= height:
        size = (resize, int(resize * height / width))
    else:
        size = (int(resize * width / height), resize)
    image = image.resize(size, Image.Resampling[kind.upper()])
    left, top = (int(round((side - crop) / 2.0)) for side in image.size)  # noqa: RUF046
    return np.asarray(image.crop((left, top, left + crop, top + crop)))


@settings(max_examples=120)
@given(
    height=st.integers(1, 400),
    width=st.integers(1, 400),
    kind=st.sampled_from(("nearest", "bilinear", "bicubic", "lanczos")),
)
def test_evaluation_crop_equals_pillow_and_contains_the_network_s_crop(height, width, kind):
    pixels = noise(height, width)
    rule = {"resize": 64, "crop": 56, "interpolation": kind}
    np.testing.assert_array_equal(evaluation_crop(pixels, big=56, **rule), pillow_evaluation(pixels, 64, 56, kind))
    big = evaluation_crop(pixels, big=64, **rule)
    np.testing.assert_array_equal(big, pillow_evaluation(pixels, 64, 64, kind))
    np.testing.assert_array_equal(big[4:60, 4:60], pillow_evaluation(pixels, 64, 56, kind))


@pytest.mark.parametrize("big", range(57, 65))
@pytest.mark.parametrize("width", [64, 65, 66, 67, 91])
def test_the_big_crop_s_centre_is_the_network_s_crop_for_odd_differences_too(big, width):
    big_crop = evaluation_crop(noise(64, width), resize=64, big=big, crop=56, interpolation="bilinear")
    assert big_crop.shape == (big, big, 3)
    inner = centre_offset(big, 56)
    np.testing.assert_array_equal(
        big_crop[inner : inner + 56, inner : inner + 56], pillow_evaluation(noise(64, width), 64, 56)
    )


def test_the_longer_side_is_cut_off_not_rounded():
    assert resized_shape(375, 500, 256) == (256, 341)
    assert resized_shape(500, 375, 256) == (341, 256)
    assert resized_shape(256, 300, 256) == (256, 300)


def test_one_pixel_becomes_a_flat_image():
    pixels = np.array([[[7, 80, 200]]], np.uint8)
    result = evaluation_crop(pixels, resize=256, big=256, crop=224, interpolation="bilinear")
    assert result.shape == (256, 256, 3)
    assert (result == pixels).all()


def test_an_endless_strip_is_unreadable_instead_of_filling_the_memory():
    with pytest.raises(UnreadableImageError, match="too elongated"):
        evaluation_crop(np.zeros((1, 9_000, 3), np.uint8), resize=256, big=256, crop=224, interpolation="bilinear")


@settings(max_examples=60)
@given(height=st.integers(1, 400), width=st.integers(1, 400), seed=st.integers(0, 9))
def test_random_boxes_lie_inside_with_an_allowed_shape(height, width, seed):
    box = random_resized_box(height, width, np.random.default_rng(seed))
    assert box.height >= 1
    assert box.width >= 1
    assert 0 <= box.top <= height - box.height
    assert 0 <= box.left <= width - box.width


def test_random_boxes_follow_torchvision_s_distribution():
    random = np.random.default_rng(0)
    boxes = [random_resized_box(1000, 1000, random) for _ in range(4000)]
    share = np.array([box.height * box.width for box in boxes]) / 1e6
    ratio = np.log([box.width / box.height for box in boxes])
    # Boxes that leave the square are drawn anew, which bites only for shares above 3/4.
    small = share[share < 0.7]
    assert small.min() < 0.09
    assert abs(small.mean() - (0.08 + 0.7) / 2) < 0.01
    limit = math.log(4 / 3)
    assert -limit - 1e-2 < ratio.min() < -0.9 * limit
    assert 0.9 * limit < ratio.max() < limit + 1e-2
    assert abs(ratio.mean()) < 0.01
    free = [
        (box.top / (1000 - box.height), box.left / (1000 - box.width)) for box in boxes if box.height < 900 > box.width
    ]
    np.testing.assert_allclose(np.mean(free, axis=0), 0.5, atol=0.02)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (1000, 10, Box(493, 0, 13, 10)),
        (10, 1000, Box(0, 493, 10, 13)),
        (1, 1, Box(0, 0, 1, 1)),
    ],
)
def test_strips_fall_back_to_the_centre(height, width, expected):
    assert random_resized_box(height, width, np.random.default_rng(0), scale=(0.9, 1.0)) == expected


def test_crop_comes_before_resize():
    pixels = noise(50, 60)
    box = Box(3, 11, 20, 25)
    expected = Image.fromarray(pixels).crop((11, 3, 36, 23)).resize((32, 32), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(crop_and_resize(pixels, box, 32), np.asarray(expected))
    # Pillow's box= lets neighbours outside of it into the border.
    shortcut = Image.fromarray(pixels).resize((8, 8), Image.Resampling.BILINEAR, box=(11, 3, 36, 23))
    assert not np.array_equal(crop_and_resize(pixels, box, 8), np.asarray(shortcut))


def test_too_little_memory_is_a_reason(monkeypatch):
    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr(Image.Image, "resize", full)
    with pytest.raises(UnreadableImageError, match="not enough memory to resize its 7x5 pixels"):
        evaluation_crop(np.zeros((5, 7, 3), np.uint8), resize=4, big=4, crop=4, interpolation="bilinear")
