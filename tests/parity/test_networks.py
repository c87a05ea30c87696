"""Every network against PyTorch's: logits and the output of every module, with random weights and statistics."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aa_flax.models.create import create_model
from aa_flax.weights.mapping import convert_state_dict, to_torch_state_dict
from tests.parity import compare, measured, oracles
from tests.zoo import ZHANG, others_marked

LOGITS, MODULES, EXACT = 2e-5, 1e-4, 1e-12
ODD, USUAL = (97, 129), (224, 224)
FAMILIES = ("alexnet", "vgg11_bn", "resnet50", "densenet121", "mobilenet_v2")
# A wrong filter size moves the logits by a seventh of this or more, if they depend on the image at all.
LEAST_DIFFERENCE = 0.05


@pytest.fixture(autouse=True)
def _forget_compiled() -> Iterator[None]:
    yield
    jax.clear_caches()


def spec_of(name: str, filter_size: int | None) -> str:
    return f"{name}_plain" if filter_size is None else f"{name}_lpf{filter_size}"


def check(
    name: str,
    filter_size: int | None,
    size: tuple[int, int],
    *,
    dtype: Any = np.float32,
    tolerances: tuple[float, float] = (LOGITS, MODULES),
    **options: Any,
) -> None:
    """Compares one network at one image size; a failure names the first module that is off."""
    spec = spec_of(name, filter_size)
    wide = dtype == np.float64
    net = oracles.network(name, filter_size, dtype=oracles.torch.float64 if wide else None, **options)
    state = oracles.arrays(net)
    model = convert_state_dict(state, spec, dtype=dtype, param_dtype=dtype, **options)
    images = oracles.images(size, dtype=dtype)
    theirs, ours = oracles.activations(net, images), compare.activations(model, images)
    names = compare.counterparts(model, {key.removesuffix(".filt") for key in state if key.endswith(".filt")})
    order = {key: i for i, key in enumerate(theirs)}
    errors = {
        path: compare.relative_error(ours[path], theirs[names[path]])
        for path in sorted(names, key=lambda path: order[names[path]])
    }
    worst = max(errors, key=errors.__getitem__)
    measured.add(
        ", ".join([spec, *(f"{k}={v}" for k, v in options.items())]), size, errors["logits"], errors[worst], worst
    )
    logits = theirs["logits"]
    assert np.abs(logits[0] - logits[1]).max() > LEAST_DIFFERENCE * np.abs(logits).max(), "the oracle ignores the image"
    off = {path: error for path, error in errors.items() if not error <= tolerances[1]}
    assert not off, f"{spec} at {size}: first off is {next(iter(off.items()))}, in all {len(off)} of {len(errors)}"
    assert errors["logits"] <= tolerances[0]


@pytest.mark.parametrize("filter_size", [None, 4])
@pytest.mark.parametrize("name", others_marked(ZHANG, pytest.mark.deep))
def test_every_network_at_an_odd_size(name: str, filter_size: int | None):
    check(name, filter_size, ODD)


@pytest.mark.full
@pytest.mark.parametrize("size", [USUAL, ODD])
@pytest.mark.parametrize("filter_size", [None, 3, 4])
@pytest.mark.parametrize("name", ZHANG)
def test_every_network_at_both_sizes(name: str, filter_size: int | None, size: tuple[int, int]):
    if (filter_size, size) in ((None, ODD), (4, ODD)):
        pytest.skip("test_every_network_at_an_odd_size has it")
    check(name, filter_size, size)


@pytest.mark.full
@pytest.mark.parametrize("size", [USUAL, ODD])
@pytest.mark.parametrize("filter_size", [1, 2, 5, 6, 7])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_filter_size(name: str, filter_size: int, size: tuple[int, int]):
    if name == "alexnet" and filter_size > 5 and size == ODD:
        size = (129, 161)  # the reference cannot pad AlexNet's last map of 97x129, 3x5, by 3
    check(name, filter_size, size)


@pytest.mark.parametrize("name", FAMILIES)
def test_float64(name: str):
    with jax.enable_x64(True):
        check(name, 4, ODD, dtype=np.float64, tolerances=(EXACT, EXACT))


@pytest.mark.parametrize(
    ("name", "filter_size", "options"),
    [
        ("alexnet", 4, {"pool_only": True}),
        ("alexnet", 3, {"relu_first": False}),
        ("resnet18", 4, {"pool_only": False}),
        ("resnet50", 4, {"replace_stride_with_dilation": (False, True, True)}),
        ("resnet50", None, {"replace_stride_with_dilation": (False, False, True)}),
        ("densenet121", 3, {"pool_only": False, "drop_rate": 0.2}),
        ("densenet121", None, {"drop_rate": 0.2}),
        ("mobilenet_v2", 4, {"width_mult": 0.5}),
        ("mobilenet_v2", None, {"width_mult": 0.5}),
        ("mobilenet_v2", 2, {"width_mult": 1.4, "num_classes": 7}),
    ],
)
def test_options(name: str, filter_size: int | None, options: dict[str, Any]):
    check(name, filter_size, ODD, **options)


def test_k1_is_not_the_plain_network():
    """The reference's k=1 blurs with one tap, but pools with 2x2; its files are laid out like those of other k."""
    check("resnet18", 1, (65, 97))


