"""Networks as other people write them in NNX, for the surgery's tests: not one of them knows this package."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def with_values(build, seed: int = 0):
    """The module that `build()` makes, with values drawn by numpy: initialising every layer takes far longer."""
    random = np.random.default_rng(seed)

    def draw(leaf):
        scale = (2 / max(1, np.prod(leaf.shape[:-1]))) ** 0.5 if len(leaf.shape) > 1 else 0.3
        # One-dimensional values include variances, which have to be positive.
        offset = 0.0 if len(leaf.shape) > 1 else 1.0
        return jnp.asarray(offset + scale * random.uniform(-1.7, 1.7, leaf.shape), leaf.dtype)

    graphdef, state = nnx.split(nnx.eval_shape(build), graph=True)
    return nnx.merge(graphdef, jax.tree.map(draw, state))


def run(model, *inputs):
    """The model's answer, from one compiled program."""
    graphdef, state = nnx.split(model, graph=True)
    return jax.jit(lambda state, *inputs: nnx.merge(graphdef, state)(*inputs))(state, *inputs)


class DoubleConv(nnx.Module):
    def __init__(self, cin: int, cout: int, rngs: nnx.Rngs):
        self.layers = nnx.Sequential(
            nnx.Conv(cin, cout, (3, 3), rngs=rngs),
            nnx.BatchNorm(cout, rngs=rngs),
            nnx.relu,
            nnx.Conv(cout, cout, (3, 3), rngs=rngs),
            nnx.relu,
        )

    def __call__(self, x):
        return self.layers(x)


