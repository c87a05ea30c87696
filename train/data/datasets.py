"""`DataConfig`, what a person says about data, and `Dataset`, what `open_dataset` makes of it."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from PIL import Image

from aa_flax.files import cache_directory
from aa_flax.weights.config import Preprocessing
from train.data.policies import LEVELS, PolicyName
from train.data.sources import ArraySource, ImageFolder, Source
from train.errors import CommandError
from train.local_paths import require_local_paths

NAMES = ("imagenet", "cifar10", "digits", "synthetic", "tfds_imagenet2012", "tfds_cifar10")


@dataclass(frozen=True)
class DataConfig:
    """What to train on, and how its images are varied and loaded."""

    name: Annotated[str, tyro.conf.arg(metavar=f"{{{','.join(NAMES)}}}")] = "imagenet"
    """imagenet: any photos in folders, train/CLASS/*.JPEG and val/CLASS/*.JPEG. cifar10: a tar of
    JPEG files or its extracted folder. digits: scikit-learn's, nothing to download. synthetic: noise.
    tfds_*: array_record files written by `python -m train prepare`."""
    dir: Path | None = None
    """Where the data lie; cifar10 also takes the tar file itself."""
    image_size: int | None = None
    """Side of the network's input in pixels: 224 (imagenet, synthetic) or 32 if not given."""
    train_size: int | None = None
    """Side of the training images, where it is to be another; 176 saves time and suits measuring at 224."""
    augment: Literal["standard", "no_shift", "none"] = "standard"
    """standard: random resized crop and flip (imagenet), shift by up to 1/8 and flip (cifar10),
    shift by up to 1/8 (digits). no_shift: no crop or shift. none: no flip either."""
    auto_augment: PolicyName = "none"
    """Random operations on each training image (shear, rotation, colour, ...). trivial: TrivialAugment, one of any
    strength. rand: RandAugment, see the next two."""
    rand_ops: int = 2
    """RandAugment: operations on each image."""
    rand_magnitude: int = 9
    """RandAugment: their strength, from 0 to 30."""
    random_erase: float = 0.0
    """How often a random rectangle of an image is wiped out, from 0 to 1."""
    mixup: float = 0.0
    """Mix each image, and its label, with another: the a of Beta(a, a), from which its share is drawn."""
    cutmix: float = 0.0
    """Put a rectangle of another image into each: the a of Beta(a, a). With --data.mixup, one or the other."""
    workers: int = 0
    """Loader processes; 0 decodes in threads of this process. Batches are the same for any."""
    max_bad_fraction: float = 0.01
    """Stop once more than this share of the training images has turned out to be unreadable."""
    class_index: Literal["auto", "folders"] = "auto"
    """auto: folders named by ImageNet's WordNet ids get ImageNet's 1,000 classes, even when only
    some exist. folders: the folders that exist, in alphabetical order."""
    cache_dir: Path | None = None
    """Where cifar10 keeps its decoded images; $AA_FLAX_CACHE or ~/.cache/aa_flax if not given."""
    synthetic_size: int = 512
    """Training images of the synthetic set; a quarter as many for validation."""
    synthetic_classes: int = 10
    """Classes of the synthetic set."""

    def __post_init__(self) -> None:
        for name in ("dir", "cache_dir"):
            path = getattr(self, name)
            if path is not None:
                # Text too, as everywhere in Python.
                object.__setattr__(self, name, Path(path))
        require_local_paths(self, "--data.")
        if self.name not in OPENERS:
            raise CommandError(
                f"--data.name is {self.name!r}; for photos of your own in train/CLASS/*.jpg and val/CLASS/*.jpg it is "
                f"imagenet, whatever the classes, otherwise one of {', '.join(NAMES[1:])}"
            )
        if self.image_size is not None and self.image_size < 1:
            raise CommandError(f"--data.image-size is {self.image_size}; it must be at least 1")
        if self.train_size is not None and self.train_size < 1:
            raise CommandError(f"--data.train-size is {self.train_size}; it must be at least 1")
        if self.rand_ops < 1:
            raise CommandError(f"--data.rand-ops is {self.rand_ops}; it must be at least 1")
        if not 0 <= self.rand_magnitude < LEVELS:
            raise CommandError(f"--data.rand-magnitude is {self.rand_magnitude}; it must be from 0 to {LEVELS - 1}")
        if self.workers < 0:
            raise CommandError(f"--data.workers is {self.workers}; it must be 0 or more")
        if not 0 <= self.random_erase <= 1:
            raise CommandError(f"--data.random-erase is {self.random_erase}; it must be from 0 to 1")
        for name in ("mixup", "cutmix"):
            if not 0 <= getattr(self, name) < math.inf:
                raise CommandError(f"--data.{name} is {getattr(self, name)}; it must be 0 (off) or more, such as 0.2")
        if not 0 <= self.max_bad_fraction <= 1:
            raise CommandError(f"--data.max-bad-fraction is {self.max_bad_fraction}; it must be from 0 to 1")
        if self.synthetic_size < 4 or self.synthetic_classes < 1:
            raise CommandError(
                f"--data.synthetic-size is {self.synthetic_size} (at least 4) and "
                f"--data.synthetic-classes {self.synthetic_classes} (at least 1)"
            )


@dataclass(frozen=True)
class Augmentation:
    """How training images are varied: size, crop and policy on the host, all else on the device.

    Attributes:
        size: side of the training images; None for that of the images to measure with.
        random_resized_crop: whether the host cuts torchvision's random rectangle; otherwise it
            resizes and cuts the centre.
        flip: whether the device mirrors each image left to right with probability one half.
        shift: the device moves each image by up to this many pixels both ways (reflecting at the
            border); 0 for not at all.
        policy: the host's random operations, see `train.data.policies`.
        rand_ops: with `rand`, how many.
        rand_magnitude: with `rand`, how strong.
        random_erase: how often the device wipes a random rectangle out, from 0 to 1.
        mixup: the device mixes images in shares of Beta(mixup, mixup); 0 for not at all.
        cutmix: the same of rectangles.
    """

    size: int | None = None
    random_resized_crop: bool = False
    flip: bool = False
    shift: int = 0
    policy: PolicyName = "none"
    rand_ops: int = 2
    rand_magnitude: int = 9
    random_erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with one another, and their labels."""
        return bool(self.mixup or self.cutmix)


@dataclass(frozen=True)
class Dataset:
    """A data set ready to be read.

    Attributes:
        name: `DataConfig.name`.
        train: the training images.
        val: the images to measure with; an empty source never gets here.
        num_classes: how many logits the network needs.
        class_names: name of each class.
        preprocessing: resize, crop, mean and std of images to measure; goes into the weights' `config.json`.
        augmentation: see there.
        workers: `DataConfig.workers`.
        max_bad_fraction: `DataConfig.max_bad_fraction`.

    Raises:
        CommandError: training images larger than those to measure with.
    """

    name: str
    train: Source
    val: Source
    num_classes: int
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    augmentation: Augmentation
    workers: int = 0
    max_bad_fraction: float = 0.01

    def __post_init__(self) -> None:
        size, crop = self.augmentation.size, self.preprocessing.crop
        # A recipe's size for photos would enlarge small pictures, which are then measured at their own.
        if size is not None and size > crop:
            raise CommandError(
                f"--data.train-size is {size}, more than the {crop} pixels of the images to measure with: give "
                f"--data.train-size {crop} or a larger --data.image-size"
            )

    @property
    def training(self) -> Preprocessing:
        """That of training images: of another size, everything in proportion."""
        rule, size = self.preprocessing, self.augmentation.size
        if size is None:
            return rule
        return dataclasses.replace(rule, resize=round(rule.resize * size / rule.crop), crop=size)

    @property
    def margin(self) -> int:
        """`reflect_margin` of the preprocessing."""
        return reflect_margin(self.preprocessing)


def reflect_margin(preprocessing: Preprocessing) -> int:
    """Pixels by which images to measure are enlarged, reflecting at the border.

    An eighth of the crop where the resized image is no larger than it, so that shifted crops have
    somewhere to go; 0 where resize - crop leaves room already.
    """
    return max(1, preprocessing.crop // 8) if preprocessing.resize == preprocessing.crop else 0


CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
HALF = (0.5, 0.5, 0.5)


def open_dataset(config: DataConfig) -> Dataset:
    """Finds the data and says how they are to be read; decodes nothing that need not be.

    Raises:
        CommandError: data that are missing, empty or not what `config` says they are.
    """
    return OPENERS[config.name](config)


def _directory(config: DataConfig) -> Path:
    if config.dir is None:
        raise CommandError(f"--data.dir is needed: where does the data set {config.name!r} lie?")
    return config.dir.expanduser()


def _open_imagenet(config: DataConfig) -> Dataset:
    root = _directory(config)
    for split in ("train", "val"):
        if not (root / split).is_dir():
            raise CommandError(
                f"data directory {root / split} does not exist; --data.dir must hold "
                "train/CLASS/*.JPEG and val/CLASS/*.JPEG"
            )
    if config.class_index == "folders":
        names = [entry.name for entry in (root / "train").iterdir() if entry.is_dir()]
        train = ImageFolder(root / "train", sorted(n for n in names if not n.startswith(".")))
    else:
        train = ImageFolder(root / "train")
    val = ImageFolder(root / "val", train.class_names)
    return _imagenet_like(config, train, val, train.class_names)


def _imagenet_like(config: DataConfig, train: Source, val: Source, class_names: tuple[str, ...]) -> Dataset:
    crop = config.image_size or 224
    return Dataset(
        name=config.name,
        train=train,
        val=val,
        num_classes=len(class_names),
        class_names=class_names,
        # The published networks' rule, kept for other sizes: 224 of 256.
        preprocessing=Preprocessing(resize=round(crop * 256 / 224), crop=crop),
        augmentation=_augmentation(
            config, random_resized_crop=config.augment == "standard", flip=config.augment != "none"
        ),
        workers=config.workers,
        max_bad_fraction=config.max_bad_fraction,
    )


def _augmentation(config: DataConfig, **given: Any) -> Augmentation:
    """What a kind of data set is varied by, and what the options add to it."""
    return Augmentation(
        size=config.train_size,
        policy=config.auto_augment,
        rand_ops=config.rand_ops,
        rand_magnitude=config.rand_magnitude,
        random_erase=config.random_erase,
        mixup=config.mixup,
        cutmix=config.cutmix,
        **given,
    )


def _small(
    config: DataConfig,
    train: Source,
    val: Source,
    class_names: tuple[str, ...],
    *,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    flip: bool,
) -> Dataset:
    """A set of small pictures whose shifts reflect at the border: they have no room to crop."""
    size = config.image_size or 32
    preprocessing = Preprocessing(resize=size, crop=size, mean=mean, std=std)
    return Dataset(
        name=config.name,
        train=train,
        val=val,
        num_classes=len(class_names),
        class_names=class_names,
        preprocessing=preprocessing,
        augmentation=_augmentation(
            config,
            flip=flip and config.augment != "none",
            shift=max(1, (config.train_size or size) // 8) if config.augment == "standard" else 0,
        ),
        workers=config.workers,
        max_bad_fraction=config.max_bad_fraction,
    )


def _open_cifar10(config: DataConfig) -> Dataset:
    from train.data.cifar import CLASSES, open_cifar10

    try:
        cache = config.cache_dir or cache_directory()
    except ValueError as error:
        raise CommandError(f"$AA_FLAX_CACHE: {error}") from None
    train, test = open_cifar10(_directory(config), cache.expanduser())
    return _small(config, train, test, CLASSES, mean=CIFAR10_MEAN, std=CIFAR10_STD, flip=True)


def _open_digits(config: DataConfig) -> Dataset:
    """1,797 grey 8x8 pictures; every fifth is for validation."""
    from sklearn.datasets import load_digits

    features, target = load_digits(return_X_y=True)
    size = config.image_size or 32
    grey = np.round(features.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    enlarged = [np.asarray(Image.fromarray(each).resize((size, size), Image.Resampling.BICUBIC)) for each in grey]
    images = np.repeat(np.stack(enlarged)[..., None], 3, axis=-1)
    labels = target.astype(np.int32)
    held_out = np.arange(len(labels)) % 5 == 0
    train = ArraySource(images[~held_out], labels[~held_out], "digits/train")
    val = ArraySource(images[held_out], labels[held_out], "digits/val")
    names = tuple(str(digit) for digit in range(10))
    # Mirrored digits are other signs.
    return _small(config, train, val, names, mean=HALF, std=HALF, flip=False)


def _open_synthetic(config: DataConfig) -> Dataset:
    """Noise, the class marked by a bright bar that a network can learn to find."""
    size = config.image_size or 224
    classes = config.synthetic_classes
    train, val = (
        _synthetic(size, classes, count, seed, f"synthetic/{split}")
        for seed, (split, count) in enumerate((("train", config.synthetic_size), ("val", config.synthetic_size // 4)))
    )
    names = tuple(f"class{i}" for i in range(classes))
    return _small(config, train, val, names, mean=HALF, std=HALF, flip=False)


def _synthetic(size: int, classes: int, count: int, seed: int, prefix: str) -> ArraySource:
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count, dtype=np.int32)
    images = random.integers(0, 128, (count, size, size, 3), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        start = int(label) * size // classes
        image[:, start : start + max(1, size // classes)] |= 0x80
    return ArraySource(images, labels, prefix)


def _open_tfds(config: DataConfig) -> Dataset:
    from train.data.tfds import open_tfds

    tfds_name = config.name.removeprefix("tfds_")
    train, val, class_names = open_tfds(tfds_name, _directory(config))
    if tfds_name == "cifar10":
        return _small(config, train, val, class_names, mean=CIFAR10_MEAN, std=CIFAR10_STD, flip=True)
    return _imagenet_like(config, train, val, class_names)


OPENERS = {
    "imagenet": _open_imagenet,
    "cifar10": _open_cifar10,
    "digits": _open_digits,
    "synthetic": _open_synthetic,
    "tfds_imagenet2012": _open_tfds,
    "tfds_cifar10": _open_tfds,
}
