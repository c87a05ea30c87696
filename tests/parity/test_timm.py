"""timm's networks against timm: logits and the output of every module, files, sizes, initial values."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.torch import save_file

from aa_flax.models.abstract import abstract_model
from aa_flax.models.create import create_model
from aa_flax.weights.mapping import convert_state_dict, to_torch_state_dict
from aa_flax.weights.torch.reader import read_torch_checkpoint
from tests.parity import compare, measured, oracles
from tests.zoo import TIMM, others_marked

LOGITS, MODULES, EXACT = 2e-5, 1e-4, 1e-12
# timm rounds odd maps down in some networks, up in others, and takes 97x129 in all.
ODD, USUAL, THIRD = (97, 129), (224, 224), (160, 192)
KINDS = (
    "resnetblur18",
    "resnetblur50",
    "resnetaa34d",
    "resnetaa50",
    "seresnetaa50d",
    "densenetblur121d",
    "mobilenetv4_conv_blur_medium",
    "mobilenetv4_conv_aa_medium",
)
LEAST_DIFFERENCE = 0.05


@pytest.fixture(autouse=True)
def _forget_compiled() -> Iterator[None]:
    yield
    jax.clear_caches()


def check(
    name: str,
    size: tuple[int, int],
    *,
    dtype: Any = np.float32,
    tolerances: tuple[float, float] = (LOGITS, MODULES),
    **options: Any,
) -> None:
    """Compares one network at one image size; a failure names the first module that is off."""
    net = oracles.timm_network(name, dtype=oracles.torch.float64 if dtype == np.float64 else None, **options)
    model = convert_state_dict(oracles.arrays(net), name, dtype=dtype, param_dtype=dtype, **options)
    images = oracles.images(size, dtype=dtype)
    theirs, ours = oracles.activations(net, images), compare.activations(model, images)
    names = compare.counterparts(model, set())
    # timm's normalisations that have their activation in them show what they gave it.
    names = {path: f"{name}.drop" if f"{name}.drop" in theirs else name for path, name in names.items()}
    errors = {path: compare.relative_error(ours[path], theirs[name]) for path, name in names.items()}
    worst = max(errors, key=errors.__getitem__)
    measured.add(name, size, errors["logits"], errors[worst], worst)
    logits = theirs["logits"]
    assert np.abs(logits[0] - logits[1]).max() > LEAST_DIFFERENCE * np.abs(logits).max(), "the oracle ignores the image"
    order = list(theirs)
    off = {path: error for path, error in errors.items() if not error <= tolerances[1]}
    first = min(off, key=lambda path: order.index(names[path]), default="")
    assert not off, f"{name} at {size}: first off is {first} by {off[first]:.1e}, in all {len(off)} of {len(errors)}"
    assert errors["logits"] <= tolerances[0]


@pytest.mark.parametrize("name", others_marked(TIMM, pytest.mark.deep))
def test_every_network_at_an_odd_size(name: str):
    check(name, ODD)


@pytest.mark.full
@pytest.mark.parametrize("size", [USUAL, THIRD])
@pytest.mark.parametrize("name", TIMM)
def test_every_network_at_two_more_sizes(name: str, size: tuple[int, int]):
    check(name, size)


@pytest.mark.full
@pytest.mark.parametrize("name", KINDS)
def test_float64(name: str):
    with jax.enable_x64(True):
        check(name, ODD, dtype=np.float64, tolerances=(EXACT, EXACT))


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
@pytest.mark.parametrize("name", ["resnetaa34d", "mobilenetv4_conv_blur_medium"])
def test_files_of_timm_load_and_go_back(name: str, ending: str, tmp_path: Path):
    """With 11,821 classes, as those trained on ImageNet-12k have; nothing is missing on either side."""
    net = oracles.timm_network(name, num_classes=11821)
    path = tmp_path / f"model.{ending}"
    if ending == "pth":
        oracles.torch.save(net.state_dict(), path)
    else:
        save_file(net.state_dict(), path)
    model = convert_state_dict(read_torch_checkpoint(path), name, num_classes=11821)
    state = {key: oracles.torch.from_numpy(array) for key, array in to_torch_state_dict(model).items()}
    copy = oracles.timm_network(name, seed=5, num_classes=11821)
    copy.load_state_dict(state, strict=True)
    images = oracles.images((64, 64))
    np.testing.assert_array_equal(
        oracles.activations(copy, images)["logits"], oracles.activations(net, images)["logits"]
    )


@pytest.mark.parametrize("name", ["resnetaa50", "resnetaa34d"])
def test_images_are_refused_that_timm_cannot_take(name: str):
    """Networks that average: where timm's sums of maps of two sizes fail, and nowhere else."""
    net: Any = oracles.timm_network(name)
    model = abstract_model(name, depths=(1, 1, 1, 1))
    model.eval()

    def takes(function: Callable[[], Any]) -> bool:
        try:
            function()
        except (RuntimeError, ValueError) as error:
            if not re.search("must match the size|whose sides are multiples of 32", str(error)):
                raise
            return False
        return True

    for side in range(60, 72):
        x = jax.ShapeDtypeStruct((1, side, 64, 3), np.float32)
        ours = takes(lambda x=x: nnx.eval_shape(lambda m, v: m.features(v), model, x))
        with oracles.torch.no_grad():
            theirs = takes(lambda side=side: net.forward_features(oracles.torch.zeros(1, 3, side, 64)))
        assert ours == theirs == (side % 32 in (31, 0, 1, 2)), side


@pytest.mark.parametrize("name", ["resnetblur18", "seresnetaa50d", "densenetblur121d", "mobilenetv4_conv_aa_medium"])
def test_initial_values_spread_as_timms(name: str):
    """Mean and deviation of every tensor of a fresh network, as closely as its size lets them be known."""
    theirs = oracles.arrays(oracles.timm.create_model(name))
    ours = to_torch_state_dict(create_model(name, rngs=nnx.Rngs(0)))
    assert ours.keys() == theirs.keys()
    for key, array in ours.items():
        a, b = array.astype(np.float64), theirs[key].astype(np.float64)
        doubt = 6 * max(a.std(), b.std()) / a.size**0.5
        assert abs(a.std() - b.std()) <= doubt, f"{key}: deviation {a.std():.4g}, timm's {b.std():.4g}"
        assert abs(a.mean() - b.mean()) <= 2 * doubt, f"{key}: mean {a.mean():.4g}, timm's {b.mean():.4g}"