class UNet(nnx.Module):
    """Encoder and decoder with skips; pools are partials in a list, one of them an average."""

    def __init__(self, rngs: nnx.Rngs, width: int = 4):
        self.encoder = nnx.List([DoubleConv(3, width, rngs), DoubleConv(width, 2 * width, rngs)])
        self.pools = nnx.List(
            [
                functools.partial(nnx.max_pool, window_shape=(2, 2), strides=(2, 2)),
                functools.partial(nnx.avg_pool, window_shape=(2, 2), strides=(2, 2)),
            ]
        )
        self.bottom = DoubleConv(2 * width, 4 * width, rngs)
        self.up = nnx.List([nnx.ConvTranspose(w, w // 2, (2, 2), 2, rngs=rngs) for w in (4 * width, 2 * width)])
        self.decoder = nnx.List([DoubleConv(4 * width, 2 * width, rngs), DoubleConv(2 * width, width, rngs)])
        self.head = nnx.Conv(width, 2, (1, 1), rngs=rngs)

    def __call__(self, x):
        skips = []
        for block, pool in zip(self.encoder, self.pools, strict=True):
            x = block(x)
            skips.append(x)
            x = pool(x)
        x = self.bottom(x)
        for up, block, skip in zip(self.up, self.decoder, reversed(skips), strict=True):
            x = block(jnp.concatenate([skip, up(x)], -1))
        return self.head(x)


class ConvNeXtBlock(nnx.Module):
    def __init__(self, width: int, rngs: nnx.Rngs):
        self.dwconv = nnx.Conv(width, width, (7, 7), feature_group_count=width, rngs=rngs)
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.pwconv1, self.pwconv2 = nnx.Linear(width, 4 * width, rngs=rngs), nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x):
        return x + self.pwconv2(nnx.gelu(self.pwconv1(self.norm(self.dwconv(x)))))


class ConvNeXt(nnx.Module):
    """Patches of 4x4, then stages between strided 2x2 convolutions that have no activation."""

    def __init__(self, rngs: nnx.Rngs, widths: tuple[int, ...] = (8, 16, 24)):
        self.stem = nnx.Sequential(nnx.Conv(3, widths[0], (4, 4), 4, rngs=rngs), nnx.LayerNorm(widths[0], rngs=rngs))
        self.stages = nnx.Dict(
            {f"stage{i}": nnx.Sequential(ConvNeXtBlock(w, rngs), ConvNeXtBlock(w, rngs)) for i, w in enumerate(widths)}
        )
        self.downsamples = nnx.Dict(
            {
                f"to{i}": nnx.Sequential(nnx.LayerNorm(a, rngs=rngs), nnx.Conv(a, b, (2, 2), 2, rngs=rngs))
                for i, (a, b) in enumerate(itertools.pairwise(widths), 1)
            }
        )
        self.head = nnx.Linear(widths[-1], 5, rngs=rngs)

    def __call__(self, x):
        x = self.stages["stage0"](self.stem(x))
        for i in range(1, len(self.stages)):
            x = self.stages[f"stage{i}"](self.downsamples[f"to{i}"](x))
        return self.head(x.mean((1, 2)))


class ConvNormAct(nnx.Module):
    """What detectors are made of: the activation is an attribute, its place is in the code."""

    def __init__(self, cin: int, cout: int, size: int, stride: int, rngs: nnx.Rngs):
        self.conv = nnx.Conv(cin, cout, (size, size), stride, use_bias=False, rngs=rngs)
        self.bn = nnx.BatchNorm(cout, rngs=rngs)
        self.act = nnx.silu

    def __call__(self, x):
        return self.act(self.bn(self.conv(x)))


class CSPStage(nnx.Module):
    def __init__(self, cin: int, cout: int, rngs: nnx.Rngs):
        self.down = ConvNormAct(cin, cout, 3, 2, rngs)
        self.left = ConvNormAct(cout, cout // 2, 1, 1, rngs)
        self.right = nnx.List([ConvNormAct(cout, cout // 2, 1, 1, rngs), ConvNormAct(cout // 2, cout // 2, 3, 1, rngs)])

    def __call__(self, x):
        x = self.down(x)
        y = self.right[1](self.right[0](x))
        return jnp.concatenate([self.left(x), y], -1)


class Detector(nnx.Module):
    """A backbone that gives three maps, its pools hidden in the code or held in a tuple."""

    def __init__(self, rngs: nnx.Rngs, width: int = 8):
        self.stem = ConvNormAct(3, width, 3, 2, rngs)
        self.stages = nnx.List([CSPStage(width, 2 * width, rngs), CSPStage(2 * width, 4 * width, rngs)])
        self.spp = tuple(functools.partial(nnx.max_pool, window_shape=(k, k), padding="SAME") for k in (3, 5))
        self.shrink = (functools.partial(nnx.max_pool, window_shape=(3, 3), strides=(2, 2), padding="SAME"), nnx.silu)

    def __call__(self, x):
        maps, x = [], self.stem(x)
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        x = jnp.concatenate([x, *(pool(x) for pool in self.spp)], -1)
        maps.append(self.shrink[1](self.shrink[0](x)))
        return maps


class Activation(nnx.Module):
    """A function as a module, which other people's factories return."""

    def __init__(self, function):
        self.function = function

    def __call__(self, x):
        return self.function(x)


class WrappedAct(nnx.Module):
    """A residual block with its activations in modules, and a head that pools over the whole map."""

    def __init__(self, rngs: nnx.Rngs, act: Activation | None = None):
        self.conv1 = nnx.Conv(4, 8, (3, 3), (2, 2), padding=(1, 1), rngs=rngs)
        self.act1 = Activation(nnx.relu) if act is None else act
        self.conv2 = nnx.Conv(8, 8, (3, 3), rngs=rngs)
        self.act2 = Activation(nnx.relu) if act is None else act
        self.shortcut = nnx.Conv(4, 8, (1, 1), (2, 2), rngs=rngs)

    def __call__(self, x):
        x = self.act2(self.conv2(self.act1(self.conv1(x))) + self.shortcut(x))
        return nnx.avg_pool(x, x.shape[1:3], x.shape[1:3])


class HiddenPool(nnx.Module):
    """Everything that the object graph does not show."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.inner = nnx.Sequential(nnx.Conv(8, 8, (3, 3), rngs=rngs), lambda x: nnx.max_pool(x, (2, 2), (2, 2)))
        self.dropout = nnx.Dropout(0.5)

    def __call__(self, x):
        x = nnx.avg_pool(self.conv(x), (2, 2), (2, 2))
        x = jax.jit(self.inner)(x) if isinstance(x, jax.core.Tracer) else self.inner(x)
        return self.dropout(x[:, ::2, 1::2])
