"""antialias on the usual families as other people write them, each with its strides counted by hand."""

import dataclasses
import functools
import pickle
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

REPLACE = {
    MaxPool2D: lambda pool: aa_flax.nn.MaxBlurPool((pool.window,) * 2, (pool.stride,) * 2),
    AvgPool2D: lambda pool: aa_flax.nn.AvgBlurPool((pool.window,) * 2, (pool.stride,) * 2),
}
ONE_TAP = {
    MaxPool2D: lambda pool: aa_flax.nn.MaxBlurPool((pool.window,) * 2, (pool.stride,) * 2, filter_size=1),
    AvgPool2D: lambda pool: aa_flax.nn.AvgBlurPool((pool.window,) * 2, (pool.stride,) * 2, filter_size=1),
}
DENSER = {BasicBlock: {"->conv2": "conv1"}, MBConv: {"->se": "depthwise"}}


@dataclasses.dataclass(frozen=True)
class Case:
    """A network, the strides that run in it by module, what its surgery changes, and what is left after it."""

    build: Callable[..., nnx.Module]
    strides: list[tuple[str, int]]
    changed: dict[str, str]
    left: list[tuple[str, int]]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


UNSEEN = "blur before the strided convolution: where its activation is cannot be seen"
COMMUTES = "blur before the convolution, with which it commutes"
CASES = {
    "resnet": Case(
        ResNet,
        [("stem.layers.0", 2), ("", 2), ("stage2.0.conv1", 2), ("stage2.0.shortcut.conv", 2)],
        {"stage2.0.conv1": UNSEEN, "stage2.0.shortcut.conv": COMMUTES},
        [("stem.layers.0", 2), ("", 2)],
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
        {"replace": {MaxPool2D: REPLACE[MaxPool2D]}},
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


@functools.cache
def network(build: Callable[..., nnx.Module]) -> nnx.Module:
    model = with_values(lambda: build(nnx.Rngs(0)))
    model.eval()
    return model


def picture(size: int = 32, channels: int = 3) -> jax.Array:
    return jnp.asarray(np.random.default_rng(3).normal(size=(1, size, size, channels)), jnp.float32)


def strides(model: nnx.Module, x: jax.Array) -> list[tuple[str, int]]:
    return [(s.module, max(s.stride)) for s in aa_flax.find_strided(model, x)]


def changed(report: aa_flax.SurgeryReport) -> dict[str, str]:
    return {c.path: c.detail for c in report.antialiased}


def shapes(model: nnx.Module) -> dict[tuple, tuple]:
    return {path: leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(model, graph=True))}


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_strides_of_every_family(name):
    """What was counted by hand runs in the network; the surgery changes just that; what is left is said and found."""
    case, x = CASES[name], picture()
    model = network(case.build)
    assert strides(model, x) == case.strides
    for example in (None, x):
        blurred, report = aa_flax.antialias(model, example=example, **case.options)
        assert changed(report) == case.changed
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
    networks = [model, aa_flax.antialias(model, 1, **options)[0], aa_flax.antialias(model, 4, **case.options)[0]]
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


# --- places ---


def block() -> BasicBlock:
    return with_values(lambda: BasicBlock(4, 6, 2, nnx.Rngs(0)))


def dense(conv: nnx.Conv) -> nnx.Conv:
    conv = nnx.clone(conv)
    conv.strides = 1
    return conv


def close(a, b) -> None:
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_an_arrow_is_the_order_of_the_paper():
    """What the class would compute had its author put the blur behind the ReLU."""
    model, x = block(), picture(13, 4)
    copy, _ = aa_flax.antialias(model, first=True, slots={BasicBlock: {"->conv2": "conv1"}})
    y = aa_flax.blur_pool(jax.nn.relu(model.bn1(dense(model.conv1)(x))))
    shortcut = model.shortcut.bn(dense(model.shortcut.conv)(aa_flax.blur_pool(x)))
    close(copy(x), jax.nn.relu(model.bn2(model.conv2(y)) + shortcut))
    assert isinstance(copy.conv2, nnx.Conv)
    # Through pickle and split the layer is what it was.
    again = pickle.loads(pickle.dumps(copy))
    assert nnx.graphdef(again) == nnx.graphdef(copy)
    close(again(x), copy(x))


def test_an_arrow_to_a_strided_layer_and_to_a_function():
    class Two(nnx.Module):
        def __init__(self, rngs):
            self.conv1 = nnx.Conv(5, 5, (3, 3), 2, padding=1, rngs=rngs)
            self.conv2 = nnx.Conv(5, 5, (3, 3), 2, padding=1, rngs=rngs)
            self.last = jnp.sin

        def __call__(self, x):
            return self.last(self.conv2(inputs=jax.nn.relu(self.conv1(x))))

    model, x = with_values(lambda: Two(nnx.Rngs(0))), picture(16, 5)
    slots = {"->conv2": "conv1", "->last": "conv2"}
    copy, report = aa_flax.antialias(model, 3, first=True, slots={Two: slots})
    assert changed(report) == {"conv1": "blur before conv2", "conv2": "blur before last"}
    y = aa_flax.blur_pool(jax.nn.relu(dense(model.conv1)(x)), 3)
    close(copy(x), jnp.sin(aa_flax.blur_pool(dense(model.conv2)(y), 3)))
    # Without a place for the second stride its layer is blurred twice: for the first stride and for its own.
    copy, _ = aa_flax.antialias(model, 3, first=True, slots={Two: {"->conv2": "conv1"}})
    close(copy(x), jnp.sin(model.conv2(aa_flax.blur_pool(y, 3, 1))))
    assert strides(copy, x) == []
    with pytest.raises(ValueError, match="already anti-aliased"):
        aa_flax.antialias(copy, 3, first=True, slots={Two: {"->conv2": "conv1"}})


def test_places():
    """Before and behind: the same numbers inside the border, at the convolution's cost or at four times that."""
    model = nnx.Sequential(nnx.Conv(6, 8, (3, 3), 2, padding=1, rngs=nnx.Rngs(0)), nnx.relu)
    x = picture(24, 6)
    networks, costs = {}, {}
    for place in ("activation", "before", "after"):
        networks[place], report = aa_flax.antialias(model, place=place, first=True, example=x)
        assert strides(networks[place], x) == []
        costs[place] = report.flops
    assert networks["activation"].layers[0].strides == networks["after"].layers[0].strides == 1
    before, after = (nnx.relu(networks[place].layers[0](x))[:, 2:-2, 2:-2] for place in ("before", "after"))
    close(before, after)
    conv = 2 * 9 * 6 * 8 * 12 * 12
    # A multiply and an add a tap and sample, the last axis at half the first one's size.
    assert costs["after"] == costs["activation"] == (conv, 4 * conv + 8 * 12 * 12 * (2 * 4 * 2 + 2 * 4))
    assert costs["before"] == (conv, conv + 2 * 6 * 24 * 24 * 2 * 4)
    assert "(x1.4) a pixel" in str(aa_flax.antialias(model, place="before", first=True)[1])
    with pytest.raises(ValueError, match="place must be one of activation, before, after, got 'behind'"):
        aa_flax.antialias(model, place="behind")


def test_what_stays_of_a_stride_is_said():
    model = nnx.Sequential(nnx.Conv(5, 8, (4, 6), (4, 6), rngs=nnx.Rngs(0)), nnx.relu)
    for place in ("before", "after", "activation"):
        copy, report = aa_flax.antialias(model, place=place, first=True)
        assert report.antialiased[0].left == "stride 2 of 4 and stride 3 of 6"
        assert "stride 2 of 4 and stride 3 of 6 stays; " in str(report)
        assert [s.stride for s in aa_flax.find_strided(copy, picture(48, 5))] == [(1, 2, 3, 1)]
        with pytest.raises(ValueError, match="already anti-aliased"):
            aa_flax.antialias(copy, place=place, first=True)


# --- pools of other packages, other layers, other borders ---


def test_replacing_layers():
    model, factory = network(VGG), REPLACE[MaxPool2D]
    copy, report = aa_flax.antialias(model, replace={MaxPool2D: factory}, where=lambda path, _: path.endswith("5"))
    assert changed(report) == {"features.layers.5": "replaced by MaxBlurPool"}
    assert [c.detail for c in report.skipped if c.layer == "MaxPool2D"] == ["left out by `where`"] * 2
    assert isinstance(copy.features.layers[2], MaxPool2D)
    with pytest.raises(
        ValueError, match=r"replaces MaxPool2D at features.layers.2 has to return a layer, got NoneType"
    ):
        aa_flax.antialias(model, replace={MaxPool2D: lambda pool: None})
    with pytest.raises(ValueError, match=r"replace takes \{PoolClass: function"):
        aa_flax.antialias(model, replace={MaxPool2D: 3})


def test_a_layer_in_two_places_is_replaced_once():
    class Shared(nnx.Module):
        def __init__(self):
            self.a = MaxPool2D(2, 2)
            self.both = nnx.data((self.a, nnx.relu))
            self.table = nnx.data({"pool": self.a})

        def __call__(self, x):
            return self.table["pool"](self.both[0](self.a(x)))

    with nnx.set_graph_mode(True):
        copy, report = aa_flax.antialias(nnx.List([network(VGG), nnx.data(Shared())]), replace=REPLACE_MAX)
    shared = copy[1]
    assert shared.a is shared.both[0] is shared.table["pool"]
    assert len(report.antialiased) == 4
    assert jax.eval_shape(shared, picture(16)).shape == (1, 2, 2, 3)


REPLACE_MAX = {MaxPool2D: REPLACE[MaxPool2D]}


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("aps", aa_flax.AdaptivePolyphase),
        ("ideal", aa_flax.IdealLowPass),
        ("ddac", aa_flax.ContentAdaptiveBlur),
    ],
)
def test_other_layers_that_subsample(name, layer):
    """Behind an activation, behind a convolution where that cannot be seen, and behind a pool."""
    rngs = nnx.Rngs(0)
    model = nnx.List(
        [
            nnx.Sequential(nnx.Conv(6, 8, (3, 3), 2, padding=1, rngs=rngs), nnx.relu),
            nnx.Conv(8, 8, (1, 1), 2, padding=0, rngs=rngs),
            functools.partial(nnx.max_pool, window_shape=(2, 2), strides=(2, 2)),
        ]
    )
    copy, report = aa_flax.antialias(model, 3, downsample=name, first=True, rngs=rngs)
    assert [c.detail.split(":")[0] for c in report.antialiased] == [
        "blur after the activation 0.layers.1",
        "blur after the convolution",
        "blur after a dense max_pool",
    ][: 2 if name == "ddac" else 3]
    assert [type(layer) for _, layer in nnx.iter_modules(copy) if type(layer) in LAYERS] == [layer] * (
        2 if name == "ddac" else 3
    )
    model.eval(), copy.eval()
    x = picture(8, 6)

    def both(model, copy, x):
        y = copy[0](x)
        want = copy[0].layers[1].blur(nnx.relu(dense(model[0].layers[0])(x)))
        return (y, copy[1](y), copy[2](copy[1](y)).shape), (
            want,
            copy[1].output_blur(dense(model[1])(want)),
            (1, 1, 1, 8),
        )

    got, want = nnx.jit(both)(model, copy, x)
    jax.tree.map(close, got, want)
    assert set(shapes(model)) <= set(shapes(copy))
    made = []

    def own(channels, factors):
        made.append((channels, factors))
        return aa_flax.BlurPool2D(2, factors)

    aa_flax.antialias(model, downsample=own, first=True)
    assert made == [(8, (2, 2)), (8, (2, 2)), (None, (2, 2))]


