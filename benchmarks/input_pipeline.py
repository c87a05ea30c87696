"""Images per second and core of our loader beside torchvision's, same files, same transforms, one run.

    python benchmarks/input_pipeline.py --data /data/imagenet/val

Counts processor time of this process, all threads included, so that other work on the machine does
not enter. torchvision's side is `DataLoader(ImageFolder(...))` with its usual transforms, which end
in normalised float tensors. Ours ends in the uint8 batch that goes to the device; what the device
then does (flip, normalise) is measured apart, on this processor.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from PIL import Image
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from aa_flax.weights.config import Preprocessing
from benchmarks import peers
from train.data import Augmentation, Dataset, ImageFolder, train_batches, val_batches
from train.data.augment import augment

TARGET = 1.5
RULE = Preprocessing()
AUGMENTATION = Augmentation(random_resized_crop=True, flip=True)


@dataclass(frozen=True)
class Config:
    """Compares our input pipeline with torchvision's on the same photos."""

    data: Path | None = None
    """Directory of class folders; by default the photos in ../shared (or $AA_SHARED), else noise."""
    images: int = 250
    """Photos in a round."""
    batch_size: int = 50
    """Photos in a batch."""
    rounds: int = 5
    """Rounds of each side, taken in turns; the median counts."""
    smoke: bool = False
    """A round of a few photos, to see that it runs."""


@dataclass(frozen=True)
class Side:
    """One way to load: makes an iterator of batches of a round, each with its number of images."""

    name: str
    batches: Callable[[], Iterator[int]]


def main(config: Config) -> int:
    """Prints a table for training and for evaluation; 1 where our pixels differ from torchvision's."""
    if config.smoke:
        config = Config(data=config.data, images=8, batch_size=4, rounds=1)
    with tempfile.TemporaryDirectory() as scratch:
        root = config.data or shared_photos() or synthetic_photos(Path(scratch), config.images)
        dataset = photos(root)
        torch = torchvision_sides(root, config)
        console = Console(width=100)
        console.print(f"{len(dataset.train)} photos in {root}; {os.cpu_count()} cores; {config.rounds} rounds")
        for title, ours, theirs in (
            ("training: random resized crop 224, flip, normalise", our_training(dataset, config), torch.get("train")),
            ("evaluation: resize 256, centre crop 224, normalise", our_evaluation(dataset, config), torch.get("val")),
        ):
            compare(console, title, ours, theirs, config.rounds)
        if not torch:
            console.print("torch and torchvision are not installed: no ratio. Install them with: make parity")
            return 0
        return 0 if report_equality(console, dataset, torch["pixels"]) else 1


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


def compare(console: Console, title: str, ours: list[Side], theirs: Side | None, rounds: int) -> None:
    """Measures all sides in turns and prints medians and ratios."""
    sides = [*ours, *([theirs] if theirs else [])]
    for side in sides:
        rate(side)
    rates: dict[str, list[float]] = {side.name: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            rates[side.name].append(rate(side))
    peer = statistics.median(rates[theirs.name]) if theirs else None
    table = Table("loader", title=title, title_justify="left")
    for heading in ("images/s per core", "slowest", "fastest", "ratio to torchvision"):
        table.add_column(heading, justify="right")
    for name, found in rates.items():
        median = statistics.median(found)
        ratio = "" if peer is None else f"{median / peer:.2f}"
        table.add_row(name, f"{median:.0f}", f"{min(found):.0f}", f"{max(found):.0f}", ratio)
    console.print(table)
    if peer is not None:
        ratio = statistics.median(rates[ours[0].name]) / peer
        verdict = "reached" if ratio >= TARGET else "missed"
        console.print(f"ratio {ratio:.2f}, target {TARGET}: {verdict}\n")


def report_equality(console: Console, dataset: Dataset, pixels: Callable[[Path], np.ndarray]) -> bool:
    """Whether our evaluation pixels are torchvision's, bit for bit."""
    folder = dataset.val
    assert isinstance(folder, ImageFolder)
    batch = next(val_batches(dataset, global_batch=8, size=224))
    count = int(batch["mask"].sum())
    same = all(np.array_equal(batch["image"][i], pixels(folder.path(i))) for i in range(count))
    console.print(f"pixels of the first {count} photos equal torchvision's: {'yes' if same else 'NO'}")
    return same


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config)))
