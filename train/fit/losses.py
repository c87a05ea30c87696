"""What training minimises, given whole-number labels or the shares of several classes."""

import jax
import jax.numpy as jnp
import optax

from aa_flax.dtypes import at_least_float32


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """Mean cross entropy, in float32 or wider, of (N, classes) logits.

    With smoothing s the target is 1-s on the label plus s/classes on every class, as in PyTorch.

    Args:
        logits: (N, classes).
        labels: (N,) whole numbers, or (N, classes) shares that sum to one.
        smoothing: s.
    """
    log_probabilities = jax.nn.log_softmax(logits.astype(at_least_float32(logits.dtype)))
    if labels.ndim == 1:
        picked = jnp.take_along_axis(log_probabilities, labels[:, None], axis=-1)[:, 0]
    else:
        picked = (labels * log_probabilities).sum(-1)
    return -((1 - smoothing) * picked + smoothing * log_probabilities.mean(-1)).mean()


def binary_cross_entropy(
    logits: jax.Array, labels: jax.Array, smoothing: float = 0.0, threshold: float | None = None
) -> jax.Array:
    """Mean over images and classes of the cross entropy of "shows this class", each class by itself.

    As Wightman et al. 2021 (arXiv 2110.00476) train ResNets.

    Args:
        logits: (N, classes).
        labels: (N,) whole numbers, or (N, classes) shares.
        smoothing: share of the target spread evenly over the classes.
        threshold: an image shows every class of a larger share; None for the shares themselves as targets.
    """
    logits = logits.astype(at_least_float32(logits.dtype))
    shown = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype) if labels.ndim == 1 else labels
    if threshold is not None:
        shown = (shown > threshold).astype(logits.dtype)
    return optax.sigmoid_binary_cross_entropy(logits, (1 - smoothing) * shown + smoothing / logits.shape[-1]).mean()