LAYERS = (aa_flax.AdaptivePolyphase, aa_flax.IdealLowPass, aa_flax.ContentAdaptiveBlur)


def test_other_layers_misused():
    model = block()
    for options, message in (
        ({"downsample": "ddac"}, r"downsample='ddac' has parameters: give rngs=nnx.Rngs\(0\)"),
        ({"downsample": "mean"}, "downsample must be one of blur, aps, ddac, ideal or a function, got 'mean'"),
        ({"downsample": "aps", "place": "before"}, "place='before' lets the convolution subsample"),
    ):
        with pytest.raises(ValueError, match=message):
            aa_flax.antialias(model, first=True, **options)


def test_blurs_follow_circular_convolutions():
    """A circular network stays one: rolled by its whole stride it answers with rolled maps, in every place."""
    rngs = nnx.Rngs(0)
    circle = {"padding": "CIRCULAR", "rngs": rngs}
    model = nnx.Sequential(
        nnx.Conv(5, 6, (3, 3), 2, **circle),
        nnx.relu,
        nnx.Conv(6, 6, (3, 3), 2, **circle),
    )
    x = picture(16, 5)
    for place in ("activation", "before", "after"):
        copy, _ = aa_flax.antialias(model, place=place, first=True)
        close(copy(jnp.roll(x, (4, 8), (1, 2))), jnp.roll(copy(x), (1, 2), (1, 2)))
    reflected, _ = aa_flax.antialias(model, pad_type="reflect", first=True)
    assert float(jnp.abs(reflected(x) - copy(x)).max()) > 1e-3
    # One convolution that is not circular: only the others' blurs are.
    pool = functools.partial(nnx.avg_pool, window_shape=(2, 2), strides=(2, 2))
    assert aa_flax.antialias(nnx.List([*model.layers, pool]))[0][3].keywords["pad_type"] == "circular"
    mixed = nnx.List([nnx.Conv(5, 6, (3, 3), 2, rngs=rngs), nnx.Conv(6, 6, (3, 3), 2, **circle), pool])
    copy, _ = aa_flax.antialias(mixed, first=True)
    assert [copy[i].input_blur.pad_type for i in range(2)] == ["reflect", "circular"]
    assert copy[2].keywords["pad_type"] == "reflect"


