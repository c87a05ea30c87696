"""A backbone fine-tuned on a small task: find the disc in an image, whatever its colour and place.

    python -m examples.finetune_backbone
    python -m examples.finetune_backbone --weights out/mobilenet_v2_lpf4

First a new head learns on the frozen backbone, then everything, at a tenth of the rate. The images are drawn here: a
disc and three squares on noise; the answer is a map that says where the disc is, at a quarter of the image's size. The
head reads the feature pyramid: every resolution votes. Without `--weights` the backbone starts from random values.
"""

import dataclasses
import functools
import sys

import jax
import numpy as np
import optax
import tyro
from flax import nnx
from rich.console import Console
from rich.progress import track

import aa_flax
from aa_flax.local_paths import check_local_paths


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Fine-tune a backbone to find a disc."""

    model: str = "mobilenet_v2_lpf4"
    """The backbone, where no weights are given."""

    weights: str | None = None
    """A directory of converted weights, see convert_weights.py."""

    size: int = 64
    """Side of the images in pixels."""

    steps: int = 60
    """Updates of the head alone, and as many of everything."""

    batch: int = 8
    """Images an update."""

    rate: float = 3e-3
    """Learning rate of the head; the backbone learns at a tenth."""

    seed: int = 0
    """Of the images and the initial values."""


class Finder(nnx.Module):
    """A backbone, a 1x1 convolution for each of its maps, and blur upsampling back to the largest of them."""

    def __init__(self, backbone: aa_flax.Network, channels: tuple[int, ...], rngs: nnx.Rngs):
        self.backbone = backbone
        self.laterals = nnx.List([nnx.Conv(c, 16, (1, 1), rngs=rngs) for c in channels])
        self.head = nnx.Conv(16, 1, (3, 3), rngs=rngs)
        self.up = aa_flax.BlurUpsample()

    def __call__(self, x: jax.Array) -> jax.Array:
        """The logit of "here is the disc" for each place, (N, H/4, W/4)."""
        finest, *coarser = (lateral(m) for lateral, m in zip(self.laterals, self.pyramid(x), strict=True))
        sizes = [m.shape[1:3] for m in (finest, *coarser)]
        y = coarser.pop()
        for i in reversed(range(len(coarser) + 1)):
            y = self.up(y, size=sizes[i]) + (coarser[i - 1] if i else finest)
        return self.head(nnx.relu(y))[..., 0]

    def pyramid(self, x: jax.Array) -> tuple[jax.Array, ...]:
        return self.backbone.feature_pyramid(x)


def draw(random: np.random.Generator, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, size, size, 3) with a disc and three squares, and where the disc is (N, size/4, size/4)."""
    size, radius = config.size, config.size // 8
    images = random.normal(0, 0.3, (config.batch, size, size, 3))
    places = random.integers(radius, size - radius, (config.batch, 4, 2))
    rows, columns = np.mgrid[:size, :size]
    for image, around in zip(images, places, strict=True):
        for (y, x), colour in zip(around[1:], random.normal(0, 1.5, (3, 3)), strict=True):
            image[y - radius : y + radius, x - radius : x + radius] = colour
        y, x = around[0]
        image[(rows - y) ** 2 + (columns - x) ** 2 < radius**2] = random.normal(0, 1.5, 3)
    grid = (np.arange(0, size, 4) + 1.5)[None, :]
    distance = [(grid.T - y) ** 2 + (grid - x) ** 2 for y, x in places[:, 0]]
    return images.astype(np.float32), (np.stack(distance) < radius**2).astype(np.float32)


def build(config: Config) -> Finder:
    """The network; the backbone's normalisation is frozen, for batches are small."""
    rngs = nnx.Rngs(config.seed)
    if config.weights is None:
        backbone = aa_flax.create_model(config.model, num_classes=0, rngs=rngs)
    else:
        backbone = aa_flax.load_pretrained(config.weights, num_classes=0, frozen_bn=True)
        backbone.train()
    return Finder(backbone, backbone.feature_channels, rngs)


def fit(model: Finder, config: Config, *, everything: bool, random: np.random.Generator) -> float:
    """Trains the head alone or everything; returns the mean loss of the last tenth."""
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    params, rest = nnx.as_pure(params), nnx.as_pure(rest)

    def group(path, _) -> str:
        return "backbone" if path[0].key == "backbone" else "head"

    labels = jax.tree.map_with_path(group, params)
    slow = optax.adam(config.rate / 10) if everything else optax.set_to_zero()
    optimizer = optax.multi_transform({"head": optax.adam(config.rate), "backbone": slow}, labels)

    @jax.jit
    def update(params, rest, memory, images, targets):
        def loss(params):
            network = nnx.merge(graphdef, params, rest, copy=True)
            value = optax.sigmoid_binary_cross_entropy(network(images), targets).mean()
            return value, nnx.as_pure(nnx.split(network, nnx.Param, ...)[2])

        (value, rest), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, memory = optimizer.update(grads, memory, params)
        return optax.apply_updates(params, updates), rest, memory, value

    memory, losses = optimizer.init(params), []
    for _ in track(range(config.steps), "everything" if everything else "head", console=Console(stderr=True)):
        params, rest, memory, value = update(params, rest, memory, *draw(random, config))
        losses.append(float(value))
    nnx.update(model, params, rest)
    return float(np.mean(losses[-max(1, len(losses) // 10) :]))


def found(model: Finder, config: Config, random: np.random.Generator) -> float:
    """How often the strongest answer lies on the disc, in percent, on new images."""
    model.eval()
    graphdef, state = nnx.split(model)
    answer = jax.jit(lambda state, x: nnx.merge(graphdef, state)(x))
    hits = []
    for _ in range(8):
        images, targets = draw(random, config)
        best = np.asarray(answer(state, images)).reshape(len(images), -1).argmax(-1)
        hits.append(np.take_along_axis(targets.reshape(len(images), -1), best[:, None], 1).mean())
    model.train()
    return 100 * float(np.mean(hits))


def main(config: Config) -> None:
    """Trains head, then everything, and prints how often the disc is found."""
    check_local_paths(config)
    for option, least in (("size", 32), ("steps", 1), ("batch", 1)):
        if getattr(config, option) < least:
            raise ValueError(f"--{option} must be at least {least}, got {getattr(config, option)}")
    model, random = build(config), np.random.default_rng(config.seed)
    report = functools.partial(found, model, config, np.random.default_rng(config.seed + 1))
    print(f"before            found {report():5.1f} %")
    for everything in (False, True):
        loss = fit(model, config, everything=everything, random=random)
        print(f"{'everything' if everything else 'head alone'}  loss {loss:.3f}  found {report():5.1f} %")


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except (FileNotFoundError, ValueError) as error:
        print(f"finetune_backbone: {error}", file=sys.stderr)
        sys.exit(2)
