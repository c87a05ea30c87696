"""ResNet, ResNeXt and Wide ResNet, plain (torchvision's), anti-aliased and alias-free.

He et al. 2015 (arXiv 1512.03385), Xie et al. 2016 (arXiv 1611.05431), Zagoruyko and Komodakis 2016 (arXiv
1605.07146); anti-aliasing: Zhang 2019 (arXiv 1904.11486), section 4; alias-free: `aa_flax.alias_free`.
"""

import dataclasses
import itertools
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from aa_flax.alias_free import AliasFreeActivation, band_limited
from aa_flax.downsample import Choice
from aa_flax.models.base import Network
from aa_flax.models.family import Family, TorchNames
from aa_flax.models.layers import Builder, Layer, Stack, subsample, subsample_both
from aa_flax.models.stochastic_depth import drop_rates, dropped, stochastic_depth
from aa_flax.plain_pooling import global_avg_pool, max_pool


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """One network of the family.

    Attributes:
        depths: blocks in each of the four stages.
        block: `basic` (two 3x3) or `bottleneck` (1x1, 3x3, 1x1 with four times the width).
        groups: groups of the bottleneck's 3x3 convolution.
        width_per_group: channels of a group in the first stage.
        pool_only: False also anti-aliases the stem convolution (anti-aliased networks only; alias-free ones always do).
        stem_stride: of the stem convolution; 1 for small images such as CIFAR's, which halves the stride of every map.
        replace_stride_with_dilation: for stages 2, 3 and 4, keep the map's size and dilate instead (bottlenecks only).
        output_stride: 16 or 8 dilate the last stage, or the last two.
        zero_init_residual: start each block as the identity, with the scale of its last BN at zero.
        stochastic_depth_prob: how often the last block is left out in training, image by image; those before it are
            less often, in proportion to their number. What a block is given is its own.
        activation: `alias_free` for a network that every shift commutes with, by any fraction of a pixel: filtered
            parabolas, circular padding, no maximum, and `downsample="ideal"` (or `asap`), which has to be given.
        norm: `alias_free` normalises each image by itself. Shifts commute with batch normalisation as well.
    """

    depths: tuple[int, int, int, int]
    block: Literal["basic", "bottleneck"]
    groups: int = 1
    width_per_group: int = 64
    pool_only: bool = True
    stem_stride: Literal[1, 2] = 2
    replace_stride_with_dilation: tuple[bool, bool, bool] = (False, False, False)
    output_stride: Literal[8, 16, 32] = 32
    zero_init_residual: bool = False
    stochastic_depth_prob: float = 0.0
    activation: Literal["relu", "alias_free"] = "relu"
    norm: Literal["batch", "alias_free"] = "batch"

    @property
    def stem_blurred(self) -> bool:
        """Whether a blur takes the stride of the stem convolution over."""
        return self.stem_stride > 1 and not (self.pool_only and self.activation == "relu")


CONFIGS = {
    "resnet18": ResNetConfig(depths=(2, 2, 2, 2), block="basic"),
    "resnet34": ResNetConfig(depths=(3, 4, 6, 3), block="basic"),
    "resnet50": ResNetConfig(depths=(3, 4, 6, 3), block="bottleneck"),
    "resnet101": ResNetConfig(depths=(3, 4, 23, 3), block="bottleneck"),
    "resnet152": ResNetConfig(depths=(3, 8, 36, 3), block="bottleneck"),
    "resnext50_32x4d": ResNetConfig(depths=(3, 4, 6, 3), block="bottleneck", groups=32, width_per_group=4),
    "resnext101_32x8d": ResNetConfig(depths=(3, 4, 23, 3), block="bottleneck", groups=32, width_per_group=8),
    "wide_resnet50_2": ResNetConfig(depths=(3, 4, 6, 3), block="bottleneck", width_per_group=128),
    "wide_resnet101_2": ResNetConfig(depths=(3, 4, 23, 3), block="bottleneck", width_per_group=128),
}

EXPANSION = {"basic": 1, "bottleneck": 4}


class Shortcut(nnx.Module):
    """Brings the block's input to the size of its output."""

    antialias_slots: ClassVar = {"blur": "conv"}
    antialias_follows: ClassVar = ("blur",)

    def __init__(self, cin: int, cout: int, stride: int, *, build: Builder):
        self.blur = build.blur(cin, follows=True) if build.antialiased and stride > 1 else None
        self.conv = build.conv(cin, cout, 1, 1 if build.antialiased else stride)
        self.bn = build.bn(cout)

    def __call__(self, x: jax.Array, like: jax.Array | Choice | None) -> jax.Array:
        # Blur and 1x1 convolution commute; blurring first leaves the convolution a quarter of the work.
        if self.blur is not None:
            x = self.blur(x, like)
        return self.bn(self.conv(x))


