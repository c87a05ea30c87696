"""What `examples.methods_comparison` compares: methods, the terms of all, and a run, made and measured."""

import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import flax
import jax
import numpy as np
from flax import nnx

from aa_flax import consistency
from examples.cells import Line
from examples.cifar10_study import few_images, scaled_recipe
from train.data import DataConfig, Dataset, evaluation_batches, open_dataset
from train.data.channels import network_input
from train.fit.config import NetworkConfig, TrainConfig
from train.fit.network import abstract_network
from train.fit.step import TrainState, split_model
from train.fit.sweep import Sweep

Forward = Callable[[Any], jax.Array]


class Method(NamedTuple):
    """One way to subsample.

    Attributes:
        title: what tables call it.
        taps: suffix of the network's name.
        options: those of `NetworkConfig` that make it.
        cooled: whether the choice of samples hardens: a temperature falls from 1 to a tenth in the course of the run.
        models: the networks that have it; None for all.
    """

    title: str
    taps: str
    options: Mapping[str, Any] = {}
    cooled: bool = False
    models: tuple[str, ...] | None = None


ALIAS_FREE = {"downsample": "ideal", "activation": "alias_free", "norm": "alias_free"}
METHODS: dict[str, Method] = {
    "plain": Method("plain", "_plain"),
    "blur3": Method("BlurPool, 3 taps", "_lpf3"),
    "blur4": Method("BlurPool, 4 taps", "_lpf4"),
    "aps": Method("APS", "_lpf1", {"downsample": "aps"}),
    "aps_blur": Method("APS, 3 taps", "_lpf3", {"downsample": "aps"}),
    "lps": Method("LPS", "_lpf1", {"downsample": "lps"}, cooled=True),
    "ddac": Method("DDAC, 3 taps", "_lpf3", {"downsample": "ddac"}),
    "ideal": Method("ideal low-pass", "_lpf4", {"downsample": "ideal"}),
    "alias_free": Method("alias-free", "_lpf4", ALIAS_FREE, models=("resnet18",)),
}
MODELS = ("resnet18", "mobilenet_v2")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Terms:
    """What all runs of a comparison have in common.

    Attributes:
        side: of the images, in pixels.
        share: every so-manieth image is taken, of those to train on and of those to measure.
        epochs: passes over the training images.
        batch: images an update.
        mobilenet_rate: times the learning rate of MobileNetV2's recipe, with which few updates hardly change it.
        dtype: number format of training; measured is in float32.
        pairs: pairs of shifts for each image and protocol.
        reach: pixels of the worst shift, on each axis.
        together: images that are measured at once; must divide their number.
    """

    side: int = 32
    share: int = 1
    epochs: int = 8
    batch: int = 256
    mobilenet_rate: float = 1.0
    dtype: str = "bfloat16"
    pairs: int = 5
    reach: int = 2
    together: int = 2000

    def cifar10(self, files: Path) -> DataConfig:
        """CIFAR-10, which training flips and never shifts."""
        return DataConfig(name="cifar10", dir=files, image_size=self.side, augment="no_shift")

    def open(self, config: DataConfig) -> Dataset:
        """The images."""
        return open_dataset(config) if self.share == 1 else few_images(config, self.share)


