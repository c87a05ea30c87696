"""What all networks have in common."""

import dataclasses
import functools
from collections.abc import Hashable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from aa_flax.models.images import check_images


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Everything that decides a network's structure; `str(spec)` is the short form, such as `resnet50_lpf4`.

    Attributes:
        name: one of `aa_flax.list_models`.
        filter_size: taps of every blur; None for the plain network.
        num_classes: logits; 0 for a network without head.
        in_channels: channels of the image.
        pad_type: padding of every blur.
        options: the family's options that differ from the default, sorted by name.
        suffix: whether the short form tells the filter; not where the name does, as `resnetblur50`.
    """

    name: str
    filter_size: int | None
    num_classes: int = 1000
    in_channels: int = 3
    pad_type: str = "reflect"
    options: tuple[tuple[str, Hashable], ...] = ()
    suffix: bool = True

    def __str__(self) -> str:
        if not self.suffix:
            return self.name
        return f"{self.name}_plain" if self.filter_size is None else f"{self.name}_lpf{self.filter_size}"


class Network(nnx.Module):
    """A classifier of NHWC images.

    A family gives the three methods with an underscore: its maps, the last of them as the head wants it, and the
    head. Callers come in by the others, which let nothing but images through.

    Attributes:
        spec: what builds the network again, `aa_flax.create_model` and every function that changes a network
            see to it; None where a function made of it what no spec describes.
        changed_by: the function that did.
        config: its configuration, a row of its family.
        first_conv: the convolution that reads the images, such as `stem.conv`.
        last_linear: the layer that gives the logits.
        provenance: what is known of its weights, set by `aa_flax.load_pretrained`; None for fresh ones.
    """

    spec: ModelSpec | None = None
    changed_by: str = ""
    config: Any = None
    provenance: Any = None

    first_conv: ClassVar[str] = ""
    last_linear: ClassVar[str] = ""

    def feature_pyramid(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> tuple[jax.Array, ...]:
        """The last map of each resolution, for detectors, segmentation and the like.

        Args:
            x: floating point images (N, H, W, in_channels), normalised.
            rngs: feeds dropout in training; networks without dropout ignore it.

        Returns:
            Four maps (N, H', W', C) at strides 4, 8, 16 and 32, the finest first; a dilated ResNet stops at its
            output stride.

        Raises:
            TypeError, ValueError: for anything but such images.
        """
        check_images(x, self.image_channels())
        return self._pyramid(x, rngs)

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """Channels of each map of `feature_pyramid`, read from a trace of it."""
        graphdef, state = nnx.split(self)

        def maps(state: nnx.State, x: jax.Array) -> tuple[jax.Array, ...]:
            network = nnx.merge(graphdef, state, copy=True)
            network.eval()
            return network.feature_pyramid(x)

        x = jax.ShapeDtypeStruct((1, 224, 224, self.image_channels() or 3), jnp.float32)
        return tuple(each.shape[-1] for each in jax.eval_shape(maps, state, x))

    def features(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """The last map before pooling, (N, H', W', C); arguments as `feature_pyramid`."""
        return self._last_map(self.feature_pyramid(x, rngs=rngs)[-1])

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Raw logits (N, num_classes) of normalised images; arguments as `feature_pyramid`.

        Without head (`num_classes=0`) the mean of `features` over all pixels, (N, C).
        """
        return self._logits(self.features(x, rngs=rngs), rngs)

    def _pyramid(self, x: jax.Array, rngs: nnx.Rngs | None) -> tuple[jax.Array, ...]:
        """The maps of `feature_pyramid`, of images that have been checked."""
        raise NotImplementedError

    def _last_map(self, x: jax.Array) -> jax.Array:
        """What lies between the last map of the pyramid and the pooling before the head."""
        return x

    def _logits(self, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        """Pooling and head, of the map of `features`."""
        raise NotImplementedError

    def image_channels(self) -> int | None:
        """Channels of the images that the network takes; None where they cannot be told."""
        # The layer knows better than the spec: people put another one in its place, for depth or infrared.
        path = self.first_conv.split(".") if self.first_conv else []
        first = functools.reduce(lambda layer, name: getattr(layer, name, None), path, self)
        return getattr(first, "in_features", None)
