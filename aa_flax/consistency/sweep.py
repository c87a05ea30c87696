"""The engine: run a network over every shift of every image, in pieces that fit the device."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.tree_util import Partial

from aa_flax.meshes import cut_alike, within_mesh_of

Predictor = Callable[[Any], Any]
Preprocess = Callable[[jax.Array], jax.Array]
View = Callable[[jax.Array, jax.Array], jax.Array]
Readout = Callable[[jax.Array, Any, jax.Array], dict[str, jax.Array]]
"""From the answers to N x T views, what is known of the N images, and the offsets (N, T, 2): arrays (N, T, ...)."""


def sweep(
    fn: Predictor,
    images: jax.Array,
    offsets: np.ndarray,
    known: Any,
    *,
    view: View,
    readout: Readout,
    preprocess: Preprocess | None,
    device_batch: int,
) -> dict[str, Any]:
    """What `readout` sees of `fn(preprocess(view(image, offset)))`, for every image and offset.

    Args:
        fn: see `aa_flax.consistency`. A `Partial` or an `nnx.Module` is compiled together with
            the views, its arrays being arguments; so is a method of such a module. Any other callable is called
            as it is.
        images: (N, H, W, C).
        offsets: (N, S, 2), the shifts of each image.
        known: what the readout knows of each image, for instance labels (N,), or None.
        view, readout, preprocess: hashable; the compiled program is kept for equal ones.
        device_batch: how many views may exist at once (at least one shift of all N images does).

    Returns:
        The readout's arrays, each (N, S, ...); numpy arrays where `fn` was called as it is.
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
            known,
            view=view,
            readout=readout,
            preprocess=preprocess,
            shifts=shifts,
        )
    pieces = []
    for part in _in_steps(offsets, together):
        answers = forward(_look(images, part, view=view, preprocess=preprocess))
        answers = answers if isinstance(answers, jax.Array) else np.asarray(answers)
        # Fetching each piece keeps the queue, and with it the memory, at one piece.
        pieces.append(jax.device_get(_read(answers, known, part, readout=readout)))
    return {name: _by_image(np.stack([piece[name] for piece in pieces]), shifts) for name in pieces[0]}


def _as_partial(fn: Predictor, images: jax.Array, preprocess: Preprocess | None) -> Predictor:
    module, method = (fn.__self__, fn.__name__) if inspect.ismethod(fn) else (fn, "__call__")
    if not isinstance(module, nnx.Module):
        return fn
    if preprocess is None and not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"images are {images.dtype} and fn is the network {type(module).__name__}: "
            "give preprocess=, for instance aa_flax.consistency.Normalise()"
        )
    # Training mode would measure dropout, and batch statistics that depend on the batch size.
    network = nnx.view(module, use_running_average=True, deterministic=True, raise_if_not_found=False)
    graph, state = nnx.split(network)
    return Partial(_call_network, _Static((graph, method)), nnx.as_pure(state))


@jax.tree_util.register_static
class _Static:
    """Lets a graph definition and a method's name ride in a Partial as structure rather than as arrays."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Static) and self.value == other.value

    def __hash__(self) -> int:
        return hash(self.value)


def _call_network(static: _Static, state: Any, images: jax.Array) -> jax.Array:
    graph, method = static.value
    return getattr(nnx.merge(graph, state), method)(images)


@partial(jax.jit, static_argnames=("view", "readout", "preprocess", "shifts"))
def _scan(
    fn: Partial,
    images: jax.Array,
    parts: jax.Array,
    known: Any,
    *,
    view: View,
    readout: Readout,
    preprocess: Preprocess | None,
    shifts: int,
) -> dict[str, jax.Array]:
    def step(part: jax.Array) -> dict[str, jax.Array]:
        return readout(fn(_views(images, part, view, preprocess)), known, part)

    return {name: _by_image(array, shifts) for name, array in lax.map(step, parts).items()}


def _in_steps(offsets: np.ndarray, together: int) -> np.ndarray:
    """(N, S, 2) to (steps, N, together, 2); the last step is filled by repeating the last shift."""
    count, shifts = offsets.shape[:2]
    steps = -(-shifts // together)
    filled = offsets[:, np.minimum(np.arange(steps * together), shifts - 1)]
    parts = filled.reshape(count, steps, together, 2).swapaxes(0, 1)
    return parts.astype(np.float32 if np.issubdtype(parts.dtype, np.floating) else np.int32)


def _by_image(seen: Any, shifts: int) -> Any:
    steps, count, together = seen.shape[:3]
    return seen.swapaxes(0, 1).reshape(count, steps * together, *seen.shape[3:])[:, :shifts]


def _views(images: jax.Array, part: jax.Array, view: View, preprocess: Preprocess | None) -> jax.Array:
    with within_mesh_of(images):
        views = jax.vmap(jax.vmap(view, in_axes=(None, 0)))(images, cut_alike(part, images))
    views = views.reshape(-1, *views.shape[2:])
    return views if preprocess is None else preprocess(views)


@partial(jax.jit, static_argnames=("view", "preprocess"))
def _look(images: jax.Array, part: jax.Array, *, view: View, preprocess: Preprocess | None) -> jax.Array:
    return _views(images, part, view, preprocess)


@partial(jax.jit, static_argnames=("readout",))
def _read(answers: jax.Array, known: Any, part: jax.Array, *, readout: Readout) -> dict[str, jax.Array]:
    return readout(answers, known, part)
