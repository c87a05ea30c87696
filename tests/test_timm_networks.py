"""timm's networks without timm: names, sizes, files both ways, and wherever all networks go."""

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

import aa_flax
import aa_flax.linen
from aa_flax.models import Family, mobilenet_v4, specs
from aa_flax.models.abstract import abstract_model
from aa_flax.models.registry import MODELS
from aa_flax.models.specs import parse_spec, resolve_spec
from aa_flax.weights.conversion import convert_file
from aa_flax.weights.names import obtain
from aa_flax.weights.torch.names import rules
from tests import formula
from tests.foreign_networks import run
from tests.state_files import file_of, shapes_of
from tests.torch_format import saved
from tests.zoo import TIMM

SHALLOW = {"depths": (1, 1, 1, 1), "num_classes": 5}
# Every kind of block and stem, one of each, so that there is little to compile.
KINDS = {
    "resnetblur18": SHALLOW,
    "resnetblur50": SHALLOW,
    "seresnetaa50d": SHALLOW,
    "densenetblur121d": SHALLOW | {"growth_rate": 8, "num_init_features": 16},
    "mobilenetv4_conv_blur_tiny": {"num_classes": 5},
    "mobilenetv4_conv_aa_tiny": {"num_classes": 5},
}
TINY = ((16, ((3, 5, 2), (0, 0, 2))), (24, ((5, 0, 2),)), (32, ((0, 3, 2), (3, 3, 2))))
SIDE = 64


@pytest.fixture(scope="module", autouse=True)
def tiny_mobilenets() -> Iterator[None]:
    """Rows of other sizes than timm has."""
    with patch.dict(MODELS):
        for name, family in (("blur", mobilenet_v4.FAMILY_BLUR), ("aa", mobilenet_v4.FAMILY_AVERAGE)):
            config = mobilenet_v4.MobileNetV4Config(stem_width=8, stages=TINY, average=name == "aa")
            aa_flax.register(
                Family(
                    network=family.network,
                    configs={f"mobilenetv4_conv_{name}_tiny": config},
                    torch=family.torch,
                    filter_size=family.filter_size,
                    pad_type=family.pad_type,
                )
            )
        yield


def converted(name: str, **options) -> aa_flax.Network:
    return aa_flax.convert_state_dict(file_of(name, **KINDS[name]), name, **KINDS[name], **options)


def images(side: int = SIDE) -> np.ndarray:
    return formula.images((side, side))


def answer(model: nnx.Module, side: int = SIDE) -> np.ndarray:
    return np.asarray(run(model, images(side)))


def shapes(model: nnx.Module, height: int, width: int) -> list[tuple[int, ...]]:
    """Height and width of each map of the pyramid."""
    x = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    return [each.shape[1:3] for each in nnx.eval_shape(lambda m, v: m.feature_pyramid(v), model, x)]


@pytest.mark.parametrize("name", TIMM)
def test_the_name_says_how_it_is_anti_aliased(name):
    spec = resolve_spec(name, num_classes=11821)
    assert (str(spec), spec.filter_size) == (name, 3 if "blur" in name else 2)
    assert spec.pad_type == ("zero" if name == "mobilenetv4_conv_blur_medium" else "reflect")
    assert resolve_spec(name, pad_type="circular").pad_type == "circular"
    assert parse_spec(str(spec)) == (name, spec.filter_size)


@pytest.mark.parametrize("name", KINDS)
def test_maps_and_logits(name):
    model = abstract_model(name, **KINDS[name])
    model.eval()
    taps = {m.filter_size[0] for _, m in nnx.iter_modules(model) if isinstance(m, aa_flax.BlurPool2D)}
    assert taps == {3 if "blur" in name else 2}
    assert shapes(model, 96, 128) == [(24, 32), (12, 16), (6, 8), (3, 4)]
    odd = {"seresnetaa50d": (97, 129), "mobilenetv4_conv_aa_tiny": (99, 131)}.get(name, (75, 101))
    assert nnx.eval_shape(lambda m, v: m(v), model, jnp.ones((2, *odd, 3))).shape == (2, 5)


