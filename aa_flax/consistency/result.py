"""What a measurement gives back: a percentage, its standard error over images, and how to repeat it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A percentage with its standard error.

    Args:
        value: mean over images, in percent.
        stderr: sample standard deviation over images divided by the root of their number, in
            percent. Images are the sample: two shifts of one photo are not two observations.
            `nan` for a single image, whose spread nobody can know.
    """

    value: float
    stderr: float

    @classmethod
    def over_images(cls, percent: np.ndarray) -> Self:
        """The mean of one percentage per image, shape (images,), and its standard error."""
        return cls(**_moments(percent))

    def as_dict(self) -> dict[str, Any]:
        """Both numbers as JSON has them; `nan` becomes None."""
        return {"value": self.value, "stderr": None if math.isnan(self.stderr) else self.stderr}

    def __str__(self) -> str:
        return f"{self.value:.2f} +- {self.stderr:.2f}"


@dataclass(frozen=True, eq=False)
class Result(Estimate):
    """One protocol, measured.

    Args:
        protocol: its name in `PROTOCOLS`.
        quantity: what the value is a percentage of, such as "consistency".
        settings: all that decide the value: `create_protocol(protocol, **settings)`, run again on the
            same images in the same order (or with the same `index`), draws the same shifts.
        per_image: (images,) the percentage of each image; `value` is its mean.
        parts: further percentages by name, such as "consistent_correct" or "top5".
        arrays: what was observed, each (images, ...): "index" (the number of each image, from
            which its shifts were drawn), "predictions", "offsets" where shifts were drawn,
            "labels" where they were given. Protocols name the others they add.
    """

    protocol: str
    quantity: str
    settings: Mapping[str, Any]
    per_image: np.ndarray = field(repr=False)
    parts: Mapping[str, Estimate]
    arrays: Mapping[str, np.ndarray] = field(repr=False)

    @classmethod
    def of(
        cls,
        percent: np.ndarray,
        parts: Mapping[str, np.ndarray],
        arrays: Mapping[str, np.ndarray],
        *,
        protocol: str,
        quantity: str,
        settings: Mapping[str, Any],
    ) -> Self:
        """Build a result from per-image percentages: the value itself, then its parts."""
        estimates = {name: Estimate.over_images(each) for name, each in parts.items()}
        return cls(
            **_moments(percent),
            protocol=protocol,
            quantity=quantity,
            settings=settings,
            per_image=percent,
            parts=estimates,
            arrays=dict(arrays),
        )

    @property
    def images(self) -> int:
        """How many images were measured."""
        return len(self.per_image)

    def as_dict(self) -> dict[str, Any]:
        """The result as JSON-ready values, without the per-image arrays; `nan` becomes None."""
        return {
            "protocol": self.protocol,
            "settings": dict(self.settings),
            "images": self.images,
            **super().as_dict(),
            "parts": {name: part.as_dict() for name, part in self.parts.items()},
        }


def _moments(percent: np.ndarray) -> dict[str, float]:
    percent = np.asarray(percent, np.float64)
    if percent.ndim != 1 or not len(percent):
        raise ValueError(f"one number per image is needed, and at least one image; got shape {percent.shape}")
    spread = percent.std(ddof=1) / math.sqrt(len(percent)) if len(percent) > 1 else math.nan
    return {"value": float(percent.mean()), "stderr": float(spread)}
