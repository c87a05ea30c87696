"""Structure of the networks: sizes, options, names, and that no checkpoint path permutes layers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy
from flax import nnx

import aa_flax
from aa_flax.models.abstract import abstract_model
from aa_flax.models.batch_norm import BatchNorm
from aa_flax.models.create import build_model
from aa_flax.models.registry import MODELS
from aa_flax.models.specs import parse_spec, resolve_spec
from aa_flax.models.stochastic_depth import dropped, stochastic_depth
from tests.zoo import CONVNEXT, TIMM, ZHANG

# Exact, as torchvision and timm report them for their networks with 1000 classes.
PARAMETERS = {
    "alexnet": 61_100_840,
    "convnext_base": 88_591_464,
    "convnext_small": 50_223_688,
    "convnext_tiny": 28_589_128,
    "densenet121": 7_978_856,
    "densenet161": 28_681_000,
    "densenet169": 14_149_480,
    "densenet201": 20_013_928,
    "densenetblur121d": 7_998_088,
    "mobilenet_v2": 3_504_872,
    "mobilenetv4_conv_aa_large": 32_590_864,
    "mobilenetv4_conv_aa_medium": 9_715_512,
    "mobilenetv4_conv_blur_medium": 9_715_512,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnetaa101d": 44_568_392,
    "resnetaa34d": 21_816_904,
    "resnetaa50": 25_557_032,
    "resnetaa50d": 25_576_264,
    "resnetblur101d": 44_568_392,
    "resnetblur18": 11_689_512,
    "resnetblur50": 25_557_032,
    "resnetblur50d": 25_576_264,
    "resnext101_32x8d": 88_791_336,
    "resnext50_32x4d": 25_028_904,
    "seresnetaa50d": 28_107_256,
    "seresnextaa101d_32x8d": 93_588_280,
    "seresnextaa201d_32x8d": 149_394_904,
    "vgg11": 132_863_336,
    "vgg11_bn": 132_868_840,
    "vgg13": 133_047_848,
    "vgg13_bn": 133_053_736,
    "vgg16": 138_357_544,
    "vgg16_bn": 138_365_992,
    "vgg19": 143_667_240,
    "vgg19_bn": 143_678_248,
    "wide_resnet101_2": 126_886_696,
    "wide_resnet50_2": 68_883_240,
}
FAMILIES = ("alexnet", "vgg11", "vgg11_bn", "resnet18", "resnet50", "densenet121", "mobilenet_v2", "convnext_tiny")


def abstract(spec: str, **options):
    """The network without memory for its weights, ready for evaluation."""
    model = abstract_model(spec, **options)
    model.eval()
    return model


def shapes(spec: str, **options) -> dict[tuple, tuple]:
    state = nnx.to_flat_state(nnx.state(abstract(spec, **options), (nnx.Param, nnx.BatchStat)))
    return {path: variable.shape for path, variable in state}


def count(model) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def test_every_registered_network_has_its_size_in_the_table():
    assert sorted(PARAMETERS) == aa_flax.list_models() == sorted(MODELS)
    assert (len(ZHANG), len(CONVNEXT), len(TIMM)) == (23, 3, 15)


DEEP = ("seresnextaa101d_32x8d", "seresnextaa201d_32x8d")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in DEEP)) for name in TIMM])
def test_exact_parameter_counts_of_timms(name):
    assert count(abstract(name)) == PARAMETERS[name]


@pytest.mark.parametrize("name", ZHANG + CONVNEXT)
def test_exact_parameter_counts(name):
    plain, antialiased = abstract(f"{name}_plain"), abstract(name)
    assert count(plain) == count(antialiased) == PARAMETERS[name]
    # The split that a training step needs is exhaustive: nothing else is stored in the network.
    nnx.split(antialiased, nnx.Param, nnx.BatchStat)


@pytest.mark.parametrize("name", FAMILIES)
def test_blur_changes_no_path(name):
    assert shapes(f"{name}_plain") == shapes(f"{name}_lpf3")


@pytest.mark.parametrize(("spec", "parameters"), [("mobilenet_v2_lpf4", 1_965_448), ("mobilenet_v2_plain", 1_968_680)])
def test_mobilenet_widths(spec, parameters):
    assert count(abstract(spec, width_mult=0.5)) == parameters


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("suffix", ["_plain", "_lpf4"])
def test_maps_of_odd_images(name, suffix):
    model = abstract(name + suffix, num_classes=7, in_channels=1)
    x = jax.ShapeDtypeStruct((2, 97, 129, 1), jnp.float32)
    logits = nnx.eval_shape(lambda m, v: m(v), model, x)
    maps = nnx.eval_shape(lambda m, v: m.features(v), model, x)
    assert logits.shape == (2, 7)
    assert maps.shape[:1] + maps.shape[3:] == (2, maps.shape[-1])
    # Anti-aliased maps round up at every halving, plain ones as their convolutions do.
    assert maps.shape[1] in (2, 3, 4)
    assert maps.shape[2] in (3, 4, 5)


@pytest.mark.parametrize("name", ["alexnet", "mobilenet_v2", "densenet121"])
def test_half_precision_keeps_parameters_and_statistics_wide(name):
    model = abstract(name, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model, (nnx.Param, nnx.BatchStat)))} == {
        jnp.dtype("float32")
    }
    out = nnx.eval_shape(lambda m, v: m(v), model, jax.ShapeDtypeStruct((1, 65, 65, 3), jnp.float32))
    assert out.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("spec", "parsed"),
    [
        ("resnet50", ("resnet50", 4)),
        ("resnetblur50", ("resnetblur50", 3)),
        ("seresnextaa101d_32x8d", ("seresnextaa101d_32x8d", 2)),
        ("vgg16_bn_lpf2", ("vgg16_bn", 2)),
        ("wide_resnet50_2_plain", ("wide_resnet50_2", None)),
        ("resnext50_32x4d_lpf12", ("resnext50_32x4d", 12)),
    ],
)
def test_specs(spec, parsed):
    assert parse_spec(spec) == parsed
    assert parse_spec(str(resolve_spec(spec))) == parsed


@pytest.mark.parametrize(
    ("spec", "options", "error", "words"),
    [
        ("resnet5", {}, ValueError, "resnet5.*did you mean.*resnet50"),
        ("yolo", {}, ValueError, "yolo.*list_models"),
        ("resnetaa50.a1h_in1k", {}, ValueError, "names weights, for aa_flax.load_pretrained; .* alone is 'resnetaa50'"),
        ("resnet51.a1h_in1k", {}, ValueError, "unknown network 'resnet51'"),
        ("resnet50_lpf0", {}, ValueError, "at least 1"),
        ("resnet50_lpf3", {"filter_size": 4}, ValueError, "filter_size=4 contradicts"),
        ("resnetblur50_lpf4", {}, ValueError, "'resnetblur50_lpf4': resnetblur50 takes no suffix, its name says how"),
        ("resnetaa50_plain", {}, ValueError, "'resnetaa50_plain': resnetaa50 takes no suffix"),
        ("resnetaa50", {"filter_size": 4}, ValueError, "filter_size=4: resnetaa50 blurs with 2 taps, as its name says"),
        ("resnetaa34d", {"groups": 2}, ValueError, "basic blocks know no groups"),
        ("resnetblur50", {"downsample": "aps"}, ValueError, "downsample='aps' does not go with shortcuts that stride"),
        ("resnet50_plain", {"filter_size": 4}, ValueError, "filter_size=4 contradicts"),
        ("resnet50", {"filter_size": 0}, ValueError, "filter_size.*0"),
        ("resnet50", {"num_classes": -1}, ValueError, "num_classes.*-1"),
        ("resnet50", {"pad_type": "edge"}, ValueError, "pad_type.*edge"),
        ("resnet50", {"dropout": 0.1}, TypeError, "resnet50 has no option 'dropout'"),
        ("vgg16", {"pool_only": False}, TypeError, "vgg16 has no option 'pool_only'"),
        ("resnet18", {"replace_stride_with_dilation": (False, True, False)}, ValueError, "basic blocks"),
        ("resnet18_plain", {"pool_only": False}, ValueError, "pool_only"),
        ("densenet121_plain", {"pool_only": False}, ValueError, "pool_only"),
        ("alexnet_plain", {"pool_only": True}, ValueError, "pool_only"),
        ("mobilenet_v2", {"width_mult": 0.01}, ValueError, "width_mult"),
        ("resnet50", {"groups": 0}, ValueError, "groups=0"),
        ("vgg11", {"depths": [0] * 5}, ValueError, "depths="),
        ("densenet121", {"drop_rate": 1.0}, ValueError, "drop_rate"),
        ("resnet18", {"stochastic_depth_prob": 1.0}, ValueError, "stochastic_depth_prob is a probability below 1"),
        (
            "resnet18",
            {"stochastic_depth_prob": 0.1, "activation": "alias_free", "downsample": "ideal"},
            ValueError,
            "stochastic_depth_prob belongs to ReLU networks",
        ),
        ("resnet18", {"dtype": jnp.int32}, ValueError, "dtype.*int32"),
    ],
)
def test_wrong_requests_are_named(spec, options, error, words):
    with pytest.raises(error, match=words):
        abstract(spec, **options)


def test_a_residual_branch_is_left_out_image_by_image_and_later_ones_more_often():
    model = abstract("resnet18", stochastic_depth_prob=0.35)
    blocks = [block.stochastic_depth for stage in range(1, 5) for block in getattr(model, f"layer{stage}")]
    assert blocks[0] is None
    np.testing.assert_allclose([drop.rate for drop in blocks[1:]], 0.05 * np.arange(1, 8))
    branch, key = jnp.arange(1.0, 241).reshape(20, 2, 2, 3), jax.random.key(0)
    kept = np.asarray(dropped(stochastic_depth(0.4), branch, nnx.Rngs(dropout=key)))
    stays = (kept != 0).any((1, 2, 3))
    assert 0 < stays.sum() < 20
    np.testing.assert_allclose(kept, np.where(stays[:, None, None, None], branch / np.float32(0.6), 0), rtol=1e-6)
    assert dropped(stochastic_depth(0.0), branch, None) is branch


def test_rngs_have_no_default():
    with pytest.raises(TypeError, match="rngs"):
        aa_flax.create_model("resnet18")


def test_options_reach_the_network():
    dilated = abstract("resnet50", replace_stride_with_dilation=[False, True, True])
    x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    assert nnx.eval_shape(lambda m, v: m.features(v), dilated, x).shape == (1, 8, 8, 2048)
    assert dict(dilated.spec.options) == {"replace_stride_with_dilation": (False, True, True)}
    zeroed = aa_flax.create_model("resnet18", zero_init_residual=True, rngs=nnx.Rngs(0))
    assert not zeroed.layer3[1].bn2.scale[...].any()
    assert zeroed.layer3[1].bn1.scale[...].all()


def test_initial_values_follow_the_reference():
    """Spread of He's and PyTorch's initial values, which flax's defaults do not have."""
    resnet = aa_flax.create_model("resnet50", rngs=nnx.Rngs(0))
    kernel = np.asarray(resnet.layer4[0].conv2.kernel[...])
    assert kernel.std() == pytest.approx(math.sqrt(2 / (9 * 512)), rel=0.01)
    assert np.abs(kernel).max() > 4 * kernel.std(), "a truncated normal ends near two deviations"
    assert np.abs(resnet.fc.kernel[...]).max() == pytest.approx(2048**-0.5, rel=0.01)
    assert np.abs(resnet.fc.bias[...]).max() == pytest.approx(2048**-0.5, rel=0.05)
    dense = aa_flax.create_model("densenet121", rngs=nnx.Rngs(0))
    layer = dense.denseblock4.denselayer16.conv1.kernel[...]
    assert np.asarray(layer).std() == pytest.approx(math.sqrt(2 / layer.shape[2]), rel=0.02)
    assert not dense.classifier.bias[...].any()
    mobile = aa_flax.create_model("mobilenet_v2", rngs=nnx.Rngs(0))
    assert np.asarray(mobile.classifier.kernel[...]).std() == pytest.approx(0.01, rel=0.01)
    alex = aa_flax.create_model("alexnet", num_classes=0, rngs=nnx.Rngs(0))
    assert np.abs(alex.conv2.kernel[...]).max() == pytest.approx((64 * 25) ** -0.5, rel=0.01)
    assert np.abs(alex.conv2.bias[...]).max() == pytest.approx((64 * 25) ** -0.5, rel=0.05)


