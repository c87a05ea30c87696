"""A way to subsample that is made here, outside of the package, goes wherever a name of the package's own goes."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import aa_flax
from aa_flax import hub
from aa_flax.downsample import METHODS, Downsample, Site
from aa_flax.models.abstract import abstract_model
from aa_flax.models.variables import variables
from tests.foreign_networks import with_values
from train.fit.command import parse

OPTIONS = {"num_classes": 2, "width_mult": 0.1}


class WeightedMean(Downsample):
    """The mean over blocks of samples, with weights that each channel learns."""

    title = "weighted means"
    has_parameters = True

    @classmethod
    def at(cls, site: Site) -> Downsample:
        assert site.channels is not None
        return cls(site.channels, site.strides)

    def __init__(self, channels: int, stride: tuple[int, ...]):
        self.stride = stride
        self.weight = nnx.Param(jnp.zeros((math.prod(stride), channels)))

    def __call__(self, x: jax.Array, like: jax.Array | None = None) -> jax.Array:
        down, right = self.stride
        x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % down), (0, -x.shape[2] % right), (0, 0)), mode="edge")
        weights = jax.nn.softmax(self.weight[...], 0)
        corners = itertools.product(range(down), range(right))
        return sum(w * x[:, i::down, j::right] for w, (i, j) in zip(weights, corners, strict=True))


@pytest.fixture(autouse=True)
def _means(monkeypatch) -> None:
    monkeypatch.setitem(METHODS, "means", WeightedMean)


def network() -> aa_flax.Network:
    return with_values(lambda: abstract_model("mobilenet_v2_lpf3", downsample="means", **OPTIONS))


def layers(model: nnx.Module) -> list[WeightedMean]:
    return [layer for _, layer in nnx.iter_modules(model) if isinstance(layer, WeightedMean)]


def test_in_a_network_and_its_files(tmp_path):
    model = network()
    assert len(layers(model)) == 4
    model.eval()
    assert jax.eval_shape(model, jax.ShapeDtypeStruct((1, 65, 71, 3), jnp.float32)).shape == (1, 2)
    aa_flax.save_pretrained(model, tmp_path / "m")
    loaded = aa_flax.load_pretrained(tmp_path / "m")
    assert loaded.spec == model.spec
    assert dict(loaded.spec.options)["downsample"] == "means"
    jax.tree.map(np.testing.assert_array_equal, nnx.state(loaded), nnx.state(model))
    assert "anti-aliased by weighted means" in hub.model_card(aa_flax.read_config(tmp_path / "m"))
    layers(model)[0].stride = (4, 4)
    with pytest.raises(ValueError, match=r"changed by hand .* \('WeightedMean', \(4, 4\)\), not .*\(2, 2\)"):
        aa_flax.save_pretrained(model, tmp_path / "n")


def test_its_variables_have_no_names_in_pytorch():
    model = network()
    state = aa_flax.to_torch_state_dict(model, "torchvision")
    assert len([path for path in variables(model) if path.endswith("blur.weight")]) == 4
    assert not any("blur" in key for key in state)
    with pytest.raises(ValueError, match="no network of the reference"):
        aa_flax.to_torch_state_dict(model, "reference")
    again = aa_flax.convert_state_dict(state, "mobilenet_v2_lpf3", downsample="means", **OPTIONS)
    np.testing.assert_array_equal(again.classifier.kernel[...], model.classifier.kernel[...])
    assert not any(layer.weight[...].any() for layer in layers(again))


def test_by_surgery():
    # At full width: the reference rounds fractions of it in another way than torchvision.
    plain = abstract_model("mobilenet_v2_plain", num_classes=2)
    with pytest.raises(ValueError, match=r"downsample='means' has parameters: give rngs"):
        aa_flax.antialias(plain, 3, downsample="means")
    model, _ = aa_flax.antialias(plain, 3, downsample="means", rngs=nnx.Rngs(0))
    assert model.spec == abstract_model("mobilenet_v2_lpf3", num_classes=2, downsample="means").spec
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    assert [found.module for found in aa_flax.find_strided(model, image)] == ["stem.conv"]
    with pytest.raises(ValueError, match="already anti-aliased"):
        aa_flax.antialias(model, 3, where=lambda path, layer: path != "stem.conv")
    with pytest.raises(
        ValueError, match="must be one of blur, aps, lps, ddac, ideal, asap, means or a function, got 'mean'"
    ):
        aa_flax.antialias(plain, 3, downsample="mean")


def test_in_the_trainer(capsys):
    config = parse(["mobilenet_v2", "--net.downsample", "means"], "fit")
    assert config.net.family_options()["downsample"] == "means"
    with pytest.raises(SystemExit):
        parse(["--help"], "fit")
    assert "{blur,aps,lps,ddac,ideal,asap,means}" in capsys.readouterr().out


def test_a_class_without_a_constructor_for_networks_says_so(monkeypatch):
    monkeypatch.setitem(METHODS, "means", type("Half", (Downsample,), {}))
    with pytest.raises(NotImplementedError, match="Half does not say how it is made for a network"):
        abstract_model("mobilenet_v2_lpf5", downsample="means", **OPTIONS)