def joined(branch: jax.Array, shortcut: jax.Array, act: Layer) -> jax.Array:
    """The end of a block. A parabola would square the sum block after block, beyond all bounds: it sees the branch."""
    return act(branch) + shortcut if isinstance(act, AliasFreeActivation) else act(branch + shortcut)


class BasicBlock(nnx.Module):
    """3x3, 3x3; anti-aliased: the stride of the first becomes a blur after its ReLU."""

    antialias_slots: ClassVar = {"blur": "conv1"}

    def __init__(self, cin: int, planes: int, stride: int, dilation: int, config: ResNetConfig, *, build: Builder):
        if dilation != 1 or config.groups != 1 or config.width_per_group != 64:
            raise ValueError("basic blocks know no dilation, groups or width: use a network with bottlenecks")
        self.blur = build.blur(planes) if build.antialiased and stride > 1 else None
        self.conv1, self.bn1 = build.conv(cin, planes, 3, 1 if build.antialiased else stride), build.bn(planes)
        self.conv2, self.bn2 = build.conv(planes, planes, 3), build.bn(planes)
        self.act1, self.act2 = build.act(planes), build.act(planes)
        self.downsample = Shortcut(cin, planes, stride, build=build) if stride != 1 or cin != planes else None
        self.stochastic_depth = stochastic_depth(config.stochastic_depth_prob)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        y = self.act1(self.bn1(self.conv1(x)))
        x, y = subsample_both(self.downsample, self.blur, x, y, rngs)
        return joined(dropped(self.stochastic_depth, self.bn2(self.conv2(y)), rngs), x, self.act2)


class Bottleneck(nnx.Module):
    """1x1, 3x3, 1x1; anti-aliased: the stride of the 3x3 becomes a blur after its ReLU."""

    antialias_slots: ClassVar = {"blur": "conv2"}

    def __init__(self, cin: int, planes: int, stride: int, dilation: int, config: ResNetConfig, *, build: Builder):
        width, cout = planes * config.width_per_group // 64 * config.groups, planes * 4
        self.blur = build.blur(width) if build.antialiased and stride > 1 else None
        self.conv1, self.bn1 = build.conv(cin, width, 1), build.bn(width)
        self.conv2 = build.conv(
            width, width, 3, 1 if build.antialiased else stride, groups=config.groups, dilation=dilation
        )
        self.bn2 = build.bn(width)
        self.conv3, self.bn3 = build.conv(width, cout, 1), build.bn(cout)
        self.act1, self.act2, self.act3 = build.act(width), build.act(width), build.act(cout)
        self.downsample = Shortcut(cin, cout, stride, build=build) if stride != 1 or cin != cout else None
        self.stochastic_depth = stochastic_depth(config.stochastic_depth_prob)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        y = self.act1(self.bn1(self.conv1(x)))
        y = self.act2(self.bn2(self.conv2(y)))
        x, y = subsample_both(self.downsample, self.blur, x, y, rngs)
        return joined(dropped(self.stochastic_depth, self.bn3(self.conv3(y)), rngs), x, self.act3)


def dilated_stages(config: ResNetConfig) -> tuple[bool, bool, bool]:
    """Which of the stages 2, 3 and 4 dilate; ValueError if the two ways of asking for it contradict."""
    by_stride = {32: (False, False, False), 16: (False, False, True), 8: (False, True, True)}
    if config.output_stride != 32 and any(config.replace_stride_with_dilation):
        raise ValueError("give output_stride or replace_stride_with_dilation, not both")
    return config.replace_stride_with_dilation if config.output_stride == 32 else by_stride[config.output_stride]


BLOCKS = {"basic": BasicBlock, "bottleneck": Bottleneck}


