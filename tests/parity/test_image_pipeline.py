"""Images against torchvision itself: which files, in which order, decoded, resized and cropped to the same bits."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aa_flax.preprocessing.geometry import evaluation_crop
from tests.parity.oracles import torchvision
from train.data import ImageFolder
from train.data.transforms import Box, crop_and_resize


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    names = ("b/9.jpg", "b/10.JPEG", "a/x-y/1.png", "a/x/1.png", "a/0.jpg", "C/1.webp")
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width = random.integers(40, 320, 2)
        Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return root


def test_the_same_files_in_the_same_order_with_the_same_labels(photos: Path):
    theirs = torchvision.datasets.ImageFolder(str(photos))
    ours = ImageFolder(photos)
    assert [str(ours.path(i)) for i in range(len(ours))] == [path for path, _ in theirs.samples]
    assert ours.labels.tolist() == theirs.targets
    assert list(ours.class_names) == theirs.classes


@pytest.mark.parametrize(("resize", "crop"), [(256, 224), (64, 56), (57, 56), (33, 20)])
def test_the_same_pixels_for_evaluation(photos: Path, resize: int, crop: int):
    transforms = torchvision.transforms
    theirs = torchvision.datasets.ImageFolder(
        str(photos), transforms.Compose([transforms.Resize(resize), transforms.CenterCrop(crop)])
    )
    ours = ImageFolder(photos)
    for i, (image, _) in enumerate(theirs):
        pixels = evaluation_crop(ours[i][0], resize=resize, big=crop, crop=crop, interpolation="bilinear")
        np.testing.assert_array_equal(pixels, np.asarray(image))


def test_the_same_pixels_of_a_random_resized_crop(photos: Path):
    transform = torchvision.transforms.RandomResizedCrop(96)
    theirs = torchvision.datasets.ImageFolder(str(photos))
    ours = ImageFolder(photos)
    for i, (image, _) in enumerate(theirs):
        for _ in range(5):
            top, left, height, width = transform.get_params(image, transform.scale, transform.ratio)
            expected = torchvision.transforms.functional.resized_crop(image, top, left, height, width, [96, 96])
            pixels = crop_and_resize(ours[i][0], Box(top, left, height, width), 96)
            np.testing.assert_array_equal(pixels, np.asarray(expected))