SMALL = Terms(
    side=16, share=40, epochs=5, batch=32, mobilenet_rate=10.0, dtype="float32", pairs=2, reach=1, together=250
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One run."""

    method: str
    model: str
    seed: int

    @property
    def kind(self) -> tuple[str, str]:
        return self.method, self.model

    def __str__(self) -> str:
        return f"{self.method} {self.model} seed {self.seed}"


def config_of(cell: Cell, terms: Terms, data: DataConfig) -> TrainConfig:
    """The trainer's own recipe for CIFAR-10, for a network in which the method does all the subsampling."""
    method = METHODS[cell.method]
    recipe = scaled_recipe(cell.model + method.taps, batch=terms.batch)
    rate = terms.mobilenet_rate if cell.model == "mobilenet_v2" else 1.0
    cooling = {"lps_temperature": ((0.0, 1.0), (float(terms.epochs), 0.1))} if method.cooled else {}
    return dataclasses.replace(
        recipe,
        seed=cell.seed,
        epochs=terms.epochs,
        dtype=terms.dtype,
        data=data,
        optim=dataclasses.replace(
            recipe.optim,
            lr=recipe.optim.lr * rate,
            warmup_epochs=terms.epochs // 4,
            # For the alias-free activation, whose square can make single gradients large; on equal terms for all.
            clip_norm=5.0,
            **cooling,
        ),
        net=NetworkConfig(circular=True, pad_type="circular", stem_stride=1, **method.options),
    )


def protocols_of(terms: Terms, side: int) -> dict[str, consistency.ShiftProtocol]:
    """The measures, for images with this side and a margin of an eighth around them."""
    drawn = {"crop": side, "pairs": terms.pairs, "device_batch": terms.together}
    fixed = {"crop": side, "device_batch": terms.together}
    return {
        "accuracy": consistency.Accuracy(**fixed),
        "crop": consistency.Crop(**drawn, shifts=2 * (side // 8) + 1),
        "circular": consistency.Circular(**drawn, max_shift=side // 2),
        "fractional": consistency.Fractional(**drawn, periodic=True),
        "worst": consistency.WorstCase(**fixed, max_shift=terms.reach),
    }


class Measures:
    """Measures networks on the validation images.

    Args:
        dataset: whose images, of one size.
        terms: how many shifts.
    """

    def __init__(self, dataset: Dataset, terms: Terms):
        count, side, margin = len(dataset.val), dataset.preprocessing.crop, dataset.margin
        (whole,) = evaluation_batches(dataset.val, dataset.preprocessing, global_batch=count)
        pads = ((0, 0), (margin, margin), (margin, margin), (0, 0))
        self._images = jax.device_put(np.pad(whole["image"], pads, mode="reflect"))
        self._labels, self._together = whole["label"], math.gcd(count, terms.together)
        self._preprocess = network_input(dataset.preprocessing)
        self._protocols = protocols_of(dataclasses.replace(terms, together=self._together), side)

    def compile(self, forward: Forward) -> None:
        """Compiles a network by measuring some images once."""
        self._per_image(self._protocols["accuracy"], forward, np.arange(self._together))

    def __call__(self, forward: Forward) -> dict[str, consistency.Result]:
        """What each protocol says of a network, `forward(images) -> logits`, jitted."""
        chunks = np.arange(len(self._labels)).reshape(-1, self._together)
        return {
            name: protocol.summarise(consistency.gather(self._per_image(protocol, forward, rows) for rows in chunks))
            for name, protocol in self._protocols.items()
        }

    def _per_image(self, protocol: consistency.ShiftProtocol, forward: Forward, rows: np.ndarray) -> dict[str, Any]:
        # As many images as views may be at once: all protocols then share the network's one program.
        images, labels = self._images[rows], self._labels[rows]
        return protocol.per_image(forward, images, index=rows, labels=labels, preprocess=self._preprocess)


class Runner:
    """Makes and measures runs; those that differ in their seed alone share programs.

    Args:
        terms: of all runs.
        data: where the images are.
    """

    def __init__(self, terms: Terms, data: DataConfig):
        self._terms, self._data = terms, data
        self._dataset = terms.open(data)
        self._sweep = Sweep(lambda config: self._dataset)
        self._measures = Measures(self._dataset, terms)
        self._logits: dict[tuple[str, str], Callable[..., jax.Array]] = {}

    def compile(self, cell: Cell) -> None:
        """Compiles what a run needs; threads may do so for several, see `Sweep.compile`."""
        state = self._sweep.compile(self._config(cell))
        self._measures.compile(self._forward(cell, state))

    def make(self, cell: Cell, updates: Callable[[int], None]) -> Line:
        """Trains and measures: a line of the output.

        Args:
            cell: the run.
            updates: called with the number of updates made so far; may raise to give up.
        """
        config, stamps = self._config(cell), []

        def stamp(made: int) -> None:
            stamps.append((made, time.perf_counter()))
            updates(made)

        began = time.perf_counter()
        state, loss = self._sweep.train(config, progress=stamp)
        trained = time.perf_counter()
        # The first stamp has waited for the compiler.
        laps = [(after - before) / (b - a) for (a, before), (b, after) in itertools.pairwise(stamps[1:])]
        figures = self._figures(cell, state) if math.isfinite(loss) else {"failed": f"the loss is {loss}"}
        return {
            **dataclasses.asdict(cell),
            **dataclasses.asdict(self._terms),
            **figures,
            "loss": round(loss, 5) if math.isfinite(loss) else None,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
            "update_ms": round(1000 * median(laps), 3) if laps else None,
            "train_seconds": round(trained - began, 1),
            "measure_seconds": round(time.perf_counter() - trained, 1),
            "device": jax.devices()[0].device_kind,
            "jax": jax.__version__,
            "flax": flax.__version__,
        }

    def _figures(self, cell: Cell, state: TrainState) -> Line:
        try:
            results = self._measures(self._forward(cell, state))
        except ValueError as error:  # it returns NaN
            return {"failed": str(error)}
        estimates = {**results, "unchanged": results["worst"].parts["unchanged"]}
        values = {name: round(each.value, 4) for name, each in estimates.items()}
        return values | {"stderr": {name: round(each.stderr, 4) for name, each in estimates.items()}}

    def _config(self, cell: Cell) -> TrainConfig:
        return config_of(cell, self._terms, self._data)

    def _forward(self, cell: Cell, state: TrainState) -> Forward:
        """The network with a run's weights, in float32, as a compiled function of images."""
        key = cell.kind
        if key not in self._logits:
            config = dataclasses.replace(self._config(cell), dtype="float32")
            network = abstract_network(config, self._dataset.num_classes)
            network.eval()
            graph = split_model(network)[0]
            self._logits[key] = jax.jit(lambda params, stats, images: nnx.merge(graph, params, stats)(images))
        return functools.partial(self._logits[key], state.params, state.stats)
