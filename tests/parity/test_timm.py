"""timm's networks against timm: logits and the output of every module, files of both kinds, and gradients."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest

from aa_flax.weights.mapping import convert_state_dict
from tests.parity import compare, measured, oracles
from tests.zoo import TIMM

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


@pytest.mark.parametrize("name", TIMM)
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
