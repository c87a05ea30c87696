"""ConvNeXt, plain (torchvision's), anti-aliased and alias-free.

Liu et al. 2022 (arXiv 2201.03545); alias-free: Michaeli et al. 2023 (arXiv 2303.08085), see `aa_flax.alias_free`.

It subsamples by convolutions whose windows do not overlap: 4x4 with stride 4 in the stem, 2x2 with stride 2 between the
stages. No activation follows them, so that blurs stand straight behind them. They are made dense without padding, as
the 2x2 maximum of the anti-aliased VGG is: the windows that the strides would have kept are still among theirs.
"""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import zeros

from aa_flax.models.base import Network
from aa_flax.models.family import Family, Recipe, TorchNames
from aa_flax.models.initialisers import normal
from aa_flax.models.layers import Builder, Stack, subsample
from aa_flax.models.stochastic_depth import drop_rates, dropped, stochastic_depth
from aa_flax.plain_pooling import global_avg_pool


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvNeXtConfig:
    """One network of the family.

    Attributes:
        depths: blocks in each of the four stages.
        widths: channels in each of them.
        stochastic_depth_prob: how often the last block is left out in training, image by image; those before it are
            less often, in proportion to their number.
        layer_scale: initial factor on what a block adds.
        pool_only: True leaves the stem's convolution strided by 4, as it is in the plain network.
        activation: `alias_free` for a network that every shift commutes with, by any fraction of a pixel: filtered
            parabolas, circular padding, and `downsample="ideal"` (or `asap`), which has to be given.
        norm: `alias_free` divides all places of an image by one number. Shifts commute with no other norm here.
    """

    depths: tuple[int, int, int, int]
    widths: tuple[int, int, int, int] = (96, 192, 384, 768)
    stochastic_depth_prob: float
    layer_scale: float = 1e-6
    pool_only: bool = False
    activation: Literal["gelu", "alias_free"] = "gelu"
    norm: Literal["layer", "alias_free"] = "layer"


CONFIGS = {
    "convnext_tiny": ConvNeXtConfig(depths=(3, 3, 9, 3), stochastic_depth_prob=0.1),
    "convnext_small": ConvNeXtConfig(depths=(3, 3, 27, 3), stochastic_depth_prob=0.4),
    "convnext_base": ConvNeXtConfig(depths=(3, 3, 27, 3), widths=(128, 256, 512, 1024), stochastic_depth_prob=0.5),
}


# Of images: patches that do not fill up are left out, and of smaller ones nothing would be left.
LEAST_SIZE = 32


def patches(build: Builder, cin: int, cout: int, size: int, stride: int) -> nnx.Conv:
    """A convolution over patches: apart where the stride is their size, otherwise overlapping, and at no border."""
    # Patches that lie side by side tile a periodic map as it is; those that overlap go on at its other side.
    padding = None if build.circular and stride < size else 0
    return build.conv(cin, cout, size, stride, padding=padding, use_bias=True)


class Stem(nnx.Module):
    """Patches of 4x4 pixels, then normalisation.

    Anti-aliased, its stride of 4 becomes one of 2 and a blur, as in the paper's AlexNet. Methods that any stride which
    is left would rob of what they promise get all of it: two of them, one after the other.
    """

    antialias_slots: ClassVar = {"blur": "conv"}

    def __init__(self, cin: int, cout: int, config: ConvNeXtConfig, *, build: Builder):
        blurred = build.antialiased and (build.alias_free or not config.pool_only)
        half = blurred and build.downsample == "blur"
        self.conv = patches(build, cin, cout, 4, 2 if half else 1 if blurred else 4)
        self.blur = build.blur(cout) if blurred else None
        self.blur2 = build.blur(cout) if blurred and not half else None
        self.norm = build.ln(cout)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = self.conv(x)
        for blur in (self.blur, self.blur2):
            x = x if blur is None else subsample(blur, x, rngs)
        return self.norm(x)


class Downsampling(nnx.Module):
    """Normalisation, then patches of 2x2; anti-aliased, a blur takes their stride over."""

    antialias_slots: ClassVar = {"blur": "conv"}

    def __init__(self, cin: int, cout: int, *, build: Builder):
        self.norm = build.ln(cin)
        self.conv = patches(build, cin, cout, 2, 1 if build.antialiased else 2)
        self.blur = build.blur(cout) if build.antialiased else None

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = self.conv(self.norm(x))
        return x if self.blur is None else subsample(self.blur, x, rngs)


