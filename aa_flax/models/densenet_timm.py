"""The anti-aliased DenseNet that timm publishes weights of, under timm's name.

Huang et al. 2016 (arXiv 1608.06993). It has three convolutions in its stem, a blur behind the maximum, and averages of
2x2 pixels in its transitions.
"""

import dataclasses
from typing import ClassVar

import jax
from flax import nnx
from jax.nn.initializers import zeros

from aa_flax.models.base import Network
from aa_flax.models.dense_block import DenseBlock
from aa_flax.models.family import Family, TorchNames
from aa_flax.models.initialisers import he_fan_in
from aa_flax.models.layers import Builder, subsample
from aa_flax.plain_pooling import avg_pool, global_avg_pool, max_pool


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimmDenseNetConfig:
    """One network of the family.

    Attributes:
        depths: layers in each of the four dense blocks.
        growth_rate: channels that each layer adds.
        num_init_features: channels of the stem.
        bn_size: width of the 1x1 bottleneck, in growth rates.
        drop_rate: dropout on the channels that each layer adds.
        transition_taps: taps of the blur that halves the map between dense blocks; with 1 the mean of 2x2 pixels does.
            `aa_flax.antialias` sets it to its filter size where it is 1.
    """

    depths: tuple[int, int, int, int]
    growth_rate: int = 32
    num_init_features: int = 64
    bn_size: int = 4
    drop_rate: float = 0.0
    transition_taps: int = 1


CONFIGS = {"densenetblur121d": TimmDenseNetConfig(depths=(6, 12, 24, 16))}


class TimmTransition(nnx.Module):
    """Halves channels and map."""

    antialias_slots: ClassVar = {"blur": 2}

    def __init__(self, cin: int, taps: int, *, build: Builder):
        self.norm, self.conv = build.bn(cin), build.conv(cin, cin // 2, 1)
        self.blur = dataclasses.replace(build, filter_size=taps).blur(cin // 2) if taps > 1 else None

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = self.conv(jax.nn.relu(self.norm(x)))
        return avg_pool(x, 2, 2) if self.blur is None else subsample(self.blur, x, rngs)


class TimmDenseNet(Network):
    """timm's anti-aliased DenseNet over NHWC images: `model(x)` gives logits, `model.features(x)` the last map.

    Args:
        config: the network and its options.
        num_classes: logits; 0 for no head.
        in_channels: channels of the image.
        build: makes the layers.

    Raises:
        ValueError: for a dropout rate that is no probability below 1.
    """

    first_conv: ClassVar = "conv0"
    last_linear: ClassVar = "classifier"

    def __init__(self, config: TimmDenseNetConfig, *, num_classes: int, in_channels: int, build: Builder):
        if not 0 <= config.drop_rate < 1:
            raise ValueError(f"drop_rate is a probability below 1, got {config.drop_rate}")
        build = dataclasses.replace(build, conv_init=he_fan_in)
        self.config, self.circular = config, build.circular
        channels = config.num_init_features
        half = channels // 2
        self.conv0, self.norm0 = build.conv(in_channels, half, 3, 2), build.bn(half)
        self.conv1, self.norm1 = build.conv(half, half, 3), build.bn(half)
        self.conv2, self.norm2 = build.conv(half, channels, 3), build.bn(channels)
        self.pool_blur = build.blur(channels)
        for i, depth in enumerate(config.depths, 1):
            setattr(self, f"denseblock{i}", DenseBlock(channels, depth, config, build=build))
            channels += depth * config.growth_rate
            if i < len(config.depths):
                setattr(self, f"transition{i}", TimmTransition(channels, config.transition_taps, build=build))
                channels //= 2
        self.norm5 = build.bn(channels)
        self.classifier = build.linear(channels, num_classes, bias_init=zeros) if num_classes else None

    def _pyramid(self, x: jax.Array, rngs: nnx.Rngs | None) -> tuple[jax.Array, ...]:
        """The output of each dense block, the last after its ReLU."""
        for conv, norm in ((self.conv0, self.norm0), (self.conv1, self.norm1), (self.conv2, self.norm2)):
            x = jax.nn.relu(norm(conv(x)))
        x = subsample(self.pool_blur, max_pool(x, 3, 1, padding=1, circular=self.circular), rngs)
        maps = []
        for i in range(1, len(self.config.depths) + 1):
            x = getattr(self, f"denseblock{i}")(x, rngs=rngs)
            if i < len(self.config.depths):
                maps.append(x)
                x = getattr(self, f"transition{i}")(x, rngs=rngs)
        return *maps, jax.nn.relu(self.norm5(x))

    def _logits(self, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        x = global_avg_pool(x)
        return x if self.classifier is None else self.classifier(x)


def torch_names(config: TimmDenseNetConfig) -> TorchNames:
    """timm's names of a network, whose files hold no filters."""
    return TorchNames(modules=((r"(?!classifier)(.*)", r"features.\1"),), package="timm")


FAMILY = Family(
    network=TimmDenseNet, configs=CONFIGS, torch=torch_names, filter_size=3, antialias_option="transition_taps"
)
