"""The check at the networks' door: whatever is no batch of images is refused in one line with its remedy."""

import jax
import jax.numpy as jnp
import numpy as np


def check_images(images: jax.Array, channels: int | None) -> None:
    """Refuses what is no floating point array (N, H, W, channels); static shapes only, so it costs nothing.

    Args:
        images: what a network was called with.
        channels: what its first convolution reads; None where that is not known.

    Raises:
        TypeError: for what is no array, or holds no floating point numbers.
        ValueError: for another shape.
    """
    if not isinstance(images, jax.Array | np.ndarray) and not hasattr(images, "__jax_array__"):
        raise TypeError(f"images must be an array, got {type(images).__name__}: convert them with jnp.asarray")
    shape = images.shape
    if len(shape) != 4 or (channels is not None and shape[3] != channels):
        wanted = "(N, H, W, C)" if channels is None else f"(N, H, W, {channels})"
        remedy = "" if channels is None else _remedy(shape, channels)
        raise ValueError(f"images must be {wanted}, got {shape}{remedy and ': ' + remedy}")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(
            f"images must be floating point, got {images.dtype}: divide pixels 0..255 by 255 and normalise them, "
            "which aa_flax.consistency.Normalise() does"
        )


def _remedy(shape: tuple[int, ...], channels: int) -> str:
    """How arrays of a usual other layout become images; empty where the layout is anybody's guess."""
    if len(shape) > 4 and shape[-1] == channels:
        return "make one batch of the leading axes, images.reshape(-1, *images.shape[-3:])"
    if len(shape) == 4 and shape[1] == channels:
        return "channels come last, images.transpose(0, 2, 3, 1)"
    if len(shape) == 4 and channels == 3 and shape[3] == 4:
        return "drop the transparency, images[..., :3]"
    if len(shape) == 4 and channels == 3 and shape[3] == 1:
        return "repeat the grey channel, images.repeat(3, axis=-1)"
    if len(shape) == 4:
        return f"create_model(..., in_channels={shape[3]}) makes a network for them"
    if len(shape) == 3 and shape[2] == channels:
        return "one image needs a batch axis, images[None]"
    if len(shape) == 3 and shape[0] == channels:
        return "channels come last and a batch axis first, images.transpose(1, 2, 0)[None]"
    if len(shape) == 3 and channels == 1:
        return "grey images need a channel axis, images[..., None]"
    if len(shape) == 3 and channels == 3:
        return "grey images need three channels, images[..., None].repeat(3, axis=-1)"
    return ""
