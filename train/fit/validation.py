"""Accuracy and crop consistency on the validation images after each epoch."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx
from jax.tree_util import Partial

from aa_flax.consistency import Crop
from train.data import Dataset, val_batches
from train.data.balance import majority_rate
from train.evaluate.scoring import protocols_for, score, whole_batch
from train.fit.symptoms import symptoms

# Pairs of crops for each image. Every pair costs two passes; a single one already has a standard error of a few
# tenths on ImageNet's 50,000 images, and small sets take more to get there.
MANY_IMAGES, FEW_PAIRS, MANY_PAIRS = 20_000, 1, 5


class Validator:
    """Measures a network on the validation images of a data set.

    Args:
        model: the network; only its structure is kept.
        dataset: what to measure on, with its sizes and normalisation.
        batch: least images per batch over all processes.
    """

    def __init__(self, model: nnx.Module, dataset: Dataset, *, batch: int):
        view = nnx.view(model, use_running_average=True, deterministic=True, raise_if_not_found=False)
        graphdef = nnx.split(view, nnx.Param, nnx.BatchStat)[0]

        def logits(params: Any, stats: Any, images: jax.Array) -> jax.Array:
            return nnx.merge(graphdef, params, stats)(images)

        # One object for all epochs: compiled programs are looked up by it.
        self._logits = logits
        self._dataset = dataset
        self._batch = whole_batch(batch)
        self._majority = majority_rate(dataset.val)
        protocols = protocols_for(
            ("accuracy", "crop"),
            dataset.preprocessing,
            margin=dataset.margin,
            device_batch=max(1, self._batch // jax.process_count()),
        )
        pairs = FEW_PAIRS if len(dataset.val) >= MANY_IMAGES else MANY_PAIRS
        crop = protocols["crop"]
        assert isinstance(crop, Crop)
        self._protocols = {**protocols, "crop": dataclasses.replace(crop, pairs=pairs)}

    def __call__(self, params: Any, stats: Any, progress: Callable[[float], None]) -> dict[str, float]:
        """Measures weights.

        Args:
            params: parameters, as in the training state.
            stats: BatchNorm's statistics.
            progress: called with the share of images done, from 0 to 1.

        Returns:
            `accuracy` and `consistency` in percent, each with its standard error under `..._stderr`.

        Raises:
            CommandError: no image can be read, or the network gives NaN.
        """
        total, done = len(self._dataset.val), 0

        def count(images: int) -> None:
            nonlocal done
            done += images
            progress(min(1.0, done / total))

        batches = val_batches(
            self._dataset,
            global_batch=self._batch,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        try:
            results = score(
                Partial(self._logits, params, stats),
                batches,
                self._protocols,
                self._dataset.preprocessing,
                margin=self._dataset.margin,
                progress=count,
            ).results
        finally:
            batches.close()
        accuracy, crop = results["accuracy"], results["crop"]
        return {
            "accuracy": accuracy.value,
            "accuracy_stderr": accuracy.stderr,
            "consistency": crop.value,
            "consistency_stderr": crop.stderr,
        }

    def symptoms(self, loss: float, scores: Mapping[str, float]) -> list[str]:
        """Lines about figures that only a network gives that learns nothing; see `train.fit.symptoms`.

        Args:
            loss: mean training loss of the last updates.
            scores: what measuring gave.
        """
        return symptoms(loss, scores, num_classes=self._dataset.num_classes, majority=self._majority)