class ResNet(Network):
    """ResNet over NHWC images: `model(x)` gives logits, `model.features(x)` the last map.

    Args:
        config: the network and its options.
        num_classes: logits; 0 for no head.
        in_channels: channels of the image.
        build: makes the layers; decides between plain and anti-aliased.

    Raises:
        ValueError: for options that contradict the network.
    """

    first_conv: ClassVar = "conv1"
    last_linear: ClassVar = "fc"
    antialias_slots: ClassVar = {"stem_blur": "conv1", "pool_blur": 2}

    def __init__(self, config: ResNetConfig, *, num_classes: int, in_channels: int, build: Builder):
        if not (config.pool_only or build.antialiased):
            raise ValueError("pool_only=False belongs to anti-aliased networks: the plain one has no blur")
        if config.stochastic_depth_prob and config.activation != "relu":
            # A branch of zeros is not zero behind it.
            raise ValueError(
                "stochastic_depth_prob belongs to ReLU networks: activation='alias_free' makes more of a zero"
            )
        build = build.choose(activation=config.activation, norm=config.norm)
        self.config, self.circular, self.alias_free = config, build.circular, build.alias_free
        self.stem_blur = build.blur(64) if config.stem_blurred else None
        self.conv1 = build.conv(in_channels, 64, 7, 1 if config.stem_blurred else config.stem_stride)
        self.bn1, self.act1 = build.bn(64), build.act(64)
        self.pool_blur = build.blur(64) if build.antialiased else None
        channels, dilation, dilated = 64, 1, dilated_stages(config)
        rates = drop_rates(config.stochastic_depth_prob, sum(config.depths))
        for stage, depth in enumerate(config.depths):
            stride = 1 if stage == 0 else 2
            entry_dilation = dilation
            if stage and dilated[stage - 1]:
                stride, dilation = 1, dilation * 2
            block, blocks = BLOCKS[config.block], []
            for i in range(depth):
                first = i == 0
                # The entry of a dilated stage still sees the previous grid.
                spacing = entry_dilation if first else dilation
                own = dataclasses.replace(config, stochastic_depth_prob=next(rates))
                blocks.append(block(channels, 64 << stage, stride if first else 1, spacing, own, build=build))
                channels = (64 << stage) * EXPANSION[config.block]
            setattr(self, f"layer{stage + 1}", Stack(blocks))
        self.fc = build.linear(channels, num_classes) if num_classes else None
        if config.zero_init_residual:
            self._zero_last_scales()

    def _zero_last_scales(self) -> None:
        for block in (block for stage in self._stages() for block in stage):
            last = block.bn2 if isinstance(block, BasicBlock) else block.bn3
            assert last.scale is not None
            last.scale[...] = jnp.zeros_like(last.scale[...])

    def _stages(self) -> list[Stack]:
        return [getattr(self, f"layer{i + 1}") for i in range(len(self.config.depths))]

    def _pyramid(self, x: jax.Array, rngs: nnx.Rngs | None) -> tuple[jax.Array, ...]:
        """The output of each stage."""
        x = self.conv1(x)
        if self.alias_free:
            # Before the activation, which has no kink to be smoothed: it has a quarter of the work then.
            x = band_limited(x) if self.stem_blur is None else self.stem_blur(x)
        x = self.act1(self.bn1(x))
        if self.stem_blur is not None and not self.alias_free:
            x = subsample(self.stem_blur, x, rngs)
        if self.pool_blur is None:
            x = max_pool(x, 3, 2, padding=1)
        else:
            # A 3x3 window with padding would be the plain network's; the published weights were trained with 2x2.
            # No grid is fine enough for a maximum: where nothing is to alias there is none.
            x = subsample(self.pool_blur, x if self.alias_free else max_pool(x, 2, 1, circular=self.circular), rngs)
        maps = [x := stage(x, rngs=rngs) for stage in self._stages()]
        return tuple(maps)

    def _logits(self, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        x = global_avg_pool(x)
        return x if self.fc is None else self.fc(x)


def torch_names(config: ResNetConfig) -> TorchNames:
    """PyTorch's names of a network; ValueError where PyTorch has none like it."""
    if config.norm != "batch":
        raise ValueError(f"norm={config.norm!r} is in no ResNet of PyTorch: its weights have no names there")
    before, last = ("conv1", "conv2") if config.block == "basic" else ("conv2", "conv3")
    stem = ("maxpool.0", "maxpool.2") if config.stem_blurred else ("maxpool.1",)
    blurs: dict[str, str] = dict.fromkeys(stem, "conv1")
    for stage, dilated in enumerate(dilated_stages(config), 2):
        if not dilated:
            blurs[f"layer{stage}.0.{last}.0"] = f"layer{stage}.0.{before}"
            blurs[f"layer{stage}.0.downsample.0"] = f"layer{stage - 1}.{config.depths[stage - 2] - 1}.{last}"
    shortcut = (r"(.*)\.downsample\.conv", r"\1.downsample.0"), (r"(.*)\.downsample\.bn", r"\1.downsample.1")
    return TorchNames(modules=shortcut, blurs=blurs)


FAMILY = Family(
    network=ResNet,
    configs=CONFIGS,
    torch=torch_names,
    placements={
        "pool_only": (True, False),
        "output_stride": (32, 16, 8),
        "replace_stride_with_dilation": tuple(itertools.product((False, True), repeat=3)),
    },
)