@pytest.fixture(scope="module")
def resnet101():
    """23 equal blocks in one stage, each with its own number in every tensor, of which two values stand for all."""
    graph, state = nnx.split(abstract("resnet101", num_classes=2))
    numbered = {}
    for number, (path, leaf) in enumerate(nnx.to_flat_state(state)):
        numbered[path] = leaf.replace(np.full(2, number, np.float16))
    return graph, nnx.from_flat_state(numbered)


def as_text_paths(state) -> dict[str, float]:
    return {".".join(map(str, path)): float(np.ravel(leaf[...])[0]) for path, leaf in nnx.to_flat_state(state)}


def test_orbax_without_a_target_permutes_nothing(resnet101, tmp_path):
    graph, state = resnet101
    checkpointer = ocp.StandardCheckpointer()
    checkpointer.save(tmp_path / "state", nnx.to_pure_dict(state))
    checkpointer.wait_until_finished()
    restored = checkpointer.restore(tmp_path / "state")
    checkpointer.close()
    again = nnx.split(nnx.merge(graph, state))[1]
    nnx.replace_by_pure_dict(again, restored)
    assert as_text_paths(again) == as_text_paths(state)


def test_safetensors_permute_nothing(resnet101, tmp_path):
    _, state = resnet101
    flat = {".".join(path): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(state)}
    safetensors.numpy.save_file(flat, tmp_path / "model.safetensors")
    restored = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    assert {k: float(v.ravel()[0]) for k, v in restored.items()} == as_text_paths(state)
    nested = nnx.from_flat_state({tuple(k.split(".")): nnx.Param(v) for k, v in restored.items()})
    assert jax.tree.structure(nnx.to_pure_dict(nested)) == jax.tree.structure(nnx.to_pure_dict(state))