@pytest.mark.parametrize("name", ["resnetaa34d", "resnetaa50"])
def test_networks_that_average_refuse_maps_that_do_not_halve(name):
    model = abstract_model(name, **SHALLOW)
    model.eval()
    for side in (63, 64, 65, 66):
        assert shapes(model, side, 64)[-1] == (2, 2)
    for side in (62, 67, 80, 100):
        with pytest.raises(ValueError, match=rf"{name} takes images .* multiples of 32, got {side}x64\b"):
            shapes(model, side, 64)


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
@pytest.mark.parametrize("name", KINDS)
def test_files_come_and_go(name, ending, tmp_path):
    state = file_of(name, **KINDS[name])
    path = tmp_path / f"model.{ending}"
    if ending == "pth":
        path.write_bytes(saved(state))
    else:
        save_file(state, path)
    conversion = convert_file(obtain(path, spec=name), name, **KINDS[name])
    assert (conversion.source["layout"], conversion.source["filter_size"]) == ("timm", MODELS[name].filter_size)
    assert not [*conversion.changes()]
    conversion.save(tmp_path / "out", preprocessing=aa_flax.Preprocessing(), license="apache-2.0")
    assert conversion.verify(tmp_path / "out", lambda done, total: None) == sum("num_batches" not in k for k in state)
    loaded = aa_flax.load_pretrained(tmp_path / "out")
    assert loaded.spec == conversion.model.spec
    back = aa_flax.to_torch_state_dict(loaded)
    assert back.keys() == state.keys()
    for key in (key for key in state if "num_batches" not in key):
        np.testing.assert_array_equal(back[key], state[key], err_msg=key)


def test_what_does_not_fit_is_refused():
    state = file_of("resnetblur50", **SHALLOW)
    for wrong, message in (
        ("resnetblur18", "62 of the 87 tensors in it have names of this network's; layer1.0.bn3.bias is not this .*"),
        ("seresnetaa50d", "70 of the 87 tensors .*; conv1.weight is not this network's, conv1.0.weight is missing"),
        ("densenetblur121d", "none of the 87 tensors in it belongs to this network"),
    ):
        message = f"^the file does not fit {wrong}: {message}$"
        with pytest.raises(aa_flax.CheckpointError, match=message):
            aa_flax.convert_state_dict(state, wrong, what="the file", **KINDS[wrong])
    # At full depth even a near relative has most names in common.
    near = rules(resolve_spec("resnetaa50"), shapes_of(abstract_model("resnetaa50")), set())
    deep = {rule.key: np.broadcast_to(np.float32(0), rule.torch_shape) for rule in near}
    message = "^the file does not fit resnetaa50d: .* of the 267 tensors in it have names of this network's; .*$"
    with pytest.raises(aa_flax.CheckpointError, match=message):
        aa_flax.convert_state_dict(deep, "resnetaa50d", what="the file")
    with pytest.raises(aa_flax.CheckpointError, match="missing"):
        aa_flax.convert_state_dict({k: v for k, v in state.items() if k != "bn1.bias"}, "resnetblur50", **SHALLOW)
    theirs = file_of("resnet50_lpf3", **SHALLOW)
    with pytest.raises(
        aa_flax.CheckpointError,
        match=r"^the file holds a network of antialiased-cnns \(filters of 3 taps\): resnetblur50 is another one$",
    ):
        aa_flax.convert_state_dict(theirs, "resnetblur50", what="the file", **SHALLOW)
    model = converted("resnetblur50")
    with pytest.raises(ValueError, match="resnetblur50 is no network of the reference: layout='timm' exports"):
        aa_flax.to_torch_state_dict(model, "reference")
    with pytest.raises(ValueError, match="layout must be reference or timm, got 'torchvision'"):
        aa_flax.to_torch_state_dict(model, "torchvision")
    with pytest.raises(ValueError, match="layout must be reference or torchvision, got 'timm'"):
        aa_flax.to_torch_state_dict(aa_flax.create_model("resnet18", **SHALLOW, rngs=nnx.Rngs(0)), "timm")


