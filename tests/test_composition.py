"""Functions of this package, one after the other: equal answers, or one line that says why not.

Every function is applied to what every other has made of one small network of each kind. Which pairs are refused is
written down here, so that nothing passes by refusing what works.
"""

import collections
import functools
import pickle
from typing import Any

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import aa_flax
from aa_flax.models.abstract import abstract_model
from aa_flax.models.specs import resolve_spec
from aa_flax.models.variables import variables
from aa_flax.weights.refit import refit
from tests.foreign_networks import with_values
from tests.test_hub import REPO, FakeApi

SMALL = {"depths": (1, 1, 1, 1), "growth_rate": 4, "num_init_features": 8}
DILATED = {"depths": (1, 1, 1, 1), "width_per_group": 8, "output_stride": 16, "num_classes": 3}


def densenet(spec: str, classes: int = 3, **options):
    return with_values(lambda: abstract_model(spec, **SMALL, num_classes=classes, **options))


KINDS = {
    "plain": lambda: densenet("densenet121_plain"),
    "anti-aliased": lambda: densenet("densenet121_lpf3"),
    "aps": lambda: densenet("densenet121_lpf3", downsample="aps"),
    # Without a blur, behind which all phases have the same mean: a head whose ReLUs are all open finds them equal, and
    # rounding chooses.
    "lps": lambda: densenet("densenet121_lpf1", downsample="lps"),
    "ddac": lambda: densenet("densenet121_lpf3", downsample="ddac"),
    "dilated": lambda: with_values(lambda: abstract_model("resnet50_lpf3", **DILATED)),
    "folded": lambda: aa_flax.fold_batchnorm(densenet("densenet121_lpf3")),
    "where": lambda: aa_flax.antialias(densenet("densenet121_plain"), 3, where=lambda path, _: "transition" in path)[0],
}


@functools.cache
def images() -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=(2, 33, 33, 3)), jnp.float32)


def split(model, *filters):
    """A copy's parts; where the weights came from is no part of the function, and would be compiled for."""
    model = nnx.clone(model)
    model.provenance = None
    return nnx.split(model, *filters)


@functools.partial(jax.jit, static_argnums=0)
def _answer(graphdef, state, x):
    model = nnx.merge(graphdef, state)
    model.eval()
    return model(x)


def answer(model) -> np.ndarray:
    return np.asarray(_answer(*split(model), images()))


@functools.partial(jax.jit, static_argnums=0)
def _step(graphdef, params, rest, x):
    def loss(params):
        model = nnx.merge(graphdef, params, rest, copy=True)
        model.train()
        return jnp.square(model(x, rngs=nnx.Rngs(0))).mean(), nnx.state(model, nnx.BatchStat)

    grads, statistics = jax.grad(loss, has_aux=True)(params)
    return jax.tree.map(lambda p, g: p - 1e-3 * g, params, grads), statistics


def train_step(model, folder):
    graphdef, params, rest = split(model, nnx.Param, ...)
    trained = nnx.clone(model)
    for state in _step(graphdef, params, rest, images()):
        nnx.update(trained, state)
    return trained


def save_and_load(model, folder):
    return aa_flax.load_pretrained(aa_flax.save_pretrained(model, folder / "saved"))


def to_torch_and_back(model, folder):
    tensors = aa_flax.to_torch_state_dict(model)
    spec = model.spec
    return aa_flax.convert_state_dict(
        tensors, str(spec), num_classes=spec.num_classes, pad_type=spec.pad_type, **dict(spec.options)
    )


def to_linen_and_back(model, folder):
    module, variables = aa_flax.linen.from_nnx(model)
    return aa_flax.linen.to_nnx(module, variables)


def export(model, folder):
    program = aa_flax.load_exported(
        aa_flax.export(model, folder / "program", batch=2, image_size=33, platforms=["cpu"])
    )
    close(np.asarray(program(images())), answer(model))
    return model


def through_the_hub(model, folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub, "HfApi", type("Api", (FakeApi,), {"cache": folder / "hub", "calls": []}))
        aa_flax.push_to_hub(model, REPO)
        return aa_flax.load_from_hub(REPO, cache_dir=folder / "hub", local_files_only=True)


