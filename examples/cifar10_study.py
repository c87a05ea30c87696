"""The paper's experiment on CIFAR-10: what does anti-aliasing change in accuracy and in shift consistency?

    python -m examples.cifar10_study --data cifar10-images.tar.xz --output runs/study.jsonl
    python -m examples.cifar10_study --data cifar10-images.tar.xz --output runs/small.jsonl --small

Networks of the zoo, unmodified but for the number of classes, see the images enlarged to 64x64, so that the stems made
for ImageNet make sense. Each run is one line of JSON; runs that the output already holds are not repeated. A run is a
configuration of `python -m train fit`, made in a sweep so that the seeds of a network share its compiled program.
"""

import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import flax
import jax
import jax.numpy as jnp
import tyro

import aa_flax
from aa_flax.local_paths import check_local_paths
from train.data import DataConfig, Dataset, open_dataset
from train.data.sources import ArraySource, Source
from train.errors import CommandError
from train.fit.config import TrainConfig
from train.fit.presets import preset
from train.fit.step import TrainState
from train.fit.sweep import Program, Sweep

# A third of the epochs at a tenth of the rate, as the reference fine-tunes.
FINETUNE_SHARE, FINETUNE_RATE = 1 / 3, 0.1
Recipe = Literal["scratch", "finetune", "longer"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """Train networks plain and anti-aliased on CIFAR-10 and measure them."""

    data: Path
    """The tar of JPEG files, or its extracted folder."""

    output: Path
    """One JSON line a run is added here; runs found there are not repeated."""

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

    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Number format of the computation."""

    save: Path | None = None
    """Directory for the weights of the runs with the first seed and shifts, as `load_pretrained` reads them."""

    small: bool = False
    """Minutes on a CPU: 32x32 images, a fortieth of them, two epochs, one seed, plain against 4 taps."""

    limit: float | None = None
    """Start no run after this many seconds."""


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

    @property
    def spec(self) -> str:
        return f"{self.model}_lpf{self.filter_size}" if self.filter_size else f"{self.model}_plain"


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
    optim = recipe.optim
    if run.recipe == "finetune":
        optim = dataclasses.replace(optim, lr=optim.lr * FINETUNE_RATE, warmup_epochs=0)
    augment = "standard" if run.augment == "shift" else "no_shift"
    size = 32 if study.small else 64
    return dataclasses.replace(
        recipe,
        seed=run.seed,
        epochs=run.epochs,
        dtype=study.dtype,
        data=dataclasses.replace(recipe.data, dir=study.data, image_size=size, augment=augment),
        optim=optim,
    )


def runs_of(study: Study, model: str, taps: int) -> Iterator[Run]:
    """The runs of one network, in the order they are made."""
    extra = round(study.epochs * FINETUNE_SHARE)
    epochs = {"scratch": study.epochs, "finetune": extra, "longer": study.epochs + extra}
    for recipe, augment, seed in itertools.product(study.recipes, study.augment, study.seeds):
        if taps or recipe == "scratch":
            length = {"epochs": epochs[recipe], "batch": study.batch}
            yield Run(model=model, filter_size=taps, augment=augment, recipe=recipe, seed=seed, **length)


def finished(output: Path) -> set[Run]:
    """The runs that a file already holds."""
    if not output.exists():
        return set()
    names = [field.name for field in dataclasses.fields(Run)]
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    return {Run(**{name: line[name] for name in names}) for line in lines}


def make(run: Run, study: Study, sweep: Sweep) -> TrainState:
    """Trains and measures, and writes the line."""
    config, start = config_of(run, study), None
    if run.recipe == "finetune":
        # The plain network is trained again: the same seed gives the same weights.
        plain = dataclasses.replace(run, filter_size=0, recipe="scratch", epochs=study.epochs)
        start, _ = sweep.train(config_of(plain, study))
    began = time.perf_counter()
    state, loss = sweep.train(config, start)
    trained = time.perf_counter()
    figures = sweep.program(config).measure(state.params, state.stats)
    line = {
        **dataclasses.asdict(run),
        **{name: round(value, 4) for name, value in figures.items()},
        "loss": round(loss, 5),
        "train_seconds": round(trained - began, 1),
        "measure_seconds": round(time.perf_counter() - trained, 1),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "flax": flax.__version__,
    }
    append_line(study.output, line)
    print(json.dumps(line), file=sys.stderr)
    return state


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Adds a line of JSON in one write, so that a process that is killed leaves a whole line or none."""
    with path.open("ab", buffering=0) as file:
        file.write(json.dumps(line).encode() + b"\n")


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
    done, began = finished(study.output), time.perf_counter()
    networks = itertools.product(study.models, sorted(study.filters))
    wanted = [run for model, taps in networks for run in runs_of(study, model, taps) if run not in done]
    configs = [config_of(run, study) for run in wanted]
    study.output.parent.mkdir(parents=True, exist_ok=True)
    sweep = Sweep(few_images if study.small else open_dataset)
    for run, config in zip(wanted, configs, strict=True):
        if study.limit is not None and time.perf_counter() - began > study.limit:
            print(f"stopped after {study.limit:.0f} s; the same command goes on", file=sys.stderr)
            return
        state = make(run, study, sweep)
        if study.save is not None and run.recipe == "scratch" and run.augment == "shift" and run.seed == 0:
            save(study.save, run, sweep.program(config), state)


if __name__ == "__main__":
    try:
        main(tyro.cli(Study, description=__doc__))
    except (CommandError, ValueError) as error:
        print(f"cifar10_study: {error}", file=sys.stderr)
        sys.exit(2)
