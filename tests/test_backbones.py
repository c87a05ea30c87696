"""Networks as backbones: feature pyramids, no head, other channels, dilation, frozen normalisation."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import aa_flax
from aa_flax.models.abstract import abstract_model

CHANNELS = {
    "alexnet": (64, 192, 256, 256),
    "vgg11": (256, 512, 512, 512),
    "vgg11_bn": (256, 512, 512, 512),
    "resnet18": (64, 128, 256, 512),
    "resnet50": (256, 512, 1024, 2048),
    "densenet121": (256, 512, 1024, 1024),
    "mobilenet_v2": (24, 32, 96, 320),
}


def shapes(model: aa_flax.Network, method: str, size: int = 128, channels: int = 3):
    """Shapes of what a method gives for one square image, without computing it."""
    model.eval()
    graphdef, state = nnx.split(model)
    x = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    y = jax.eval_shape(lambda state, x: getattr(nnx.merge(graphdef, state), method)(x), state, x)
    return jax.tree.map(lambda a: a.shape, y)


@pytest.mark.parametrize("suffix", ["_plain", "_lpf3"])
@pytest.mark.parametrize(("name", "options"), [("resnet18", {"pool_only": False}), ("mobilenet_v2", {})])
def test_a_stem_without_stride_halves_every_stride(name, options, suffix):
    options = options if suffix == "_lpf3" else {}
    model = abstract_model(name + suffix, num_classes=10, stem_stride=1, **options)
    maps = shapes(model, "feature_pyramid", size=64)
    assert [shape[1:] for shape in maps] == [
        (64 // s, 64 // s, c) for s, c in zip((2, 4, 8, 16), CHANNELS[name], strict=True)
    ]
    assert model.spec.options == tuple(sorted({"stem_stride": 1, **options}.items()))
    # Nothing is left for a blur at the stem, and weights go to the network with a stride and back.
    assert getattr(model, "stem_blur", None) is None
    other = abstract_model(name + suffix, num_classes=10)
    assert nnx.to_flat_state(nnx.state(model)).paths == nnx.to_flat_state(nnx.state(other)).paths


@pytest.mark.parametrize("name", sorted(CHANNELS))
def test_the_pyramid_of_every_family(name):
    model = abstract_model(f"{name}_lpf4", num_classes=0, in_channels=1)
    maps = shapes(model, "feature_pyramid", channels=1)
    assert [m[-1] for m in maps] == list(CHANNELS[name])
    # AlexNet's stem pads by 2 only and its pools by nothing: its maps are a few pixels short.
    slack = 3 if name == "alexnet" else 1
    for stride, shape in zip((4, 8, 16, 32), maps, strict=True):
        assert 0 <= 128 // stride - shape[1] <= slack, (stride, shape)
    last = shapes(model, "features", channels=1)
    assert last[-1] == (1280 if name == "mobilenet_v2" else CHANNELS[name][-1])
    assert shapes(model, "__call__", channels=1) == (1, last[-1])
    assert dict(model.spec.options) == {}
    assert not any(path[0] in ("fc", "fc6", "fc8", "classifier") for path, _ in nnx.to_flat_state(nnx.state(model)))


def test_plain_and_anti_aliased_pyramids_have_one_size():
    for size in (128, 131):
        plain, blurred = (shapes(abstract_model(f"mobilenet_v2{k}"), "feature_pyramid", size) for k in ("_plain", ""))
        assert plain == blurred


@pytest.mark.parametrize(("stride", "sizes"), [(32, (32, 16, 8, 4)), (16, (32, 16, 8, 8)), (8, (32, 16, 16, 16))])
def test_output_stride_by_dilation(stride, sizes):
    model = abstract_model("resnet50_lpf3", num_classes=0, output_stride=stride)
    # The anti-aliased stem's maximum has no padding, so that its map may lack a pixel before the blur rounds up.
    assert tuple(m[1] for m in shapes(model, "feature_pyramid")) == sizes
    dilations = [model.layer2[1].conv2.kernel_dilation, model.layer4[2].conv2.kernel_dilation]
    assert dilations == {32: [1, 1], 16: [1, 2], 8: [1, 4]}[stride]
    by_flags = {32: (False,) * 3, 16: (False, False, True), 8: (False, True, True)}[stride]
    twin = abstract_model("resnet50_lpf3", num_classes=0, replace_stride_with_dilation=by_flags)
    twin.config, twin.spec = model.config, model.spec
    twin.eval()
    assert nnx.graphdef(twin) == nnx.graphdef(model)


def test_misuse():
    with pytest.raises(ValueError, match="output_stride must be one of 8, 16, 32, got 4"):
        abstract_model("resnet50", output_stride=4)
    with pytest.raises(ValueError, match="give output_stride or replace_stride_with_dilation, not both"):
        abstract_model("resnet50", output_stride=8, replace_stride_with_dilation=(False, False, True))
    with pytest.raises(ValueError, match="basic blocks know no dilation"):
        abstract_model("resnet18", output_stride=16)
    with pytest.raises(TypeError, match="vgg11 has no option 'output_stride'"):
        abstract_model("vgg11", output_stride=16)
    with pytest.raises(ValueError, match="num_classes must be a whole number >= 0, got -1"):
        abstract_model("resnet18", num_classes=-1)