@pytest.mark.parametrize(("name", "last"), [("resnet18", "bn2"), ("resnet50", "bn3")])
def test_zero_init_residual(name: str, last: str):
    net = oracles.antialiased_cnns.__dict__[name](pretrained=False, zero_init_residual=True)
    zeros = {key for key, array in oracles.arrays(net).items() if key.endswith(f"{last}.weight") and not array.any()}
    ours = to_torch_state_dict(create_model(name, zero_init_residual=True, rngs=nnx.Rngs(0)))
    assert len(zeros) >= 8
    assert {key for key, array in ours.items() if key.endswith(f"{last}.weight") and not array.any()} == zeros


@pytest.mark.parametrize("filter_size", [None, 4])
@pytest.mark.parametrize("name", ["alexnet", "vgg11_bn", "resnet18", "densenet121", "mobilenet_v2"])
def test_initial_values_spread_as_pytorchs(name: str, filter_size: int | None):
    """Mean and deviation of every tensor of a fresh network, as closely as its size lets them be known."""
    build = oracles.torchvision.models if filter_size is None else oracles.antialiased_cnns
    options = {"weights": None} if filter_size is None else {"pretrained": False, "filter_size": filter_size}
    theirs = oracles.arrays(getattr(build, name)(**options))
    ours = to_torch_state_dict(create_model(spec_of(name, filter_size), rngs=nnx.Rngs(0)))
    assert ours.keys() == theirs.keys()
    for key, array in ours.items():
        a, b = array.astype(np.float64), theirs[key].astype(np.float64)
        # Six standard errors of the difference of two sample deviations or means.
        doubt = 6 * max(a.std(), b.std()) / a.size**0.5
        assert abs(a.std() - b.std()) <= doubt, f"{key}: deviation {a.std():.4g}, PyTorch's {b.std():.4g}"
        assert abs(a.mean() - b.mean()) <= 2 * doubt, f"{key}: mean {a.mean():.4g}, PyTorch's {b.mean():.4g}"


def test_weights_go_back_to_pytorch():
    """The export loads strictly into both PyTorch networks and computes the same there."""
    net = oracles.network("resnet18", 4)
    model = convert_state_dict(oracles.arrays(net), "resnet18_lpf4")
    images = oracles.images((65, 65))
    copy = oracles.network("resnet18", 4, seed=5)
    copy.load_state_dict({k: oracles.torch.from_numpy(a) for k, a in to_torch_state_dict(model).items()}, strict=True)
    np.testing.assert_array_equal(
        oracles.activations(copy, images)["logits"], oracles.activations(net, images)["logits"]
    )
    plain = oracles.network("resnet18", None, seed=6)
    state = to_torch_state_dict(model, "torchvision")
    plain.load_state_dict({k: oracles.torch.from_numpy(a) for k, a in state.items()}, strict=True)
    ours = convert_state_dict(state, "resnet18_plain")(jnp.asarray(images))
    assert compare.relative_error(np.asarray(ours), oracles.activations(plain, images)["logits"]) < LOGITS
