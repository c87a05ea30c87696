"""A family made outside the package, that of docs/how-to-add.md, goes everywhere the package's own go."""

import dataclasses
import pickle
import re
import sys
import types
from pathlib import Path
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import aa_flax
from aa_flax.models import Family
from aa_flax.models.registry import MODELS
from aa_flax.models.variables import variables
from tests import formula
from tests.state_files import filt
from train.__main__ import main
from train.data import DataConfig, open_dataset
from train.fit.config import TrainConfig
from train.fit.network import initial_network
from train.fit.presets import preset

PAGE = Path(__file__).parents[1] / "docs" / "how-to-add.md"
# What a checkpoint of it in PyTorch has, written down by hand: eight channels, then sixteen; five classes.
CONVS = {"features.0": (8, 3, 3, 3), "features.3": (16, 8, 3, 3), "features.7": (16, 16, 3, 3)}
NORMS = {"features.1": 8, "features.4": 16, "features.8": 16}


@pytest.fixture(scope="module", autouse=True)
def tinynet():
    """The page's module, imported as a user's is; gone after these tests."""
    source = re.search(r"## A network family.*?```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert source
    module = types.ModuleType("tinynet")
    with patch.dict(MODELS), patch.dict(sys.modules, {"tinynet": module}):
        exec(compile(source[1], "tinynet.py", "exec"), module.__dict__)
        yield module


def create(spec: str, seed: int = 0, **options) -> aa_flax.Network:
    model = aa_flax.create_model(spec, num_classes=5, rngs=nnx.Rngs(seed), **options)
    model.eval()
    return model


def torch_state() -> dict[str, np.ndarray]:
    """The file of the anti-aliased network with filters of three taps."""
    shapes = {f"{name}.weight": shape for name, shape in CONVS.items()} | {"fc.weight": (5, 16), "fc.bias": (5,)}
    leaves = ("weight", "bias", "running_mean", "running_var")
    shapes |= {f"{name}.{leaf}": (width,) for name, width in NORMS.items() for leaf in leaves}
    counters = {f"{name}.num_batches_tracked": np.array(0) for name in NORMS}
    return formula.state_dict(shapes) | counters | {"features.6.filt": filt(3, 16)}


IMAGES = formula.images((9, 9))


def answer(model) -> np.ndarray:
    graphdef, state = nnx.split(model)
    return np.asarray(jax.jit(lambda state, x: nnx.merge(graphdef, state)(x))(state, IMAGES))


@pytest.fixture(scope="module")
def converted() -> aa_flax.Network:
    """Weights and statistics that are unlike each other."""
    return aa_flax.convert_state_dict(torch_state(), "tinynet_lpf3", num_classes=5)


def test_it_is_created_plain_and_anti_aliased(tinynet):
    plain, blurred, wide = (create(spec) for spec in ("tinynet_plain", "tinynet_lpf3", "tinynet_wide"))
    assert (plain.conv2.strides, plain.blur, blurred.conv2.strides) == (2, None, 1)
    assert (blurred.blur.filter_size, wide.blur.filter_size) == ((3, 3), (4, 4))
    assert wide.conv3.kernel.shape == (3, 3, 32, 32)
    assert variables(plain).keys() == variables(blurred).keys()
    assert blurred.config == tinynet.TinyConfig()
    assert dict(create("tinynet", width=4).spec.options) == {"width": 4}
    grey = create("tinynet_lpf3", in_channels=1)
    assert grey.feature_channels == (8, 16)
    assert nnx.eval_shape(lambda: grey.features(jnp.ones((2, 9, 9, 1)))).shape == (2, 5, 5, 16)


def test_pytorchs_weights_come_and_go(converted):
    state = torch_state()
    np.testing.assert_array_equal(converted.conv3.kernel[...], state["features.7.weight"].transpose(2, 3, 1, 0))
    back = aa_flax.to_torch_state_dict(converted)
    assert back.keys() == state.keys()
    for key, array in state.items():
        np.testing.assert_array_equal(back[key], array, err_msg=key)
    plain = aa_flax.to_torch_state_dict(converted, "torchvision")
    np.testing.assert_array_equal(plain["features.6.weight"], state["features.7.weight"])
    again = aa_flax.convert_state_dict(plain, "tinynet_lpf3", num_classes=5)
    np.testing.assert_array_equal(answer(again), answer(converted))
    fresh = aa_flax.convert_state_dict(state, "tinynet_lpf3", num_classes=3, skip_head=True)
    assert fresh.fc.kernel.shape == (16, 3)
    with pytest.raises(aa_flax.CheckpointError, match="filters of 3 taps, tinynet_lpf4 blurs with 4"):
        aa_flax.convert_state_dict(state, "tinynet", num_classes=5)


def test_antialias_makes_the_network_that_its_name_says(converted):
    state = aa_flax.to_torch_state_dict(converted, "torchvision")
    changed, _ = aa_flax.antialias(aa_flax.convert_state_dict(state, "tinynet_plain", num_classes=5), 3)
    assert changed.spec == converted.spec
    np.testing.assert_array_equal(answer(changed), answer(converted))


def test_it_is_saved_loaded_and_pickled(converted, tmp_path):
    aa_flax.save_pretrained(converted, tmp_path)
    np.testing.assert_array_equal(answer(aa_flax.load_pretrained(tmp_path)), answer(converted))
    assert aa_flax.load_pretrained(tmp_path, num_classes=2, in_channels=1).conv1.kernel.shape == (3, 3, 1, 8)
    np.testing.assert_array_equal(answer(pickle.loads(pickle.dumps(converted))), answer(converted))
    with patch.dict(MODELS):
        del MODELS["tinynet"], MODELS["tinynet_wide"]
        with pytest.raises(ValueError, match=r"unknown network 'tinynet_lpf3': .*register"):
            aa_flax.load_pretrained(tmp_path)


def test_it_is_a_linen_module_and_folds(converted):
    module, tree = aa_flax.linen.from_nnx(converted)
    np.testing.assert_array_equal(jax.jit(module.apply)(tree, IMAGES), answer(converted))
    folded = aa_flax.fold_batchnorm(converted)
    assert dict(folded.spec.options) == {"folded_bn": True}
    np.testing.assert_allclose(answer(folded), answer(converted), rtol=1e-4, atol=1e-5)


def test_it_trains_by_its_recipe_and_is_exported(tmp_path):
    recipe = preset("zhang2019", "tinynet_lpf3")
    assert (recipe.optim.lr, recipe.optim.schedule, recipe.epochs) == (0.05, "steps", 90)
    run = tmp_path / "run"
    words = ["--data.name", "synthetic", "--data.image-size", "8", "--data.synthetic-size", "16", "--batch", "8"]
    words += ["--epochs", "1", "--on-device", "--log.no-tensorboard", "--run-dir", str(run)]
    assert main(["fit", "tinynet_lpf3", *words]) == 0
    assert main(["export", str(run), "--output", str(tmp_path / "out")]) == 0
    loaded = aa_flax.load_pretrained(tmp_path / "out")
    assert loaded.spec.name == "tinynet"
    data = open_dataset(DataConfig(name="synthetic", image_size=8, synthetic_size=8, synthetic_classes=3))
    tuned = initial_network(TrainConfig(model="tinynet_plain", init=str(tmp_path / "out"), new_head=True), data)
    assert tuned.fc.kernel.shape == (16, 3)
    np.testing.assert_array_equal(tuned.conv3.kernel[...], loaded.conv3.kernel[...])


def test_a_family_that_is_none_is_refused_in_one_line(tinynet):
    @dataclasses.dataclass
    class Loose:
        width: int = 8

    class Headless(tinynet.TinyNet):
        last_linear = ""

    config, network = tinynet.TinyConfig(), tinynet.TinyNet
    for name, message in (
        ("resnet50", "there is a network 'resnet50' already: give the one of TinyNet another"),
        ("tinynet", "there is a network 'tinynet' already"),
        ("tiny_lpf4", "'tiny_lpf4' cannot be a network's name"),
        ("Tiny-Net", "'Tiny-Net' cannot be a network's name"),
    ):
        with pytest.raises(ValueError, match=message):
            aa_flax.register(Family(network=network, configs={name: config}))
    for kind, configs, message in (
        (nnx.Conv, {}, "network must be a class derived from aa_flax.Network"),
        (Headless, {}, "Headless must name a layer of its own as last_linear"),
        (network, {"tiny": Loose()}, "the configuration of 'tiny' must be a frozen dataclass"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            Family(network=kind, configs=configs)
    aa_flax.register(Family(network=network, configs={"nameless": config}))
    with pytest.raises(ValueError, match="no PyTorch names are known for nameless"):
        aa_flax.convert_state_dict({}, "nameless")
