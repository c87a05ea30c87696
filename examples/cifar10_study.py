"""The paper's experiment on CIFAR-10: what does anti-aliasing change in accuracy and in shift consistency?

    python -m examples.cifar10_study --data cifar10-images.tar.xz --output runs/study.jsonl
    python -m examples.cifar10_study --data cifar10-images.tar.xz --output runs/small.jsonl --small

Networks of the zoo, unmodified but for the number of classes, see the images enlarged to 64x64, so that the stems made
for ImageNet make sense. Each run is one line of JSON; runs that the output already holds are not repeated. All images
stay on the device, and an epoch is one call (on CPUs, an update). Runs of one network share a compiled program: the
seed, the augmentation and the schedule are its arguments.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from jax.tree_util import Partial

import aa_flax
from aa_flax import consistency
from aa_flax.local_paths import check_local_paths
from aa_flax.models.specs import resolve_spec
from train.console import open_console
from train.data import DataConfig, Dataset, evaluation_batches, open_dataset
from train.data.augment import normalise, random_flip, random_shift
from train.errors import CommandError
from train.fit.optim import OptimConfig, sgd
from train.fit.presets import preset
from train.fit.step import StepOptions, TrainState, initial_state, make_train_step, split_model

# A third of the epochs at a tenth of the rate, as the reference fine-tunes.
FINETUNE_SHARE, FINETUNE_RATE = 1 / 3, 0.1
PAIRS = 5
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


@dataclasses.dataclass(frozen=True)
class Images:
    """CIFAR-10 at the networks' size, the training part on the device."""

    dataset: Dataset
    train: jax.Array
    train_labels: jax.Array
    test: np.ndarray
    test_labels: np.ndarray


def small_form(study: Study) -> Study:
    """The study cut down to minutes on a CPU; it shows that everything runs, not what the paper claims."""
    one = {"filters": (0, 4), "augment": ("none",), "seeds": study.seeds[:1], "epochs": 2, "batch": 64}
    return dataclasses.replace(study, dtype="float32", **one)


def load_images(study: Study) -> Images:
    """Decodes, enlarges with Pillow and moves the training images to the device."""
    size = 32 if study.small else 64
    dataset = open_dataset(DataConfig(name="cifar10", dir=study.data, image_size=size))
    arrays = []
    for source in (dataset.train, dataset.val):
        count = len(source) // 40 if study.small else len(source)
        # The files are in order of class: every so-manieth keeps the classes balanced.
        chosen = np.arange(count) * (len(source) // count)
        images, labels = np.empty((len(source), size, size, 3), np.uint8), np.empty(len(source), np.int32)
        for batch in evaluation_batches(source, dataset.preprocessing, global_batch=500, size=size):
            rows = batch["index"][batch["mask"]]
            images[rows], labels[rows] = batch["image"][batch["mask"]], batch["label"][batch["mask"]]
        arrays += [images[chosen], labels[chosen]]
    train, train_labels, test, test_labels = arrays
    return Images(dataset, jnp.asarray(train), jnp.asarray(train_labels), test, test_labels)


def schedule(step: jax.typing.ArrayLike, peak: jax.Array, warmup: jax.Array, total: jax.Array) -> jax.Array:
    """One cosine after a linear warm-up; every number may be traced, so that runs share a program."""
    step = jnp.asarray(step, jnp.float32)
    rising = (step + 1) / jnp.maximum(warmup, 1)
    falling = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip((step - warmup) / (total - warmup), 0, 1)))
    return peak * jnp.where(step < warmup, rising, falling)


class Varied(NamedTuple):
    """What differs between runs of one network; traced, so that they share a program.

    Attributes:
        seed: of order, augmentation and dropout.
        shift: whether training images are shifted.
        peak: highest learning rate.
        warmup: updates until it is reached.
        total: updates in all.
    """

    seed: jax.Array
    shift: jax.Array
    peak: jax.Array
    warmup: jax.Array
    total: jax.Array


