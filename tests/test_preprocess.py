"""`aa_flax.preprocess`: a network's input, by plain Pillow and a formula; what is no photo is one line."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import aa_flax
from aa_flax import Preprocessing, PretrainedConfig
from aa_flax.preprocessing.pixels import MAX_PIXELS
from aa_flax.weights.class_names import imagenet_names, imagenet_wnids
from tests.foreign_networks import with_values

ROOT = Path(__file__).parents[1]
CIFAR10 = ROOT / "weights/mobilenet_v2_lpf4-cifar10"
RULE = Preprocessing.of_share(28, 0.875, interpolation="bicubic", mean=(0.5, 0.4, 0.3), std=(0.25, 0.5, 0.125))


def photo(height: int = 45, width: int = 61, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def by_pillow(image: Image.Image, rule: Preprocessing) -> np.ndarray:
    """SPEC section 3 with Pillow and NumPy alone: RGB, shorter side, centre, 0..1, normalised."""
    image = image.convert("RGB")
    width, height = image.size
    short = min(width, height)
    size = tuple(rule.resize if side == short else int(rule.resize * side / short) for side in (width, height))
    image = image.resize(size, Image.Resampling[rule.interpolation.upper()])
    left, top = (int(round((side - rule.crop) / 2.0)) for side in image.size)  # noqa: RUF046
    image = image.crop((left, top, left + rule.crop, top + rule.crop))
    mean, std = np.array(rule.mean, np.float32), np.array(rule.std, np.float32)
    return (np.asarray(image).astype(np.float32) / np.float32(255) - mean) / std


@settings(max_examples=60)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    crop=st.integers(1, 40),
    share=st.sampled_from((0.875, 0.9, 0.95, 1.0)),
    interpolation=st.sampled_from(("nearest", "bilinear", "bicubic", "lanczos")),
)
def test_photos_of_any_size_are_pillows(height, width, crop, share, interpolation):
    rule = Preprocessing.of_share(crop, share, interpolation=interpolation)
    image = photo(height, width)
    found = aa_flax.preprocess(image, rule)
    assert (found.shape, found.dtype) == ((1, crop, crop, 3), np.float32)
    np.testing.assert_array_equal(found[0], by_pillow(image, rule))


@pytest.mark.parametrize(
    ("mode", "ending", "options"),
    [
        ("RGB", "jpg", {}),
        ("L", "jpg", {}),
        ("CMYK", "jpg", {}),
        ("P", "png", {}),
        ("P", "gif", {"transparency": 3}),
        ("1", "png", {}),
        ("RGBA", "png", {}),
        ("LA", "png", {}),
        ("RGB", "webp", {}),
    ],
)
@pytest.mark.parametrize("size", [(61, 45), (33, 200), (2, 3), (1, 1)], ids=["landscape", "portrait", "tiny", "pixel"])
def test_files_of_every_kind_are_pillows(tmp_path, mode, ending, options, size):
    path = tmp_path / f"photo.{ending}"
    photo(*size).convert(mode).save(path, **options)
    with Image.open(path) as image:
        expected = by_pillow(image, RULE)
        np.testing.assert_array_equal(aa_flax.preprocess(image, RULE)[0], expected)
    np.testing.assert_array_equal(aa_flax.preprocess(path, RULE)[0], expected)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_exif_turns_no_photo_as_it_turns_none_for_torchvision_and_timm(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo(20, 40).save(tmp_path / "turned.png", exif=exif)
    expected = by_pillow(photo(20, 40), RULE)
    np.testing.assert_array_equal(aa_flax.preprocess(tmp_path / "turned.png", RULE)[0], expected)


def test_one_photo_or_several_of_all_kinds(tmp_path):
    photo().save(tmp_path / "a.png")
    pixels = np.asarray(photo())
    one = aa_flax.preprocess(str(tmp_path / "a.png"), RULE)
    several = aa_flax.preprocess([tmp_path / "a.png", photo(), pixels], RULE)
    np.testing.assert_array_equal(several, np.concatenate([one] * 3))
    np.testing.assert_array_equal(aa_flax.preprocess(pixels, RULE), one)
    np.testing.assert_array_equal(aa_flax.preprocess(np.stack([pixels, pixels]), RULE), several[:2])
    np.testing.assert_array_equal(aa_flax.preprocess(iter([pixels]), RULE), one)
    grey = np.asarray(photo().convert("L"))
    np.testing.assert_array_equal(aa_flax.preprocess(grey, RULE)[0], by_pillow(Image.fromarray(grey), RULE))


def test_a_network_knows_its_images_and_classes(tmp_path):
    options = {"num_classes": 3, "width_mult": 0.25}
    network = with_values(lambda: aa_flax.create_model("mobilenet_v2_lpf3", **options, rngs=nnx.Rngs(0)))
    larger = Preprocessing.of_share(32, 1)
    aa_flax.save_pretrained(
        network, tmp_path, preprocessing=RULE, test_preprocessing=larger, class_names=("ant", "n01440764", "cat")
    )
    loaded, config = aa_flax.load_pretrained(tmp_path), aa_flax.read_config(tmp_path)
    expected = aa_flax.preprocess(photo(), RULE)
    assert nnx.eval_shape(loaded, expected).shape == (1, 3)
    for source in (loaded, config):
        np.testing.assert_array_equal(aa_flax.preprocess(photo(), source), expected)
        assert aa_flax.class_names(source) == ("ant", "tench", "cat")
    assert aa_flax.preprocess(photo(), config.test_preprocessing).shape == (1, 32, 32, 3)
    # What was changed in loading.
    grey = aa_flax.load_pretrained(tmp_path, in_channels=1, num_classes=2)
    assert aa_flax.class_names(grey) == ("class 0", "class 1")
    found = aa_flax.preprocess(photo(), grey)
    pixels = by_pillow(photo(), dataclasses.replace(RULE, mean=(0.0,) * 3, std=(1.0,) * 3)) * np.float32(255)
    luma = np.asarray(Image.fromarray(np.round(pixels).astype(np.uint8)).convert("L"))[..., None]
    np.testing.assert_allclose(found[0], (luma / 255 - 0.4) / 0.292, rtol=0, atol=1e-6)


def test_a_thousand_classes_without_names_are_imagenets():
    config = PretrainedConfig(spec=aa_flax.load_pretrained(CIFAR10).spec)
    assert aa_flax.class_names(config)[3] == "class 3"
    spec = dataclasses.replace(config.spec, num_classes=1000)
    assert aa_flax.class_names(PretrainedConfig(spec=spec)) == imagenet_names()
    assert len(imagenet_wnids()) == len(imagenet_names()) == 1000


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ([], ValueError, "preprocess was given no photo"),
        ("gone.jpg", FileNotFoundError, "gone.jpg: there is no such photo"),
        ("text.jpg", ValueError, "text.jpg: not an image that Pillow knows"),
        (".", ValueError, r"\.: no regular file"),
        ("gs://bucket/a.jpg", ValueError, "gs://bucket/a.jpg: no path of this machine"),
        (7, TypeError, "int is no photo: give a path"),
        (b"JFIF", TypeError, "bytes is no photo"),
        ([None], TypeError, "photo 0: NoneType is no photo"),
        ([np.zeros((4, 4, 3))], TypeError, "photo 0: an array of float64; pixels are uint8"),
        (np.zeros((4, 4, 4), np.uint8), ValueError, r"photo 0: an array \(4, 4, 4\); photos are \(H, W, 3\)"),
        (np.zeros((4, 0, 3), np.uint8), ValueError, r"photo 0: an array \(4, 0, 3\)"),
        (np.zeros((1, 9, 8, 2), np.uint8), ValueError, r"photo 0: an array \(9, 8, 2\)"),
        (np.zeros((1, 9_000_000, 3), np.uint8), ValueError, "photo 0: 9000000x1 is too elongated"),
    ],
)
def test_what_is_no_photo_is_one_line(images, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("text.jpg").write_text("no photo")
    with pytest.raises(error, match=message) as caught:
        aa_flax.preprocess(images, RULE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("function", [lambda model: aa_flax.preprocess(photo(), model), aa_flax.class_names])
def test_a_network_of_which_nothing_is_known_is_refused(function):
    fresh = nnx.eval_shape(lambda: aa_flax.create_model("resnet18", rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"nothing is known of this ResNet, which aa_flax.load_pretrained has not"):
        function(fresh)
    with pytest.raises(TypeError, match=r"needs a network or what its config.json says .*, got str"):
        function("resnet18")


def test_more_channels_than_photos_have_are_refused():
    infrared = Preprocessing(mean=(0.5,) * 4, std=(0.2,) * 4)
    with pytest.raises(ValueError, match="images of 3 channels, or of 1 in grey; the network takes 4"):
        aa_flax.preprocess(photo(), infrared)


def test_the_bound_on_pixels_is_pillows_own():
    assert MAX_PIXELS == 2 * Image.MAX_IMAGE_PIXELS


def test_without_pillow_there_is_one_line_and_arrays_of_the_right_size_still_pass():
    program = """
import sys
import aa_flax, numpy
assert "PIL" not in sys.modules
sys.modules["PIL"] = None
rule = aa_flax.Preprocessing(resize=4, crop=4)
assert aa_flax.preprocess(numpy.zeros((4, 4, 3), "uint8"), rule).shape == (1, 4, 4, 3)
aa_flax.preprocess(numpy.zeros((5, 4, 3), "uint8"), aa_flax.Preprocessing(resize=5, crop=4))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == 'ImportError: photos need Pillow: pip install "aa_flax[photos]"'
