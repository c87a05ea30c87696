"""Every network against numbers that PyTorch computed, without PyTorch; `tests/parity/record.py` wrote them."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aa_flax.models import dense_block, densenet, mobilenet, resnet
from aa_flax.weights.mapping import convert_state_dict
from tests import formula
from tests.state_files import file_of
from tests.zoo import ZHANG, others_marked

RECORDED = Path(__file__).parent / "data" / "recorded_logits.npz"
SIZES = {"alexnet": (97, 129)}
SIZE = (65, 97)
TOLERANCE = 2e-5
BLOCKS = (resnet.BasicBlock, resnet.Bottleneck, dense_block.DenseLayer, densenet.Transition, mobilenet.InvertedResidual)
CALLS = {block: block.__call__ for block in BLOCKS}


@jax.jit(static_argnums=0)
def _call_block(graph: nnx.GraphDef, state: nnx.State, x: jax.Array) -> jax.Array:
    block = nnx.merge(graph, state)
    return CALLS[type(block)](block, x)


@pytest.fixture(autouse=True)
def _equal_blocks_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of the time would go into compiling the same blocks again, in one network and from one to the next."""
    for block in BLOCKS:
        monkeypatch.setattr(block, "__call__", lambda self, x, **_: _call_block(*nnx.split(self), x))


def test_nothing_is_missing_from_the_record():
    with np.load(RECORDED) as recorded:
        assert set(recorded) == {f"{name}_{kind}" for name in ZHANG for kind in ("plain", "lpf4")}


@pytest.mark.parametrize("kind", ["plain", "lpf4"])
@pytest.mark.parametrize("name", others_marked(ZHANG, pytest.mark.slow))
def test_logits_are_pytorchs(name: str, kind: str):
    spec = f"{name}_{kind}"
    with np.load(RECORDED) as recorded:
        expected = recorded[spec]
    model = convert_state_dict(file_of(spec), spec)
    with jax.default_matmul_precision("highest"):
        logits = np.asarray(model(jnp.asarray(formula.images(SIZES.get(name, SIZE)))))[:, : expected.shape[1]]
    assert np.abs(expected[0] - expected[1]).max() > 0.05 * np.abs(expected).max()
    assert np.abs(logits - expected).max() <= TOLERANCE * np.abs(expected).max()