def test_export_permutes_nothing(resnet101):
    """A pure dict that went through jax.export's serialised pytree merges back in order."""
    _, state = resnet101
    pure = nnx.to_pure_dict(state)
    first = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf.ravel()[0].astype(jnp.float32), tree))
    exported = jax.export.deserialize(bytearray(jax.export.export(first)(pure).serialize()))
    out = exported.call(pure)
    got = {".".join(path): float(leaf) for path, leaf in nnx.traversals.flatten_mapping(out).items()}
    assert got == as_text_paths(state)


def test_graph_and_tree_mode_agree():
    model = aa_flax.create_model("mobilenet_v2", num_classes=3, width_mult=0.25, rngs=nnx.Rngs(0))
    model.eval()
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 33, 33, 3)), jnp.float32)
    graph, params, statistics = nnx.split(model, nnx.Param, nnx.BatchStat)
    again = nnx.merge(graph, params, statistics)
    np.testing.assert_array_equal(jax.jit(lambda m, v: m(v))(again, x), nnx.jit(lambda m, v: m(v))(model, x))


def batch_norm(x, **arguments):
    layer = BatchNorm(x.shape[-1], rngs=nnx.Rngs(0), **arguments)
    layer.scale[...], layer.bias[...] = jnp.arange(1.0, x.shape[-1] + 1), jnp.ones(x.shape[-1])
    return layer, np.asarray(layer(jnp.asarray(x)), np.float64)


