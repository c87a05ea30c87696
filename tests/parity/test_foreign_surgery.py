"""Somebody else's ResNet, anti-aliased by one call, against the reference's anti-aliased ResNet with the same weights.

jaxnn is a package of NNX vision models on the index. It holds its activations in modules and its pool in a class of its
own, and knows nothing of this one.
"""

import importlib
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import aa_flax
from aa_flax.weights.mapping import convert_state_dict
from tests.parity import compare, oracles

try:
    # Not at the top: it imports torchvision, which needs what `oracles` defines first.
    foreign = importlib.import_module("jaxnn.models.resnet")
except ImportError as error:
    if os.environ.get("CI") == "true":
        raise
    pytest.skip(f"the foreign package is missing ({error}): run make parity", allow_module_level=True)

SLOTS = {foreign.BasicBlock: {"act1.fn": "conv1"}, foreign.Bottleneck: {"act2.fn": "conv2"}}


def with_weights_of(state: dict[str, np.ndarray], name: str) -> nnx.Module:
    """The foreign network with a PyTorch network's weights, in evaluation mode."""
    ours = nnx.to_flat_state(nnx.state(convert_state_dict(state, f"{name}_lpf4")))
    values = {_their_path(path): variable.get_value() for path, variable in ours}
    graph, abstract = nnx.split(nnx.eval_shape(lambda: getattr(foreign, name)(rngs=nnx.Rngs(0))))
    flat = [(path, variable.replace(values.pop(path))) for path, variable in nnx.to_flat_state(abstract)]
    assert not values
    model = nnx.merge(graph, nnx.from_flat_state(flat))
    model.eval()
    return model


def _their_path(path: tuple) -> tuple:
    first, *rest = path
    if first == "fc":
        return ("fc", first, *rest)
    if not first.startswith("layer"):
        return path
    block, *rest = rest
    return ("stage_modules", int(first[-1]) - 1, "layers", int(block), *rest)


@pytest.mark.filterwarnings("ignore:'.value' .* is now deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_foreign_resnet_becomes_the_reference(name):
    net = oracles.network(name, 4)
    model = with_weights_of(oracles.arrays(net), name)
    copy, report = aa_flax.antialias(model, slots=SLOTS)
    assert len(report.antialiased) == 6
    # What the surgery cannot see is found, and exchanged by hand.
    images = oracles.images((97, 129))
    assert [s.module for s in aa_flax.find_strided(copy, images)] == ["conv1", "maxpool"]
    copy.maxpool = aa_flax.nn.MaxBlurPool((2, 2))
    assert [s.module for s in aa_flax.find_strided(copy, images)] == ["conv1"]
    graph, state = nnx.split(copy)
    with jax.default_matmul_precision("highest"):
        got = jax.jit(lambda state, x: nnx.merge(graph, state)(x))(state, jnp.asarray(images))
    theirs = oracles.activations(net, images)["logits"]
    assert compare.relative_error(np.asarray(got), theirs) < 2e-5
    assert np.abs(theirs[0] - theirs[1]).max() > 0.05 * np.abs(theirs).max(), "the logits must depend on the image"