FUNCTIONS = {
    "antialias": lambda model, folder: aa_flax.antialias(model, 3, first=True)[0],
    "fold": lambda model, folder: aa_flax.fold_batchnorm(model),
    "save": save_and_load,
    "torch": to_torch_and_back,
    "linen": to_linen_and_back,
    "export": export,
    "hub": through_the_hub,
    "pickle": lambda model, folder: pickle.loads(pickle.dumps(model)),
    "split": lambda model, folder: nnx.merge(*nnx.split(model)),
    "train": train_step,
}

NEEDS_SPEC = ("save", "torch", "linen", "hub")
# What makes of a network one with another answer; everything else leaves the answer as it is.
CHANGES = ("antialias", "train")


def is_refused(kind: str, before: tuple[str, ...], name: str) -> bool:
    """Whether a function has to refuse what those before it have made of a network."""
    if name == "antialias":
        return "antialias" in before
    # A stem that blurs in a network that subsamples in another way; blurs in some places only.
    undescribed = kind == "where" or ("antialias" in before and kind in ("aps", "lps", "ddac"))
    if name == "torch":
        return undescribed or kind in ("aps", "lps", "ddac", "folded") or "fold" in before
    return name in NEEDS_SPEC and undescribed


@functools.cache
def network(kind: str):
    model = KINDS[kind]()
    model.eval()
    return model


def apply(kind: str, before: tuple[str, ...], name: str, model, folder):
    """The function's result; None where it refuses, as it has to, in one line."""
    made, refusal = None, ""
    try:
        made = FUNCTIONS[name](model, folder)
    except (ValueError, TypeError) as error:
        refusal = str(error)
    assert bool(refusal) == is_refused(kind, before, name), f"{kind} {before} {name}: {refusal or 'went through'}"
    assert "\n" not in refusal
    if made is not None:
        made.eval()
    return made


def close(got: np.ndarray, want: np.ndarray) -> None:
    assert np.abs(got - want).max() <= 2e-5 * np.abs(want).max()


@functools.cache
def expected(kind: str, names: tuple[str, ...]) -> np.ndarray:
    """The answer after functions that change it."""
    model, folder = network(kind), None
    if names == ("train", "antialias"):
        # The other order: the copy takes the trained weights.
        trained = FUNCTIONS["train"](model, folder)
        model = FUNCTIONS["antialias"](model, folder)
        nnx.update(model, nnx.state(trained))
        return answer(model)
    for name in names:
        model = FUNCTIONS[name](model, folder)
    return answer(model)


def try_pairs(kind: str, firsts, seconds, folder) -> collections.Counter:
    """Applies ordered pairs of functions and compares; counts what was tried and what was refused."""
    counts = collections.Counter()
    for first in firsts:
        once = apply(kind, (), first, network(kind), folder / first)
        for second in seconds:
            counts["tried"] += 1
            twice = None if once is None else apply(kind, (first,), second, once, folder / f"{first} {second}")
            if twice is None:
                counts["refused"] += 1
                continue
            got = answer(twice)
            assert np.isfinite(got).all()
            # A folded network is trained in other parameters, to another answer.
            if (first, second) != ("fold", "train"):
                close(got, expected(kind, tuple(name for name in (first, second) if name in CHANGES)))
    return counts


# Export and training are compiled for every network: `make test-slow` has them, and the other kinds.
QUICK = ("antialias", "fold", "save", "torch", "linen", "pickle", "split")
# Compiled as APS is, which has all pairs.
ALIKE = ("lps", "ddac")


def slow(kind: str) -> Any:
    return pytest.param(kind, marks=pytest.mark.slow)


@pytest.mark.parametrize("kind", ["anti-aliased", "folded", "where", *(slow(kind) for kind in ALIKE)])
def test_pairs(kind, tmp_path):
    counts = try_pairs(kind, QUICK, QUICK, tmp_path)
    print(f"{kind}: {counts['tried']} pairs, {counts['refused']} of them refused")
    assert counts["tried"] == len(QUICK) ** 2


# Of these CI has the short list of pairs, or none.
RARE = ("plain", "dilated", "aps")


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[pytest.mark.deep] * (kind in RARE)) for kind in KINDS if kind not in ALIKE],
)
def test_all_pairs(kind, tmp_path):
    counts = try_pairs(kind, FUNCTIONS, FUNCTIONS, tmp_path)
    print(f"{kind}: {counts['tried']} pairs, {counts['refused']} of them refused")
    assert counts["tried"] == len(FUNCTIONS) ** 2


