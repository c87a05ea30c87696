"""Image folders, arrays and caches: what is found, in which order, under which class number."""

import logging
import pickle
import tarfile
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
from PIL import Image

from aa_flax.preprocessing.pixels import UnreadableImageError
from aa_flax.weights.class_names import imagenet_index, imagenet_wnids
from train.data import ArraySource, DataConfig, ImageFolder, open_dataset
from train.data.balance import remarks
from train.data.cache import ArrayCache
from train.data.cifar import CLASSES, open_cifar10
from train.data.prepare import Config, run
from train.data.tfds import open_builder, open_tfds
from train.errors import CommandError


def write_image(path: Path, shade: int = 90, size: tuple[int, int] = (12, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, 0, 255 - shade)).save(path)


def test_the_thousand_ids():
    wnids = imagenet_wnids()
    assert len(wnids) == len(set(wnids)) == 1000
    assert list(wnids) == sorted(wnids)
    assert (wnids[0], wnids[-1]) == ("n01440764", "n15075141")


def test_shared_photos_have_the_reference_s_labels(shared: Path):
    import json

    expected = json.loads((shared / "weights/expected.json").read_text())
    folder = ImageFolder(shared / "data/imagenet-sample/val")
    assert [folder.name(i) for i in range(len(folder))] == expected["files"]
    assert folder.labels.tolist() == expected["labels"]


def test_ids_keep_their_class_number_when_few_folders_exist(tmp_path: Path):
    for wnid in ("n15075141", "n01443537"):
        write_image(tmp_path / wnid / "a.JPEG")
    folder = ImageFolder(tmp_path)
    assert folder.labels.tolist() == [1, 999]
    assert folder.labels.tolist() == [imagenet_index()["n01443537"], imagenet_index()["n15075141"]]
    assert len(folder.class_names) == 1000


def test_other_names_are_numbered_alphabetically(tmp_path: Path):
    for name in ("dog", "Cat", "n01443537"):
        write_image(tmp_path / name / "1.png")
    folder = ImageFolder(tmp_path)
    assert folder.class_names == ("Cat", "dog", "n01443537")
    assert folder.labels.tolist() == [0, 1, 2]


def test_given_class_names_decide_and_refuse_strangers(tmp_path: Path):
    write_image(tmp_path / "b" / "1.png")
    assert ImageFolder(tmp_path, ("a", "b", "c")).labels.tolist() == [1]
    with pytest.raises(CommandError, match=r"folder 'b' .* is none of the 2 classes, which are a, c"):
        ImageFolder(tmp_path, ("a", "c"))


def test_the_order_is_torchvision_s_and_other_files_are_left_out(tmp_path: Path):
    for name in ("x/b.jpg", "x/a.JPG", "x/sub/c.png", "x/notes.txt", "y/a.webp", ".git/a.png"):
        write_image(tmp_path / name) if not name.endswith("txt") else (tmp_path / name).write_text("hello")
    folder = ImageFolder(tmp_path)
    assert [folder.name(i) for i in range(len(folder))] == ["x/a.JPG", "x/b.jpg", "x/sub/c.png", "y/a.webp"]
    pixels, label = folder[3]
    assert pixels.shape == (10, 12, 3)
    assert label == 1


def test_names_that_are_no_utf8_can_be_read(tmp_path: Path):
    write_image(tmp_path / "x" / "a.png")
    (tmp_path / "x" / "a.png").rename(tmp_path / "x" / "caf\udce9.png")
    folder = ImageFolder(tmp_path)
    assert folder[0][0].shape == (10, 12, 3)


def test_links_are_followed_but_never_in_circles(tmp_path: Path, caplog):
    write_image(tmp_path / "root/x/a.png")
    write_image(tmp_path / "elsewhere/b.png")
    (tmp_path / "root/x/again").symlink_to(tmp_path / "root/x")
    (tmp_path / "root/x/up").symlink_to(tmp_path / "root")
    (tmp_path / "root/y").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root/x/dead.png").symlink_to(tmp_path / "nowhere.png")
    with caplog.at_level(logging.WARNING):
        folder = ImageFolder(tmp_path / "root")
    names = [folder.name(i) for i in range(len(folder))]
    assert names.count("x/a.png") == 1
    assert "y/b.png" in names
    assert "links back" in caplog.text
    with pytest.raises(UnreadableImageError, match="cannot be read"):
        folder[names.index("x/dead.png")]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "does not exist"),
        (lambda root: root.write_text(""), "is not a directory"),
        (lambda root: root.mkdir(), "has no class folders"),
        (lambda root: (root / "x").mkdir(parents=True), "hold no images"),
        (lambda root: write_image(root / "val/x/a.png"), r"holds the splits val, .* give .*root/val"),
    ],
    ids=["missing", "a file", "empty", "empty class", "splits"],
)
def test_directories_that_hold_no_data(tmp_path: Path, make, message):
    make(tmp_path / "root")
    with pytest.raises(CommandError, match=message):
        ImageFolder(tmp_path / "root")


