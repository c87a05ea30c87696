"""VGG with and without batch normalisation, plain (torchvision's) and anti-aliased.

Simonyan and Zisserman 2014 (arXiv 1409.1556); anti-aliasing: Zhang 2019 (arXiv 1904.11486), section 4.
"""

import dataclasses
from typing import ClassVar

import jax
from flax import nnx
from jax.nn.initializers import zeros

from aa_flax.models.base import Network
from aa_flax.models.family import Family, Recipe, TorchNames
from aa_flax.models.initialisers import normal
from aa_flax.models.layers import Builder, subsample
from aa_flax.plain_pooling import adaptive_avg_pool, global_avg_pool, max_pool

STAGE_WIDTHS = (64, 128, 256, 512, 512)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VGGConfig:
    """One network of the family.

    Attributes:
        depths: 3x3 convolutions in each of the five stages.
        batch_norm: normalise after each convolution.
    """

    depths: tuple[int, int, int, int, int]
    batch_norm: bool = False


DEPTHS = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
CONFIGS = {name: VGGConfig(depths=depths) for name, depths in DEPTHS.items()}
CONFIGS_BN = {f"{name}_bn": VGGConfig(depths=depths, batch_norm=True) for name, depths in DEPTHS.items()}


class VGG(Network):
    """VGG over NHWC images: `model(x)` gives logits, `model.features(x)` the last map.

    Layers are named as in the paper: `conv3_2` is the second convolution of the third stage.

    Args:
        config: the network.
        num_classes: logits; 0 for no head, its hidden layers included.
        in_channels: channels of the image.
        build: makes the layers; decides between plain and anti-aliased.
    """

    first_conv: ClassVar = "conv1_1"
    last_linear: ClassVar = "fc8"
    antialias_slots: ClassVar = {f"blur{stage}": 2 for stage in range(1, 6)}

    def __init__(self, config: VGGConfig, *, num_classes: int, in_channels: int, build: Builder):
        self.config, self.circular = config, build.circular
        channels = in_channels
        for stage, (depth, width) in enumerate(zip(config.depths, STAGE_WIDTHS, strict=True), 1):
            for i in range(1, depth + 1):
                setattr(self, f"conv{stage}_{i}", build.conv(channels, width, 3, use_bias=True))
                if config.batch_norm:
                    setattr(self, f"bn{stage}_{i}", build.bn(width))
                channels = width
            setattr(self, f"blur{stage}", build.blur(width) if build.antialiased else None)
        self.headless = num_classes == 0
        if self.headless:
            return
        self.fc6 = build.linear(channels * 7 * 7, 4096, normal(0.01), zeros)
        self.fc7 = build.linear(4096, 4096, normal(0.01), zeros)
        self.fc8 = build.linear(4096, num_classes, normal(0.01), zeros)
        self.dropout = nnx.Dropout(0.5)

    def _pyramid(self, x: jax.Array, rngs: nnx.Rngs | None) -> tuple[jax.Array, ...]:
        """The last map before each of the last three pools, and the last pool's."""
        maps = []
        for stage, depth in enumerate(self.config.depths, 1):
            for i in range(1, depth + 1):
                x = getattr(self, f"conv{stage}_{i}")(x)
                if self.config.batch_norm:
                    x = getattr(self, f"bn{stage}_{i}")(x)
                x = jax.nn.relu(x)
            maps.append(x)
            blur = getattr(self, f"blur{stage}")
            if blur is None:
                x = max_pool(x, 2, 2)
            else:
                x = subsample(blur, max_pool(x, 2, 1, circular=self.circular), rngs)
        return *maps[2:], x

    def _logits(self, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        if self.headless:
            return global_avg_pool(x)
        x = adaptive_avg_pool(x, 7)
        x = x.reshape(x.shape[0], -1)
        x = self.dropout(jax.nn.relu(self.fc6(x)), rngs=rngs)
        x = self.dropout(jax.nn.relu(self.fc7(x)), rngs=rngs)
        return self.fc8(x)


def torch_names(config: VGGConfig) -> TorchNames:
    """PyTorch's names of a network: in a row convolution, [batch norm,] ReLU, and a pool after each stage."""
    modules, blurs = [("fc6", "classifier.0"), ("fc7", "classifier.3"), ("fc8", "classifier.6")], {}
    place = 0
    for stage, depth in enumerate(config.depths, 1):
        for i in range(1, depth + 1):
            modules.append((f"conv{stage}_{i}", f"features.{place}"))
            modules.append((f"bn{stage}_{i}", f"features.{place + 1}"))
            place += 3 if config.batch_norm else 2
        # The blur stands behind the pool of its stage and the blurs of those before.
        blurs[f"features.{place + stage}"] = f"conv{stage}_{depth}"
        place += 1
    return TorchNames(modules=tuple(modules), blurs=blurs, flattened=("fc6", f"conv5_{config.depths[-1]}"))


FAMILY = Family(network=VGG, configs=CONFIGS, torch=torch_names, recipe=Recipe(lr=0.01))
FAMILY_BN = Family(network=VGG, configs=CONFIGS_BN, torch=torch_names, recipe=Recipe(lr=0.05))
