"""TrivialAugment, RandAugment and training at another size; tests/parity compares each operation with torchvision's."""

import numpy as np
import pytest

from train.data import Augmentation, DataConfig, open_dataset, train_batches
from train.data.policies import LEVELS, OPERATIONS, narrow_strength, rand, trivial
from train.data.sources import ArraySource
from train.data.steps import TrainSteps
from train.errors import CommandError
from train.fit.distributed import Placement
from train.fit.feed import DeviceFeed

PHOTO = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def done(name: str, strength: float) -> np.ndarray:
    from PIL import Image

    return np.asarray(OPERATIONS[name].apply(Image.fromarray(PHOTO), strength))


@pytest.mark.parametrize("by", [-32, -3, 0, 5, 31.9])
def test_translations_move_whole_pixels_and_let_black_in(by):
    for axis, name in enumerate(("translate_y", "translate_x")):
        size, step = PHOTO.shape[axis], int(by)
        expected = np.zeros_like(PHOTO)
        for i in range(size):
            if 0 <= i - step < size:
                expected[(slice(None),) * axis + (i,)] = PHOTO[(slice(None),) * axis + (i - step,)]
        np.testing.assert_array_equal(done(name, by), expected)


def test_shears_take_the_nearest_pixel_of_the_slanted_row():
    rows, columns = np.mgrid[: PHOTO.shape[0], : PHOTO.shape[1]]
    source = np.floor(columns + 0.5 + 0.33 * (rows + 0.5)).astype(int)
    expected = np.where(source[..., None] < 30, PHOTO[rows, np.minimum(source, 29)], 0)
    np.testing.assert_array_equal(done("shear_x", 0.33), expected)


def test_colours_follow_their_formulas():
    np.testing.assert_array_equal(done("posterize", 3), PHOTO & 0b11100000)
    np.testing.assert_array_equal(done("solarize", 100), np.where(PHOTO < 100, PHOTO, 255 - PHOTO))
    np.testing.assert_allclose(done("brightness", 0.5), np.minimum(PHOTO * 1.5, 255), atol=1)
    np.testing.assert_array_equal(done("identity", 0), PHOTO)


class Script:
    """Draws told beforehand, and the bounds that were asked for."""

    def __init__(self, *draws: int):
        self.draws, self.bounds = list(draws), []

    def integers(self, bound: int) -> int:
        self.bounds.append(bound)
        return self.draws.pop(0)


def test_one_operation_of_any_strength_and_sign():
    names = list(OPERATIONS)
    script = Script(names.index("rotate"), 10, 1)
    np.testing.assert_array_equal(trivial(PHOTO, script), done("rotate", -45))
    assert script.bounds == [14, LEVELS, 2]
    script = Script(names.index("posterize"), 30)
    np.testing.assert_array_equal(trivial(PHOTO, script), PHOTO & 0b11000000)
    np.testing.assert_array_equal(trivial(PHOTO, Script(0)), PHOTO)


def test_several_operations_of_one_magnitude():
    names = list(OPERATIONS)
    script = Script(names.index("translate_x"), 0, names.index("posterize"))
    # 150 / 331 of the width at the greatest magnitude.
    expected = done("translate_x", 150 * 30 / 331) & 0b11110000
    np.testing.assert_array_equal(rand(PHOTO, script, count=2, magnitude=30), expected)
    assert narrow_strength(OPERATIONS["rotate"], 9, PHOTO) == pytest.approx(9)


@pytest.mark.parametrize("policy", ["trivial", "rand"])
def test_the_position_alone_decides(policy):
    """The same images whatever else a process does: a share of the batch, a later start, the crop."""
    images = np.random.default_rng(1).integers(0, 256, (12, 10, 10, 3), dtype=np.uint8)
    source = ArraySource(images, np.arange(12, dtype=np.int32), "noise")
    rule = open_dataset(DataConfig(name="digits", image_size=10)).training
    steps = [
        TrainSteps(source, rule, Augmentation(policy=policy), 4, 3, index, count) for index, count in ((0, 1), (1, 2))
    ]
    whole, half = steps[0][5], steps[1][5]
    np.testing.assert_array_equal(half["image"], whole["image"][2:])
    np.testing.assert_array_equal(steps[0][5]["image"], whole["image"])
    untouched = images[whole["label"]]
    changed = (steps[0][5]["image"] != untouched).any((1, 2, 3))
    other = TrainSteps(source, rule, Augmentation(policy=policy), 4, 4, 0, 1)
    assert changed.any()
    assert not np.array_equal(other[5]["image"], whole["image"])


def test_training_images_have_a_size_of_their_own():
    dataset = open_dataset(DataConfig(name="digits", train_size=24))
    assert (dataset.preprocessing.crop, dataset.training.crop, dataset.training.resize) == (32, 24, 24)
    assert (dataset.margin, dataset.augmentation.shift) == (4, 3)
    assert open_dataset(DataConfig(name="digits")).training == open_dataset(DataConfig(name="digits")).preprocessing
    batches = train_batches(dataset, global_batch=8, seed=0, stop_step=1)
    batch = next(batches)
    batches.close()
    assert batch["image"].shape == (8, 24, 24, 3)


def test_training_images_are_no_larger_than_those_to_measure_with():
    message = (
        "--data.train-size is 176, more than the 32 pixels of the images to measure with: give --data.train-size 32"
    )
    with pytest.raises(CommandError, match=message):
        open_dataset(DataConfig(name="digits", train_size=176))


def test_photos_are_cut_at_the_training_size_from_what_measuring_sees(tmp_path):
    from PIL import Image

    for split in ("train", "val"):
        (tmp_path / split / "cat").mkdir(parents=True)
        Image.fromarray(PHOTO).save(tmp_path / split / "cat" / "1.png")
    dataset = open_dataset(DataConfig(dir=tmp_path, train_size=176))
    assert (dataset.training.resize, dataset.training.crop, dataset.preprocessing.crop) == (201, 176, 224)


def test_what_the_loader_does_cannot_be_done_on_the_devices():
    dataset = open_dataset(DataConfig(name="digits", auto_augment="trivial"))
    with pytest.raises(CommandError, match=r"--on-device has no --data\.auto-augment trivial"):
        DeviceFeed(lambda state, batch: (state, {}), dataset, Placement.of_all_devices(), batch=8, seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_size": 0}, "--data.train-size is 0; it must be at least 1"),
        ({"rand_ops": 0}, "--data.rand-ops is 0"),
        ({"rand_magnitude": 31}, "--data.rand-magnitude is 31; it must be from 0 to 30"),
    ],
)
def test_wrong_values_name_their_option(options, message):
    with pytest.raises(CommandError) as caught:
        DataConfig(name="digits", **options)
    assert str(caught.value).startswith(message)