def test_a_million_file_names_travel_compactly(tmp_path: Path):
    for i in range(50):
        write_image(tmp_path / "n01440764" / f"n01440764_{i:05}.JPEG")
    folder = ImageFolder(tmp_path)
    more = np.repeat(folder._files, 20)
    folder._files = more
    assert len(pickle.dumps(folder)) < 45 * len(more) + 40_000
    assert pickle.loads(pickle.dumps(folder)).name(0) == folder.name(0)


def test_array_sources_open_their_file_anew_elsewhere(tmp_path: Path):
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    source = ArraySource(tmp_path / "images.npy", np.arange(5), "set")
    np.testing.assert_array_equal(source[3][0], images[3])
    sent = pickle.dumps(source)
    assert len(sent) < 1500
    np.testing.assert_array_equal(pickle.loads(sent)[4][0], images[4])
    assert source.name(2) == "set/2"


def test_a_damaged_cache_is_noticed_and_replaced(tmp_path: Path, caplog):
    cache = ArrayCache(tmp_path / "set")
    assert not cache.is_good()
    cache.write([("a", np.arange(9))], {"source": "test"})
    assert cache.is_good()
    data = bytearray(cache.path("a").read_bytes())
    data[-3] ^= 1
    cache.path("a").write_bytes(data)
    assert not cache.is_good()
    assert "damaged" in caplog.text
    cache.write([("a", np.arange(9))], {"source": "test"})
    assert cache.is_good()
    (tmp_path / "set" / "manifest.json").write_text("[")
    assert not cache.is_good()
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_an_interrupted_write_leaves_nothing(tmp_path: Path):
    def arrays():
        yield "a", np.arange(9)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ArrayCache(tmp_path / "set").write(arrays(), {})
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_cifar(tmp_path: Path) -> Path:
    """Two images a class in train, one in test, as an extracted folder."""
    root = tmp_path / "cifar"
    random = np.random.default_rng(0)
    for split, count in (("train", 2), ("test", 1)):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i:04}.jpg")
    return root


