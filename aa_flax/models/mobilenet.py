"""MobileNetV2, plain (torchvision's) and anti-aliased.

Sandler et al. 2018 (arXiv 1801.04381); anti-aliasing: Zhang 2019 (arXiv 1904.11486), section 4.
"""

import dataclasses
from typing import ClassVar, Literal

import jax
from flax import nnx
from jax.nn.initializers import zeros

from aa_flax.models.base import Network
from aa_flax.models.family import Family, Recipe, TorchNames
from aa_flax.models.initialisers import normal
from aa_flax.models.layers import Builder, ConvBN, Stack, subsample
from aa_flax.plain_pooling import global_avg_pool

# Expansion, width, repeats and first stride of each stage (table 2 of the paper).
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MobileNetV2Config:
    """Options of the network.

    Attributes:
        width_mult: factor on all widths. The plain network rounds them to multiples of 8 as torchvision does, the
            anti-aliased one cuts them off as the reference does, so that their sizes differ unless it is 1.
        stem_stride: of the first convolution, which is never blurred; 1 for small images such as CIFAR's, which halves
            the stride of every map.
    """

    width_mult: float = 1.0
    stem_stride: Literal[1, 2] = 2


CONFIGS = {"mobilenet_v2": MobileNetV2Config()}


def block_rows() -> list[tuple[int, int, int]]:
    """Expansion, width and stride of each block."""
    return [(e, width, stride if i == 0 else 1) for e, width, repeats, stride in STAGES for i in range(repeats)]


def _multiple_of_8(width: float) -> int:
    """The nearest multiple of 8, at least 8 and not more than a tenth below `width` (torchvision's rule)."""
    rounded = max(8, int(width + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * width else rounded


class InvertedResidual(nnx.Module):
    """1x1 up, depthwise 3x3, 1x1 down; anti-aliased: the stride becomes a blur after the depthwise ReLU6."""

    antialias_slots: ClassVar = {"blur": "depthwise.conv"}

    def __init__(self, cin: int, cout: int, stride: int, expansion: int, *, build: Builder):
        hidden = round(cin * expansion)
        self.stride = stride
        self.residual = stride == 1 and cin == cout
        self.expand = ConvBN(cin, hidden, 1, build=build) if expansion != 1 else None
        self.blur = build.blur(hidden) if build.antialiased and stride > 1 else None
        conv_stride = 1 if build.antialiased else stride
        self.depthwise = ConvBN(hidden, hidden, 3, conv_stride, groups=hidden, build=build)
        self.project = ConvBN(hidden, cout, 1, build=build)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        y = x if self.expand is None else jax.nn.relu6(self.expand(x))
        y = jax.nn.relu6(self.depthwise(y))
        if self.blur is not None:
            y = subsample(self.blur, y, rngs)
        y = self.project(y)
        return x + y if self.residual else y


class MobileNetV2(Network):
    """MobileNetV2 over NHWC images: `model(x)` gives logits, `model.features(x)` the last map.

    Block i is torchvision's `features.i`. The plain network drops out a fifth of the features before its
    classifier, the anti-aliased one does not.

    Args:
        config: the network's options.
        num_classes: logits; 0 for no head.
        in_channels: channels of the image.
        build: makes the layers; decides between plain and anti-aliased.

    Raises:
        ValueError: if `width_mult` leaves no channels.
    """

    first_conv: ClassVar = "stem.conv"
    last_linear: ClassVar = "classifier"

    def __init__(self, config: MobileNetV2Config, *, num_classes: int, in_channels: int, build: Builder):
        width = int if build.antialiased else _multiple_of_8
        channels = width(32 * config.width_mult)
        if width(16 * config.width_mult) < 1:
            raise ValueError(f"width_mult must leave at least one channel, got {config.width_mult}")
        self.stem = ConvBN(in_channels, channels, 3, config.stem_stride, build=build)
        blocks = []
        for expansion, base, stride in block_rows():
            cout = width(base * config.width_mult)
            blocks.append(InvertedResidual(channels, cout, stride, expansion, build=build))
            channels = cout
        self.blocks = Stack(blocks, start=1)
        last = width(1280 * max(1.0, config.width_mult))
        self.head = ConvBN(channels, last, 1, build=build)
        self.dropout = nnx.Dropout(0.0 if build.antialiased else 0.2)
        self.classifier = build.linear(last, num_classes, normal(0.01), zeros) if num_classes else None

    def _pyramid(self, x: jax.Array, rngs: nnx.Rngs | None) -> tuple[jax.Array, ...]:
        """The output of the last block at each stride."""
        x, maps = jax.nn.relu6(self.stem(x)), []
        for block in self.blocks:
            if block.stride > 1:
                maps.append(x)
            x = block(x, rngs=rngs)
        return *maps[1:], x

    def _last_map(self, x: jax.Array) -> jax.Array:
        """The map before average pooling, (N, H/32, W/32, 1280)."""
        return jax.nn.relu6(self.head(x))

    def _logits(self, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        x = global_avg_pool(x)
        return x if self.classifier is None else self.classifier(self.dropout(x, rngs=rngs))


def torch_names(config: MobileNetV2Config) -> TorchNames:
    """PyTorch's names of a network, in which all but the classifier is one `Sequential` of such."""
    rows = block_rows()
    strided = [i for i, (_, _, stride) in enumerate(rows, 1) if stride > 1]
    last = len(rows) + 1
    return TorchNames(
        modules=(
            (r"stem\.conv", "features.0.0"),
            (r"stem\.bn", "features.0.1"),
            # The first block expands by 1 and therefore has no expansion.
            (r"blocks\.1\.depthwise\.conv", "features.1.conv.0.0"),
            (r"blocks\.1\.depthwise\.bn", "features.1.conv.0.1"),
            (r"blocks\.1\.project\.conv", "features.1.conv.1"),
            (r"blocks\.1\.project\.bn", "features.1.conv.2"),
            (r"blocks\.(\d+)\.expand\.conv", r"features.\1.conv.0.0"),
            (r"blocks\.(\d+)\.expand\.bn", r"features.\1.conv.0.1"),
            (r"blocks\.(\d+)\.depthwise\.conv", r"features.\1.conv.1.0"),
            (r"blocks\.(\d+)\.depthwise\.bn", r"features.\1.conv.1.1"),
            (r"blocks\.(\d+)\.project\.conv", r"features.\1.conv.2"),
            (r"blocks\.(\d+)\.project\.bn", r"features.\1.conv.3"),
            (r"head\.conv", f"features.{last}.0"),
            (r"head\.bn", f"features.{last}.1"),
            (r"classifier", "classifier.1"),
        ),
        blurs={f"features.{i}.conv.2": f"blocks.{i}.depthwise.conv" for i in strided},
        absent=("classifier.0",),  # the reference has no dropout in front of the last layer
    )


FAMILY = Family(
    network=MobileNetV2,
    configs=CONFIGS,
    torch=torch_names,
    recipe=Recipe(lr=0.05, schedule="cosine_epochs", weight_decay=4e-5, epochs=150),
)
