"""Options of ways to subsample, behind the method's name: read, built, kept in files, taken by surgery and trainer."""

import jax
import pytest
from flax import nnx

import aa_flax
from aa_flax.downsample import METHODS, AdaptivePolyphase, ContentAdaptiveBlur, Downsample, LearnablePolyphase, method
from aa_flax.hub import model_card
from aa_flax.models.abstract import abstract_model
from aa_flax.models.specs import resolve_spec
from aa_flax.weights.config import read_config
from tests.foreign_networks import with_values
from train.errors import CommandError
from train.fit.command import parse
from train.fit.config import network_spec, validate

SMALL = {"depths": (1, 1, 1, 1), "num_classes": 2}


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("aps", "aps"),
        ("aps:choose_on=unblurred,criterion=l1", "aps:choose_on=unblurred,criterion=l1"),
        ("aps:criterion=l1,choose_on=unblurred", "aps:choose_on=unblurred,criterion=l1"),
        ("aps:criterion=l2,choose_on=blurred", "aps"),
        ("ddac:dense_statistics=True,normalise=group", "ddac:dense_statistics=True"),
    ],
)
def test_a_method_has_one_spelling(text, kept):
    assert str(method(text)) == kept
    assert method(kept) == method(text)
    assert dict(resolve_spec("resnet18", downsample=text).options).get("downsample") == kept


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("wavelet:level=2", "downsample must be one of blur, aps, lps, ddac, ideal, asap, got 'wavelet:level=2'"),
        ("blur:criterion=l1", "'criterion=l1' is no OPTION=VALUE of blur, which has no options"),
        ("aps:l1", "'l1' is no OPTION=VALUE of aps, which has the options criterion, choose_on"),
        ("aps:", "'' is no OPTION=VALUE of aps"),
        ("aps:normalise=all", "'normalise=all' is no OPTION=VALUE of aps"),
        ("aps:criterion=l3", "criterion must be one of l2, l1, linf, max, smallest_l2, smallest_l1, got 'l3'"),
        ("ddac:dense_statistics=1", "dense_statistics must be one of False, True, got '1'"),
        ("aps:criterion=l1,criterion=l2", "has criterion twice"),
    ],
)
def test_what_is_no_method_is_told(text, words):
    with pytest.raises(ValueError, match=words):
        abstract_model("resnet18", downsample=text)


@pytest.mark.parametrize("name", METHODS)
def test_every_option_is_an_attribute_of_the_layers(name):
    """The first value is what a layer has of itself."""
    for option, values in METHODS[name].options.items():
        for value in values:
            model = abstract_model("resnet18_lpf3", downsample=f"{name}:{option}={value}", **SMALL)
            found = {getattr(layer, option) for _, layer in nnx.iter_modules(model) if isinstance(layer, Downsample)}
            assert found == {value}
        model = abstract_model("resnet18_lpf3", downsample=name, **SMALL)
        assert {getattr(each, option) for _, each in nnx.iter_modules(model) if isinstance(each, METHODS[name])} == {
            values[0]
        }


def test_files_carry_the_options_and_check_them(tmp_path):
    text = "aps:choose_on=unblurred,criterion=linf"
    model = with_values(lambda: abstract_model("resnet18_lpf3", downsample=text, **SMALL))
    aa_flax.save_pretrained(model, tmp_path / "saved")
    assert dict(read_config(tmp_path / "saved").spec.options)["downsample"] == text
    loaded = aa_flax.load_pretrained(tmp_path / "saved")
    assert loaded.spec == model.spec
    layers = [each for _, each in nnx.iter_modules(loaded) if isinstance(each, AdaptivePolyphase)]
    assert {(each.criterion, each.choose_on) for each in layers} == {("linf", "unblurred")}
    assert "adaptive polyphase sampling, choose_on=unblurred, criterion=linf" in model_card(
        read_config(tmp_path / "saved")
    )
    layers[0].criterion = "l2"
    with pytest.raises(ValueError, match="changed by hand"):
        aa_flax.save_pretrained(loaded, tmp_path / "changed")


def test_surgery_takes_them():
    plain = abstract_model("resnet18_plain", **SMALL)
    model, _ = aa_flax.antialias(plain, 3, downsample="aps:criterion=l1,choose_on=blurred")
    assert model.spec == resolve_spec("resnet18_lpf3", downsample="aps:criterion=l1", **SMALL)
    with pytest.raises(ValueError, match="criterion must be one of"):
        aa_flax.antialias(abstract_model("resnet18_plain", **SMALL), 3, downsample="aps:criterion=l3")


def test_the_trainer_takes_them():
    config = parse(["resnet18", "--net.downsample", "lps:mode=convex"], "fit")
    assert dict(network_spec(config).options)["downsample"] == "lps:mode=convex"
    assert config.net.has_temperature
    with pytest.raises(CommandError, match="mode must be one of gumbel, convex, got 'soft'"):
        validate(parse(["resnet18", "--net.downsample", "lps:mode=soft"], "fit"))


def test_they_are_the_options_of_the_layers():
    given = {AdaptivePolyphase: "aps", ContentAdaptiveBlur: "ddac", LearnablePolyphase: "lps"}
    assert {kind: name for name, kind in METHODS.items() if kind.options} == given
    site = aa_flax.downsample.Site(strides=(2, 2), filter_size=3, pad_type="zero", channels=16, rngs=nnx.Rngs(0))
    layer = method("ddac:normalise=all,dense_statistics=True").at(site)
    assert (layer.normalise, layer.dense_statistics) == ("all", True)
    x = jax.numpy.ones((1, 8, 8, 16))
    assert float(layer(x).mean()) < 0.5 < float(method("ddac").at(site)(x).mean())
