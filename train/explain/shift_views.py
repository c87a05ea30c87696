"""What a network says of one photo at every shift."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from aa_flax.consistency.views import Window
from aa_flax.preprocessing.geometry import evaluation_crop
from aa_flax.preprocessing.pixels import UnreadableImageError
from aa_flax.weights.store import Preprocessing
from train.data.channels import network_input
from train.data.datasets import reflect_margin
from train.data.decode import read_rgb
from train.errors import CommandError


@dataclass(frozen=True, eq=False)
class Photo:
    """A resized photo and the room in it for shifted crops.

    Attributes:
        pixels: (side, side, 3) uint8; every crop lies inside.
        crop: side of a crop, in pixels.
    """

    pixels: np.ndarray
    crop: int

    @property
    def last(self) -> int:
        """The largest offset: the diagonal has `last` + 1 crops, the grid `last` x `last`.

        The reference draws its offsets from 0 to 31 where 32 would still fit; so does the grid.
        """
        return len(self.pixels) - self.crop

    def at(self, offset: int) -> np.ndarray:
        """The crop at an offset along the diagonal."""
        return self.pixels[offset : offset + self.crop, offset : offset + self.crop]


@dataclass(frozen=True, eq=False)
class View:
    """A network's probabilities at every shift.

    Attributes:
        name: the network.
        grid: (last, last, classes), offsets down and to the right.
        end: (classes,), at the end of the diagonal, outside the grid.
    """

    name: str
    grid: np.ndarray
    end: np.ndarray

    @cached_property
    def predictions(self) -> np.ndarray:
        """(last, last) the predicted class at each offset."""
        return self.grid.argmax(axis=-1)

    @cached_property
    def diagonal(self) -> np.ndarray:
        """(last + 1, classes) the probabilities along the diagonal."""
        steps = np.arange(len(self.grid))
        return np.concatenate([self.grid[steps, steps], self.end[None]])

    @property
    def flips(self) -> int:
        """How often the prediction changes from one step of the diagonal to the next."""
        along = self.diagonal.argmax(axis=-1)
        return int((along[1:] != along[:-1]).sum())

    @property
    def consistency(self) -> float:
        """How often two random shifts of the photo agree, in percent, over all pairs of shifts."""
        counts = np.unique(self.predictions, return_counts=True)[1]
        return 100.0 * float(((counts / self.predictions.size) ** 2).sum())


def read_photo(path: Path, preprocessing: Preprocessing) -> Photo:
    """Decodes and resizes a photo as an evaluation does.

    Args:
        path: a JPEG, PNG or other photo.
        preprocessing: of the network. Where it leaves no room for shifts, the photo is enlarged at
            its border by reflection.

    Raises:
        CommandError: no such file, no photo, one too elongated.
    """
    if not path.is_file():
        raise CommandError(f"--image {path}: there is no such file")
    rule, margin = preprocessing, reflect_margin(preprocessing)
    try:
        pixels = evaluation_crop(
            read_rgb(path), resize=rule.resize, big=rule.resize, crop=rule.crop, interpolation=rule.interpolation
        )
    except UnreadableImageError as error:
        raise CommandError(f"--image {path}: {error}") from error
    if margin:
        pixels = np.pad(pixels, ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
    return Photo(pixels, rule.crop)


def look(
    name: str,
    network: Partial,
    photo: Photo,
    preprocessing: Preprocessing,
    *,
    batch: int,
    progress: Callable[[int], None],
) -> View:
    """Runs a network over every shift of a photo.

    Args:
        name: what to call it.
        network: (n, crop, crop, 3) normalised images to logits (n, classes).
        photo: the photo.
        preprocessing: mean and standard deviation.
        batch: crops at once.
        progress: called after each batch with the number of new crops.

    Raises:
        CommandError: the network returns NaN.
    """
    last = photo.last
    grid = np.stack(np.meshgrid(np.arange(last), np.arange(last), indexing="ij"), axis=-1)
    offsets = np.concatenate([grid.reshape(-1, 2), [[last, last]]]).astype(np.int32)
    image = jnp.asarray(photo.pixels)
    prepare = network_input(preprocessing)
    parts = []
    for start in range(0, len(offsets), batch):
        # The last batch repeats its last shift, so that one program serves them all.
        rows = np.minimum(np.arange(start, start + batch), len(offsets) - 1)
        chances = np.asarray(_chances(network, image, offsets[rows], photo.crop, prepare))
        done = min(batch, len(offsets) - start)
        parts.append(chances[:done])
        progress(done)
    together = np.concatenate(parts)
    if not np.isfinite(together).all():
        raise CommandError(f"{name} returns NaN for this photo: its weights are broken")
    return View(name, together[:-1].reshape(last, last, -1), together[-1])


@jax.jit(static_argnames=("crop", "prepare"))
def _chances(
    network: Partial, image: jax.Array, offsets: jax.Array, crop: int, prepare: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    crops = jax.vmap(Window((crop, crop)), in_axes=(None, 0))(image, offsets)
    return jax.nn.softmax(network(prepare(crops)).astype(jnp.float32))


def choose_classes(views: Sequence[View], count: int) -> list[int]:
    """The classes worth drawing: those that are predicted most often, then the most probable."""
    weight = np.zeros(views[0].grid.shape[-1])
    for view in views:
        predicted = np.bincount(view.predictions.ravel(), minlength=len(weight))
        weight += predicted / view.predictions.size + 1e-3 * view.diagonal.mean(axis=0)
    return [int(index) for index in np.argsort(-weight, kind="stable")[:count]]