def test_cifar_from_folder_and_tar_are_the_same_and_cached(small_cifar: Path, tmp_path: Path, monkeypatch):
    cache = tmp_path / "cache"
    train, test = open_cifar10(small_cifar, cache)
    assert (len(train), len(test)) == (20, 10)
    assert train.labels.tolist() == [i // 2 for i in range(20)]
    expected = np.asarray(Image.open(small_cifar / "train/automobile/0001.jpg").convert("RGB"))
    np.testing.assert_array_equal(train[3][0], expected)

    tar = tmp_path / "cifar10-small.tar.xz"
    with tarfile.open(tar, "w:xz") as archive:
        for split in ("train", "test"):
            archive.add(small_cifar / split, split)
    from_tar, _ = open_cifar10(tar, cache)
    np.testing.assert_array_equal(from_tar.images, train.images)

    def refuse(location):
        raise AssertionError(f"{location} is decoded again")

    monkeypatch.setattr("train.data.cifar._decode", refuse)
    again, _ = open_cifar10(tar, cache)
    np.testing.assert_array_equal(again.images, train.images)
    # A directory that holds the tar will do.
    (tmp_path / "holder").mkdir()
    tar.rename(tmp_path / "holder" / tar.name)
    open_cifar10(tmp_path / "holder", cache)


def test_cifar_that_is_not_whole(small_cifar: Path, tmp_path: Path):
    with pytest.raises(CommandError, match="does not exist"):
        open_cifar10(tmp_path / "nowhere", tmp_path)
    with pytest.raises(CommandError, match="neither train/ and test/ nor one"):
        open_cifar10(small_cifar / "train", tmp_path)
    (tmp_path / "cut.tar.xz").write_bytes(b"\xfd7zXZ\x00 and no more")
    with pytest.raises(CommandError, match="not a whole tar file"):
        open_cifar10(tmp_path / "cut.tar.xz", tmp_path)
    (small_cifar / "test/dog/0000.jpg").write_text("no image")
    with pytest.raises(CommandError, match=r"test/dog/0000\.jpg is damaged"):
        open_cifar10(small_cifar, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_cifar_with_a_picture_that_would_fill_the_memory(small_cifar: Path, tmp_path: Path):
    huge = small_cifar / "train/cat/0000.jpg"
    with huge.open("wb") as file:
        file.truncate(2**21)
    with tarfile.open(tmp_path / "cifar10.tar.xz", "w:xz") as archive:
        archive.add(small_cifar / "train", "train")
    with huge.open("wb") as file:
        file.truncate(2**33)
    for location, size in ((tmp_path / "cifar10.tar.xz", "2,097,152"), (small_cifar, "8,589,934,592")):
        with pytest.raises(CommandError, match=rf"train/cat/0000\.jpg has {size} bytes, which is no picture"):
            open_cifar10(location, tmp_path / "cache")


def test_a_cache_directory_that_cannot_be_written(small_cifar: Path, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(CommandError, match=r"--data\.cache-dir"):
        open_cifar10(small_cifar, tmp_path / "file")


def test_digits_are_enlarged_grey_and_split():
    dataset = open_dataset(DataConfig(name="digits"))
    assert (len(dataset.train), len(dataset.val)) == (1437, 360)
    assert dataset.num_classes == 10
    pixels, label = dataset.train[0]
    assert pixels.shape == (32, 32, 3)
    assert 0 <= label < 10
    assert (pixels == pixels[..., :1]).all()
    assert pixels.max() > 200
    assert not dataset.augmentation.flip
    assert dataset.augmentation.shift == dataset.margin == 4


def test_what_no_shift_and_none_leave_of_the_augmentation(tmp_path: Path):
    for split in ("train", "val"):
        write_image(tmp_path / split / "x" / "a.png")
    for augment, expected in {
        "standard": (True, True, 0),
        "no_shift": (False, True, 0),
        "none": (False, False, 0),
    }.items():
        found = open_dataset(DataConfig(dir=tmp_path, augment=augment)).augmentation
        assert (found.random_resized_crop, found.flip, found.shift) == expected
    assert open_dataset(DataConfig(name="digits", augment="no_shift")).augmentation.shift == 0


def test_imagenet_folders_share_one_class_index(tmp_path: Path):
    for name in ("train/x/a.png", "train/y/a.png", "val/y/b.png"):
        write_image(tmp_path / name)
    dataset = open_dataset(DataConfig(dir=tmp_path))
    assert dataset.class_names == ("x", "y")
    assert dataset.val[0][1] == 1
    assert (dataset.preprocessing.resize, dataset.preprocessing.crop) == (256, 224)
    write_image(tmp_path / "val/z/b.png")
    with pytest.raises(CommandError, match="folder 'z'"):
        open_dataset(DataConfig(dir=tmp_path))


def told(caplog, root: Path, **options) -> list[str]:
    caplog.clear()
    dataset = open_dataset(DataConfig(dir=root, **options))
    logged = [record.getMessage() for record in caplog.records]
    return logged + remarks(dataset.train, dataset.val, dataset.class_names)


def test_text_will_do_for_a_directory(tmp_path: Path):
    for name in ("train/x/a.png", "train/y/a.png", "val/y/b.png"):
        write_image(tmp_path / name)
    assert open_dataset(DataConfig(dir=str(tmp_path))).class_names == ("x", "y")  # type: ignore[arg-type]


def test_odd_classes_are_told(tmp_path: Path, caplog):
    for name in ("train/x/a.png", "train/y/a.png", "val/x/b.png", "val/y/b.png"):
        write_image(tmp_path / name)
    assert told(caplog, tmp_path) == []
    write_image(tmp_path / "train/z/a.png")
    assert told(caplog, tmp_path) == [
        "1 of 3 classes have training images, but none for validation: their accuracy is not measured: z"
    ]
    (tmp_path / "train/z/a.png").unlink()
    write_image(tmp_path / "val/z/a.png")
    assert told(caplog, tmp_path) == [
        f"{tmp_path}/train: 1 of 3 class folders hold no images (.bmp .jpeg .jpg .pgm .png .ppm .tif .tiff .webp): z",
        "1 of 3 classes have validation images, but none for training: they cannot be learned: z",
    ]


def test_one_class_and_one_that_outweighs_the_others_are_told(tmp_path: Path, caplog):
    for name in ("one/train/x/a.png", "one/val/x/a.png", "two/train/x/a.png", "two/train/y/a.png", "two/val/y/a.png"):
        write_image(tmp_path / name)
    assert told(caplog, tmp_path / "one") == ["all training images are of one class, x: there is nothing to tell apart"]
    for i in range(20):
        write_image(tmp_path / f"two/val/x/{i}.png")
    assert told(caplog, tmp_path / "two") == [
        "95.2 % of the validation images are of one class, x: that is the accuracy of answering with it always"
    ]


def test_folders_named_by_numbers_are_told_to_sort_as_text(tmp_path: Path, caplog):
    for name in ("0", "1", "2", "10"):
        for split in ("train", "val"):
            write_image(tmp_path / split / name / "a.png")
    (line,) = told(caplog, tmp_path)
    assert "classes in alphabetical order (0, 1, 10, 2), as in torchvision" in line
    for split in ("train", "val"):
        (tmp_path / split / "10").rename(tmp_path / split / "3")
    assert told(caplog, tmp_path) == []


def test_folders_option_counts_only_the_folders_that_exist(tmp_path: Path):
    for name in ("train/n15075141/a.png", "train/n01443537/a.png", "val/n15075141/b.png"):
        write_image(tmp_path / name)
    assert open_dataset(DataConfig(dir=tmp_path)).num_classes == 1000
    dataset = open_dataset(DataConfig(dir=tmp_path, class_index="folders"))
    assert dataset.class_names == ("n01443537", "n15075141")
    assert dataset.val[0][1] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "--data.dir is needed"),
        ({"dir": Path("/nowhere/imagenet")}, "/nowhere/imagenet/train does not exist"),
        ({"name": "cifar10", "dir": Path("/nowhere")}, "/nowhere does not exist"),
        ({"name": "cifar10", "dir": "/nowhere"}, "/nowhere does not exist"),
        ({"name": "flowers"}, "--data.name is 'flowers'; for photos of your own in .* it is imagenet, whatever"),
        ({"image_size": 0}, "--data.image-size is 0"),
        ({"workers": -1}, "--data.workers is -1"),
        ({"max_bad_fraction": 2.0}, "--data.max-bad-fraction is 2.0"),
        ({"name": "synthetic", "synthetic_size": 1}, "--data.synthetic-size is 1"),
    ],
)
def test_wrong_options_name_themselves(options, message):
    with pytest.raises(CommandError, match=message):
        open_dataset(DataConfig(**options))


