"""The engine: run a network over every shift of every image, in pieces that fit the device."""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.tree_util import Partial

from aa_flax.dtypes import at_least_float32
from aa_flax.meshes import cut_alike, within_mesh_of

Predictor = Callable[[Any], Any]
Preprocess = Callable[[jax.Array], jax.Array]
View = Callable[[jax.Array, jax.Array], jax.Array]
Readout = Callable[[jax.Array, jax.Array | None], dict[str, jax.Array]]

NOT_A_NUMBER = -1
UNKNOWN_LABEL = -2


def sweep(
    fn: Predictor,
    images: jax.Array,
    offsets: np.ndarray,
    labels: jax.Array | None,
    *,
    view: View,
    readout: Readout,
    preprocess: Preprocess | None,
    device_batch: int,
) -> dict[str, Any]:
    """What `readout` sees of `fn(preprocess(view(image, offset)))`, for every image and offset.

    Args:
        fn: see `aa_flax.consistency`. A `Partial` or an `nnx.Module` is compiled together with
            the views, its arrays being arguments; any other callable is called as it is.
        images: (N, H, W, C).
        offsets: (N, S, 2), the shifts of each image.
        labels: (N,) or None.
        view, readout, preprocess: hashable; the compiled program is kept for equal ones.
        device_batch: how many views may exist at once (at least one shift of all N images does).

    Returns:
        The readout's arrays, each (N, S); numpy arrays where `fn` was called as it is.
    """
    count, shifts = offsets.shape[:2]
    # Evenly filled steps: 33 shifts with room for 31 become twice 17, not 31 and 2.
    together = -(-shifts // -(-shifts // max(1, device_batch // count)))
    forward = _as_partial(fn, images, preprocess)
    if isinstance(forward, Partial):
        return _scan(
            forward,
            images,
            _in_steps(offsets, together),
            labels,
            view=view,
            readout=readout,
            preprocess=preprocess,
            shifts=shifts,
        )
    pieces = []
    for part in _in_steps(offsets, together):
        logits = forward(_look(images, part, view=view, preprocess=preprocess))
        logits = logits if isinstance(logits, jax.Array) else np.asarray(logits)
        # Fetching each piece keeps the queue, and with it the memory, at one piece.
        pieces.append(jax.device_get(_read(logits, labels, readout=readout, shape=part.shape[:2])))
    return {name: _by_image(np.stack([piece[name] for piece in pieces]), shifts) for name in pieces[0]}


def _as_partial(fn: Predictor, images: jax.Array, preprocess: Preprocess | None) -> Predictor:
    if not isinstance(fn, nnx.Module):
        return fn
    if preprocess is None and not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"images are {images.dtype} and fn is the network {type(fn).__name__}: "
            "give preprocess=, for instance aa_flax.consistency.Normalise()"
        )
    # Training mode would measure dropout, and batch statistics that depend on the batch size.
    network = nnx.view(fn, use_running_average=True, deterministic=True, raise_if_not_found=False)
    graph, state = nnx.split(network)
    return Partial(_call_network, _Static(graph), nnx.as_pure(state))


