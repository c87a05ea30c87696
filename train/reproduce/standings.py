"""What was published of a network, what was measured of it, and who stands on the Pareto front."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from aa_flax.consistency import Estimate
from aa_flax.weights import catalog

FILTER_NAMES = {None: "Baseline", 2: "Rect-2", 3: "Tri-3", 4: "Tri-4", 5: "Bin-5"}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured of one network.

    Attributes:
        top1: Accuracy on every photo once, percent.
        top5: The same with five guesses.
        consistency: Crop consistency by the `zhang2019` protocol, percent.
        milliseconds: Time of a forward pass, per image; None where none was taken here.
        weights: Where the weights came from, for people.
        published_file: Whether they are the catalogued file; otherwise a difference from the
            published number says nothing about reproduction.
    """

    top1: Estimate
    top5: Estimate
    consistency: Estimate
    milliseconds: float | None
    weights: str
    published_file: bool


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One row of the published tables, with what was measured of it here.

    Attributes:
        model: Name without suffix, "resnet50".
        filter_size: Taps of the blur; None for the plain network.
        training: "torchvision" (the plain network), "scratch" or "finetuned".
        top1: Published accuracy, percent.
        consistency: Published crop consistency, percent.
        measured: None where nothing was measured.
    """

    model: str
    filter_size: int | None
    training: str
    top1: float
    consistency: float
    measured: Measured | None = None

    @property
    def spec(self) -> str:
        """The name that `create_model` takes."""
        suffix = "plain" if self.filter_size is None else f"lpf{self.filter_size}"
        return f"{self.model}_{suffix}"

    @property
    def filter_name(self) -> str:
        """What the reference's tables call the filter."""
        return FILTER_NAMES.get(self.filter_size, f"Bin-{self.filter_size}")


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """On what the measured numbers rest.

    Attributes:
        data: The directory of photos, for people.
        images: How many photos.
        fingerprint: Identifies the photos and their labels.
        protocol: The consistency protocol with its settings, for people.
        device: What ran the networks.
        timing: How the time was taken, for people.
    """

    data: str
    images: int
    fingerprint: str
    protocol: str
    device: str
    timing: str


def front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which points no other point beats: at least as good in both numbers and better in one."""
    return [not any(a >= x and b >= y and (a, b) != (x, y) for a, b in points) for x, y in points]


def published_entries() -> list[Entry]:
    """Every published row of `aa_flax.weights.catalog`; ResNet-18 comes before ResNet-101."""
    names = ("model", "filter_size", "training", "top1", "consistency")
    rows = [Entry(**{name: getattr(row, name) for name in names}) for row in catalog.published()]
    return sorted(rows, key=lambda row: _natural(row.model))


def _natural(name: str) -> list[tuple[str, int]]:
    parts = re.findall(r"(\D*)(\d*)", name)
    return [(letters, int(digits or 0)) for letters, digits in parts]