def test_synthetic_images_show_their_class():
    dataset = open_dataset(DataConfig(name="synthetic", image_size=20, synthetic_size=40))
    for i in range(len(dataset.val)):
        pixels, label = dataset.val[i]
        assert pixels.shape == (20, 20, 3)
        assert (pixels[:, 2 * label : 2 * label + 2] >= 128).all()


@pytest.fixture(scope="module")
def tfds_builder(tmp_path_factory):
    """A tiny TFDS data set in array_record, written and read without TensorFlow."""
    import io

    import tensorflow_datasets as tfds

    class Tiny(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                "label": tfds.features.ClassLabel(names=["a", "b"]),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(6), "validation": self._generate_examples(3)}

        def _generate_examples(self, count):
            for i in range(count):
                buffer = io.BytesIO()
                Image.new("RGB", (8, 9), (i, 0, 0)).save(buffer, "PNG")
                buffer.seek(0)
                yield i, {"image": buffer, "label": i % 2}

    builder = Tiny(data_dir=tmp_path_factory.mktemp("tfds"), file_format="array_record")
    builder.download_and_prepare()
    # Read as somebody else would; a class made in a function cannot be sent to workers.
    return tfds.builder_from_directory(builder.data_dir)


def test_tfds_gives_encoded_images_by_position(tfds_builder):
    train, val, names = open_builder(tfds_builder, ("train", "validation"))
    assert (len(train), len(val), names) == (6, 3, ("a", "b"))
    seen = sorted((int(pixels[0, 0, 0]), label) for pixels, label in (train[i] for i in range(6)))
    assert seen == [(i, i % 2) for i in range(6)]
    assert train[0][0].shape == (9, 8, 3)
    # grain sends sources to its workers with cloudpickle.
    assert pickle.loads(cloudpickle.dumps(train))[5][1] == train[5][1]
    assert train.name(3) == "tiny/train/3"


@pytest.mark.parametrize("name", ["imagenet2012", "cifar10"])
def test_tfds_that_was_not_prepared_says_how(tmp_path: Path, name):
    with pytest.raises(CommandError, match=f"python -m train prepare --name {name} --dir"):
        open_tfds(name, tmp_path)


def test_prepare_says_what_it_lacks(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CommandError, match="pip install tensorflow-cpu"):
        run(Config(name="cifar10", dir=tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    with pytest.raises(CommandError, match="needs --manual-dir"):
        run(Config(name="imagenet2012", dir=tmp_path))
    with pytest.raises(CommandError, match=r"has no ILSVRC2012_img_train\.tar and no"):
        run(Config(name="imagenet2012", dir=tmp_path, manual_dir=tmp_path))
