"""Figures that look like a result, but only come from a network that learns nothing."""

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from aa_flax.models.batch_norm import BatchNorm, FrozenBatchNorm
from train.errors import CommandError
from train.fit.config import TrainConfig
from train.fit.step import TrainState, TrainStep

# A loss within one percent of that of guessing has not moved: already the frequencies of the classes give more.
UNMOVED = 0.01


def symptoms(loss: float, scores: Mapping[str, float], *, num_classes: int, majority: float | None) -> list[str]:
    """Lines about figures that only a network gives that learns nothing.

    Args:
        loss: mean cross entropy of the last updates of an epoch.
        scores: `accuracy` and `consistency` on the validation images, percent.
        num_classes: logits.
        majority: share of the most frequent class among the validation images, percent; None where it is not known,
            and all are taken to be equally frequent.
    """
    if num_classes < 2:
        return []
    lines = []
    guessing = math.log(num_classes)
    if abs(loss - guessing) < UNMOVED * guessing:
        lines.append(
            f"the loss is still that of guessing, ln({num_classes}) = {guessing:.4f}: nothing is learned so far. "
            "Look at --optim.lr, the labels, and with --init at BatchNorm (--recalibrate-bn, --net.frozen-bn)"
        )
    constant = 100 / num_classes if majority is None else majority
    if scores["consistency"] == 100 and scores["accuracy"] <= constant:
        lines.append(
            f"a consistency of 100 with an accuracy of {scores['accuracy']:.2f} says nothing: one answer for all "
            f"images gives up to {constant:.2f}"
        )
    return lines


def statistics_of_one_image(config: TrainConfig, model: nnx.Module) -> bool:
    """Whether a network's BatchNorm sees a single image at a time in training.

    Args:
        config: the run's.
        model: its network, which may be abstract.
    """
    images = config.bn_group or config.batch // config.accumulate
    layers = (layer for _, layer in nnx.iter_modules(model) if isinstance(layer, BatchNorm))
    return images == 1 and any(not isinstance(layer, FrozenBatchNorm) for layer in layers)


def try_one_image(train_step: TrainStep, state: TrainState, batch: int, side: int, say: Callable[[str], None]) -> None:
    """Says what is odd about BatchNorm over one image, and refuses it where that is a single value a channel.

    Args:
        train_step: the update; it is only traced.
        state: what it starts from.
        batch: images per update.
        side: of the images.
        say: tells a person.

    Raises:
        CommandError: the network's last maps are a single pixel.
    """
    images = {
        "image": jax.ShapeDtypeStruct((batch, side, side, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((batch,), jnp.int32),
    }
    try:
        jax.eval_shape(train_step, state, images)
    except ValueError as error:
        raise CommandError(f"BatchNorm over one image (--batch, --accumulate, --bn-group): {error}") from error
    say(
        "BatchNorm takes its statistics from one image at a time (--batch, --accumulate, --bn-group), and from all of "
        "them in evaluation: take more images, or --net.frozen-bn with --init"
    )
