"""What a run reads from the disk, compared by its content: the same files are the same under any path."""

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aa_flax.files import file_sha256
from aa_flax.weights.names import kind_of, obtain
from aa_flax.weights.provenance import as_parent
from train.data import Dataset
from train.data.fingerprint import fingerprint
from train.fit.config import TrainConfig
from train.fit.record import Record, plain


def describe_dataset(dataset: Dataset) -> dict[str, Any]:
    """What a run's record keeps of its data: enough to export its weights without them."""
    return {
        "name": dataset.name,
        "num_classes": dataset.num_classes,
        "class_names": list(dataset.class_names),
        "preprocessing": plain(dataset.preprocessing),
        "train_images": len(dataset.train),
        "val_images": len(dataset.val),
        "digest": fingerprint(dataset.train),
    }


def dataset_facts(dataset: Dataset) -> dict[str, Any]:
    """What all processes of a run must find in their data."""
    facts = {**describe_dataset(dataset), "validation digest": fingerprint(dataset.val)}
    return {f"the data's {name}": value for name, value in facts.items()}


def weights_digest(init: str | None, model: str | None = None) -> str | None:
    """SHA-256 of the weights that a run starts from; None where their name says it all, or nothing is there any more.

    Args:
        init: `--init`.
        model: the run's network, for files that do not say theirs.
    """
    with contextlib.suppress(ValueError, FileNotFoundError):
        if init is not None and kind_of(init) != "published":
            weights = obtain(init, spec=model)
            return weights.sha256 or file_sha256(weights.path)
    return None


def parent_of(init: str | None, model: str) -> dict[str, Any] | None:
    """Model, licence and source of the weights that a run starts from; None for fresh ones.

    Args:
        init: `--init`.
        model: the run's network, for files that do not say theirs.
    """
    return None if init is None else as_parent(obtain(init, spec=model).config)


def under_the_same_paths(old: Record, config: TrainConfig, dataset: dict[str, Any]) -> TrainConfig:
    """A configuration with the paths of an older run, as far as the same files lie behind its own.

    Args:
        old: the record of that run.
        config: what is about to be trained.
        dataset: what its data turned out to be.
    """
    before, now = old.config.data.dir, config.data.dir
    # Where the older record has a digest, that is what is compared.
    if _same_place(before, now) or (now is not None and old.dataset.get("digest") == dataset.get("digest") is not None):
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, dir=before))
    if _same_weights(old, config.init, config.model):
        config = dataclasses.replace(config, init=old.config.init)
    return config


def _same_place(one: str | Path | None, other: str | Path | None) -> bool:
    if one is None or other is None:
        return one is other
    return os.path.realpath(Path(one).expanduser()) == os.path.realpath(Path(other).expanduser())


def _same_weights(old: Record, init: str | None, model: str) -> bool:
    before = old.config.init
    if init == before or before is None or init is None:
        return init == before
    digest = weights_digest(init, model)
    return digest is not None and digest == (old.init or weights_digest(before, model))


def data_changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What differs between the data of two runs and decides what comes out, a line each.

    Args:
        old: `describe_dataset` of the older run; what it does not have is not compared.
        new: the same of the data at hand.
    """
    compared = ("train_images", "num_classes", "preprocessing")
    changes = [f"data: {name} {old.get(name)} -> {new[name]}" for name in compared if old.get(name) != new[name]]
    if changes:
        return changes
    renamed = _renamed(old.get("class_names", ()), new.get("class_names", ()))
    if renamed:
        return [f"data: {renamed}"]
    digests = old.get("digest"), new.get("digest")
    if None not in digests and digests[0] != digests[1]:
        return ["data: as many training images, but others or in another order"]
    return []


def _renamed(old: Sequence[str], new: Sequence[str]) -> str:
    """The first class that has another name, and how many more."""
    different = [i for i, (one, other) in enumerate(zip(old, new, strict=False)) if one != other]
    if not different:
        return ""
    first = different[0]
    more = f", and {len(different) - 1} more" if len(different) > 1 else ""
    return f"class {first} {old[first]} -> {new[first]}{more}"
