"""antialias on the usual families as other people write them, each with its strides counted by hand."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import aa_flax
from tests.foreign_networks import ConvNeXt, UNet, with_values
from tests.foreign_zoo import (
    VGG,
    AvgPool2D,
    BasicBlock,
    ColourAndDepth,
    DenseNet,
    EfficientNet,
    MaxPool2D,
    MBConv,
    ResNet,
    ViT,
)
from tests.surgery_results import REPLACE, REPLACE_MAXIMA, UNSEEN, changed, network, picture, shapes, strides

ONE_TAP = {
    MaxPool2D: lambda pool: aa_flax.nn.MaxBlurPool((pool.window,) * 2, (pool.stride,) * 2, filter_size=1),
    AvgPool2D: lambda pool: aa_flax.nn.AvgBlurPool((pool.window,) * 2, (pool.stride,) * 2, filter_size=1),
}
DENSER = {BasicBlock: {"->conv2": "conv1"}, MBConv: {"->se": "depthwise"}}


@dataclasses.dataclass(frozen=True)
class Case:
    """A network, the strides that run in it by module, what its surgery changes, and what is left after it.

    `shown` is what an example input changes in the places.
    """

    build: Callable[..., nnx.Module]
    strides: list[tuple[str, int]]
    changed: dict[str, str]
    left: list[tuple[str, int]]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    shown: dict[str, str] = dataclasses.field(default_factory=dict)


COMMUTES = "blur before the convolution, with which it commutes"
CASES = {
    "resnet": Case(
        ResNet,
        [("stem.layers.0", 2), ("", 2), ("stage2.0.conv1", 2), ("stage2.0.shortcut.conv", 2)],
        {"stage2.0.conv1": UNSEEN, "stage2.0.shortcut.conv": COMMUTES},
        [("stem.layers.0", 2), ("", 2)],
        shown={"stage2.0.conv1": "blur before stage2.0.conv2, behind the activation"},
    ),
    "resnet with an arrow": Case(
        ResNet,
        [("stem.layers.0", 2), ("", 2), ("stage2.0.conv1", 2), ("stage2.0.shortcut.conv", 2)],
        {"stage2.0.conv1": "blur before stage2.0.conv2", "stage2.0.shortcut.conv": COMMUTES},
        [("stem.layers.0", 2), ("", 2)],
        {"slots": {BasicBlock: DENSER[BasicBlock]}},
    ),
    "efficientnet": Case(
        EfficientNet,
        [("stem", 2), ("blocks.1.depthwise", 2), ("blocks.2.depthwise", 2)],
        {"blocks.1.depthwise": UNSEEN, "blocks.2.depthwise": UNSEEN},
        [("stem", 2)],
        shown={f"blocks.{i}.depthwise": f"blur before blocks.{i}.se, behind the activation" for i in (1, 2)},
    ),
    "efficientnet with an arrow": Case(
        EfficientNet,
        [("stem", 2), ("blocks.1.depthwise", 2), ("blocks.2.depthwise", 2)],
        {"blocks.1.depthwise": "blur before blocks.1.se", "blocks.2.depthwise": "blur before blocks.2.se"},
        [("stem", 2)],
        {"slots": {MBConv: DENSER[MBConv]}},
    ),
    "densenet": Case(
        DenseNet,
        [("conv0", 2), ("pool0", 2), ("transition1.pool", 2)],
        {"pool0": "replaced by MaxBlurPool", "transition1.pool": "replaced by AvgBlurPool"},
        [("conv0", 2)],
        {"replace": REPLACE},
    ),
    "vgg": Case(
        VGG,
        [(f"features.layers.{i}", 2) for i in (2, 5, 8)],
        {f"features.layers.{i}": "replaced by MaxBlurPool" for i in (2, 5, 8)},
        [],
        {"replace": REPLACE_MAXIMA},
    ),
    "convnext": Case(
        ConvNeXt,
        [("stem.layers.0", 4), ("downsamples.to1.layers.1", 2), ("downsamples.to2.layers.1", 2)],
        {"downsamples.to1.layers.1": UNSEEN, "downsamples.to2.layers.1": UNSEEN},
        [("stem.layers.0", 4)],
    ),
    "convnext, stem too": Case(
        ConvNeXt,
        [("stem.layers.0", 4), ("downsamples.to1.layers.1", 2), ("downsamples.to2.layers.1", 2)],
        dict.fromkeys(("stem.layers.0", "downsamples.to1.layers.1", "downsamples.to2.layers.1"), UNSEEN),
        [("stem.layers.0", 2)],
        {"first": True},
    ),
    "unet": Case(
        UNet,
        [("", 2)],  # both pools on one line
        {"pools.0": "blur after a dense max_pool", "pools.1": "blur after a dense avg_pool"},
        [],
    ),
    "vit, patches too": Case(ViT, [("patches", 4)], {"patches": UNSEEN}, [("patches", 2)], {"first": True}),
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_strides_of_every_family(name):
    """What was counted by hand runs in the network; the surgery changes just that; what is left is said and found."""
    case, x = CASES[name], picture()
    model = network(case.build)
    assert strides(model, x) == case.strides
    for example, places in ((None, case.changed), (x, case.changed | case.shown)):
        blurred, report = aa_flax.antialias(model, example=example, **case.options)
        assert changed(report) == places
    assert strides(blurred, x) == case.left
    assert shapes(blurred) == shapes(model)
    said = {c.path: c.left for c in report.antialiased if c.left}
    assert said == {path: f"stride {left} of {dict(case.strides)[path]}" for path, left in case.left if path in said}
    assert {path for path, _ in case.left} - {""} <= {c.path for c in report.skipped} | set(said)


@pytest.mark.parametrize("name", sorted(CASES))
def test_one_tap_computes_what_the_network_computes(name):
    """Up to the order of sums; four taps give other numbers of the same shape."""
    case, x = CASES[name], picture(33 if CASES[name].build is not UNet else 32)
    options = dict(case.options)
    if "replace" in options:
        options["replace"] = ONE_TAP if case.build is DenseNet else {MaxPool2D: ONE_TAP[MaxPool2D]}
    model = network(case.build)
    once, _ = aa_flax.antialias(model, 1, example=x, **options)
    networks = [model, once, aa_flax.antialias(model, 4, example=x, **case.options)[0]]
    split = [nnx.split(m, graph=True) for m in networks]
    defs, states = zip(*split, strict=True)
    want, once, four = jax.jit(lambda states, x: [nnx.merge(d, s)(x) for d, s in zip(defs, states, strict=True)])(
        states, x
    )
    np.testing.assert_allclose(once, want, rtol=2e-4, atol=2e-5)
    assert four.shape == want.shape
    assert float(jnp.abs(four - want).max()) > 1e-3


def test_a_vision_transformer_has_nothing_but_its_patches():
    with pytest.raises(ValueError, match=r"nothing to antialias in ViT:\n  patches: .*reads the image"):
        aa_flax.antialias(network(ViT))


# --- which convolutions read the input ---


def test_squeeze_and_excitation_does_not_read_the_image():
    """Its convolutions have fewer channels than a picture, and 1x1 windows."""
    _, report = aa_flax.antialias(network(EfficientNet))
    assert {c.path for c in report.skipped if "reads the image" in c.detail} == {"stem"}


def test_every_stem_reads_the_image():
    model = network(ColourAndDepth)
    # Only a trace can tell that the last convolution with three channels reads features.
    with pytest.raises(ValueError, match=r"down: .*reads the image \(3 channels\)"):
        aa_flax.antialias(model)
    _, report = aa_flax.antialias(model, example=jax.ShapeDtypeStruct((1, 32, 32, 4), jnp.float32))
    assert {c.path for c in report.skipped if "reads the image" in c.detail} == {"colour", "depth"}
    assert changed(report) == {"down": UNSEEN}
    _, report = aa_flax.antialias(model, first=True)
    assert set(changed(report)) == {"colour", "depth", "down"}


def test_the_trace_follows_the_input_into_programs_of_their_own():
    class Inner(nnx.Module):
        def __init__(self, rngs):
            self.stem = nnx.Conv(5, 5, (3, 3), 2, rngs=rngs)
            self.next = nnx.Conv(5, 5, (3, 3), 2, rngs=rngs)

        def __call__(self, x):
            stem = jax.jit(jax.checkpoint(lambda x: self.stem(jax.nn.relu(x))))
            # Two frames, one after the other, and a branch.
            y = jax.lax.map(stem, jnp.stack([x, x + 1]))[0]
            return jax.lax.cond(y.sum() > 0, self.next, lambda y: self.next(-y), y)

    model = with_values(lambda: Inner(nnx.Rngs(0)))
    _, report = aa_flax.antialias(model, example=picture(16, 5))
    assert {c.path for c in report.skipped} == {"stem"}
    assert changed(report) == {"next": UNSEEN}