def normalised(x, axes):
    x = x.astype(np.float64)
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-5)


def test_batch_norm_survives_a_large_mean():
    x = (100 + 0.01 * np.random.default_rng(0).normal(size=(16, 5, 5, 3))).astype(np.float32)
    layer, y = batch_norm(x)
    np.testing.assert_allclose(y, normalised(x, (0, 1, 2)) * [1, 2, 3] + 1, atol=2e-3)
    count = 16 * 25
    np.testing.assert_allclose(
        layer.var[...], 0.9 + 0.1 * x.astype(np.float64).var((0, 1, 2)) * count / (count - 1), rtol=1e-6
    )
    np.testing.assert_allclose(layer.mean[...], 0.1 * x.mean((0, 1, 2), dtype=np.float64), rtol=1e-6)


def test_batch_norm_in_groups():
    x = np.random.default_rng(1).normal(size=(6, 4, 4, 2)).astype(np.float32) * np.arange(1, 7)[:, None, None, None]
    layer, y = batch_norm(x.astype(np.float32), group_size=2)
    want = np.concatenate([normalised(x[i : i + 2], (0, 1, 2)) for i in (0, 2, 4)]) * [1, 2] + 1
    np.testing.assert_allclose(y, want, atol=1e-4)
    means = np.stack([x[i : i + 2].mean((0, 1, 2), dtype=np.float64) for i in (0, 2, 4)])
    np.testing.assert_allclose(layer.mean[...], 0.1 * means.mean(0), rtol=1e-5)
    with pytest.raises(ValueError, match=r"batch of 6.*group_size=4"):
        batch_norm(x.astype(np.float32), group_size=4)


def test_dropout_needs_its_key_only_in_training():
    model = aa_flax.create_model("mobilenet_v2_plain", num_classes=3, width_mult=0.25, rngs=nnx.Rngs(0))
    frozen = nnx.view(model, use_running_average=True)
    x = jnp.ones((1, 33, 33, 3))
    answer = jax.jit(lambda model, key: model(x, rngs=nnx.Rngs(dropout=key)))
    first, same, other = (answer(frozen, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)
    model.eval()
    np.testing.assert_array_equal(jax.jit(lambda model: model(x))(model), answer(model, jax.random.key(5)))


def test_a_resolved_spec_rebuilds_the_network():
    model = aa_flax.create_model("mobilenet_v2_lpf3", width_mult=0.25, pad_type="zero", num_classes=5, rngs=nnx.Rngs(0))
    again = build_model(model.spec, rngs=nnx.Rngs(0))
    assert again.spec == model.spec
    assert nnx.graphdef(again) == nnx.graphdef(model)
