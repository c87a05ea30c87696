"""ConvNeXt against torchvision's: logits, the output of every module, gradients, and weights both ways."""

import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aa_flax.models.create import create_model
from aa_flax.models.variables import variables
from aa_flax.weights.mapping import convert_state_dict, to_torch_state_dict
from tests.parity import compare, measured, oracles
from tests.parity.test_gradients import LABELS, _assert_all_below, _errors, _our_step, _their_step
from tests.zoo import others_marked

NAMES = ("convnext_tiny", "convnext_small", "convnext_base")
ODD, USUAL = (97, 129), (224, 224)
# torchvision permutes around these to have channels last, as we do throughout.
CHANNELS_LAST = re.compile(r"features\.\d\.\d+\.block\.[235]")


@pytest.fixture(autouse=True)
def _forget_compiled() -> Iterator[None]:
    yield
    jax.clear_caches()


def network(name: str, *, dtype: Any = None, **options: Any) -> oracles.torch.nn.Module:
    """torchvision's network with random weights, under which every block changes its map by about as much as it is."""
    net = oracles.network(name, None, dtype=dtype, **options)
    generator = oracles.torch.Generator().manual_seed(3)
    with oracles.torch.no_grad():
        for module in net.modules():
            if isinstance(module, oracles.torch.nn.LayerNorm):
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.2, generator=generator)
            if hasattr(module, "layer_scale"):
                module.layer_scale.uniform_(-0.5, 0.5, generator=generator)
    return net


def check(name: str, size: tuple[int, int], *, dtype: Any = np.float32, tolerance: float = 1e-4) -> None:
    """Compares one network at one image size; a failure names the first module that is off."""
    net = network(name, dtype=oracles.torch.float64 if dtype == np.float64 else None)
    model = convert_state_dict(oracles.arrays(net), f"{name}_plain", dtype=dtype, param_dtype=dtype)
    images = oracles.images(size, dtype=dtype)
    theirs, ours = oracles.activations(net, images), compare.activations(model, images)
    theirs = {key: a.transpose(0, 3, 1, 2) if CHANNELS_LAST.fullmatch(key) else a for key, a in theirs.items()}
    # The head's normalisation sees pooled vectors, which torchvision keeps as maps of one pixel.
    theirs["classifier.0"] = theirs["classifier.0"].reshape(len(images), -1)
    names = compare.counterparts(model, set())
    order = list(theirs)
    errors = {
        path: compare.relative_error(ours[path], theirs[names[path]])
        for path in sorted(names, key=lambda path: order.index(names[path]))
    }
    worst = max(errors, key=errors.__getitem__)
    measured.add(f"{name}_plain", size, errors["logits"], errors[worst], worst)
    logits = theirs["logits"]
    assert np.abs(logits[0] - logits[1]).max() > 0.05 * np.abs(logits).max(), "the oracle ignores the image"
    assert len(errors) == 1 + 5 * sum(model.config.depths) + 2 + 2 * 3 + 2
    off = {path: error for path, error in errors.items() if not error <= tolerance}
    assert not off, f"{name} at {size}: first off is {next(iter(off.items()))}, in all {len(off)} of {len(errors)}"


@pytest.mark.parametrize("name", others_marked(NAMES, pytest.mark.deep))
def test_every_block_at_an_odd_size(name: str):
    check(name, ODD)


@pytest.mark.full
@pytest.mark.parametrize("name", NAMES)
def test_every_block_at_the_usual_size(name: str):
    check(name, USUAL)


def test_float64():
    with jax.enable_x64(True):
        check("convnext_tiny", (64, 65), dtype=np.float64, tolerance=1e-12)


@pytest.mark.parametrize("wide", [pytest.param(False, marks=pytest.mark.deep), True])
def test_gradients(wide: bool):
    """Of all parameters, in training mode with every branch there."""
    with jax.enable_x64(wide):
        dtype: Any = np.float64 if wide else np.float32
        net = network("convnext_tiny", dtype=oracles.torch.float64 if wide else None, stochastic_depth_prob=0.0)
        options: Any = {"dtype": dtype, "param_dtype": dtype, "stochastic_depth_prob": 0.0}
        model = convert_state_dict(oracles.arrays(net), "convnext_tiny_plain", **options)
        images = oracles.images((64, 96), batch=len(LABELS), dtype=dtype)
        theirs, their_loss = _their_step(net, images)
        assert abs(_our_step(model, images) - their_loss) <= 1e-5 * abs(their_loss)
        assert len(theirs) == len(variables(model))
        _assert_all_below(_errors(to_torch_state_dict(model), theirs), 1e-9 if wide else 1e-3)


def test_weights_go_both_ways():
    """The export loads strictly and computes the same; an anti-aliased network takes and gives the same weights."""
    net = network("convnext_tiny")
    state = oracles.arrays(net)
    blurred = convert_state_dict(state, "convnext_tiny_lpf3")
    back = to_torch_state_dict(blurred, "torchvision")
    assert back.keys() == state.keys()
    for key, array in state.items():
        np.testing.assert_array_equal(back[key], array, err_msg=key)
    copy = oracles.network("convnext_tiny", None, seed=5)
    copy.load_state_dict({key: oracles.torch.from_numpy(array) for key, array in back.items()}, strict=True)
    images = oracles.images((64, 64))
    np.testing.assert_array_equal(
        oracles.activations(copy, images)["logits"], oracles.activations(net, images)["logits"]
    )


def test_initial_values_spread_as_torchvisions():
    theirs = oracles.arrays(oracles.torchvision.models.convnext_tiny(weights=None))
    ours = to_torch_state_dict(create_model("convnext_tiny_plain", rngs=nnx.Rngs(0)))
    assert ours.keys() == theirs.keys()
    for key, array in ours.items():
        a, b = array.astype(np.float64), theirs[key].astype(np.float64)
        doubt = 6 * max(a.std(), b.std()) / a.size**0.5
        assert abs(a.std() - b.std()) <= doubt, key
        assert abs(a.mean() - b.mean()) <= 2 * doubt + 1e-12, key


def test_stochastic_depth_leaves_out_as_often():
    """The rates of all blocks, and that what is left out is a whole image's branch."""
    net = oracles.torchvision.models.convnext_small(weights=None)
    rates = [module.p for name, module in net.named_modules() if name.endswith("stochastic_depth")]
    model = create_model("convnext_small_plain", rngs=nnx.Rngs(0))
    layers = [block.stochastic_depth for stage in range(1, 5) for block in getattr(model, f"stage{stage}")]
    np.testing.assert_allclose([0 if layer is None else layer.rate for layer in layers], rates, atol=1e-15)
    layer = model.stage4[2].stochastic_depth
    kept = np.asarray(layer(jnp.ones((64, 2, 2, 3)), rngs=nnx.Rngs(dropout=1)))
    assert set(np.unique(kept)) == {0, np.float32(1 / (1 - rates[-1]))}
    assert (kept == kept[:, :1, :1, :1]).all()
