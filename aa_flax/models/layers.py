"""What the families are built from: torch-compatible layers and the builder that makes them."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

import jax
from flax import nnx
from jax.nn.initializers import zeros

from aa_flax.alias_free import AliasFreeActivation, AliasFreeNorm
from aa_flax.downsample import METHODS, Downsample, Site, method
from aa_flax.models.batch_norm import BatchNorm, FrozenBatchNorm
from aa_flax.models.convolutions import alike_conv, dense_conv, depthwise_conv
from aa_flax.models.initialisers import Initialiser, he_fan_out, torch_default, torch_default_bias

Layer = Callable[[jax.Array], jax.Array]


# Functions of jax.nn under names by which pickles find them.


def relu(x: jax.Array) -> jax.Array:
    return jax.nn.relu(x)


def gelu(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=False)


ACTIVATIONS: dict[str, Layer] = {"relu": relu, "gelu": gelu}


class Stack(nnx.Module):
    """Layers in order under the names "0", "1", ... (or from `start` on).

    `nnx.List` would use whole numbers as keys. Checkpoints turn those into text and sort them as text, which
    permutes stages of eleven or more blocks without an error. Text from the start leaves nothing to permute.
    """

    def __init__(self, layers: Iterable[nnx.Module], start: int = 0):
        self.names = []
        for i, layer in enumerate(layers, start):
            setattr(self, str(i), layer)
            self.names.append(str(i))
        self.names = tuple(self.names)

    def __iter__(self) -> Iterator[Any]:
        return (getattr(self, name) for name in self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Any:
        return getattr(self, self.names[index])

    def __call__(self, x: jax.Array, **kwargs: Any) -> jax.Array:
        for layer in self:
            x = layer(x, **kwargs)
        return x


def subsample(blur: Downsample, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
    """A map subsampled on the grid that its layer chooses; `rngs` feeds those that draw noise in training."""
    return blur(x, blur.choose(x, rngs=rngs))


def subsample_both(
    shortcut: Callable[..., jax.Array] | None,
    blur: Downsample | None,
    x: jax.Array,
    y: jax.Array,
    rngs: nnx.Rngs | None,
) -> tuple[jax.Array, jax.Array]:
    """What a residual block's shortcut makes of `x`, and its blur of `y`, on the grid that is chosen by `y`."""
    choice = None if blur is None else blur.choose(y, rngs=rngs)
    x = x if shortcut is None else shortcut(x, choice)
    return x, y if blur is None else blur(y, choice)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Builder:
    """Makes the layers of one network, so that each is a single line in the model files.

    Attributes:
        filter_size: taps of every blur, None for the plain network.
        pad_type: padding of every blur.
        downsample: what subsamples, as `aa_flax.downsample.method` reads it.
        circular: pad convolutions and pools circularly instead of with zeros.
        activation: a name of `ACTIVATIONS`, or `alias_free`.
        norm: `batch` or `layer`, or `alias_free` in their place.
        frozen_bn: normalise by running statistics in every mode and train no scale or bias.
        dtype: dtype the layers compute and answer in.
        param_dtype: dtype of the parameters.
        conv_init: initial values of convolution kernels.
        rngs: source of the initial values.
    """

    filter_size: int | None
    pad_type: str
    downsample: str = "blur"
    circular: bool = False
    activation: str = "relu"
    norm: str = "batch"
    frozen_bn: bool = False
    dtype: jax.typing.DTypeLike
    param_dtype: jax.typing.DTypeLike
    conv_init: Initialiser = he_fan_out
    rngs: nnx.Rngs

    @property
    def antialiased(self) -> bool:
        return self.filter_size is not None

    @property
    def alias_free(self) -> bool:
        """Whether every shift is to commute with the network."""
        return self.activation == "alias_free"

    def choose(self, *, activation: str, norm: str) -> Self:
        """The builder with these layers; one that is alias-free pads circularly, for its maps are periodic.

        Raises:
            ValueError: for an alias-free activation where the layers around it fold frequencies over all the same, or
                frozen batch normalisation where there is none.
        """
        chosen = dataclasses.replace(self, activation=activation, norm=norm)
        if norm == "alias_free" and self.frozen_bn:
            raise ValueError("norm='alias_free' has no running statistics that frozen_bn=True could keep")
        if not chosen.alias_free:
            return chosen
        if not (self.antialiased and method(self.downsample).layer.alias_free):
            exact = [name for name, layer in METHODS.items() if layer.alias_free]
            found = f"downsample={self.downsample!r}" if self.antialiased else "in the plain network"
            raise ValueError(
                "activation='alias_free' is for a network that aliases nowhere: it goes with "
                f"downsample={' or '.join(map(repr, exact))}, not {found}"
            )
        return dataclasses.replace(chosen, circular=True)

    def blur(self, channels: int, *, follows: bool = False) -> Downsample:
        """What halves a map of so many channels; with `follows` on the grid that another path is always to choose."""
        assert self.filter_size is not None
        site = Site(
            strides=(2, 2),
            filter_size=self.filter_size,
            pad_type=self.pad_type,
            channels=channels,
            norm=self.bn,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            rngs=self.rngs,
            follows=follows,
        )
        return method(self.downsample).at(site)

    def conv(
        self,
        cin: int,
        cout: int,
        size: int,
        stride: int = 1,
        *,
        padding: int | None = None,
        groups: int = 1,
        dilation: int = 1,
        use_bias: bool = False,
        bias_init: Initialiser = zeros,
    ) -> nnx.Conv:
        """A square convolution. Padding is torch's: a number of pixels, by default what keeps the size."""
        if self.circular and padding is not None and stride < size:
            raise ValueError("circular=True is for networks whose convolutions keep the map's size, not AlexNet")
        dense = alike_conv if self.circular else dense_conv
        same = "CIRCULAR" if self.circular else dilation * (size // 2)
        return nnx.Conv(
            cin,
            cout,
            (size, size),
            stride,
            padding=same if padding is None else padding,
            kernel_dilation=dilation,
            feature_group_count=groups,
            use_bias=use_bias,
            kernel_init=self.conv_init,
            bias_init=bias_init,
            conv_general_dilated=depthwise_conv if groups == cin == cout > 1 else dense,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            rngs=self.rngs,
        )

    def bn(self, channels: int) -> BatchNorm | AliasFreeNorm:
        """The batch normalisation of a map of so many channels."""
        if self.norm == "alias_free":
            return AliasFreeNorm(channels, dtype=self.dtype, param_dtype=self.param_dtype)
        norm = FrozenBatchNorm if self.frozen_bn else BatchNorm
        return norm(channels, dtype=self.dtype, param_dtype=self.param_dtype, rngs=self.rngs)

    def ln(self, channels: int) -> nnx.LayerNorm | AliasFreeNorm:
        """The layer normalisation of a map of so many channels."""
        if self.norm == "alias_free":
            return AliasFreeNorm(channels, dtype=self.dtype, param_dtype=self.param_dtype)
        return self.layer_norm(channels)

    def layer_norm(self, channels: int) -> nnx.LayerNorm:
        """Layer normalisation, whatever the choice for maps: for what has no places any more."""
        options: Any = {"dtype": self.dtype, "param_dtype": self.param_dtype, "rngs": self.rngs}
        return nnx.LayerNorm(channels, epsilon=1e-6, use_fast_variance=False, **options)

    def act(self, channels: int) -> Layer:
        """The activation of a map of so many channels."""
        if self.alias_free:
            return AliasFreeActivation(channels, dtype=self.dtype, param_dtype=self.param_dtype)
        return ACTIVATIONS[self.activation]

    def linear(
        self,
        cin: int,
        cout: int,
        kernel_init: Initialiser = torch_default,
        bias_init: Initialiser | None = None,
    ) -> nnx.Linear:
        """A linear layer; without `bias_init` the bias is PyTorch's default."""
        return nnx.Linear(
            cin,
            cout,
            kernel_init=kernel_init,
            bias_init=torch_default_bias(cin) if bias_init is None else bias_init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            rngs=self.rngs,
        )


class ConvBN(nnx.Module):
    """Convolution without bias, then batch normalisation."""

    def __init__(self, cin: int, cout: int, size: int, stride: int = 1, *, groups: int = 1, build: Builder):
        self.conv = build.conv(cin, cout, size, stride, groups=groups)
        self.bn = build.bn(cout)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.bn(self.conv(x))
