"""The paper's experiment on CIFAR-10: what does anti-aliasing change in accuracy and in shift consistency?

    python -m examples.cifar10_study --data cifar10-images.tar.xz --output runs/study.jsonl
    python -m examples.cifar10_study --data cifar10-images.tar.xz --output runs/small.jsonl --small

Networks of the zoo, unmodified but for the number of classes, see the images enlarged to 64x64, so that the stems made
for ImageNet make sense. Each run is one line of JSON; runs that the output already holds are not repeated. A run is a
configuration of `python -m train fit`, made in a sweep so that the seeds of a network share its compiled program.
"""

import dataclasses
import itertools
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import flax
import jax
import jax.numpy as jnp
import tyro

import aa_flax
from aa_flax.local_paths import check_local_paths
from examples.cells import Deadline, Ledger, Line, Resumable
from train.data import DataConfig, Dataset, open_dataset
from train.data.sources import ArraySource, Source
from train.errors import CommandError
from train.fit.config import TrainConfig, validate
from train.fit.presets import preset
from train.fit.step import TrainState
from train.fit.sweep import Program, Sweep

# A third of the epochs at a tenth of the rate, as the reference fine-tunes.
FINETUNE_SHARE, FINETUNE_RATE = 1 / 3, 0.1
Recipe = Literal["scratch", "finetune", "longer"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study(Resumable):
    """Train networks plain and anti-aliased on CIFAR-10 and measure them."""

    data: Path
    """The tar of JPEG files, or its extracted folder."""

    models: tuple[str, ...] = ("resnet18",)
    """Names of networks."""

    filters: tuple[int, ...] = (0, 2, 3, 4, 5)
    """Filter sizes; 0 is the plain network."""

    augment: tuple[Literal["shift", "none"], ...] = ("shift", "none")
    """With and without random shifts of the training images. Both flip."""

    recipes: tuple[Recipe, ...] = ("scratch",)
    """scratch; finetune: the plain network's weights, antialiased, a third of the epochs more; longer: from scratch for
    as many epochs as plain training and fine-tuning take together."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Each decides initial weights, order, augmentation and dropout of a run."""

    epochs: int = 20
    """Passes over the training images of the recipe `scratch`."""

    batch: int = 256
    """Images an update."""

    rate: float = 1.0
    """Multiple of the learning rate of the trainer's recipe."""

    warmup_epochs: int = 2
    """Epochs over which the rate rises from zero."""

    clip_norm: float | None = None
    """Scale gradients down to this norm."""

    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Number format of the computation."""

    save: Path | None = None
    """Directory for the weights of the runs with the first seed and shifts, as `load_pretrained` reads them."""

    small: bool = False
    """Minutes on a CPU: 32x32 images, a fortieth of them, two epochs, one seed, plain against 4 taps."""

    like: tuple[Path, ...] = ()
    """Outputs of other studies, to guess from how long the first run of a network takes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One line of the output, without its results."""

    model: str
    filter_size: int
    augment: str
    recipe: str
    seed: int
    epochs: int
    batch: int
    rate: float = 1.0
    warmup_epochs: int = 2
    clip_norm: float | None = None

    @property
    def spec(self) -> str:
        return f"{self.model}_lpf{self.filter_size}" if self.filter_size else f"{self.model}_plain"

    @property
    def kind(self) -> tuple[str, str]:
        return self.spec, self.augment

    def __str__(self) -> str:
        steadied = "" if self.clip_norm is None else f", rate x {self.rate:g}, clipped"
        return f"{self.spec} {self.augment} {self.recipe} seed {self.seed}{steadied}"


def small_form(study: Study) -> Study:
    """The study cut down to minutes on a CPU; it shows that everything runs, not what the paper claims."""
    one = {"filters": (0, 4), "augment": ("none",), "seeds": study.seeds[:1], "epochs": 2, "batch": 64}
    return dataclasses.replace(study, dtype="float32", **one)


def few_images(config: DataConfig, share: int = 40) -> Dataset:
    """A fortieth of the data. Files are in order of class: every so-manieth keeps the classes balanced."""

    def few(source: Source) -> Source:
        assert isinstance(source, ArraySource)
        return ArraySource(source.images[::share], source.labels[::share], source.name(0))

    dataset = open_dataset(config)
    return dataclasses.replace(dataset, train=few(dataset.train), val=few(dataset.val))


def scaled_recipe(spec: str, *, batch: int) -> TrainConfig:
    """The trainer's own recipe for CIFAR-10, whose rate is for its own batch, at the rate for another."""
    recipe = preset("cifar10", spec)
    return dataclasses.replace(
        recipe,
        batch=batch,
        # Inside a loop, XLA differentiates convolutions five times slower on CPUs.
        on_device=jax.default_backend() != "cpu",
        optim=dataclasses.replace(recipe.optim, lr=recipe.optim.lr * batch / recipe.batch),
    )


def config_of(run: Run, study: Study) -> TrainConfig:
    """The trainer's own recipe for CIFAR-10, with the length, batch and number format of the study."""
    recipe = scaled_recipe(run.spec, batch=run.batch)
    lr, warmup = recipe.optim.lr * run.rate, run.warmup_epochs
    if run.recipe == "finetune":
        lr, warmup = lr * FINETUNE_RATE, 0
    augment = "standard" if run.augment == "shift" else "no_shift"
    size = 32 if study.small else 64
    return dataclasses.replace(
        recipe,
        seed=run.seed,
        epochs=run.epochs,
        dtype=study.dtype,
        data=dataclasses.replace(recipe.data, dir=study.data, image_size=size, augment=augment),
        optim=dataclasses.replace(recipe.optim, lr=lr, warmup_epochs=warmup, clip_norm=run.clip_norm),
    )


def runs_of(study: Study, model: str, taps: int) -> Iterator[Run]:
    """The runs of one network, in the order they are made."""
    extra = round(study.epochs * FINETUNE_SHARE)
    epochs = {"scratch": study.epochs, "finetune": extra, "longer": study.epochs + extra}
    common = {name: getattr(study, name) for name in ("batch", "rate", "warmup_epochs", "clip_norm")}
    for recipe, augment, seed in itertools.product(study.recipes, study.augment, study.seeds):
        if taps or recipe == "scratch":
            own = {"augment": augment, "recipe": recipe, "seed": seed, "epochs": epochs[recipe]}
            yield Run(model=model, filter_size=taps, **own, **common)


def ledger_of(study: Study) -> Ledger[Run]:
    """What is missing, and what is there."""
    networks = itertools.product(study.models, sorted(study.filters))
    wanted = [run for model, taps in networks for run in runs_of(study, model, taps)]
    return Ledger(Run, study.output, wanted, like=study.like)


def make(run: Run, study: Study, sweep: Sweep, deadline: Deadline) -> Line:
    """Trains and measures: a line of the output."""
    config, start = config_of(run, study), None
    if run.recipe == "finetune":
        # The plain network is trained again: the same seed gives the same weights.
        plain = dataclasses.replace(run, filter_size=0, recipe="scratch", epochs=study.epochs)
        start, _ = sweep.train(config_of(plain, study), progress=deadline.check)
    began = time.perf_counter()
    state, loss = sweep.train(config, start, deadline.check)
    trained = time.perf_counter()
    program = sweep.program(config)
    learned = math.isfinite(loss)
    figures = program.measure(state.params, state.stats) if learned else {}
    line = {
        **dataclasses.asdict(run),
        **{name: round(value, 4) for name, value in figures.items()},
        "loss": round(loss, 5) if learned else None,
        "train_seconds": round(trained - began, 1),
        "measure_seconds": round(time.perf_counter() - trained, 1),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "flax": flax.__version__,
    }
    if study.save is not None and learned and (run.recipe, run.augment, run.seed) == ("scratch", "shift", 0):
        save(study.save, run, program, state)
    return line


def save(directory: Path, run: Run, program: Program, state: TrainState) -> None:
    """Writes a run's weights in float16, with their claimed metrics measured after that rounding."""
    params, stats = jax.tree.map(lambda x: x.astype(jnp.float16), (state.params, state.stats))
    aa_flax.save_pretrained(
        program.network(params, stats),
        directory / f"{run.spec}-cifar10",
        preprocessing=program.dataset.preprocessing,
        class_names=program.dataset.class_names,
        source={"made_by": "python -m examples.cifar10_study", **dataclasses.asdict(run)},
        license="Apache-2.0",
        metrics=program.measure(params, stats),
    )


def main(study: Study) -> None:
    """Makes the runs that are missing."""
    check_local_paths(study)
    study = small_form(study) if study.small else study
    deadline, ledger = Deadline(study.budget), ledger_of(study)
    for run in ledger.missing:
        validate(config_of(run, study))
    if study.dry_run or not ledger.missing:
        ledger.show()
        return
    sweep = Sweep(few_images if study.small else open_dataset)
    ledger.make_all(lambda run: make(run, study, sweep, deadline), deadline)


if __name__ == "__main__":
    try:
        main(tyro.cli(Study, description=__doc__))
    except (CommandError, ValueError) as error:
        print(f"cifar10_study: {error}", file=sys.stderr)
        sys.exit(2)
