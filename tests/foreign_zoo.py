"""The usual families as other people write them in NNX: activations in the code, pools as modules of their own.

None of them knows this package, all are as narrow as they can be. Their strides are in the comments.
"""

import itertools

import jax
import jax.numpy as jnp
from flax import nnx


class MaxPool2D(nnx.Module):
    """A pool as a module, with the arguments of its own package."""

    def __init__(self, window: int, stride: int):
        self.window, self.stride = window, stride

    def __call__(self, x):
        return nnx.max_pool(x, (self.window,) * 2, (self.stride,) * 2)


class AvgPool2D(MaxPool2D):
    def __call__(self, x):
        return nnx.avg_pool(x, (self.window,) * 2, (self.stride,) * 2)


class Shortcut(nnx.Module):
    def __init__(self, cin: int, cout: int, stride: int, rngs: nnx.Rngs):
        self.conv = nnx.Conv(cin, cout, (1, 1), stride, padding=0, use_bias=False, rngs=rngs)
        self.bn = nnx.BatchNorm(cout, rngs=rngs)

    def __call__(self, x):
        return self.bn(self.conv(x))


class BasicBlock(nnx.Module):
    """Its ReLU is in the code: the structure shows no activation."""

    def __init__(self, cin: int, cout: int, stride: int, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(cin, cout, (3, 3), stride, padding=1, use_bias=False, rngs=rngs)
        self.bn1 = nnx.BatchNorm(cout, rngs=rngs)
        self.conv2 = nnx.Conv(cout, cout, (3, 3), padding=1, use_bias=False, rngs=rngs)
        self.bn2 = nnx.BatchNorm(cout, rngs=rngs)
        self.shortcut = Shortcut(cin, cout, stride, rngs) if stride > 1 or cin != cout else None

    def __call__(self, x):
        y = self.bn2(self.conv2(jax.nn.relu(self.bn1(self.conv1(x)))))
        return jax.nn.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ResNet(nnx.Module):
    """2 (stem), 2 (pool in the code), 1, 2 in the second stage and in its shortcut."""

    def __init__(self, rngs: nnx.Rngs, width: int = 4):
        self.stem = nnx.Sequential(
            nnx.Conv(3, width, (7, 7), 2, padding=3, use_bias=False, rngs=rngs), nnx.BatchNorm(width, rngs=rngs)
        )
        self.stage1 = nnx.List([BasicBlock(width, width, 1, rngs)])
        self.stage2 = nnx.List([BasicBlock(width, 2 * width, 2, rngs), BasicBlock(2 * width, 2 * width, 1, rngs)])
        self.fc = nnx.Linear(2 * width, 5, rngs=rngs)

    def __call__(self, x):
        x = nnx.max_pool(jax.nn.relu(self.stem(x)), (3, 3), (2, 2), ((1, 1), (1, 1)))
        for block in (*self.stage1, *self.stage2):
            x = block(x)
        return self.fc(x.mean((1, 2)))


class SqueezeExcite(nnx.Module):
    """Its 1x1 convolutions have the fewest channels of the network."""

    def __init__(self, width: int, squeezed: int, rngs: nnx.Rngs):
        self.reduce = nnx.Conv(width, squeezed, (1, 1), rngs=rngs)
        self.expand = nnx.Conv(squeezed, width, (1, 1), rngs=rngs)

    def __call__(self, x):
        gate = self.expand(jax.nn.silu(self.reduce(x.mean((1, 2), keepdims=True))))
        return x * jax.nn.sigmoid(gate)


class MBConv(nnx.Module):
    def __init__(self, cin: int, cout: int, stride: int, rngs: nnx.Rngs, expansion: int = 2):
        wide = cin * expansion
        self.expand, self.bn0 = nnx.Conv(cin, wide, (1, 1), rngs=rngs), nnx.BatchNorm(wide, rngs=rngs)
        self.depthwise = nnx.Conv(wide, wide, (3, 3), stride, feature_group_count=wide, use_bias=False, rngs=rngs)
        self.bn1 = nnx.BatchNorm(wide, rngs=rngs)
        self.se = SqueezeExcite(wide, 1, rngs)
        self.project, self.bn2 = nnx.Conv(wide, cout, (1, 1), rngs=rngs), nnx.BatchNorm(cout, rngs=rngs)

    def __call__(self, x):
        y = jax.nn.silu(self.bn0(self.expand(x)))
        y = self.se(jax.nn.silu(self.bn1(self.depthwise(y))))
        y = self.bn2(self.project(y))
        return x + y if x.shape == y.shape else y


class EfficientNet(nnx.Module):
    """2 (stem), 2 and 2 (depthwise)."""

    def __init__(self, rngs: nnx.Rngs, width: int = 4):
        self.stem, self.bn = nnx.Conv(3, width, (3, 3), 2, rngs=rngs), nnx.BatchNorm(width, rngs=rngs)
        self.blocks = nnx.List(
            [
                MBConv(width, width, 1, rngs),
                MBConv(width, width, 2, rngs),
                MBConv(width, width, 2, rngs),
            ]
        )
        self.fc = nnx.Linear(width, 5, rngs=rngs)

    def __call__(self, x):
        x = jax.nn.silu(self.bn(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return self.fc(x.mean((1, 2)))


class DenseLayer(nnx.Module):
    def __init__(self, cin: int, growth: int, rngs: nnx.Rngs):
        self.bn1, self.conv1 = nnx.BatchNorm(cin, rngs=rngs), nnx.Conv(cin, 2 * growth, (1, 1), rngs=rngs)
        self.bn2, self.conv2 = nnx.BatchNorm(2 * growth, rngs=rngs), nnx.Conv(2 * growth, growth, (3, 3), rngs=rngs)

    def __call__(self, x):
        y = self.conv1(jax.nn.relu(self.bn1(x)))
        return jnp.concatenate([x, self.conv2(jax.nn.relu(self.bn2(y)))], -1)


class Transition(nnx.Module):
    def __init__(self, cin: int, rngs: nnx.Rngs):
        self.bn, self.conv = nnx.BatchNorm(cin, rngs=rngs), nnx.Conv(cin, cin // 2, (1, 1), rngs=rngs)
        self.pool = AvgPool2D(2, 2)

    def __call__(self, x):
        return self.pool(self.conv(jax.nn.relu(self.bn(x))))


class DenseNet(nnx.Module):
    """2 (stem), 2 (maximum), 2 (average of the transition)."""

    def __init__(self, rngs: nnx.Rngs, growth: int = 4):
        self.conv0, self.bn0 = nnx.Conv(3, 2 * growth, (7, 7), 2, rngs=rngs), nnx.BatchNorm(2 * growth, rngs=rngs)
        self.pool0 = MaxPool2D(2, 2)
        self.block1 = nnx.Sequential(DenseLayer(2 * growth, growth, rngs), DenseLayer(3 * growth, growth, rngs))
        self.transition1 = Transition(4 * growth, rngs)
        self.block2 = nnx.Sequential(DenseLayer(2 * growth, growth, rngs))
        self.fc = nnx.Linear(3 * growth, 5, rngs=rngs)

    def __call__(self, x):
        x = self.pool0(jax.nn.relu(self.bn0(self.conv0(x))))
        return self.fc(self.block2(self.transition1(self.block1(x))).mean((1, 2)))


class VGG(nnx.Module):
    """2 (maximum) three times; every convolution is dense."""

    def __init__(self, rngs: nnx.Rngs):
        widths, layers = (3, 4, 4, 8), []
        for cin, cout in itertools.pairwise(widths):
            layers += [nnx.Conv(cin, cout, (3, 3), padding=1, rngs=rngs), nnx.relu, MaxPool2D(2, 2)]
        self.features = nnx.Sequential(*layers)
        self.head = nnx.Linear(8, 5, rngs=rngs)

    def __call__(self, x):
        return self.head(self.features(x).mean((1, 2)))


class ViT(nnx.Module):
    """4 (patches), and nothing after them."""

    def __init__(self, rngs: nnx.Rngs, width: int = 8):
        self.patches = nnx.Conv(3, width, (4, 4), 4, padding="VALID", rngs=rngs)
        self.norm1, self.norm2 = nnx.LayerNorm(width, rngs=rngs), nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, width, decode=False, rngs=rngs)
        self.mlp = nnx.Sequential(nnx.Linear(width, width, rngs=rngs), nnx.gelu, nnx.Linear(width, width, rngs=rngs))
        self.head = nnx.Linear(width, 5, rngs=rngs)

    def __call__(self, x):
        x = self.patches(x)
        x = x.reshape(len(x), -1, x.shape[-1])
        x = x + self.attention(self.norm1(x))
        return self.head((x + self.mlp(self.norm2(x))).mean(1))


class ColourAndDepth(nnx.Module):
    """Two stems of stride 2 read the input, its picture and its depth; 2 after them. The gate sees three features."""

    def __init__(self, rngs: nnx.Rngs, width: int = 4):
        self.depth = nnx.Conv(1, width, (3, 3), 2, rngs=rngs)
        self.colour = nnx.Conv(3, width, (3, 3), 2, rngs=rngs)
        self.squeeze = nnx.Conv(2 * width, 3, (3, 3), rngs=rngs)
        self.down = nnx.Conv(3, width, (3, 3), 2, rngs=rngs)

    def __call__(self, x):
        x = (x - 0.5) / 0.25
        maps = [self.colour(x[..., :3]), self.depth(jnp.pad(x, ((0, 0),) * 4)[..., 3:])]
        x = jax.nn.relu(jnp.concatenate(maps, -1))
        return self.down(jax.nn.relu(self.squeeze(x)))
