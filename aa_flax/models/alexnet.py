"""AlexNet, plain (torchvision's) and anti-aliased.

Krizhevsky 2014 (arXiv 1404.5997); anti-aliasing: Zhang 2019 (arXiv 1904.11486), section 4.
"""

import dataclasses
from typing import ClassVar

import jax
from flax import nnx

from aa_flax.downsample import Downsample
from aa_flax.models.base import Network
from aa_flax.models.family import Family, Recipe, TorchNames
from aa_flax.models.initialisers import torch_default, torch_default_bias
from aa_flax.models.layers import Builder, subsample
from aa_flax.plain_pooling import adaptive_avg_pool, global_avg_pool, max_pool


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlexNetConfig:
    """Options of the anti-aliased network; the plain one has none.

    Attributes:
        pool_only: leave the first convolution strided by 4. The reference then also drops that convolution's
            ReLU, and so does this network, for the sake of its weights.
        relu_first: blur after the first ReLU; False puts the ReLU after the blur.
    """

    pool_only: bool = False
    relu_first: bool = True


CONFIGS = {"alexnet": AlexNetConfig()}


class AlexNet(Network):
    """AlexNet over NHWC images: `model(x)` gives logits, `model.features(x)` the last map.

    Args:
        config: the network's options.
        num_classes: logits; 0 for no head, its hidden layers included.
        in_channels: channels of the image.
        build: makes the layers; decides between plain and anti-aliased.

    Raises:
        ValueError: for options of the anti-aliased network on the plain one.
    """

    first_conv: ClassVar = "conv1"
    last_linear: ClassVar = "fc8"
    antialias_slots: ClassVar = {"stem_blur": "conv1", "blur1": 2, "blur2": 2, "blur5": 2}

    def __init__(self, config: AlexNetConfig, *, num_classes: int, in_channels: int, build: Builder):
        if not build.antialiased and config != AlexNetConfig():
            raise ValueError("pool_only and relu_first belong to anti-aliased networks: the plain one has no blur")
        self.config = config
        self.stem_blur = build.blur(64) if build.antialiased and not config.pool_only else None
        self.blur1 = build.blur(64) if build.antialiased else None
        self.blur2 = build.blur(192) if build.antialiased else None
        self.blur5 = build.blur(256) if build.antialiased else None
        build = dataclasses.replace(build, conv_init=torch_default)

        def conv(cin: int, cout: int, size: int, padding: int, stride: int = 1) -> nnx.Conv:
            bias_init = torch_default_bias(cin * size**2)
            return build.conv(cin, cout, size, stride, padding=padding, use_bias=True, bias_init=bias_init)

        self.conv1 = conv(in_channels, 64, 11, 2, stride=4 if self.stem_blur is None else 2)
        self.conv2 = conv(64, 192, 5, 2)
        self.conv3 = conv(192, 384, 3, 1)
        self.conv4 = conv(384, 256, 3, 1)
        self.conv5 = conv(256, 256, 3, 1)
        self.headless = num_classes == 0
        if self.headless:
            return
        self.fc6 = build.linear(256 * 6 * 6, 4096)
        self.fc7 = build.linear(4096, 4096)
        self.fc8 = build.linear(4096, num_classes)
        self.dropout = nnx.Dropout(0.5)

    def _stem(self, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        x = self.conv1(x)
        if self.config.pool_only:
            return x
        if self.stem_blur is None:
            return jax.nn.relu(x)
        if self.config.relu_first:
            return subsample(self.stem_blur, jax.nn.relu(x), rngs)
        return jax.nn.relu(subsample(self.stem_blur, x, rngs))

    def _pool(self, x: jax.Array, blur: Downsample | None, rngs: nnx.Rngs | None) -> jax.Array:
        return max_pool(x, 3, 2) if blur is None else subsample(blur, max_pool(x, 3, 1), rngs)

    def _pyramid(self, x: jax.Array, rngs: nnx.Rngs | None) -> tuple[jax.Array, ...]:
        """The last map before each pool, and the last pool's."""
        stem = self._stem(x, rngs)
        second = jax.nn.relu(self.conv2(self._pool(stem, self.blur1, rngs)))
        x = jax.nn.relu(self.conv3(self._pool(second, self.blur2, rngs)))
        x = jax.nn.relu(self.conv4(x))
        fifth = jax.nn.relu(self.conv5(x))
        return stem, second, fifth, self._pool(fifth, self.blur5, rngs)

    def _logits(self, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        if self.headless:
            return global_avg_pool(x)
        x = adaptive_avg_pool(x, 6)
        x = x.reshape(x.shape[0], -1)
        x = jax.nn.relu(self.fc6(self.dropout(x, rngs=rngs)))
        x = jax.nn.relu(self.fc7(self.dropout(x, rngs=rngs)))
        return self.fc8(x)


def torch_names(config: AlexNetConfig) -> TorchNames:
    """PyTorch's names of a network."""
    stem = {} if config.pool_only else {"features.2" if config.relu_first else "features.1": "conv1"}
    pools = (2, 6, 14) if config.pool_only else (4, 8, 16)
    convs = zip(("conv1", "conv2", "conv3", "conv4", "conv5"), (0, 3, 6, 8, 10), strict=True)
    linears = zip(("fc6", "fc7", "fc8"), (1, 4, 6), strict=True)
    return TorchNames(
        modules=(
            *((ours, f"features.{place}") for ours, place in convs),
            *((ours, f"classifier.{place}") for ours, place in linears),
        ),
        blurs=stem | {f"features.{p}": conv for p, conv in zip(pools, ("conv1", "conv2", "conv5"), strict=True)},
        # With pool_only the reference drops the ReLU of conv1.
        absent=("features.1",) if config.pool_only else (),
        flattened=("fc6", "conv5"),
    )


FAMILY = Family(
    network=AlexNet,
    configs=CONFIGS,
    torch=torch_names,
    placements={"pool_only": (True, False), "relu_first": (True, False)},
    recipe=Recipe(lr=0.01),
)
