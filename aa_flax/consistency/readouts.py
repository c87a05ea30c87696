"""What protocols read off the logits of the views: the prediction, the label's rank, probabilities."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from aa_flax.consistency.sweep import Readout
from aa_flax.dtypes import at_least_float32

NOT_A_NUMBER = -1
UNKNOWN_LABEL = -2


def of_logits(read: Callable[[jax.Array, jax.Array | None], dict[str, jax.Array]]) -> Readout:
    """The readout of a function of logits (views, classes) and a label for each view, or None, to arrays (views,)."""

    @functools.wraps(read)
    def readout(logits: jax.Array, labels: jax.Array | None, part: jax.Array) -> dict[str, jax.Array]:
        shape = part.shape[:2]
        views = shape[0] * shape[1]
        if logits.ndim != 2 or logits.shape[0] != views or not logits.shape[1]:
            raise ValueError(f"fn must return logits (images, classes); for {views} images it returned {logits.shape}")
        if labels is not None:
            labels = jnp.broadcast_to(labels.reshape(-1, 1), shape).reshape(views)
        seen = read(logits.astype(at_least_float32(logits.dtype)), labels)
        return {name: array.reshape(shape) for name, array in seen.items()}

    return readout


@of_logits
def read_predictions(logits: jax.Array, labels: jax.Array | None) -> dict[str, jax.Array]:
    """The predicted class, or a negative code that `ShiftProtocol.summarise` turns into an error."""
    return {"predictions": _predicted(logits, labels)}


@of_logits
def read_ranks(logits: jax.Array, labels: jax.Array | None) -> dict[str, jax.Array]:
    """The prediction and the rank of the label: 0 where it is predicted, ties by lower class."""
    assert labels is not None
    classes = jnp.arange(logits.shape[1]).reshape(1, -1)
    own = labels.reshape(-1, 1)
    score = jnp.where(classes == own, logits, -jnp.inf).max(axis=1, keepdims=True)
    ahead = (logits > score) | ((logits == score) & (classes < own))
    return {"predictions": _predicted(logits, labels), "ranks": ahead.sum(axis=1).astype(jnp.int32)}


@of_logits
def read_probabilities(logits: jax.Array, labels: jax.Array | None) -> dict[str, jax.Array]:
    """The prediction, the label's probability, and the best probability of the other classes."""
    assert labels is not None
    own = jnp.arange(logits.shape[1]).reshape(1, -1) == labels.reshape(-1, 1)
    chance = jax.nn.softmax(logits, axis=1)
    predicted = _predicted(logits, labels)
    return {
        "predictions": predicted,
        "correct": predicted == labels,
        "probability": jnp.where(own, chance, 0).sum(axis=1),
        "best_other": jnp.where(own, 0, chance).max(axis=1),
    }


def _predicted(logits: jax.Array, labels: jax.Array | None) -> jax.Array:
    predicted = jnp.argmax(logits, axis=1).astype(jnp.int32)
    if labels is not None:
        unknown = (labels < 0) | (labels >= logits.shape[1])
        predicted = jnp.where(unknown, UNKNOWN_LABEL, predicted)
    return jnp.where(jnp.isnan(logits).any(axis=1), NOT_A_NUMBER, predicted)
