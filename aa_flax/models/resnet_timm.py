"""The anti-aliased ResNets that timm publishes weights of, under timm's names.

They are ResNets of another kind than Zhang's: `resnetblur*` blur behind a 3x3 maximum and behind strided 3x3
convolutions, `resnetaa*` average 2x2 pixels in these places and have no maximum, and the shortcuts of both are
timm's. He et al. 2018 (arXiv 1812.01187) for the networks with a `d`, Hu et al. 2017 (arXiv 1709.01507) for squeeze
and excitation.
"""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from aa_flax.downsample import Choice
from aa_flax.models.base import Network
from aa_flax.models.family import Family, TorchNames
from aa_flax.models.initialisers import torch_default_bias
from aa_flax.models.layers import Builder, ConvBN, Stack, subsample, subsample_both
from aa_flax.plain_pooling import even_sides, global_avg_pool, max_pool


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimmResNetConfig:
    """One network of the family.

    Attributes:
        depths: blocks in each of the four stages.
        block: `basic` (two 3x3) or `bottleneck` (1x1, 3x3, 1x1 with four times the width).
        groups: groups of the bottleneck's 3x3 convolution.
        width_per_group: channels of a group in the first stage.
        stem_widths: channels of the stem's convolutions: one of 7x7, or three of 3x3.
        pool: what is behind the stem: `max`, of 3x3 pixels before the blur, or the `average` alone.
        shortcut_taps: taps of the blur in front of the 1x1 convolution of strided shortcuts; with 1 this convolution
            strides by itself and aliases. `aa_flax.antialias` sets it to its filter size where it is 1.
        squeeze: squeeze and excitation behind each block, with a sixteenth of its channels.
        zero_init_residual: start each block as the identity, with the scale of its last BN at zero.
    """

    depths: tuple[int, int, int, int]
    block: Literal["basic", "bottleneck"] = "bottleneck"
    groups: int = 1
    width_per_group: int = 64
    stem_widths: tuple[int, ...] = (64,)
    pool: Literal["max", "average"]
    shortcut_taps: int = 1
    squeeze: bool = False
    zero_init_residual: bool = True

    @property
    def tweaked(self) -> bool:
        """Whether it is a network with a `d`: three convolutions in the stem, a layer of its own before shortcuts."""
        return len(self.stem_widths) > 1


_50, _101 = (3, 4, 6, 3), (3, 4, 23, 3)
# The average of 2x2 pixels in front of a shortcut is the blur of two taps.
_D = {"stem_widths": (32, 32, 64), "shortcut_taps": 2}
_SE_32X8D = {"squeeze": True, "groups": 32, "width_per_group": 8}

BLUR = {
    "resnetblur18": TimmResNetConfig(depths=(2, 2, 2, 2), block="basic", pool="max"),
    "resnetblur50": TimmResNetConfig(depths=_50, pool="max"),
    "resnetblur50d": TimmResNetConfig(depths=_50, pool="max", **_D),
    "resnetblur101d": TimmResNetConfig(depths=_101, pool="max", **_D),
}
AVERAGE = {
    "resnetaa34d": TimmResNetConfig(depths=_50, block="basic", pool="average", **_D),
    "resnetaa50": TimmResNetConfig(depths=_50, pool="average"),
    "resnetaa50d": TimmResNetConfig(depths=_50, pool="average", **_D),
    "resnetaa101d": TimmResNetConfig(depths=_101, pool="average", **_D),
    "seresnetaa50d": TimmResNetConfig(depths=_50, pool="average", squeeze=True, **_D),
    "seresnextaa101d_32x8d": TimmResNetConfig(depths=_101, pool="average", **_SE_32X8D, **_D),
    "seresnextaa201d_32x8d": TimmResNetConfig(
        depths=(3, 24, 36, 4), pool="average", **_SE_32X8D, stem_widths=(64, 64, 128), shortcut_taps=2
    ),
}


