"""What all networks have in common."""

import dataclasses
from collections.abc import Hashable

import jax
from flax import nnx


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Everything that decides a network's structure; ``str(spec)`` is the short form, such as ``resnet50_lpf4``.

    Attributes:
        name: one of :func:`aa_flax.list_models`.
        filter_size: taps of every blur; None for the plain network.
        num_classes: logits; 0 for a network without head.
        in_channels: channels of the image.
        pad_type: padding of every blur.
        options: the family's options that differ from the default, sorted by name.
    """

    name: str
    filter_size: int | None
    num_classes: int = 1000
    in_channels: int = 3
    pad_type: str = "reflect"
    options: tuple[tuple[str, Hashable], ...] = ()

    def __str__(self) -> str:
        return f"{self.name}_plain" if self.filter_size is None else f"{self.name}_lpf{self.filter_size}"


class Network(nnx.Module):
    """A classifier of NHWC images.

    Attributes:
        spec: what :func:`aa_flax.create_model` built it from.
    """

    spec: ModelSpec

    def feature_pyramid(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> tuple[jax.Array, ...]:
        """The last map of each resolution, for detectors, segmentation and the like.

        Args:
            x: floating point images (N, H, W, in_channels), normalised.
            rngs: feeds dropout in training; networks without dropout ignore it.

        Returns:
            Four maps (N, H', W', C) at strides 4, 8, 16 and 32, the finest first; a dilated ResNet stops at its
            output stride.
        """
        raise NotImplementedError

    def features(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """The last map before pooling, (N, H', W', C); arguments as :meth:`feature_pyramid`."""
        return self.feature_pyramid(x, rngs=rngs)[-1]

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Raw logits (N, num_classes) of normalised images; arguments as :meth:`feature_pyramid`.

        Without head (``num_classes=0``) the mean of :meth:`features` over all pixels, (N, C).
        """
        raise NotImplementedError
