"""A network that knows nothing of this package: trained plain, anti-aliased by one call, fine-tuned shortly.

    python -m examples.antialias_foreign_cnn --data cifar10-images.tar.xz

Prints what the surgery did, and accuracy and crop consistency before and after. The plain network is trained on for as
long as well, so that what fine-tuning alone does can be told from what anti-aliasing does.
"""

import dataclasses
import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx
from rich.console import Console
from rich.progress import track
from rich.table import Table

import aa_flax
from aa_flax import consistency
from aa_flax.files import cache_directory
from aa_flax.local_paths import check_local_paths
from train.data.cifar import open_cifar10
from train.errors import CommandError

PREPROCESS = consistency.Normalise()
# As wide a margin as the usual augmentation of CIFAR-10 has.
MARGIN = 4
MESSAGES = Console(stderr=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Train a small network plain on CIFAR-10, anti-alias it, fine-tune it."""

    data: Path
    """The tar of JPEG files, or its extracted folder."""

    images: int = 10_000
    """Training images."""

    test_images: int = 2_000
    """Test images."""

    epochs: int = 8
    """Passes of the plain training."""

    finetune: int = 2
    """Passes after the surgery."""

    batch: int = 100
    """Images an update."""

    rate: float = 0.1
    """Peak learning rate of the plain training; fine-tuning starts at a tenth."""

    seed: int = 0
    """Of the initial weights and the order of the images."""


def check(config: Config) -> None:
    """Raises CommandError for numbers that nothing can be trained with."""
    for option in ("images", "test_images", "epochs", "finetune", "batch"):
        if getattr(config, option) < 1:
            raise CommandError(f"--{option.replace('_', '-')} must be at least 1, got {getattr(config, option)}")
    if config.batch > config.images:
        raise CommandError(f"--batch {config.batch} is more than --images {config.images}")


class SmallCNN(nnx.Module):
    """Somebody's network: strided convolutions in a Sequential, a pool held as a partial, one block in its own code."""

    def __init__(self, rngs: nnx.Rngs):
        def unit(cin: int, cout: int, stride: int = 1) -> nnx.Sequential:
            conv = nnx.Conv(cin, cout, (3, 3), stride, use_bias=False, rngs=rngs)
            return nnx.Sequential(conv, nnx.BatchNorm(cout, momentum=0.9, use_fast_variance=False, rngs=rngs), nnx.relu)

        self.stem = unit(3, 16)
        self.down1 = unit(16, 32, 2)
        self.block = unit(32, 32)
        self.pool = functools.partial(nnx.max_pool, window_shape=(2, 2), strides=(2, 2))
        self.down2 = unit(32, 64, 2)
        self.head = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.down1(self.stem(x))
        x = self.pool(x + self.block(x))
        return self.head(self.down2(x).mean((1, 2)))


@dataclasses.dataclass(frozen=True)
class Images:
    """A part of CIFAR-10: bytes (N, 32, 32, 3) and classes (N,)."""

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray


def load(config: Config) -> Images:
    """The first images of a fixed shuffle of each split."""
    arrays = []
    sources = open_cifar10(config.data, cache_directory())
    for source, count in zip(sources, (config.images, config.test_images), strict=True):
        # The files are in the order of their classes.
        chosen = np.sort(np.random.default_rng(0).permutation(len(source))[:count])
        arrays += [source.images[chosen], source.labels[chosen]]
    return Images(*arrays)


def train(model: nnx.Module, images: Images, config: Config, *, epochs: int, rate: float, what: str) -> None:
    """SGD with momentum and one cosine; images are flipped at random and not shifted."""
    steps = len(images.train) // config.batch
    optimizer = optax.chain(
        optax.add_decayed_weights(5e-4), optax.sgd(optax.cosine_decay_schedule(rate, epochs * steps), momentum=0.9)
    )
    model.train()
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    params, rest = nnx.as_pure(params), nnx.as_pure(rest)

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
    def update(params, rest, memory, x, labels):
        def loss(params):
            network = nnx.merge(graphdef, params, rest, copy=True)
            value = optax.softmax_cross_entropy_with_integer_labels(network(PREPROCESS(x)), labels).mean()
            return value, nnx.as_pure(nnx.split(network, nnx.Param, ...)[2])

        (value, rest), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, memory = optimizer.update(grads, memory, params)
        return optax.apply_updates(params, updates), rest, memory, value

    memory, random, value = optimizer.init(params), np.random.default_rng(config.seed), jnp.zeros(())
    for _ in track(range(epochs), what, console=MESSAGES):
        order = random.permutation(len(images.train))[: steps * config.batch].reshape(steps, config.batch)
        for rows in order:
            x = images.train[rows]
            x = np.where(random.integers(2, size=(len(x), 1, 1, 1)), x[:, :, ::-1], x)
            params, rest, memory, value = update(params, rest, memory, x, images.train_labels[rows])
    if not np.isfinite(float(value)):
        raise CommandError(f"the loss of {what!r} is {float(value)}: lower --rate")
    nnx.update(model, params, rest)


def measure(model: nnx.Module, images: Images) -> tuple[consistency.Result, consistency.Result]:
    """Accuracy, and how often two crops of one image get the same answer."""
    margins = ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0))
    padded = np.pad(images.test, margins, mode="reflect")
    accuracy = consistency.Accuracy(crop=32, device_batch=200)
    agreement = consistency.Crop(crop=32, shifts=2 * MARGIN + 1, device_batch=200)
    return (
        accuracy.measure(model, images.test, images.test_labels, preprocess=PREPROCESS),
        agreement.measure(model, padded, images.test_labels, preprocess=PREPROCESS),
    )


def main(config: Config) -> None:
    """Trains, operates, trains on, and prints the table."""
    check_local_paths(config)
    check(config)
    start, images = time.monotonic(), load(config)
    plain = SmallCNN(nnx.Rngs(config.seed))
    fit: Callable[..., None] = functools.partial(train, images=images, config=config)
    fit(plain, epochs=config.epochs, rate=config.rate, what="plain")
    rows = [("plain", *measure(plain, images))]

    antialiased, report = aa_flax.antialias(plain, example=jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))
    print(report)
    rows.append(("antialias(plain), not trained on", *measure(antialiased, images)))
    for name, model in (
        (f"plain, {config.finetune} more epochs", plain),
        ("antialias(plain), fine-tuned", antialiased),
    ):
        fit(model, epochs=config.finetune, rate=config.rate / 10, what=name)
        rows.append((name, *measure(model, images)))

    table = Table("", "accuracy %", "crop consistency %")
    for name, accuracy, agreement in rows:
        table.add_row(name, str(accuracy), str(agreement))
    Console().print(table)
    print(f"{config.images} training images, {config.test_images} test images, {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except (CommandError, ValueError) as error:
        print(f"antialias_foreign_cnn: {error}", file=sys.stderr)
        sys.exit(2)