class SqueezeExcitation(nnx.Module):
    """Scales each channel by what two small layers make of the means of all."""

    def __init__(self, channels: int, *, build: Builder):
        width = channels // 16
        self.fc1 = build.conv(channels, width, 1, use_bias=True, bias_init=torch_default_bias(channels))
        self.fc2 = build.conv(width, channels, 1, use_bias=True, bias_init=torch_default_bias(width))

    def __call__(self, x: jax.Array) -> jax.Array:
        means = global_avg_pool(x)[:, None, None, :]
        return x * jax.nn.sigmoid(self.fc2(jax.nn.relu(self.fc1(means))))


class Shortcut(nnx.Module):
    """Brings the block's input to the size of its output."""

    antialias_slots: ClassVar = {"blur": "conv"}

    def __init__(self, cin: int, cout: int, stride: int, taps: int, *, build: Builder):
        blurs = stride > 1 and taps > 1
        # PyTorch's average leaves out what lies beyond the border, which is to repeat the edge.
        edge = {"pad_type": "replicate"} if taps == 2 and build.pad_type == "reflect" else {}
        self.blur = dataclasses.replace(build, filter_size=taps, **edge).blur(cin, follows=True) if blurs else None
        self.conv, self.bn = build.conv(cin, cout, 1, 1 if blurs else stride), build.bn(cout)

    def __call__(self, x: jax.Array, like: jax.Array | Choice | None) -> jax.Array:
        if self.blur is not None:
            x = self.blur(x, like)
        return self.bn(self.conv(x))


class BasicBlock(nnx.Module):
    """3x3, 3x3; a stride is a blur behind the first ReLU."""

    expansion: ClassVar = 1
    last_bn: ClassVar = "bn2"

    def __init__(self, cin: int, planes: int, stride: int, config: TimmResNetConfig, *, build: Builder):
        if config.groups != 1 or config.width_per_group != 64:
            raise ValueError("basic blocks know no groups or width: use a network with bottlenecks")
        self.conv1, self.bn1 = build.conv(cin, planes, 3), build.bn(planes)
        self.blur = build.blur(planes) if stride > 1 else None
        self.conv2, self.bn2 = build.conv(planes, planes, 3), build.bn(planes)
        self.se = SqueezeExcitation(planes, build=build) if config.squeeze else None
        shortcut = stride != 1 or cin != planes
        self.downsample = Shortcut(cin, planes, stride, config.shortcut_taps, build=build) if shortcut else None

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        y = jax.nn.relu(self.bn1(self.conv1(x)))
        x, y = subsample_both(self.downsample, self.blur, x, y, rngs)
        y = self.bn2(self.conv2(y))
        return jax.nn.relu((y if self.se is None else self.se(y)) + x)


class Bottleneck(nnx.Module):
    """1x1, 3x3, 1x1; a stride is a blur behind the ReLU of the 3x3."""

    expansion: ClassVar = 4
    last_bn: ClassVar = "bn3"

    def __init__(self, cin: int, planes: int, stride: int, config: TimmResNetConfig, *, build: Builder):
        width, cout = planes * config.width_per_group // 64 * config.groups, planes * self.expansion
        self.conv1, self.bn1 = build.conv(cin, width, 1), build.bn(width)
        self.conv2, self.bn2 = build.conv(width, width, 3, groups=config.groups), build.bn(width)
        self.blur = build.blur(width) if stride > 1 else None
        self.conv3, self.bn3 = build.conv(width, cout, 1), build.bn(cout)
        self.se = SqueezeExcitation(cout, build=build) if config.squeeze else None
        shortcut = stride != 1 or cin != cout
        self.downsample = Shortcut(cin, cout, stride, config.shortcut_taps, build=build) if shortcut else None

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        y = jax.nn.relu(self.bn1(self.conv1(x)))
        y = jax.nn.relu(self.bn2(self.conv2(y)))
        x, y = subsample_both(self.downsample, self.blur, x, y, rngs)
        y = self.bn3(self.conv3(y))
        return jax.nn.relu((y if self.se is None else self.se(y)) + x)


BLOCKS = {"basic": BasicBlock, "bottleneck": Bottleneck}