@pytest.mark.parametrize("options", [{"circular": True}, {"frozen_bn": True}, {"circular": True, "frozen_bn": True}])
def test_anti_aliasing_keeps_the_other_options(options):
    copy, _ = aa_flax.antialias(
        abstract_model("resnet18_plain", num_classes=3, **options), 3, pad_type="reflect", first=True
    )
    assert copy.spec == abstract_model("resnet18_lpf3", num_classes=3, pool_only=False, **options).spec


def test_a_blur_that_no_spec_has_is_not_claimed():
    """MobileNetV2 has no place for a blur at its stem: it goes behind the convolution."""
    copy, _ = aa_flax.antialias(abstract_model("mobilenet_v2_plain"), first=True)
    assert copy.spec is None
    with pytest.raises(
        ValueError, match=r"none describes what antialias has made of this MobileNetV2: call \S+ before"
    ):
        aa_flax.linen.from_nnx(copy)
    # A second time over the rest of the network changes nothing in that.
    part = network("where")
    assert aa_flax.antialias(part, 3)[0].spec is None


@pytest.mark.parametrize("downsample", ["blur", "aps", "lps", "ddac", "ideal"])
def test_anti_aliased_networks_are_known_as_such(downsample):
    model = densenet("densenet121_lpf3", downsample=downsample, pool_only=False)
    with pytest.raises(ValueError, match=r"^nothing to antialias in DenseNet: every stride is already anti-aliased$"):
        aa_flax.antialias(model)


def test_two_ways_to_dilate_are_one_network_in_pytorch():
    by_stride = network("dilated")
    flags = {k: v for k, v in DILATED.items() if k != "output_stride"}
    flags["replace_stride_with_dilation"] = (False, False, True)
    state = aa_flax.to_torch_state_dict(by_stride)
    assert sorted(key for key in state if key.startswith("layer4.0.conv3")) == ["layer4.0.conv3.weight"]
    for options in (flags, DILATED):
        np.testing.assert_array_equal(
            answer(aa_flax.convert_state_dict(state, "resnet50_lpf3", **options)), answer(by_stride)
        )
    with pytest.raises(aa_flax.CheckpointError, match=r"with output_stride=16, unlike"):
        aa_flax.convert_state_dict(state, "resnet50_lpf3", **DILATED | {"output_stride": 8})


