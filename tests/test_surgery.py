"""antialias: the zoo's own networks, foreign ones, and every way to misuse it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import aa_flax
from aa_flax import BlurPool2D
from aa_flax.models.abstract import abstract_model
from aa_flax.strided import BlurAfter, BlurredConvolution
from tests.foreign_networks import (
    Activation,
    ConvNeXt,
    ConvNormAct,
    Detector,
    HiddenPool,
    UNet,
    WrappedAct,
    run,
    with_values,
)


def image(size: int = 17, channels: int = 3) -> jax.Array:
    values = np.random.default_rng(7).normal(size=(1, size, size + 4, channels))
    return jnp.asarray(values, jnp.float32)


def paths(model: nnx.Module) -> dict[tuple, tuple]:
    state = nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat), graph=True))
    return {path: variable.shape for path, variable in state}


def details(report: aa_flax.SurgeryReport) -> dict[str, tuple[str, str]]:
    return {change.path: (change.action, change.detail) for change in report}


def same(a, b) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), a, b)


def alike(one, other, x) -> None:
    """Two functions, each compiled as one program, give the same."""
    same(jax.jit(one)(x), jax.jit(other)(x))


def graph_without_dropout(model: nnx.Module):
    for _, module in nnx.iter_modules(model, graph=True):
        if isinstance(module, nnx.Dropout):
            module.rate = 0.0
    return nnx.graphdef(model, graph=True)


# --- the zoo ---


@pytest.mark.parametrize(
    ("name", "first", "options"),
    [
        ("resnet18", False, {}),
        ("resnet18", True, {"pool_only": False}),
        ("resnet50", False, {}),
        ("vgg11", False, {}),
        ("vgg11_bn", False, {}),
        ("alexnet", True, {}),
        ("densenet121", False, {}),
        ("mobilenet_v2", False, {}),
    ],
)
def test_a_plain_network_becomes_the_anti_aliased_one(name, first, options):
    """Equal graphs compute equal functions: same layers, strides, blurs, configuration, and paths."""
    plain = abstract_model(f"{name}_plain", num_classes=4)
    want = abstract_model(f"{name}_lpf3", num_classes=4, pad_type="replicate", **options)
    got, report = aa_flax.antialias(plain, 3, pad_type="replicate", first=first)
    assert report.antialiased
    assert got.spec == want.spec
    assert graph_without_dropout(got) == graph_without_dropout(want)
    assert paths(got) == paths(want)


def test_where_the_structure_does_not_allow_it_no_spec_claims_otherwise():
    """AlexNet's pool_only network has lost a ReLU; MobileNetV2's plain widths are rounded, the others are not."""
    alexnet, _ = aa_flax.antialias(abstract_model("alexnet_plain"))
    narrow, _ = aa_flax.antialias(abstract_model("mobilenet_v2_plain", width_mult=0.3))
    part, _ = aa_flax.antialias(abstract_model("vgg11_plain"), where=lambda path, _: path == "blur3")
    for model in (alexnet, narrow, part):
        assert model.spec is None
        with pytest.raises(ValueError, match=r"none describes what antialias has made of this \w+: call"):
            aa_flax.save_pretrained(model, "never-written")


# --- foreign networks ---

NETWORKS = {
    "unet": (UNet, {}),
    "convnext": (ConvNeXt, {}),
    "detector": (Detector, {}),
    "detector with slots": (Detector, {"slots": {ConvNormAct: {"act": "conv"}}}),
}


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_one_tap_changes_nothing_and_four_taps_keep_sizes_and_paths(name):
    build, options = NETWORKS[name]
    model = with_values(lambda: build(nnx.Rngs(0)))
    model.eval()
    # Odd maps on the way show whether "SAME" is padded as it was.
    x = image(20 if build is UNet else 23)
    want = run(model, x)
    once, _ = aa_flax.antialias(model, 1, first=True, **options)
    same(run(once, x), want)
    blurred, report = aa_flax.antialias(model, first=True, **options)
    got = run(blurred, x)
    assert jax.tree.map(jnp.shape, got) == jax.tree.map(jnp.shape, want)
    assert paths(blurred) == paths(model)
    assert len(report.antialiased) >= 2
    assert all(float(jnp.abs(a - b).max()) > 1e-4 for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True))
    # The checkpoint of the network loads into its copy.
    nnx.update(blurred, nnx.state(with_values(lambda: build(nnx.Rngs(0)), seed=1)))
    assert float(jnp.abs(jax.tree.leaves(run(blurred, x))[0] - jax.tree.leaves(got)[0]).max()) > 1e-4


def test_report_of_a_unet():
    _, report = aa_flax.antialias(with_values(lambda: UNet(nnx.Rngs(0))))
    found = details(report)
    assert found["pools.0"] == ("antialiased", "blur after a dense max_pool")
    assert found["pools.1"] == ("antialiased", "blur after a dense avg_pool")
    assert found["up.0"][0] == "skipped"
    assert "BlurUpsample" in found["up.0"][1]
    assert found["head"] == ("skipped", "stride 1")
    text = str(report)
    assert "ConvTranspose 2x2 stride 2, 16 to 8" in text
    assert text.endswith("2 antialiased, 2 skipped, 11 with stride 1")
    assert [c.path for c in report] == sorted((c.path for c in report), key=list(found).index)


def test_slots_put_the_blur_behind_an_activation_that_the_class_holds():
    model = with_values(lambda: Detector(nnx.Rngs(0)))
    _, plain_report = aa_flax.antialias(model)
    assert "cannot be seen" in details(plain_report)["stages.0.down.conv"][1]
    copy, report = aa_flax.antialias(model, slots={ConvNormAct: {"act": "conv"}})
    assert "blur in stages.0.down.act" in details(report)["stages.0.down.conv"][1]
    assert isinstance(copy.stages[0].down.act, BlurAfter)
    assert copy.stages[0].down.conv.strides == 1
    assert copy.stages[0].left.act is nnx.silu
    x = jax.random.normal(jax.random.key(0), (1, 16, 16, 8))
    copy.eval()
    down = copy.stages[0].down
    dense = nnx.silu(down.bn(nnx.Conv.__call__(_padded_as_strided(down.conv), x)))
    same(down(x), aa_flax.blur_pool(dense))


def test_a_dotted_slot_reaches_into_a_module_that_wraps_the_activation():
    model = with_values(lambda: WrappedAct(nnx.Rngs(0)))
    slots = {WrappedAct: {"act1.function": "conv1"}}
    copy, report = aa_flax.antialias(model, first=True, slots=slots)
    assert "blur in act1.function" in details(report)["conv1"][1]
    assert copy.act2.function is nnx.relu
    assert paths(copy) == paths(model)
    x = image(9, 4)
    dense = nnx.Conv(4, 8, (3, 3), padding=1, rngs=nnx.Rngs(0))
    nnx.update(dense, nnx.state(model.conv1))
    inner = model.conv2(aa_flax.blur_pool(nnx.relu(dense(x)))) + copy.shortcut(x)
    same(copy(x), nnx.relu(inner).mean((1, 2), keepdims=True))
    assert aa_flax.find_strided(copy, image(33, 4)) == (), "a pool over the whole map drops nothing"
    with pytest.raises(ValueError, match=r"the slot act1 holds (.|\n)*a dotted slot reaches into it"):
        aa_flax.antialias(model, first=True, slots={WrappedAct: {"act1": "conv1"}})
    with pytest.raises(ValueError, match=r"declares the slot 'act3\.function' but has no such attribute"):
        aa_flax.antialias(model, first=True, slots={WrappedAct: {"act3.function": "conv1"}})


def test_a_wrapped_activation_that_two_places_share_takes_no_blur():
    with nnx.set_graph_mode(True):
        model = with_values(lambda: WrappedAct(nnx.Rngs(0), Activation(nnx.relu)))
        with pytest.raises(ValueError, match="act1 and act2 are one module, whose function can hold no blur"):
            aa_flax.antialias(model, first=True, slots={WrappedAct: {"act1.function": "conv1"}})


def _padded_as_strided(conv: nnx.Conv) -> nnx.Conv:
    """SAME with stride 2 and 3 taps pads an even map by 0 and 1."""
    dense = nnx.clone(conv)
    dense.padding, dense.conv_general_dilated = ((0, 1), (0, 1)), jax.lax.conv_general_dilated
    return dense


def test_blur_follows_the_activation_of_a_sequential_however_it_is_nested():
    rngs = nnx.Rngs(0)
    conv, bn = nnx.Conv(4, 6, (3, 3), 2, padding=1, rngs=rngs), nnx.BatchNorm(6, rngs=rngs)
    model = nnx.Sequential(nnx.Sequential(conv, bn), nnx.Dropout(0.0), nnx.relu, nnx.Conv(6, 2, (1, 1), rngs=rngs))
    model.eval()
    copy, report = aa_flax.antialias(model, 3, first=True)
    assert details(report)["layers.0.layers.0"] == ("antialiased", "blur after the activation layers.2")
    x = image(17, 4)
    dense = nnx.Conv(4, 6, (3, 3), 1, padding=1, rngs=rngs)
    nnx.update(dense, nnx.state(conv))
    alike(copy, lambda x: model.layers[3](aa_flax.blur_pool(nnx.relu(bn(dense(x))), 3)), x)


def test_a_sequential_used_twice_keeps_its_blur_to_itself():
    """Its convolution is followed by different activations: the blur may follow neither."""
    rngs = nnx.Rngs(0)

    class Twice(nnx.Module):
        def __init__(self):
            self.shared = nnx.Sequential(nnx.Conv(3, 3, (3, 3), 2, rngs=rngs))
            self.a, self.b = nnx.Sequential(self.shared, nnx.relu), nnx.Sequential(self.shared, nnx.gelu)

        def __call__(self, x):
            return self.a(x) + self.b(x)

    model = Twice()
    with nnx.set_graph_mode(True):
        copy, report = aa_flax.antialias(model, first=True)
    assert "cannot be seen" in report.antialiased[0].detail
    assert copy.a.layers[0] is copy.b.layers[0]
    assert copy(image()).shape == model(image()).shape


def test_parametric_activations_keep_their_parameter():
    model = nnx.Sequential(nnx.Conv(3, 4, (3, 3), 2, rngs=nnx.Rngs(0)), nnx.PReLU(0.3))
    copy, report = aa_flax.antialias(model, first=True)
    assert report.antialiased[0].detail == "blur after the activation layers.1"
    assert paths(copy) == paths(model)
    once, _ = aa_flax.antialias(model, 1, first=True)
    alike(once, model, image())
    dense = nnx.Sequential(nnx.Conv(3, 4, (3, 3), padding=1, rngs=nnx.Rngs(0)), nnx.PReLU(0.3))
    alike(copy, lambda x: aa_flax.blur_pool(dense(x)), image())


def test_a_stride_of_four_is_shared_between_convolution_and_blur():
    model = nnx.Sequential(nnx.Conv(3, 4, (11, 11), 4, padding=2, rngs=nnx.Rngs(0)), nnx.relu)
    copy, _ = aa_flax.antialias(model, first=True)
    half = nnx.Conv(3, 4, (11, 11), 2, padding=2, rngs=nnx.Rngs(0))
    alike(copy, lambda x: aa_flax.blur_pool(nnx.relu(half(x))), image(41))


def test_pointwise_convolutions_are_blurred_before():
    conv = nnx.Conv(4, 6, (1, 1), 2, rngs=nnx.Rngs(0))
    model = nnx.List([conv])
    copy, report = aa_flax.antialias(model, first=True)
    assert "before" in report.antialiased[0].detail
    x = image(9, 4)
    dense = nnx.Conv(4, 6, (1, 1), rngs=nnx.Rngs(0))
    alike(copy[0], lambda x: aa_flax.blur_pool(dense(x)), x)


def test_sequences_and_volumes():
    rngs = nnx.Rngs(0)
    audio = nnx.Sequential(
        nnx.Conv(2, 4, 5, 2, rngs=rngs), nnx.relu, nnx.Conv(4, 4, (3,), 2, padding="CAUSAL", rngs=rngs)
    )
    copy, _ = aa_flax.antialias(audio, first=True, spatial_dims=1)
    x = jax.random.normal(jax.random.key(0), (2, 21, 2))
    assert jax.eval_shape(copy, x).shape == jax.eval_shape(audio, x).shape
    alike(aa_flax.antialias(audio, 1, first=True, spatial_dims=1)[0], audio, x)
    video = nnx.Sequential(nnx.Conv(2, 3, (3, 3, 3), (1, 2, 2), padding="CIRCULAR", rngs=rngs), nnx.tanh)
    x = jax.random.normal(jax.random.key(0), (1, 5, 8, 9, 2))
    copy, _ = aa_flax.antialias(video, first=True, spatial_dims=3)
    dense = nnx.Conv(2, 3, (3, 3, 3), padding="CIRCULAR", rngs=nnx.Rngs(0))
    nnx.update(dense, nnx.state(video.layers[0]))
    alike(copy, lambda x: aa_flax.blur_pool(nnx.tanh(dense(x)), (1, 4, 4), (1, 2, 2), "circular"), x)


# --- what is chosen, shared and kept ---


def test_selection():
    model = with_values(lambda: ConvNeXt(nnx.Rngs(0)))
    _, report = aa_flax.antialias(model)
    assert details(report)["stem.layers.0"] == ("skipped", "reads the image (3 channels); first=True includes it")
    _, report = aa_flax.antialias(model, min_channels=10)
    assert details(report)["downsamples.to1.layers.1"] == ("skipped", "fewer than min_channels=10 input channels")
    _, report = aa_flax.antialias(model, where=lambda path, layer: "to1" in path and layer.in_features == 8)
    assert [c.path for c in report.antialiased] == ["downsamples.to1.layers.1"]
    assert details(report)["downsamples.to2.layers.1"] == ("skipped", "left out by `where`")


@pytest.mark.parametrize("share", [False, True])
def test_sharing_and_copying(share):
    model = with_values(lambda: ConvNeXt(nnx.Rngs(0)))
    copy, _ = aa_flax.antialias(model, share=share)
    assert (copy.head.kernel is model.head.kernel) == share
    before = model.head.kernel[...]
    copy.head.kernel[...] += 1.0
    assert bool((model.head.kernel[...] == before).all()) != share
    # The network itself is as it was.
    assert model.downsamples["to1"].layers[1].conv_general_dilated is jax.lax.conv_general_dilated


def small() -> nnx.Sequential:
    """Convolution, normalisation, activation, pool."""
    pool = functools.partial(nnx.max_pool, window_shape=(2, 2), strides=(2, 2))
    return with_values(
        lambda: nnx.Sequential(
            nnx.Conv(3, 4, (3, 3), 2, rngs=nnx.Rngs(0)), nnx.BatchNorm(4, rngs=nnx.Rngs(0)), nnx.relu, pool
        )
    )


def test_a_copy_survives_the_donation_of_its_arrays():
    model = small()
    copy, _ = aa_flax.antialias(model)
    for leaf in jax.tree.leaves(nnx.state(copy)):
        leaf.delete()
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(nnx.state(model)))


def test_the_mode_is_kept_and_training_works():
    model = small()
    assert not aa_flax.antialias(model)[0].layers[1].use_running_average
    model.eval()
    copy, _ = aa_flax.antialias(model, first=True)
    assert copy.layers[1].use_running_average
    copy.train()
    graphdef, params, rest = nnx.split(copy, nnx.Param, ...)

    @jax.jit
    def gradients(params, rest, x):
        return jax.grad(lambda params: jnp.square(nnx.merge(graphdef, params, rest, copy=True)(x)).mean())(params)

    grads = jax.tree.leaves(gradients(params, rest, image()))
    assert len(grads) == 4
    assert all(bool(jnp.isfinite(g).all()) and float(jnp.abs(g).max()) > 0 for g in grads[1:])


def test_copies_share_their_compiled_programs():
    """The hooks are static structure: were they unequal, every copy would be compiled anew."""
    model = with_values(lambda: ConvNeXt(nnx.Rngs(0)))
    assert nnx.graphdef(aa_flax.antialias(model)[0]) == nnx.graphdef(aa_flax.antialias(model)[0])
    assert nnx.graphdef(aa_flax.antialias(model, 3)[0]) != nnx.graphdef(aa_flax.antialias(model)[0])
    assert hash(BlurredConvolution(4)) == hash(BlurredConvolution(4))
    assert nnx.graphdef(BlurAfter(nnx.relu, BlurPool2D(3))) == nnx.graphdef(BlurAfter(nnx.relu, BlurPool2D(3)))


def test_abstract_networks_and_both_ways_of_nnx():
    abstract = nnx.eval_shape(lambda: ConvNeXt(nnx.Rngs(0)))
    copy, _ = aa_flax.antialias(abstract)
    assert isinstance(copy.head.kernel.get_raw_value(), jax.ShapeDtypeStruct)
    model = small()
    answers = []
    for graph in (True, False):
        with nnx.set_graph_mode(graph), nnx.set_graph_updates(graph):
            copy, _ = aa_flax.antialias(model, first=True)
            answers.append(nnx.jit(lambda m, x: m(x))(copy, image()))
    np.testing.assert_array_equal(*answers)


# --- misuse ---


def test_twice_is_once():
    copy, _ = aa_flax.antialias(with_values(lambda: ConvNeXt(nnx.Rngs(0))), first=True)
    with pytest.raises(ValueError, match="already anti-aliased"):
        aa_flax.antialias(copy, first=True)
    zoo, _ = aa_flax.antialias(abstract_model("vgg11_plain"))
    with pytest.raises(ValueError, match="nothing to antialias in VGG"):
        aa_flax.antialias(zoo)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"filter_size": 0}, "filter_size must be a whole number >= 1, got 0"),
        ({"filter_size": "binomial"}, "filter_size must be a whole number >= 1, got 'binomial'"),
        ({"pad_type": "mirror"}, "pad_type must be one of reflect, replicate, zero, circular, got 'mirror'"),
    ],
)
def test_unknown_filters(arguments, message):
    with pytest.raises(ValueError, match=message):
        aa_flax.antialias(with_values(lambda: ConvNeXt(nnx.Rngs(0))), **arguments)


def test_a_convolution_over_one_axis_by_mistake():
    model = nnx.Sequential(nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0)), nnx.Conv(4, 4, 3, 2, rngs=nnx.Rngs(0)))
    with pytest.raises(
        ValueError, match=r"layers.1 .* 1 axes, not 2: .*write \(3, 3\) for images; pass spatial_dims=1"
    ):
        aa_flax.antialias(model)


def test_enlarging_layers():
    model = nnx.Sequential(nnx.ConvTranspose(3, 4, (2, 2), 2, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"nothing to antialias in Sequential:\n  layers.0: .*BlurUpsample"):
        aa_flax.antialias(model)
    with pytest.raises(ValueError, match=r"layers.0 .* cannot be anti-aliased by a blur behind it: .*BlurUpsample"):
        aa_flax.antialias(model, where=lambda path, layer: True)
    dilated = nnx.Sequential(nnx.Conv(3, 4, (3, 3), input_dilation=2, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="it enlarges"):
        aa_flax.antialias(dilated)
    with pytest.raises(ValueError, match="input_dilation=\\(2, 2\\) enlarges"):
        aa_flax.nn.Conv(3, 4, (3, 3), input_dilation=2, rngs=nnx.Rngs(0))(image())


def test_networks_with_nothing_to_see():
    class Nothing(nnx.Module):
        def __call__(self, x):
            return nnx.max_pool(x, (2, 2), (2, 2))

    with pytest.raises(ValueError, match=r"Nothing has no convolution and no pool .*find_strided.*aa_flax.nn.max_pool"):
        aa_flax.antialias(Nothing())
    with pytest.raises(ValueError, match="nothing to antialias"):
        aa_flax.antialias(nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0)))


def test_things_that_are_no_network():
    class LinenNet(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Conv(3, (3, 3), 2)(x)

    spec = aa_flax.ModelSpec(name="resnet18", filter_size=None)
    for thing, hint in (
        (LinenNet(), "a Linen module is a frozen dataclass"),
        (spec, "a dataclass only describes a network"),
        (ConvNeXt, "build the network first"),
        (lambda x: x, "wrap functions"),
    ):
        with pytest.raises(TypeError, match=hint):
            aa_flax.antialias(thing)
        with pytest.raises(TypeError):
            aa_flax.find_strided(thing)


def test_tied_layers():
    rngs = nnx.Rngs(0)

    class Tied(nnx.Module):
        def __init__(self):
            self.left = nnx.Conv(3, 3, (3, 3), 2, rngs=rngs)
            self.right = nnx.List([self.left])

        def __call__(self, x):
            return self.left(x) + self.right[0](x)

    with nnx.set_graph_mode(True), pytest.raises(ValueError, match=r"left and right.0 are one layer.*share the kernel"):
        aa_flax.antialias(Tied(), first=True)


def test_frozen_dataclasses():
    @dataclasses.dataclass(frozen=True)
    class Frozen(nnx.Module):
        pool: functools.partial

        def __call__(self, x):
            return self.pool(x)

    model = nnx.List([Frozen(functools.partial(nnx.max_pool, window_shape=(2, 2), strides=(2, 2)))])
    with pytest.raises(ValueError, match="0 is a frozen dataclass, its pool cannot be replaced: drop frozen=True"):
        aa_flax.antialias(model)
    assert aa_flax.find_strided(model[0], image())[0].kind == "pool"


def test_layers_with_a_call_of_their_own():
    class Standardised(nnx.Conv):
        def __call__(self, x):
            return jax.lax.conv(x, self.kernel[...], (2, 2), "SAME")

    model = nnx.Sequential(Standardised(8, 8, (3, 3), 2, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="Standardised has a __call__ of its own: declare antialias_slots"):
        aa_flax.antialias(model, first=True)


def test_slots_that_do_not_fit():
    model = with_values(lambda: Detector(nnx.Rngs(0)))
    for slots, message in (
        ({"blurr": "conv"}, "declares the slot 'blurr' but has no such attribute"),
        ({"act": "convolution"}, "no such attribute 'convolution': ConvNormAct has act, bn, conv"),
        ({"act": "bn"}, "names 'bn', which is no nnx.Conv but BatchNorm; ConvNormAct has act, bn, conv"),
        ({"bn": "conv"}, "must hold None or an activation"),
    ):
        with pytest.raises(ValueError, match=message):
            aa_flax.antialias(model, first=True, slots={ConvNormAct: slots})


def test_pools_without_an_anti_aliased_form():
    model = nnx.List([functools.partial(nnx.min_pool, window_shape=(2, 2), strides=(2, 2))])
    with pytest.raises(ValueError, match="min_pool 2x2 stride 2: only max_pool and avg_pool"):
        aa_flax.antialias(model)


# --- finding what is left ---


def test_find_strided_sees_what_the_graph_does_not_show():
    found = aa_flax.find_strided(
        with_values(lambda: HiddenPool(nnx.Rngs(0))), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    )
    assert [(s.module, s.kind, s.stride) for s in found] == [
        ("", "pool", (1, 2, 2, 1)),
        ("inner", "pool", (1, 2, 2, 1)),
        ("", "slice", (1, 2, 2, 1)),
    ]
    assert all("foreign_networks.py" in s.source for s in found)
    assert str(found[0]).startswith("(model): pool of stride 1x2x2x1 on (1, 32, 32, 8), foreign_networks.py:")


def test_find_strided_follows_the_surgery():
    model = with_values(lambda: Detector(nnx.Rngs(0)))
    before = aa_flax.find_strided(model, image(16))
    assert [s.module for s in before] == ["stem.conv", "stages.0.down.conv", "stages.1.down.conv", ""]
    assert [s.kind for s in before] == ["convolution"] * 3 + ["pool"]
    copy, _ = aa_flax.antialias(model)
    assert [s.module for s in aa_flax.find_strided(copy, image(16))] == ["stem.conv"]
    assert aa_flax.find_strided(aa_flax.antialias(model, first=True)[0], image(16)) == ()
    # The network itself still runs as before: the trace leaves nothing behind.
    assert type(model) is Detector
    assert not hasattr(model, "_strided_scope")


@pytest.mark.parametrize("downsample", ["blur", "aps", "lps", "ddac", "ideal"])
def test_layers_of_this_package_are_no_findings(downsample):
    model = abstract_model("resnet18", num_classes=2, pool_only=False, downsample=downsample)
    assert aa_flax.find_strided(model, jax.ShapeDtypeStruct((1, 33, 33, 3), jnp.float32)) == ()