@pytest.mark.parametrize(
    ("name", "option", "places"),
    [
        ("resnetblur50", "shortcut_taps", [f"layer{i}.0.downsample.conv" for i in (2, 3, 4)]),
        ("densenetblur121d", "transition_taps", [f"transition{i}.blur" for i in (1, 2, 3)]),
    ],
)
def test_what_still_aliases_is_blurred_by_antialias(name, option, places, tmp_path):
    model = converted(name)
    further, report = aa_flax.antialias(model, 5)
    assert [change.path for change in report.antialiased] == places
    assert model.spec is not None
    assert further.spec == specs.with_options(model.spec, **{option: 5})
    aa_flax.save_pretrained(further, tmp_path)
    loaded = aa_flax.load_pretrained(tmp_path)
    found = answer(further)
    np.testing.assert_array_equal(answer(loaded), found)
    assert np.abs(found - answer(model)).max() > 1e-3 * np.abs(found).max()
    # A file of timm's is still one of its network, with other blurs than it was trained with.
    assert aa_flax.to_torch_state_dict(further).keys() == file_of(name, **KINDS[name]).keys()
    np.testing.assert_array_equal(answer(converted(name, **{option: 5})), found)
    with pytest.raises(ValueError, match="nothing to antialias in"):
        aa_flax.antialias(further)


def test_an_average_before_a_shortcut_is_a_blur_of_two_taps():
    """Of pixels that lie inside the map alone, also of an odd one."""
    shortcut: Any = abstract_model("resnetblur50d").layer2[0].downsample  # pyright: ignore[reportAttributeAccessIssue]
    x = np.random.default_rng(0).normal(size=(1, 5, 7, 3)).astype(np.float32)
    want = np.array(
        [[x[0, i : i + 2, j : j + 2].reshape(-1, 3).mean(0) for j in range(0, 7, 2)] for i in range(0, 5, 2)]
    )
    np.testing.assert_allclose(shortcut.blur(jnp.asarray(x))[0], want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["seresnetaa50d", "mobilenetv4_conv_blur_tiny"])
def test_they_go_where_all_networks_go(name, tmp_path):
    model = converted(name)
    want = answer(model)
    assert np.abs(want[0] - want[1]).max() > 0.01 * np.abs(want).max()
    folded = aa_flax.fold_batchnorm(model)
    assert np.abs(answer(folded) - want).max() <= 1e-4 * np.abs(want).max()
    module, variables = aa_flax.linen.from_nnx(model)
    np.testing.assert_allclose(jax.jit(module.apply)(variables, images()), want, rtol=1e-5, atol=1e-5)
    program = aa_flax.load_exported(aa_flax.export(model, tmp_path / "program", image_size=(SIDE, SIDE)))
    np.testing.assert_allclose(program(jnp.asarray(images())), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["resnetblur18", "seresnetaa50d", "densenetblur121d", "mobilenetv4_conv_aa_tiny"])
def test_they_train_on_explicit_axes(name):
    model = abstract_model(name, **KINDS[name])
    model.train()
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,), devices=jax.devices()[:4])
    place = lambda x, *spec: jax.ShapeDtypeStruct(  # noqa: E731
        x.shape, x.dtype, sharding=jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
    )

    def loss(params, rest, images):
        logits = nnx.merge(graphdef, params, rest, copy=True)(images)
        return jnp.square(logits).sum(), logits

    given = jax.tree.map(place, (nnx.as_pure(params), nnx.as_pure(rest)))
    batch = place(jax.ShapeDtypeStruct((8, SIDE, SIDE, 3), jnp.float32), "data")
    gradient, logits = jax.eval_shape(jax.grad(loss, has_aux=True), *given, batch)
    assert jax.tree.map(jnp.shape, gradient) == jax.tree.map(jnp.shape, given[0])
    assert logits.sharding.spec[0] == "data"