class Block(nnx.Module):
    """Depthwise 7x7, normalisation, and two linear layers at every place with an activation between them."""

    def __init__(self, dim: int, drop_rate: float, config: ConvNeXtConfig, *, build: Builder):
        self.dwconv = build.conv(dim, dim, 7, groups=dim, use_bias=True)
        self.norm = build.ln(dim)
        self.pwconv1 = build.linear(dim, 4 * dim, normal(0.02), zeros)
        self.act = build.act(4 * dim)
        self.pwconv2 = build.linear(4 * dim, dim, normal(0.02), zeros)
        self.layer_scale = nnx.Param(jnp.full(dim, config.layer_scale, build.param_dtype))
        self.stochastic_depth = stochastic_depth(drop_rate)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        y = self.pwconv1(self.norm(self.dwconv(x)))
        y = self.pwconv2(self.act(y))
        y = y * self.layer_scale[...].astype(y.dtype)[None, None, None]
        return x + dropped(self.stochastic_depth, y, rngs)


class ConvNeXt(Network):
    """ConvNeXt over NHWC images: `model(x)` gives logits, `model.features(x)` the last map.

    Args:
        config: the network and its options.
        num_classes: logits; 0 for no head, its normalisation included.
        in_channels: channels of the image.
        build: makes the layers; decides between plain and anti-aliased.

    Raises:
        ValueError: for options that contradict the network.
    """

    first_conv: ClassVar = "stem.conv"
    last_linear: ClassVar = "head"

    def __init__(self, config: ConvNeXtConfig, *, num_classes: int, in_channels: int, build: Builder):
        if config.pool_only and not build.antialiased:
            raise ValueError("pool_only belongs to anti-aliased networks: the plain one has no blur")
        build = dataclasses.replace(build, conv_init=normal(0.02))
        build = build.choose(activation=config.activation, norm=config.norm)
        self.config = config
        self.stem = Stem(in_channels, config.widths[0], config, build=build)
        rates = drop_rates(config.stochastic_depth_prob, sum(config.depths))
        for stage, (depth, width) in enumerate(zip(config.depths, config.widths, strict=True), 1):
            if stage > 1:
                setattr(self, f"downsample{stage}", Downsampling(config.widths[stage - 2], width, build=build))
            blocks = [Block(width, next(rates), config, build=build) for _ in range(depth)]
            setattr(self, f"stage{stage}", Stack(blocks))
        self.head_norm = build.layer_norm(config.widths[-1]) if num_classes else None
        self.head = build.linear(config.widths[-1], num_classes, normal(0.02), zeros) if num_classes else None

    def _pyramid(self, x: jax.Array, rngs: nnx.Rngs | None) -> tuple[jax.Array, ...]:
        """The output of each stage."""
        height, width = x.shape[1:3]
        if min(height, width) < LEAST_SIZE:
            raise ValueError(f"images must be at least {LEAST_SIZE}x{LEAST_SIZE} for ConvNeXt, got {height}x{width}")
        x = self.stem(x, rngs=rngs)
        maps = []
        for stage in range(1, len(self.config.depths) + 1):
            if stage > 1:
                x = getattr(self, f"downsample{stage}")(x, rngs=rngs)
            x = getattr(self, f"stage{stage}")(x, rngs=rngs)
            maps.append(x)
        return tuple(maps)

    def _logits(self, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        x = global_avg_pool(x)
        if self.head is None or self.head_norm is None:
            return x
        return self.head(self.head_norm(x))


def torch_names(config: ConvNeXtConfig) -> TorchNames:
    """torchvision's names of a network; the reference has none like it."""
    modules = [("stem.conv", "features.0.0"), ("stem.norm", "features.0.1")]
    for stage in range(1, len(config.depths) + 1):
        place = 2 * stage - 1
        modules.append((rf"downsample{stage}\.norm", f"features.{place - 1}.0"))
        modules.append((rf"downsample{stage}\.conv", f"features.{place - 1}.1"))
        for layer, number in (("dwconv", 0), ("norm", 2), ("pwconv1", 3), ("pwconv2", 5)):
            modules.append((rf"stage{stage}\.(\d+)\.{layer}", rf"features.{place}.\1.block.{number}"))
        modules.append((rf"stage{stage}\.(\d+)", rf"features.{place}.\1"))
    modules += [("head_norm", "classifier.0"), ("head", "classifier.2")]
    return TorchNames(modules=tuple(modules), as_maps=("layer_scale",))


# For SGD, with which it was never published: a start, no more. `--preset convnext` is the paper's AdamW.
FAMILY = Family(network=ConvNeXt, configs=CONFIGS, torch=torch_names, recipe=Recipe(lr=0.05, schedule="cosine_epochs"))