@jax.tree_util.register_static
class _Static:
    """Lets a graph definition ride in a Partial as structure rather than as an array."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Static) and self.value == other.value

    def __hash__(self) -> int:
        return hash(self.value)


def _call_network(graph: _Static, state: Any, images: jax.Array) -> jax.Array:
    return cast(Callable, nnx.merge(graph.value, state))(images)


@partial(jax.jit, static_argnames=("view", "readout", "preprocess", "shifts"))
def _scan(
    fn: Partial,
    images: jax.Array,
    parts: jax.Array,
    labels: jax.Array | None,
    *,
    view: View,
    readout: Readout,
    preprocess: Preprocess | None,
    shifts: int,
) -> dict[str, jax.Array]:
    def step(part: jax.Array) -> dict[str, jax.Array]:
        logits = fn(_views(images, part, view, preprocess))
        return _readings(logits, labels, readout, part.shape[:2])

    return {name: _by_image(array, shifts) for name, array in lax.map(step, parts).items()}


def _in_steps(offsets: np.ndarray, together: int) -> np.ndarray:
    """(N, S, 2) to (steps, N, together, 2); the last step is filled by repeating the last shift."""
    count, shifts = offsets.shape[:2]
    steps = -(-shifts // together)
    filled = offsets[:, np.minimum(np.arange(steps * together), shifts - 1)]
    parts = filled.reshape(count, steps, together, 2).swapaxes(0, 1)
    return parts.astype(np.float32 if np.issubdtype(parts.dtype, np.floating) else np.int32)


def _by_image(seen: Any, shifts: int) -> Any:
    steps, count, together = seen.shape
    return seen.swapaxes(0, 1).reshape(count, steps * together)[:, :shifts]


def _views(images: jax.Array, part: jax.Array, view: View, preprocess: Preprocess | None) -> jax.Array:
    with within_mesh_of(images):
        views = jax.vmap(jax.vmap(view, in_axes=(None, 0)))(images, cut_alike(part, images))
    views = views.reshape(-1, *views.shape[2:])
    return views if preprocess is None else preprocess(views)


def _readings(
    logits: jax.Array, labels: jax.Array | None, readout: Readout, shape: tuple[int, ...]
) -> dict[str, jax.Array]:
    views = shape[0] * shape[1]
    if logits.ndim != 2 or logits.shape[0] != views or not logits.shape[1]:
        raise ValueError(f"fn must return logits (images, classes); for {views} images it returned {logits.shape}")
    if labels is not None:
        labels = jnp.broadcast_to(labels.reshape(-1, 1), shape).reshape(views)
    seen = readout(logits.astype(at_least_float32(logits.dtype)), labels)
    return {name: array.reshape(shape) for name, array in seen.items()}


@partial(jax.jit, static_argnames=("view", "preprocess"))
def _look(images: jax.Array, part: jax.Array, *, view: View, preprocess: Preprocess | None) -> jax.Array:
    return _views(images, part, view, preprocess)


@partial(jax.jit, static_argnames=("readout", "shape"))
def _read(
    logits: jax.Array, labels: jax.Array | None, *, readout: Readout, shape: tuple[int, ...]
) -> dict[str, jax.Array]:
    return _readings(logits, labels, readout, shape)


def read_predictions(logits: jax.Array, labels: jax.Array | None) -> dict[str, jax.Array]:
    """The predicted class, or a negative code that `ShiftProtocol.summarise` turns into an error."""
    predicted = jnp.argmax(logits, axis=1).astype(jnp.int32)
    if labels is not None:
        unknown = (labels < 0) | (labels >= logits.shape[1])
        predicted = jnp.where(unknown, UNKNOWN_LABEL, predicted)
    return {"predictions": jnp.where(jnp.isnan(logits).any(axis=1), NOT_A_NUMBER, predicted)}


def read_ranks(logits: jax.Array, labels: jax.Array | None) -> dict[str, jax.Array]:
    """The prediction and the rank of the label: 0 where it is predicted, ties by lower class."""
    assert labels is not None
    classes = jnp.arange(logits.shape[1]).reshape(1, -1)
    own = labels.reshape(-1, 1)
    score = jnp.where(classes == own, logits, -jnp.inf).max(axis=1, keepdims=True)
    ahead = (logits > score) | ((logits == score) & (classes < own))
    return {**read_predictions(logits, labels), "ranks": ahead.sum(axis=1).astype(jnp.int32)}


def read_probabilities(logits: jax.Array, labels: jax.Array | None) -> dict[str, jax.Array]:
    """The prediction, the label's probability, and the best probability of the other classes."""
    assert labels is not None
    own = jnp.arange(logits.shape[1]).reshape(1, -1) == labels.reshape(-1, 1)
    chance = jax.nn.softmax(logits, axis=1)
    seen = read_predictions(logits, labels)
    return {
        **seen,
        "correct": seen["predictions"] == labels,
        "probability": jnp.where(own, chance, 0).sum(axis=1),
        "best_other": jnp.where(own, 0, chance).max(axis=1),
    }