class Trainer:
    """Trains and measures one network; its programs are compiled once for all its runs.

    Args:
        study: what is trained.
        images: the data.
        spec: the network.
    """

    def __init__(self, study: Study, images: Images, spec: str):
        self.images, self.batch, self.spec = images, study.batch, spec
        self.dtype = jnp.dtype(study.dtype)
        self.optim: OptimConfig = preset("cifar10", spec).optim
        # The preset's rate is for its own batch.
        self.peak = self.optim.lr * study.batch / preset("cifar10", spec).batch
        self.steps = len(images.train) // study.batch
        model = self.network(0)
        self.graphdef = split_model(model)[0]
        view = nnx.view(model, use_running_average=True, deterministic=True, raise_if_not_found=False)
        self._eval_graphdef = split_model(view)[0]
        self._order = jax.jit(self._order_of)
        self._update = jax.jit(self._update_of, donate_argnums=0)
        on_cpu = jax.default_backend() == "cpu"
        self._epoch = self._epoch_by_steps if on_cpu else jax.jit(self._epoch_of, donate_argnums=0)

    def network(self, seed: int) -> aa_flax.Network:
        """The network with the initial weights of a seed."""
        return aa_flax.create_model(self.spec, num_classes=10, dtype=self.dtype, rngs=nnx.Rngs(seed))

    def _logits(self, params: Any, stats: Any, images: jax.Array) -> jax.Array:
        return nnx.merge(self._eval_graphdef, params, stats)(images)

    def _optimizer(self, rate: Callable[..., jax.Array]):
        return sgd(self.optim, rate)

    def _update_of(
        self, state: TrainState, rows: jax.Array, images: jax.Array, labels: jax.Array, varied: Varied
    ) -> tuple[TrainState, jax.Array]:
        """One update on the given rows of the images."""
        preprocessing = self.images.dataset.preprocessing
        reach = preprocessing.crop // 8

        def prepare(batch: jax.Array, step: jax.Array) -> jax.Array:
            flip_key, shift_key = jax.random.split(jax.random.fold_in(jax.random.key(varied.seed), step))
            batch = jnp.where(varied.shift, random_shift(batch, shift_key, reach), batch)
            return normalise(random_flip(batch, flip_key), preprocessing)

        def rate(step: jax.typing.ArrayLike) -> jax.Array:
            return schedule(step, varied.peak, varied.warmup, varied.total)

        # The seed is traced: masks of dropout follow it without a compilation of their own.
        options = StepOptions(seed=varied.seed)  # pyright: ignore[reportArgumentType]
        update = make_train_step(self.graphdef, self._optimizer(rate), rate, prepare, options)
        state, metrics = update(state, {"image": images[rows], "label": labels[rows]})
        return state, metrics["loss"]

    def _order_of(self, epoch: jax.Array, images: jax.Array, seed: jax.Array) -> jax.Array:
        """The rows of every update of an epoch."""
        order = jax.random.permutation(jax.random.fold_in(jax.random.key(~seed), epoch), len(images))
        return order[: self.steps * self.batch].reshape(self.steps, self.batch)

    def _epoch_of(
        self, state: TrainState, images: jax.Array, labels: jax.Array, varied: Varied
    ) -> tuple[TrainState, jax.Array]:
        """All updates of an epoch and their mean loss."""

        def body(state: TrainState, rows: jax.Array) -> tuple[TrainState, jax.Array]:
            return self._update_of(state, rows, images, labels, varied)

        state, losses = jax.lax.scan(body, state, self._order_of(state.step // self.steps, images, varied.seed))
        return state, losses.mean()

    def _epoch_by_steps(
        self, state: TrainState, images: jax.Array, labels: jax.Array, varied: Varied
    ) -> tuple[TrainState, jax.Array]:
        """The same, one call an update: inside a loop, XLA differentiates convolutions five times slower on CPUs."""
        losses = []
        for rows in self._order(state.step // self.steps, images, varied.seed):
            state, loss = self._update(state, rows, images, labels, varied)
            losses.append(loss)
        return state, jnp.stack(losses).mean()

    def train(self, run: Run, start: tuple[Any, Any] | None, epochs: int, rate: float) -> tuple[TrainState, float]:
        """Trains from scratch, or from given parameters and statistics.

        Returns:
            The last state and the mean loss of the last epoch.
        """
        if start is None:
            _, params, stats = split_model(self.network(run.seed))
            start = params, stats
        optimizer = self._optimizer(lambda step: jnp.float32(0) * step)
        params, stats = jax.tree.map(jnp.copy, start)
        state = initial_state(params, stats, optimizer)
        varied = Varied(
            seed=jnp.int32(run.seed),
            shift=jnp.array(run.augment == "shift"),
            peak=jnp.float32(self.peak * rate),
            warmup=jnp.float32(2 * self.steps if rate == 1 else 0),
            total=jnp.float32(epochs * self.steps),
        )
        loss = jnp.float32(0)
        for _ in range(epochs):
            state, loss = self._epoch(state, self.images.train, self.images.train_labels, varied)
        return state, float(loss)

    def measure(self, state: TrainState) -> dict[str, float]:
        """Accuracy and crop consistency on the test images, in percent, as `python -m train evaluate` measures them."""
        margin = self.images.dataset.margin
        size = self.images.dataset.preprocessing.crop
        pads = ((0, 0), (margin, margin), (margin, margin), (0, 0))
        big = np.pad(self.images.test, pads, mode="reflect")
        preprocessing = self.images.dataset.preprocessing
        common = {
            "crop": size,
            "preprocess": consistency.Normalise(preprocessing.mean, preprocessing.std),
            "device_batch": 500,
        }
        fn = Partial(self._logits, state.params, state.stats)
        right = consistency.accuracy(fn, big, self.images.test_labels, **common)
        crop = consistency.crop(fn, big, self.images.test_labels, shifts=2 * margin + 1, pairs=PAIRS, **common)
        return {
            "accuracy": right.value,
            "accuracy_stderr": right.stderr,
            "consistency": crop.value,
            "consistency_stderr": crop.stderr,
        }


def runs_of(study: Study, model: str, taps: int) -> Iterator[Run]:
    """The runs of one network, in the order they are made."""
    for recipe in study.recipes:
        if recipe != "scratch" and not taps:
            continue
        extra = round(study.epochs * FINETUNE_SHARE)
        epochs = {"scratch": study.epochs, "finetune": extra, "longer": study.epochs + extra}[recipe]
        for augment in study.augment:
            for seed in study.seeds:
                yield Run(
                    model=model,
                    filter_size=taps,
                    augment=augment,
                    recipe=recipe,
                    seed=seed,
                    epochs=epochs,
                    batch=study.batch,
                )


def finished(output: Path) -> set[Run]:
    """The runs that a file already holds."""
    if not output.exists():
        return set()
    names = [field.name for field in dataclasses.fields(Run)]
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    return {Run(**{name: line[name] for name in names}) for line in lines}


def machine() -> dict[str, str]:
    """What a figure depends on besides the run."""
    import flax

    return {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "flax": flax.__version__}


def save(directory: Path, trainer: Trainer, state: TrainState, run: Run, figures: dict[str, float]) -> None:
    """Writes a run's weights in float16, with their claimed metrics measured after that rounding."""
    params, stats = jax.tree.map(lambda x: x.astype(jnp.float16), (state.params, state.stats))
    figures = trainer.measure(state._replace(params=params, stats=stats))
    model = nnx.merge(trainer.graphdef, params, stats)
    model.eval()
    aa_flax.save_pretrained(
        model,
        directory / f"{run.spec}-cifar10",
        preprocessing=trainer.images.dataset.preprocessing,
        class_names=trainer.images.dataset.class_names,
        source={"made_by": "python -m examples.cifar10_study", **dataclasses.asdict(run)},
        license="Apache-2.0",
        metrics=figures,
    )


def plain_start(study: Study, images: Images, run: Run) -> tuple[Any, Any]:
    """The plain network that a fine-tuning starts from, trained again: same seed, same weights."""
    run = dataclasses.replace(run, filter_size=0, recipe="scratch", epochs=study.epochs)
    state, _ = Trainer(study, images, run.spec).train(run, None, run.epochs, 1)
    return state.params, state.stats


def main(study: Study) -> None:
    """Makes the runs that are missing."""
    check_local_paths(study)
    console = open_console(stderr=True)
    study = small_form(study) if study.small else study
    for model in study.models:
        resolve_spec(model)
    done, began = finished(study.output), time.perf_counter()
    study.output.parent.mkdir(parents=True, exist_ok=True)
    images = load_images(study)
    plain: dict[tuple[str, str, int], tuple[Any, Any]] = {}
    for model in study.models:
        for taps in sorted(study.filters):
            wanted = [run for run in runs_of(study, model, taps) if run not in done]
            if not wanted:
                continue
            trainer = Trainer(study, images, wanted[0].spec)
            for run in wanted:
                if study.limit is not None and time.perf_counter() - began > study.limit:
                    console.print(f"stopped after {study.limit:.0f} s; the same command goes on", style="yellow")
                    return
                start = None
                if run.recipe == "finetune":
                    start = plain.get((model, run.augment, run.seed)) or plain_start(study, images, run)
                clock = time.perf_counter()
                state, loss = trainer.train(run, start, run.epochs, 1 if start is None else FINETUNE_RATE)
                if run.recipe == "scratch" and not taps and "finetune" in study.recipes:
                    plain[model, run.augment, run.seed] = jax.tree.map(jnp.copy, (state.params, state.stats))
                trained = time.perf_counter()
                figures = trainer.measure(state)
                line = {
                    **dataclasses.asdict(run),
                    **{name: round(value, 4) for name, value in figures.items()},
                    "loss": round(loss, 5),
                    "train_seconds": round(trained - clock, 1),
                    "measure_seconds": round(time.perf_counter() - trained, 1),
                    **machine(),
                }
                with study.output.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                console.print(
                    f"{run.spec:22} {run.augment:6} {run.recipe:9} seed {run.seed}  "
                    f"accuracy {figures['accuracy']:6.2f}  consistency {figures['consistency']:6.2f}  "
                    f"({line['train_seconds']:.0f} + {line['measure_seconds']:.0f} s)"
                )
                if study.save is not None and run.recipe == "scratch" and run.augment == "shift" and run.seed == 0:
                    save(study.save, trainer, state, run, figures)


if __name__ == "__main__":
    try:
        main(tyro.cli(Study, description=__doc__))
    except (CommandError, ValueError) as error:
        print(f"cifar10_study: {error}", file=sys.stderr)
        sys.exit(2)