def test_a_network_changed_by_hand_replaces_nothing_that_loads(tmp_path):
    model = nnx.clone(network("anti-aliased"))
    directory = aa_flax.save_pretrained(model, tmp_path / "saved")
    model.classifier = nnx.Linear(model.classifier.in_features, 7, rngs=nnx.Rngs(0))
    blurred = nnx.clone(network("anti-aliased"))
    blurred.pool_blur = aa_flax.BlurPool2D(5, stride=2)
    for changed, message in (
        (model, r"classifier\.bias is \(7,\), not \(3,\)"),
        (blurred, "pool_blur is .*5.*, not .*3"),
    ):
        for function in (lambda m: aa_flax.save_pretrained(m, directory), aa_flax.to_torch_state_dict):
            with pytest.raises(
                ValueError, match=f"changed by hand and is not what its spec densenet121_lpf3 .*{message}"
            ):
                function(changed)
    np.testing.assert_array_equal(answer(aa_flax.load_pretrained(directory)), answer(network("anti-aliased")))


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("resnet18", {"circular": "no"}, "circular must be of the kind of False, got 'no'"),
        ("resnet18", {"frozen_bn": 1}, "frozen_bn must be of the kind of False, got 1"),
        ("resnet18", {"depths": ()}, r"depths must be of the kind of \(2, 2, 2, 2\), got \(\)"),
        ("resnet18", {"depths": (1, 1)}, r"depths must be of the kind of \(2, 2, 2, 2\), got \(1, 1\)"),
        ("resnet50", {"replace_stride_with_dilation": (True,)}, "replace_stride_with_dilation must be of the kind"),
        ("resnet50", {"output_stride": 16.0}, r"output_stride must be one of 8, 16, 32, got 16\.0"),
        ("resnet18", {"block": "other"}, "block must be one of basic, bottleneck, got 'other'"),
        ("resnet18", {"block": {}}, r"block must be one of basic, bottleneck, got \{\}"),
        ("vgg11", {"depths": 3}, r"depths must be of the kind of \(1, 1, 2, 2, 2\), got 3"),
        ("densenet121", {"growth_rate": "32"}, "growth_rate must be of the kind of 32, got '32'"),
        ("mobilenet_v2", {"width_mult": float("nan")}, r"width_mult must be of the kind of 1\.0, got nan"),
    ],
)
def test_options_of_the_wrong_kind(spec, options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        aa_flax.create_model(spec, rngs=nnx.Rngs(0), **options)


def test_numbers_of_numpy_are_numbers():
    want = abstract_model("densenet121", num_classes=5, depths=(1, 1, 1, 1)).spec
    assert abstract_model("densenet121", num_classes=np.int64(5), depths=list(np.ones(4, int))).spec == want


@functools.partial(jax.jit, static_argnums=0)
def _features(graphdef, state, x):
    model = nnx.merge(graphdef, state)
    return model.features(x), model(x)


def features(model, x):
    return _features(*split(model), x)


def test_loading_for_other_classes_and_images(tmp_path):
    model = network("anti-aliased")
    aa_flax.save_pretrained(model, tmp_path)
    x = images()[..., :1]
    want, _ = features(model, jnp.repeat(x, 3, -1))
    alike = functools.partial(np.testing.assert_allclose, desired=want, atol=2e-5 * float(jnp.abs(want).max()))
    headless = aa_flax.load_pretrained(tmp_path, num_classes=0, in_channels=1)
    found, pooled = features(headless, x)
    alike(found)
    assert pooled.shape == (2, model.feature_channels[-1])
    x = jnp.repeat(x, 6, -1)
    other = aa_flax.load_pretrained(tmp_path, num_classes=5, in_channels=6, frozen_bn=True, rngs=nnx.Rngs(3))
    found, logits = features(other, x)
    alike(found)
    assert logits.shape == (2, 5)
    assert other.spec == densenet("densenet121_lpf3", in_channels=6, frozen_bn=True, classes=5).spec
    preprocessing = aa_flax.Preprocessing(mean=(0.5,) * 6, std=(0.25,) * 6)
    aa_flax.save_pretrained(other, tmp_path / "other", preprocessing=preprocessing)
    np.testing.assert_array_equal(features(aa_flax.load_pretrained(tmp_path / "other"), x)[1], logits)
    with pytest.raises(ValueError, match="num_classes must be a whole number >= 0, got -1"):
        aa_flax.load_pretrained(tmp_path, num_classes=-1)


@pytest.mark.parametrize("spec", ["alexnet", "vgg11_bn", "resnet18"])
def test_heads_come_and_go_with_their_hidden_layers(spec):
    shapes = {n: variables(abstract_model(spec, num_classes=n)) for n in (0, 4, 7)}
    specs = {n: resolve_spec(spec, num_classes=n) for n in shapes}
    ones = {path: np.broadcast_to(np.float32(1), v.shape) for path, v in shapes[4].items()}
    bare = refit(ones, specs[4], specs[0], rngs=nnx.Rngs(0), param_dtype=jnp.float32)
    assert bare.keys() == shapes[0].keys()
    other = refit(ones, specs[4], specs[7], rngs=nnx.Rngs(0), param_dtype=jnp.float32)
    assert {path: a.shape for path, a in other.items()} == {path: v.shape for path, v in shapes[7].items()}
    fresh = {path for path, a in other.items() if not (a == 1).all()}
    assert {path.rpartition(".")[0] for path in fresh} <= {"fc", "fc8", "classifier"}
    assert len(fresh) in (1, 2)


@pytest.mark.parametrize(
    ("spec", "channels"),
    [
        ("resnet18", (64, 128, 256, 512)),
        ("resnet50", (256, 512, 1024, 2048)),
        ("densenet121", (256, 512, 1024, 1024)),
        ("vgg11", (256, 512, 512, 512)),
        ("alexnet", (64, 192, 256, 256)),
        ("mobilenet_v2", (24, 32, 96, 320)),
    ],
)
def test_the_pyramid_says_its_channels(spec, channels):
    assert abstract_model(spec, num_classes=0, in_channels=2).feature_channels == channels
