"""Images per second and core of our loader beside torchvision's: same files, same transforms, one run.

Counts processor time of this process, all threads included, so that other work on the machine does not enter.
torchvision's side is `DataLoader(ImageFolder(...))` with its usual transforms, which end in normalised float tensors.
Ours ends in the uint8 batch that goes to the device; what the device then does (flip, normalise) is measured apart, on
this processor.
"""

import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from aa_flax.weights.config import Preprocessing
from benchmarks import peers
from benchmarks.options import Common
from benchmarks.report import Report
from train.data import Augmentation, Dataset, ImageFolder, train_batches, val_batches
from train.data.augment import augment

TARGET = 1.5
RULE = Preprocessing()
AUGMENTATION = Augmentation(random_resized_crop=True, flip=True)
TRAINING = "Training: random resized crop 224, flip, normalise"
EVALUATION = "Evaluation: resize 256, centre crop 224, normalise"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Common):
    """Compares our input pipeline with torchvision's on the same photos."""

    data: Path | None = None
    """Directory of class folders; by default the photos in ../shared (or $AA_SHARED), else noise."""

    images: int = 250
    """Photos in a round."""

    batch_size: int = 50
    """Photos in a batch."""


@dataclasses.dataclass(frozen=True)
class Side:
    """One way to load: makes an iterator of batches of a round, each with its number of images."""

    name: str
    batches: Callable[[], Iterator[int]]


def run(config: Config) -> int:
    """Measures both loaders for training and for evaluation.

    Raises:
        ValueError: where our pixels differ from torchvision's.
    """
    if config.smoke:
        config = dataclasses.replace(config, images=8, batch_size=4, rounds=1)
    report = Report("input_pipeline", config.output)
    reason = peers.missing() if config.torch else "PyTorch's part was left out: --no-torch"
    if reason:
        report.note(reason)
    with tempfile.TemporaryDirectory() as scratch:
        noise = Path(scratch)
        root = config.data or (None if config.smoke else shared_photos()) or synthetic_photos(noise, config.images)
        dataset = photos(root)
        report.note(f"{len(dataset.train)} photos{' of noise' if root == noise else ''}, decoded anew in each round.")
        torch = {} if reason else torchvision_sides(root, config)
        if torch:
            report.note(compare_pixels(dataset, torch["pixels"]))
        compare(report, TRAINING, our_training(dataset, config), torch.get("train"), config.rounds)
        compare(report, EVALUATION, our_evaluation(dataset, config), torch.get("val"), config.rounds)
    print(report.markdown())
    return 0


def shared_photos() -> Path | None:
    """The real photos beside the project, where they are."""
    beside = Path(os.environ.get("AA_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    folder = beside / "data" / "imagenet-sample" / "val"
    return folder if folder.is_dir() else None


def synthetic_photos(root: Path, count: int) -> Path:
    """Photos of ImageNet's usual size, smooth with some noise, about 100 kB each."""
    random = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), np.int16)
        noisy = np.clip(smooth + random.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8)
        folder = root / f"class{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy).save(folder / f"{i:04}.JPEG", quality=90)
    return root


def photos(root: Path) -> Dataset:
    """The photos as a data set of ours, for training and evaluation alike."""
    folder = ImageFolder(root)
    return Dataset(
        name="photos",
        train=folder,
        val=folder,
        num_classes=len(folder.class_names),
        class_names=folder.class_names,
        preprocessing=RULE,
        augmentation=AUGMENTATION,
    )


def our_training(dataset: Dataset, config: Config) -> list[Side]:
    """Our loader alone, and with the device's part on this processor."""

    def loaded() -> Iterator[dict[str, np.ndarray]]:
        steps = config.images // config.batch_size
        yield from train_batches(dataset, global_batch=config.batch_size, seed=0, stop_step=steps)

    device = jax.jit(
        lambda images, step: augment(images, seed=0, step=step, augmentation=AUGMENTATION, preprocessing=RULE)
    )
    device(jnp.zeros((config.batch_size, 224, 224, 3), jnp.uint8), 0)

    def with_device() -> Iterator[int]:
        for step, batch in enumerate(loaded()):
            yield len(jax.block_until_ready(device(batch["image"], step)))

    return [
        Side("ours, to the device", lambda: (len(batch["label"]) for batch in loaded())),
        Side("ours, with the device's part on this processor", with_device),
    ]


