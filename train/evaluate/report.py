"""What an evaluation leaves behind: a table for people, `report.json` for everything else."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from aa_flax.buckets import AnyPath
from aa_flax.consistency import Estimate, Result
from aa_flax.files import file_sha256
from aa_flax.weights.config import PretrainedConfig
from train.data import ImageFolder
from train.data.balance import is_unbalanced
from train.environment import environment
from train.evaluate.scoring import Score
from train.measurable.network import Measurable

# Numbers of one photo beyond which the report would hold more than anybody reads.
MAX_LISTED = 64
MAX_NAMED = 10
# What the table says of the parts of a protocol; the report has all of them.
PARTS = {
    "consistent_correct": "consistent and correct",
    "consistent_wrong": "consistent and wrong",
    "agree_if_right": "consistent if one is correct",
    "probability_change": "change of the probability",
    "unshifted": "unshifted",
    "unmoved": "were the map to stay",
    "snr_db": "signal to noise, dB",
}


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A finished evaluation.

    Attributes:
        pretrained: what is known of the network.
        weights: the file they came from; None for published ones.
        options: of the command, a dataclass.
        photos: what was measured.
        score: what it showed.
        reasons: why photos were unreadable, by name, as far as this process met them.
    """

    pretrained: PretrainedConfig | Measurable
    weights: Path | None
    options: Any
    photos: ImageFolder
    score: Score
    reasons: dict[str, str]

    @property
    def unreadable(self) -> list[str]:
        """Names of the photos that could not be measured."""
        return [self.photos.name(int(index)) for index in self.score.unreadable]


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """The report: figures in percent, answers for each photo, and what repeats the run."""
    score, pretrained = evaluation.score, evaluation.pretrained
    protocols = {name: each.as_dict() for name, each in score.results.items()}
    figures: dict[str, Any] = {"top1": None, "top5": None}
    if accuracy := protocols.get("accuracy"):
        top5 = accuracy["parts"]["top5"]
        figures = {"top1": accuracy["value"], "top1_stderr": accuracy["stderr"]}
        figures |= {"top5": top5["value"], "top5_stderr": top5["stderr"]}
    agreements = [name for name, each in score.results.items() if each.quantity == "consistency"]
    return {
        "model": pretrained.model,
        "images": len(score.index),
        **figures,
        "classes": _by_class(evaluation),
        "consistency": {name: {key: protocols[name][key] for key in ("value", "stderr")} for name in agreements},
        "unreadable": [{"file": name, "reason": evaluation.reasons.get(name)} for name in evaluation.unreadable],
        "protocols": protocols,
        "per_image": {
            "file": [evaluation.photos.name(int(index)) for index in score.index],
            "label": evaluation.photos.labels[score.index].tolist(),
            **{name: _per_image(each) for name, each in score.results.items()},
        },
        "repeat": {
            "options": _plain(dataclasses.asdict(evaluation.options)),
            "weights_sha256": None if evaluation.weights is None else file_sha256(evaluation.weights),
            "pretrained": _plain(pretrained.as_dict()),
            "device_count": jax.device_count(),
            **environment(),
        },
    }


@dataclass(frozen=True)
class Classes:
    """Top-1 accuracy class by class.

    Attributes:
        images: photos of each class that was measured, by its index.
        top1: accuracy of each, percent, by its index.
    """

    images: dict[int, int]
    top1: dict[int, float]

    @property
    def mean(self) -> float:
        """The mean over classes: every class counts the same."""
        return sum(self.top1.values()) / len(self.top1)

    @property
    def majority(self) -> float:
        """The accuracy of answering with the most frequent class always, percent."""
        return 100 * max(self.images.values()) / sum(self.images.values())

    @property
    def unbalanced(self) -> bool:
        """Whether one class has so many more photos than the others that the accuracy is its accuracy."""
        return is_unbalanced(list(self.images.values()))


def class_accuracies(evaluation: Evaluation) -> Classes | None:
    """None where accuracy was not measured."""
    accuracy = evaluation.score.results.get("accuracy")
    if accuracy is None:
        return None
    labels = evaluation.photos.labels[evaluation.score.index]
    found = [int(label) for label in np.unique(labels)]
    return Classes(
        images={label: int(np.sum(labels == label)) for label in found},
        top1={label: float(np.mean(accuracy.per_image[labels == label])) for label in found},
    )


def _by_class(evaluation: Evaluation) -> dict[str, Any] | None:
    classes = class_accuracies(evaluation)
    if classes is None:
        return None
    names = evaluation.photos.class_names
    each = {names[label]: {"images": count, "top1": classes.top1[label]} for label, count in classes.images.items()}
    return {"mean_top1": classes.mean, "majority": classes.majority, "each": each}


def _per_image(result: Result) -> dict[str, Any]:
    arrays = {
        name: array.tolist()
        for name, array in result.arrays.items()
        if name not in ("index", "labels") and array[:1].size <= MAX_LISTED
    }
    return {"percent": result.per_image.tolist(), **arrays}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, AnyPath) else value


def _lines(result: Result) -> dict[str, Estimate]:
    """Title and value of what the table says of a protocol."""
    name = result.protocol
    if name == "accuracy":
        return {"top-1 accuracy": result, "top-5 accuracy": result.parts["top5"]}
    title = f"{result.quantity}, {name}"
    if name == "equivariance":
        shift = result.settings["shift"]
        title, name = f"{result.quantity}, {shift}", f"{name}, {shift}"
    lines: dict[str, Estimate] = {title: result}
    return lines | {f"  {name}, {words}": result.parts[part] for part, words in PARTS.items() if part in result.parts}


def print_table(evaluation: Evaluation, console: Console) -> None:
    """Prints value and standard error of each measurement, and the photos left out."""
    score = evaluation.score
    photos = f"{len(score.index):,} photos"
    table = Table(title=f"{evaluation.pretrained.model} on {photos}", title_justify="left")
    table.add_column("measurement")
    table.add_column("percent", justify="right")
    table.add_column("+- stderr", justify="right")
    for result in score.results.values():
        for title, estimate in _lines(result).items():
            table.add_row(
                title, f"{estimate.value:.2f}", "-" if math.isnan(estimate.stderr) else f"{estimate.stderr:.2f}"
            )
    classes = class_accuracies(evaluation)
    if classes is not None and classes.unbalanced:
        table.add_row("top-1 accuracy, mean over classes", f"{classes.mean:.2f}", "-")
        table.add_row("always the most frequent class", f"{classes.majority:.2f}", "-")
    console.print(table)
    left_out = evaluation.unreadable
    if left_out:
        named = [f"{name} ({evaluation.reasons.get(name, 'see the log')})" for name in left_out[:MAX_NAMED]]
        more = f" and {len(left_out) - MAX_NAMED} more" if len(left_out) > MAX_NAMED else ""
        console.print(f"unreadable, not counted ({len(left_out)}): {', '.join(named)}{more}", soft_wrap=True)