class TimmResNet(Network):
    """timm's anti-aliased ResNet over NHWC images: `model(x)` gives logits, `model.features(x)` the last map.

    Networks that average take images whose sides are multiples of 32, and a pixel less or two more.

    Args:
        config: the network and its options.
        num_classes: logits; 0 for no head.
        in_channels: channels of the image.
        build: makes the layers.

    Raises:
        ValueError: for options that contradict the network.
    """

    first_conv: ClassVar = "stem.0.conv"
    last_linear: ClassVar = "fc"

    def __init__(self, config: TimmResNetConfig, *, num_classes: int, in_channels: int, build: Builder):
        if build.downsample != "blur" and config.shortcut_taps == 1:
            raise ValueError(
                f"downsample={build.downsample!r} does not go with shortcuts that stride by themselves: give "
                f"shortcut_taps={build.filter_size} as well"
            )
        self.config, self.circular = config, build.circular
        size, inputs = 3 if config.tweaked else 7, (in_channels, *config.stem_widths)
        self.stem = Stack(
            ConvBN(cin, cout, size, 1 if i else 2, build=build)
            for i, (cin, cout) in enumerate(zip(inputs, config.stem_widths, strict=False))
        )
        channels, block = config.stem_widths[-1], BLOCKS[config.block]
        self.pool_blur = build.blur(channels)
        for stage, depth in enumerate(config.depths):
            planes, blocks = 64 << stage, []
            for i in range(depth):
                blocks.append(block(channels, planes, 1 if i or not stage else 2, config, build=build))
                channels = planes * block.expansion
            setattr(self, f"layer{stage + 1}", Stack(blocks))
        self.fc = build.linear(channels, num_classes) if num_classes else None
        if config.zero_init_residual:
            for each in (each for stage in self._stages() for each in stage):
                scale = getattr(each, each.last_bn).scale
                scale[...] = jnp.zeros_like(scale[...])

    def _stages(self) -> list[Stack]:
        return [getattr(self, f"layer{i + 1}") for i in range(len(self.config.depths))]

    def _pyramid(self, x: jax.Array, rngs: nnx.Rngs | None) -> tuple[jax.Array, ...]:
        """The output of each stage."""
        height, width = x.shape[1:3]
        for layer in self.stem:
            x = jax.nn.relu(layer(x))
        if self.config.pool == "max":
            x = subsample(self.pool_blur, max_pool(x, 3, 1, padding=1, circular=self.circular), rngs)
        else:
            x = subsample(self.pool_blur, even_sides(x), rngs)
            # An odd map would be rounded down by the averages of a block and up by its shortcut.
            if x.shape[1] % 8 or x.shape[2] % 8:
                name = "this network" if self.spec is None else self.spec.name
                raise ValueError(f"{name} takes images whose sides are multiples of 32, got {height}x{width}")
        maps = [x := stage(x, rngs=rngs) for stage in self._stages()]
        return tuple(maps)

    def _logits(self, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        x = global_avg_pool(x)
        return x if self.fc is None else self.fc(x)


def torch_names(config: TimmResNetConfig) -> TorchNames:
    """timm's names of a network, whose files hold no filters."""
    last = len(config.stem_widths) - 1
    stem = [("stem\\.0\\.conv", "conv1"), ("stem\\.0\\.bn", "bn1")]
    if config.tweaked:
        # Three layers each: convolution, normalisation, ReLU. The last two are outside.
        stem = [(f"stem\\.{i}\\.conv", f"conv1.{3 * i}") for i in range(last + 1)]
        stem += [(f"stem\\.{i}\\.bn", f"conv1.{3 * i + 1}") for i in range(last)] + [(f"stem\\.{last}\\.bn", "bn1")]
    conv, bn = (1, 2) if config.tweaked else (0, 1)
    shortcut = (r"(.*)\.downsample\.conv", rf"\1.downsample.{conv}"), (r"(.*)\.downsample\.bn", rf"\1.downsample.{bn}")
    return TorchNames(modules=(*stem, *shortcut), package="timm")


FAMILY_BLUR = Family(
    network=TimmResNet, configs=BLUR, torch=torch_names, filter_size=3, antialias_option="shortcut_taps"
)
FAMILY_AVERAGE = Family(
    network=TimmResNet, configs=AVERAGE, torch=torch_names, filter_size=2, antialias_option="shortcut_taps"
)
