"""DenseNet, plain (torchvision's) and anti-aliased.

Huang et al. 2016 (arXiv 1608.06993); anti-aliasing: Zhang 2019 (arXiv 1904.11486), section 4.
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
class DenseNetConfig:
    """One network of the family.

    Attributes:
        depths: layers in each of the four dense blocks.
        growth_rate: channels that each layer adds.
        num_init_features: channels of the stem.
        bn_size: width of the 1x1 bottleneck, in growth rates.
        drop_rate: dropout on the channels that each layer adds.
        pool_only: False also anti-aliases the stem convolution (anti-aliased networks only).
    """

    depths: tuple[int, int, int, int]
    growth_rate: int = 32
    num_init_features: int = 64
    bn_size: int = 4
    drop_rate: float = 0.0
    pool_only: bool = True


CONFIGS = {
    "densenet121": DenseNetConfig(depths=(6, 12, 24, 16)),
    "densenet161": DenseNetConfig(depths=(6, 12, 36, 24), growth_rate=48, num_init_features=96),
    "densenet169": DenseNetConfig(depths=(6, 12, 32, 32)),
    "densenet201": DenseNetConfig(depths=(6, 12, 48, 32)),
}


class Transition(nnx.Module):
    """Halves channels and map: average pooling, or its anti-aliased form, a blur."""

    antialias_slots: ClassVar = {"blur": 2}

    def __init__(self, cin: int, *, build: Builder):
        self.norm, self.conv = build.bn(cin), build.conv(cin, cin // 2, 1)
        self.blur = build.blur(cin // 2) if build.antialiased else None

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = self.conv(jax.nn.relu(self.norm(x)))
        return avg_pool(x, 2, 2) if self.blur is None else subsample(self.blur, x, rngs)


class DenseNet(Network):
    """DenseNet over NHWC images: `model(x)` gives logits, `model.features(x)` the last map.

    Args:
        config: the network and its options.
        num_classes: logits; 0 for no head.
        in_channels: channels of the image.
        build: makes the layers; decides between plain and anti-aliased.

    Raises:
        ValueError: for options that contradict the network.
    """

    first_conv: ClassVar = "conv0"
    last_linear: ClassVar = "classifier"
    antialias_slots: ClassVar = {"stem_blur": "conv0", "pool_blur": 2}

    def __init__(self, config: DenseNetConfig, *, num_classes: int, in_channels: int, build: Builder):
        if not (config.pool_only or build.antialiased):
            raise ValueError("pool_only=False belongs to anti-aliased networks: the plain one has no blur")
        if not 0 <= config.drop_rate < 1:
            raise ValueError(f"drop_rate is a probability below 1, got {config.drop_rate}")
        build = dataclasses.replace(build, conv_init=he_fan_in)
        self.config, self.circular = config, build.circular
        channels = config.num_init_features
        self.conv0 = build.conv(in_channels, channels, 7, 2 if config.pool_only else 1)
        self.norm0 = build.bn(channels)
        self.stem_blur = None if config.pool_only else build.blur(channels)
        self.pool_blur = build.blur(channels) if build.antialiased else None
        for i, depth in enumerate(config.depths, 1):
            setattr(self, f"denseblock{i}", DenseBlock(channels, depth, config, build=build))
            channels += depth * config.growth_rate
            if i < len(config.depths):
                setattr(self, f"transition{i}", Transition(channels, build=build))
                channels //= 2
        self.norm5 = build.bn(channels)
        self.classifier = build.linear(channels, num_classes, bias_init=zeros) if num_classes else None

    def _pyramid(self, x: jax.Array, rngs: nnx.Rngs | None) -> tuple[jax.Array, ...]:
        """The output of each dense block, the last after its ReLU."""
        x = jax.nn.relu(self.norm0(self.conv0(x)))
        if self.stem_blur is not None:
            x = subsample(self.stem_blur, x, rngs)
        if self.pool_blur is not None:
            x = subsample(self.pool_blur, max_pool(x, 3, 1, padding=1, circular=self.circular), rngs)
        else:
            x = max_pool(x, 3, 2, padding=1)
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


def torch_names(config: DenseNetConfig) -> TorchNames:
    """PyTorch's names of a network."""
    stem = ("pool0",) if config.pool_only else ("ds0", "pool0")
    transitions = {f"features.transition{i}.pool": f"transition{i}.conv" for i in range(1, len(config.depths))}
    return TorchNames(
        modules=((r"(?!classifier)(.*)", r"features.\1"),),
        blurs={f"features.{place}": "conv0" for place in stem} | transitions,
    )


FAMILY = Family(network=DenseNet, configs=CONFIGS, torch=torch_names, placements={"pool_only": (True, False)})
