"""The anti-aliased MobileNetV4 that timm publishes weights of, under timm's names.

Qin et al. 2024 (arXiv 2404.10518), the convolutional networks. The strides of blocks are blurs, or averages of 2x2
pixels, behind the activation of the convolution that would stride; the stem keeps its own.
"""

import dataclasses
from typing import ClassVar

import jax
from flax import nnx
from jax.nn.initializers import zeros

from aa_flax.models.base import Network
from aa_flax.models.family import Family, TorchNames
from aa_flax.models.initialisers import he_fan_in, torch_default_bias
from aa_flax.models.layers import Builder, ConvBN, Stack, subsample
from aa_flax.plain_pooling import even_sides, global_avg_pool

# Sizes of the depthwise convolutions before and after the expansion (0: there is none), and the expansion.
Row = tuple[int, int, int]
Stage = tuple[int, tuple[Row, ...]]

MEDIUM: tuple[Stage, ...] = (
    (80, ((3, 5, 4), (3, 3, 2))),
    (160, ((3, 5, 6), (3, 3, 4), (3, 3, 4), (3, 5, 4), (3, 3, 4), (3, 0, 4), (0, 0, 2), (3, 0, 4))),
    (
        256,
        (
            *((5, 5, 6), (5, 5, 4), (3, 5, 4), (3, 5, 4), (0, 0, 4), (3, 0, 4)),
            *((3, 5, 2), (5, 5, 4), (0, 0, 4), (0, 0, 4), (5, 0, 2)),
        ),
    ),
)
LARGE: tuple[Stage, ...] = (
    (96, ((3, 5, 4), (3, 3, 4))),
    (192, ((3, 5, 4), *3 * ((3, 3, 4),), (3, 5, 4), *5 * ((5, 3, 4),), (3, 0, 4))),
    (
        512,
        (
            *4 * ((5, 5, 4),),
            *((5, 0, 4), (5, 3, 4), (5, 0, 4), (5, 0, 4), (5, 3, 4), (5, 5, 4)),
            *3 * ((5, 0, 4),),
        ),
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MobileNetV4Config:
    """One network of the family.

    Attributes:
        stem_width: channels of the stem.
        stages: width and blocks of each stage behind the first one, which has 48 channels and one block.
        average: halve maps by averages of 2x2 pixels, which leave out the last row or column of an odd number.
    """

    stem_width: int
    stages: tuple[Stage, ...]
    average: bool


BLUR = {"mobilenetv4_conv_blur_medium": MobileNetV4Config(stem_width=32, stages=MEDIUM, average=False)}
AVERAGE = {
    "mobilenetv4_conv_aa_medium": MobileNetV4Config(stem_width=32, stages=MEDIUM, average=True),
    "mobilenetv4_conv_aa_large": MobileNetV4Config(stem_width=24, stages=LARGE, average=True),
}


def _depthwise(channels: int, size: int, build: Builder) -> ConvBN | None:
    """A depthwise convolution and its normalisation; None where there is none."""
    # With one input a channel the fan in is the fan out of a group.
    grouped = dataclasses.replace(build, conv_init=he_fan_in)
    return ConvBN(channels, channels, size, groups=channels, build=grouped) if size else None


class FusedBlock(nnx.Module):
    """3x3 up, ReLU, blur, 1x1 down."""

    def __init__(self, cin: int, cout: int, expansion: int, average: bool, *, build: Builder):
        hidden = cin * expansion
        self.average = average
        self.conv_exp, self.bn1 = build.conv(cin, hidden, 3), build.bn(hidden)
        self.blur = build.blur(hidden)
        self.conv_pwl, self.bn2 = build.conv(hidden, cout, 1), build.bn(cout)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = jax.nn.relu(self.bn1(self.conv_exp(x)))
        x = subsample(self.blur, even_sides(x) if self.average else x, rngs)
        return self.bn2(self.conv_pwl(x))


class UniversalInvertedBottleneck(nnx.Module):
    """Depthwise, 1x1 up, depthwise, 1x1 down, of which each depthwise one may lack; the blur is behind the second."""

    def __init__(self, cin: int, cout: int, strided: bool, row: Row, average: bool, *, build: Builder):
        start, middle, expansion = row
        hidden = cin * expansion
        self.average = average
        self.residual = not strided and cin == cout
        self.dw_start = _depthwise(cin, start, build)
        self.pw_exp = ConvBN(cin, hidden, 1, build=build)
        self.dw_mid = _depthwise(hidden, middle, build)
        self.blur = build.blur(hidden) if strided else None
        self.pw_proj = ConvBN(hidden, cout, 1, build=build)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        y = x if self.dw_start is None else self.dw_start(x)
        y = jax.nn.relu(self.pw_exp(y))
        if self.dw_mid is not None:
            y = jax.nn.relu(self.dw_mid(y))
        if self.blur is not None:
            y = subsample(self.blur, even_sides(y) if self.average else y, rngs)
        y = self.pw_proj(y)
        return x + y if self.residual else y


class MobileNetV4(Network):
    """MobileNetV4 over NHWC images: `model(x)` gives logits, `model.features(x)` the last map.

    The last 1x1 convolution is behind the pooling; a network without head ends with it.

    Args:
        config: the network and its options.
        num_classes: logits; 0 for no head.
        in_channels: channels of the image.
        build: makes the layers.
    """

    first_conv: ClassVar = "conv_stem"
    last_linear: ClassVar = "classifier"

    def __init__(self, config: MobileNetV4Config, *, num_classes: int, in_channels: int, build: Builder):
        average = config.average
        self.conv_stem, self.bn1 = build.conv(in_channels, config.stem_width, 3, 2), build.bn(config.stem_width)
        channels = 48
        stages = [Stack([FusedBlock(config.stem_width, channels, 4, average, build=build)])]
        for width, rows in config.stages:
            blocks = []
            for i, row in enumerate(rows):
                blocks.append(UniversalInvertedBottleneck(channels, width, i == 0, row, average, build=build))
                channels = width
            stages.append(Stack(blocks))
        self.blocks = Stack(stages)
        self.last = ConvBN(channels, 960, 1, build=build)
        self.conv_head, self.norm_head = build.conv(960, 1280, 1), build.bn(1280)
        # Uniform within one by the square root of the classes.
        kernel = torch_default_bias(max(num_classes, 1))
        self.classifier = build.linear(1280, num_classes, kernel, zeros) if num_classes else None

    def _pyramid(self, x: jax.Array, rngs: nnx.Rngs | None) -> tuple[jax.Array, ...]:
        """The output of each stage."""
        x = jax.nn.relu(self.bn1(self.conv_stem(x)))
        maps = [x := stage(x, rngs=rngs) for stage in self.blocks]
        return tuple(maps)

    def _last_map(self, x: jax.Array) -> jax.Array:
        """The map before average pooling, (N, H/32, W/32, 960)."""
        return jax.nn.relu(self.last(x))

    def _logits(self, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        means = global_avg_pool(x)[:, None, None, :]
        x = jax.nn.relu(self.norm_head(self.conv_head(means)))[:, 0, 0, :]
        return x if self.classifier is None else self.classifier(x)


def torch_names(config: MobileNetV4Config) -> TorchNames:
    """timm's names of a network, whose files hold no filters."""
    last = len(config.stages) + 1
    names = ((r"last\.conv", f"blocks.{last}.0.conv"), (r"last\.bn", f"blocks.{last}.0.bn1"))
    return TorchNames(modules=names, package="timm")


FAMILY_BLUR = Family(network=MobileNetV4, configs=BLUR, torch=torch_names, filter_size=3, pad_type="zero")
FAMILY_AVERAGE = Family(network=MobileNetV4, configs=AVERAGE, torch=torch_names, filter_size=2)