def our_evaluation(dataset: Dataset, config: Config) -> list[Side]:
    """Our loader with the shifted crops' surroundings, 256x256, and with 224x224 as torchvision's."""

    def loaded(size: int) -> Iterator[int]:
        for batch in val_batches(dataset, global_batch=config.batch_size, size=size):
            yield int(batch["mask"].sum())

    return [
        Side("ours, to the device", lambda: loaded(224)),
        Side("ours, 256 pixels wide for shifted crops", lambda: loaded(256)),
    ]


def torchvision_sides(root: Path, config: Config) -> dict[str, Any]:
    """torchvision's loaders, and its pixels of one photo; empty where it is not installed."""
    if peers.missing() is not None:
        return {}
    torch = peers.torch()
    datasets, transforms = peers.torchvision().datasets, peers.torchvision().transforms
    torch.set_num_threads(1)
    finish = [transforms.ToTensor(), transforms.Normalize(RULE.mean, RULE.std)]
    random = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()]
    centre = [transforms.Resize(256), transforms.CenterCrop(224)]

    def loaded(steps: list, shuffle: bool, whole: bool) -> Iterator[int]:
        folder = datasets.ImageFolder(str(root), transforms.Compose(steps))
        loader = torch.utils.data.DataLoader(folder, config.batch_size, shuffle=shuffle)
        left = len(folder) if whole else config.images
        for images, _ in loader:
            yield len(images)
            left -= len(images)
            if left <= 0:
                return

    crop = transforms.Compose(centre)
    loader = datasets.folder.default_loader
    return {
        "train": Side("torchvision", lambda: loaded([*random, *finish], True, False)),
        "val": Side("torchvision", lambda: loaded([*centre, *finish], False, True)),
        "pixels": lambda path: np.asarray(crop(loader(str(path)))),
    }


def rate(side: Side) -> float:
    """Images per second of processor time of one round."""
    start = time.process_time()
    count = sum(side.batches())
    return count / (time.process_time() - start)


def compare(report: Report, title: str, ours: list[Side], theirs: Side | None, rounds: int) -> None:
    """Measures all sides in turn, after a round that does not count, and reports medians and ratios."""
    sides = [*ours, *([theirs] if theirs else [])]
    rates: dict[str, list[float]] = {side.name: [] for side in sides}
    for turn in range(rounds + 1):
        for side in sides:
            found = rate(side)
            if turn:
                rates[side.name].append(found)
    medians = {name: statistics.median(found) for name, found in rates.items()}
    for name, found in rates.items():
        row = {"loader": name, "images/s per core": medians[name], "slowest": min(found), "fastest": max(found)}
        report.add(title, row | ({"times torchvision": medians[name] / medians[theirs.name]} if theirs else {}))
    if theirs:
        ratio = medians[ours[0].name] / medians[theirs.name]
        verdict = "reached" if ratio >= TARGET else "missed"
        report.note(f"{title.split(':')[0]}: {ratio:.2f} times torchvision's rate, target {TARGET}: {verdict}.")


def compare_pixels(dataset: Dataset, pixels: Callable[[Path], np.ndarray]) -> str:
    """Says that our evaluation pixels are torchvision's, bit for bit; ValueError where they are not."""
    folder = dataset.val
    assert isinstance(folder, ImageFolder)
    batch = next(val_batches(dataset, global_batch=8, size=224))
    count = int(batch["mask"].sum())
    for i in range(count):
        if not np.array_equal(batch["image"][i], pixels(folder.path(i))):
            raise ValueError(f"our pixels of {folder.path(i)} differ from torchvision's")
    return f"The pixels of the first {count} photos equal torchvision's, bit for bit."
