"""Where images come from: random-access sources of (encoded image or pixels, label)."""

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from aa_flax.weights.class_names import imagenet_index, imagenet_wnids
from train.data.decode import decode_rgb, read_rgb
from train.errors import CommandError

log = logging.getLogger(__name__)

# torchvision's list, so that the same folder holds the same images in both.
IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"))


class Source(Protocol):
    """Labelled images by position. Sources travel to worker processes: keep them small."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """(height, width, 3) uint8 pixels and class index; raises UnreadableImageError."""
        ...

    def name(self, index: int) -> str:
        """What a person calls the image: its path below the data set's directory."""
        ...


class ArraySource:
    """Images of one size in memory, or in a memory-mapped `.npy` file.

    Args:
        images: (n, height, width, 3) uint8, or the path of a `.npy` file of that shape; a path is
            opened anew in each worker process instead of being sent there.
        labels: (n,) class indices.
        prefix: what `name` puts before an image's position.
    """

    def __init__(self, images: np.ndarray | Path, labels: np.ndarray, prefix: str) -> None:
        self._file = images if isinstance(images, Path) else None
        self._images = None if isinstance(images, Path) else images
        self.labels = np.asarray(labels, np.int32)
        self._prefix = prefix

    @property
    def images(self) -> np.ndarray:
        """(n, height, width, 3) uint8."""
        if self._images is None:
            assert self._file is not None
            self._images = np.load(self._file, mmap_mode="r")
        return self._images

    def __getstate__(self) -> dict:
        mapped = self._file is not None
        return {**self.__dict__, "_images": None} if mapped else self.__dict__.copy()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.images[index], int(self.labels[index])

    def name(self, index: int) -> str:
        return f"{self._prefix}/{index}"


class EncodedSource:
    """Encoded images by random access: what `tfds.data_source` with `SkipDecoding` gives.

    Args:
        records: random access to mappings with the keys "image" (bytes) and "label".
        prefix: what `name` puts before an image's position.
    """

    def __init__(self, records: Sequence, prefix: str) -> None:
        self._records = records
        self._prefix = prefix

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        record = self._records[index]
        return decode_rgb(record["image"]), int(record["label"])

    def name(self, index: int) -> str:
        return f"{self._prefix}/{index}"


class ImageFolder:
    """Photos in one folder per class, `ROOT/CLASS/**/*.jpg`, in torchvision's order.

    Args:
        root: the directory of class folders.
        class_names: folder names in class order. By default they come from the folders: where all
            are ImageNet's WordNet ids, ImageNet's 1,000 classes, even when only some folders exist;
            otherwise the folder names in alphabetical order.

    Attributes:
        class_names: name of each class index.
        labels: (n,) int32 class indices.

    Raises:
        CommandError: no such directory, no class folders, no images, a folder that is not among
            `class_names`.
    """

    def __init__(self, root: Path, class_names: Sequence[str] | None = None) -> None:
        self.root = root
        folders = class_folders(root)
        self.class_names = tuple(class_names or default_class_names(folders))
        index = {name: i for i, name in enumerate(self.class_names)}
        unknown = [folder for folder in folders if folder not in index]
        if unknown:
            raise CommandError(
                f"{root}: folder {unknown[0]!r} ({len(unknown)} such) is none of the "
                f"{len(index)} classes, which are {some(self.class_names)}"
            )
        files, labels, empty = [], [], []
        for folder in folders:
            found = [os.fsencode(path) for path in _image_files(root, folder)]
            files += found
            labels += [index[folder]] * len(found)
            empty += [] if found else [folder]
        suffixes = " ".join(sorted(IMAGE_SUFFIXES))
        if not files:
            raise CommandError(f"{root}: its class folders hold no images ({suffixes})")
        if empty:
            log.warning(
                "%s: %d of %d class folders hold no images (%s): %s",
                *(root, len(empty), len(folders), suffixes, some(empty)),
            )
        # One block of bytes, not a million strings: it travels to every worker process.
        self._files = np.array(files)
        self.labels = np.array(labels, np.int32)

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> Path:
        """Where one image lies."""
        return self.root / self.name(index)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return read_rgb(self.path(index)), int(self.labels[index])

    def name(self, index: int) -> str:
        return os.fsdecode(bytes(self._files[index]))


