"""Our side of the comparison: every module's output by path, and the modules of both sides in pairs."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx

from aa_flax.models.base import Network
from aa_flax.models.variables import variables
from aa_flax.weights.torch.names import rules

# Nearly all of the time goes into compiling. This switches off what LLVM does to the loops, not XLA's own passes.
QUICK_COMPILE = {"xla_backend_optimization_level": 0}

# Our modules without variables of their own that have a counterpart, and its name.
_BLOCKS = {
    "ResNet": (r"(layer\d)\.(\d+)", r"\1.\2"),
    "DenseNet": (r"(denseblock\d|transition\d)", r"features.\1"),
    "TimmResNet": (r"(layer\d)\.(\d+)", r"\1.\2"),
    "TimmDenseNet": (r"(denseblock\d|transition\d)", r"features.\1"),
    "MobileNetV4": (r"(blocks\.\d\.\d+)", r"\1"),
    "MobileNetV2": (r"blocks\.(\d+)", r"features.\1"),
}


@contextmanager
def _recording(model: nnx.Module, found: dict[str, jax.Array]) -> Iterator[None]:
    """Notes the output of every module that is called, by its path."""
    paths = {id(node): ".".join(map(str, path)) for path, node in nnx.iter_graph(model) if isinstance(node, nnx.Module)}
    classes = {type(node) for _, node in nnx.iter_graph(model) if isinstance(node, nnx.Module)}

    def noting(call: Callable) -> Callable:
        def wrapped(self, *args, **kwargs):
            output = call(self, *args, **kwargs)
            found[paths[id(self)] or "logits"] = output
            return output

        return wrapped

    with pytest.MonkeyPatch.context() as patch:
        for cls in classes:
            patch.setattr(cls, "__call__", noting(cls.__call__))
        yield


def activations(model: Network, images: np.ndarray) -> dict[str, np.ndarray]:
    """The output of every module by path; the network's own is called `logits`."""
    graph, state = nnx.split(model)

    @partial(jax.jit, compiler_options=QUICK_COMPILE)
    def run(state: nnx.State, images: jax.Array) -> dict[str, jax.Array]:
        found: dict[str, jax.Array] = {}
        copy = nnx.merge(graph, state)
        with _recording(copy, found):
            copy(images)
        return found

    with jax.default_matmul_precision("highest"):
        return {path: np.asarray(value) for path, value in run(state, images).items()}


def counterparts(model: Network, filters: set[str]) -> dict[str, str]:
    """PyTorch's name of each of our modules that it has too, by our path, in no order."""
    family = type(model).__name__
    shapes = {path: tuple(variable.shape) for path, variable in variables(model).items()}
    pairs = {rule.path.rpartition(".")[0]: rule.key.rpartition(".")[0] for rule in rules(model.spec, shapes, filters)}
    if family in _BLOCKS:
        pattern, name = _BLOCKS[family]
        for path, node in nnx.iter_graph(model):
            match = re.fullmatch(pattern, ".".join(map(str, path)))
            if match and isinstance(node, nnx.Module):
                pairs[match.string] = match.expand(name)
    return pairs | {"logits": "logits"}


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """max|a - b| / max|b|; infinite where the shapes differ or a value is not finite."""
    if ours.shape != theirs.shape or not np.isfinite(ours).all():
        return float("inf")
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())
