"""The dense block that torchvision's DenseNets and timm's have in common."""

from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from aa_flax.models.layers import Builder


class Growth(Protocol):
    """What a configuration says of the layers of a dense block."""

    @property
    def growth_rate(self) -> int: ...
    @property
    def bn_size(self) -> int: ...
    @property
    def drop_rate(self) -> float: ...


class DenseLayer(nnx.Module):
    """BN, ReLU, 1x1, BN, ReLU, 3x3: the channels that one layer adds."""

    def __init__(self, cin: int, config: Growth, *, build: Builder):
        width = config.bn_size * config.growth_rate
        self.norm1, self.conv1 = build.bn(cin), build.conv(cin, width, 1)
        self.norm2, self.conv2 = build.bn(width), build.conv(width, config.growth_rate, 3)
        self.dropout = nnx.Dropout(config.drop_rate)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        y = self.conv1(jax.nn.relu(self.norm1(x)))
        y = self.conv2(jax.nn.relu(self.norm2(y)))
        return self.dropout(y, rngs=rngs)


class DenseBlock(nnx.Module):
    """Layers that each see everything before them."""

    def __init__(self, cin: int, depth: int, config: Growth, *, build: Builder):
        self.depth = depth
        for i in range(depth):
            layer = DenseLayer(cin + i * config.growth_rate, config, build=build)
            setattr(self, f"denselayer{i + 1}", layer)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        for i in range(self.depth):
            x = jnp.concatenate([x, getattr(self, f"denselayer{i + 1}")(x, rngs=rngs)], -1)
        return x