class Classifier(Protocol):
    """What is known of a network's classes."""

    @property
    def model(self) -> str:
        """What people call the network."""
        ...

    @property
    def num_classes(self) -> int:
        """Logits."""
        ...

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """One for each, or None."""
        ...


def open_photos(root: Path, pretrained: Classifier) -> ImageFolder:
    """The photos in a directory, their folders matched with a network's classes.

    The network's own class names come first, where they name all folders; then ImageNet's ids;
    then, where there are as many folders as classes, alphabetical order.

    Args:
        root: the directory of class folders.
        pretrained: has the number and perhaps the names of the classes.

    Raises:
        CommandError: nothing readable there, or folders that cannot be matched.
    """
    folders = class_folders(root)
    names = pretrained.class_names
    if names is None or not set(folders) <= set(names):
        names = default_class_names(folders)
        if len(names) != pretrained.num_classes:
            names = tuple(folders)
    if len(names) != pretrained.num_classes:
        raise CommandError(
            f"{root} has {len(folders)} class folders ({folders[0]}, ...), which cannot be matched "
            f"with the {pretrained.num_classes} classes of {pretrained.model}"
        )
    return ImageFolder(root, names)


def default_class_names(folders: Sequence[str]) -> tuple[str, ...]:
    """Class names for a set of folder names: ImageNet's, or the folders' own, sorted."""
    standard = imagenet_index()
    if all(folder in standard for folder in folders):
        return imagenet_wnids()
    known = sum(folder in standard for folder in folders)
    if known:
        odd = next(folder for folder in folders if folder not in standard)
        log.warning(
            "%d of %d folders are ImageNet classes, %r is not: taking all in alphabetical order",
            *(known, len(folders), odd),
        )
    in_order = sorted(folders)
    if all(folder.isdecimal() for folder in folders) and in_order != sorted(folders, key=int):
        log.warning(
            "folders named by numbers are classes in alphabetical order (%s), as in torchvision: class numbers are not "
            "those of the names; write them with leading zeros for that",
            some(in_order),
        )
    return tuple(in_order)


def some(names: Sequence[str]) -> str:
    """The first few of many names."""
    shown = ", ".join(names[:5])
    return f"{shown}, ..." if len(names) > 5 else shown


def class_folders(root: Path) -> list[str]:
    """Names of the class folders of a directory, sorted.

    Raises:
        CommandError: it does not exist, has no folders, or holds splits (train, val) instead.
    """
    if not root.is_dir():
        problem = "is not a directory" if root.exists() else "does not exist"
        raise CommandError(f"data directory {root} {problem}")
    try:
        # Names with a dot in front are tools' own (.ipynb_checkpoints, .git).
        folders = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise CommandError(f"data directory {root} cannot be read: {error.strerror}") from None
    if not folders:
        raise CommandError(f"{root} has no class folders; expected {root}/CLASS/*.jpg")
    splits = {"train", "val"} & set(folders)
    if splits and len(folders) <= 3:
        raise CommandError(
            f"{root} holds the splits {', '.join(folders)}, not class folders; give {root / sorted(splits)[-1]}"
        )
    return folders


def _image_files(root: Path, folder: str) -> Iterator[str]:
    """Paths below `root` of a class's images, links followed, every directory once."""
    seen: set[tuple[int, int]] = set()
    found: list[tuple[str, list[str]]] = []
    for directory, subdirectories, names in os.walk(root / folder, followlinks=True):
        status = os.stat(directory)
        if (status.st_dev, status.st_ino) in seen:
            log.warning("%s links back to a directory already read: left out", directory)
            subdirectories.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        # So that which of two names of one directory is kept does not depend on the disk's order.
        subdirectories.sort()
        found.append((directory, names))
    for directory, names in sorted(found):
        for name in sorted(names):
            if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                yield os.path.relpath(os.path.join(directory, name), root)