# --- wrong spellings ---


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        (
            {BasicBlock: {"->conv3": "conv1"}},
            "no such attribute 'conv3': BasicBlock has bn1, bn2, conv1, conv2, shortcut",
        ),
        ({BasicBlock: {"->conv2": "conv0"}}, "no such attribute 'conv0': BasicBlock has bn1"),
        ({BasicBlock: {"->shortcut.conv3": "conv1"}}, "'shortcut.conv3': Shortcut has bn, conv"),
        ({BasicBlock: {"conv1": "->conv2"}}, "the arrow belongs to the slot: '->conv2': 'conv1'"),
        ({BasicBlock: {"->conv1": "conv1"}}, "a layer cannot take its own stride over"),
        ({BasicBlock: {"->conv2": 2}}, "takes the stride of a convolution, which it has to name"),
        ({BasicBlock: {"conv2": 1}}, "a pool's stride is at least 2"),
        ({BasicBlock: {"conv2": None}}, "no pair of an attribute and a convolution's name"),
        ({BasicBlock: {"conv2": "conv1"}}, 'holds Conv: it must hold None or an activation.*"->conv2" blurs before it'),
        ({BasicBlock: {"->bn2": "bn1"}}, "names 'bn1', which is no nnx.Conv but BatchNorm"),
        ({BasicBlock: "conv1"}, "slots takes {Block: .*}, got BasicBlock: 'conv1'"),
        ({"BasicBlock": {"->conv2": "conv1"}}, "slots takes {Block: .*}, got 'BasicBlock'"),
        ("conv1", "slots takes {Block: .*}, got str"),
        ({MBConv: {"->se": "depthwise"}}, "slots names MBConv, of which the network has none; it has Conv"),
    ],
)
def test_wrong_spellings_give_one_line(slots, message):
    with pytest.raises(ValueError, match=message) as caught:
        aa_flax.antialias(block(), first=True, slots=slots)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_arrows_into_shared_layers():
    class Both(nnx.Module):
        def __init__(self, rngs):
            self.down, self.next = nnx.Conv(5, 5, (3, 3), 2, rngs=rngs), nnx.Conv(5, 5, (3, 3), rngs=rngs)
            self.again = nnx.List([self.next])

        def __call__(self, x):
            return self.again[0](self.next(self.down(x)))

    with nnx.set_graph_mode(True):
        model = with_values(lambda: Both(nnx.Rngs(0)))
        with pytest.raises(ValueError, match="are one module, which can hold no blur: give each place its own"):
            aa_flax.antialias(model, first=True, slots={Both: {"->next": "down"}})
