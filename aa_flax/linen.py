"""The networks as Linen modules, with Linen's trees of `params` and `batch_stats`.

A module builds the NNX network of its spec inside `apply` and runs it on the variables it was given: there is one
implementation of each network, and both give the same numbers to the bit.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx
from flax.traverse_util import flatten_dict

from aa_flax.downsample import LearnablePolyphase
from aa_flax.models.abstract import build_abstract
from aa_flax.models.base import ModelSpec, Network
from aa_flax.models.create import build_model
from aa_flax.models.specs import common_options, resolve_spec
from aa_flax.weights.filling import listing
from aa_flax.weights.identity import spec_of

Dtype = jax.typing.DTypeLike
Tree = Mapping[str, Any]
_COLLECTIONS = {"params": nnx.Param, "batch_stats": nnx.BatchStat}


class LinenNetwork(linen.Module):
    """One of the networks as a Linen module, on its own or inside another one.

    `init` gives `{"params": ..., "batch_stats": ...}` (the latter only for networks that normalise), nested as the
    network is: `params["layer1"]["0"]["conv1"]["kernel"]`. All keys are text.

    Attributes:
        spec: what to build; `create_model` makes it.
        train: whether calls train: batch statistics are taken from the batch and updated, dropout is active.
            Such a call needs `mutable=["batch_stats"]` and, for networks with dropout, `rngs={"dropout": key}`.
        dtype: what layers compute and answer in.
        param_dtype: dtype of the parameters.
    """

    spec: ModelSpec
    train: bool = False
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def setup(self) -> None:
        abstract = _abstract(self.spec, self.dtype, self.param_dtype)[1]
        fresh = functools.cache(lambda: _trees(self._build(self.make_rng("params"))))
        self._check({name: self.variables.get(name, {}) for name in _COLLECTIONS}, abstract)
        for name in abstract["params"]:
            # Linen compares the shapes of a variable that is there with what this returns.
            there = self.has_variable("params", name)
            self.param(name, lambda _, name=name, there=there: (abstract if there else fresh())["params"][name])
        for name in abstract["batch_stats"]:
            self.variable("batch_stats", name, lambda name=name: fresh()["batch_stats"][name])

    def _build(self, key: jax.Array) -> Network:
        return build_model(self.spec, dtype=self.dtype, param_dtype=self.param_dtype, rngs=nnx.Rngs(params=key))

    def _check(self, given: Mapping[str, Tree], abstract: Mapping[str, Tree]) -> None:
        if not any(given.values()) and self.is_mutable_collection("params"):
            return
        problems = []
        for name in _COLLECTIONS:
            found, wanted = _flat(given[name]), _flat(abstract[name])
            problems += listing(f"missing from {name}", [p for p in wanted if p not in found])
            problems += listing(f"left over in {name}", [p for p in found if p not in wanted])
            problems += listing(
                f"of another shape in {name}",
                [
                    f"{p}: expected {wanted[p].shape}, found {jnp.shape(found[p])}"
                    for p in wanted
                    if p in found and wanted[p].shape != jnp.shape(found[p])
                ],
            )
        if problems:
            raise ValueError(f"variables that do not fit {self.spec}:\n" + "\n".join(problems))

    def __call__(self, x: jax.Array, train: bool | None = None) -> jax.Array:
        """Logits (N, num_classes) of normalised images (N, H, W, in_channels).

        Args:
            x: floating point images.
            train: overrules the attribute of that name.

        Raises:
            ValueError: if training would lose its update of the batch statistics.
        """
        return self._run("__call__", x, train)

    def features(self, x: jax.Array, train: bool | None = None) -> jax.Array:
        """The last map before pooling; for `apply(..., method="features")`."""
        return self._run("features", x, train)

    def feature_pyramid(self, x: jax.Array, train: bool | None = None) -> tuple[jax.Array, ...]:
        """The maps at strides 4, 8, 16 and 32; for `apply(..., method="feature_pyramid")`."""
        return self._run("feature_pyramid", x, train)

    def _run(self, method: str, x: jax.Array, train: bool | None) -> Any:
        # Initialisation is not a training step: the statistics stay at their initial values, and an example as small
        # as one likes will do.
        train = (self.train if train is None else train) and not self.is_initializing()
        graphdef, abstract = _abstract(self.spec, self.dtype, self.param_dtype)
        updates = train and bool(abstract["batch_stats"]) and not common_options(self.spec).frozen_bn
        if updates and not self.is_mutable_collection("batch_stats"):
            raise ValueError(
                "training updates the batch statistics: call apply(..., mutable=['batch_stats']) and keep what it "
                "returns, or pass train=False"
            )
        trees = [{k: self.get_variable(name, k) for k in abstract[name]} for name in _COLLECTIONS]
        network = nnx.merge(graphdef, *trees)
        network.train() if train else network.eval()
        rngs = nnx.Rngs(dropout=self.make_rng("dropout")) if train and _draws(network) else None
        y = getattr(network, method)(x, rngs=rngs)
        if updates:
            for name, value in _trees(network)["batch_stats"].items():
                self.put_variable("batch_stats", name, value)
        return y


def create_model(
    spec: str, *, train: bool = False, dtype: Dtype = jnp.float32, param_dtype: Dtype = jnp.float32, **options: Any
) -> LinenNetwork:
    """A network as a Linen module; arguments and errors as for `aa_flax.create_model`.

    Args:
        spec: `<name>[_lpf<k>|_plain]`.
        train: whether calls train, see `LinenNetwork`; a call can overrule it.
        dtype: what layers compute and answer in.
        param_dtype: dtype of the parameters.
        **options: `filter_size`, `num_classes`, `in_channels`, `pad_type` and the family's own options.
    """
    return LinenNetwork(resolve_spec(spec, **options), train, dtype, param_dtype)


def from_nnx(model: Network, *, train: bool = False) -> tuple[LinenNetwork, dict[str, Any]]:
    """The Linen module and variables of an NNX network, such as one of `aa_flax.load_pretrained`.

    Args:
        model: a network of `aa_flax.create_model`.
        train: whether the module's calls train.

    Returns:
        The module, and its variables for `apply`: the arrays of the model, not copies.

    Raises:
        ValueError: if no spec builds the model, for instance after an `aa_flax.antialias` that none describes.
    """
    spec = spec_of(model, "linen.from_nnx")
    conv = next(m for _, m in nnx.iter_modules(model, graph=True) if isinstance(m, nnx.Conv))
    module = LinenNetwork(spec, train, conv.dtype or jnp.float32, conv.param_dtype)
    return module, {name: tree for name, tree in _trees(model).items() if tree}


def to_nnx(module: LinenNetwork, variables: Mapping[str, Any]) -> Network:
    """The NNX network of a Linen module and its variables, in evaluation mode; the way back from `from_nnx`.

    Raises:
        ValueError: if the variables do not fit the module.
    """
    graphdef, abstract = _abstract(module.spec, module.dtype, module.param_dtype)
    given = {name: variables.get(name, {}) for name in _COLLECTIONS}
    module._check(given, abstract)
    network = nnx.merge(graphdef, *given.values())
    network.eval()
    return network


@functools.lru_cache(maxsize=64)
def _abstract(spec: ModelSpec, dtype: Dtype, param_dtype: Dtype) -> tuple[Any, dict[str, Any]]:
    """The network's static part, and its variables as shapes and dtypes."""
    model = build_abstract(spec, dtype=dtype, param_dtype=param_dtype)
    return nnx.graphdef(model), _trees(model)


def _trees(model: nnx.Module) -> dict[str, Any]:
    """The variables as Linen has them: a tree of plain dictionaries for each collection."""
    states = nnx.split(model, *_COLLECTIONS.values())[1:]
    return {name: nnx.to_pure_dict(state) for name, state in zip(_COLLECTIONS, states, strict=True)}


def _flat(tree: Tree) -> dict[str, Any]:
    # The type of a key counts: a tree with whole numbers as keys belongs to another network and would be permuted.
    return {
        ".".join(k if isinstance(k, str) else repr(k) + " (not text)" for k in p): v
        for p, v in flatten_dict(tree).items()
    }


def _draws(network: nnx.Module) -> bool:
    """Whether training draws random numbers."""
    modules = [module for _, module in nnx.iter_modules(network)]
    return any(isinstance(m, nnx.Dropout) and m.rate > 0 for m in modules) or any(
        isinstance(m, LearnablePolyphase) and m.mode == "gumbel" for m in modules
    )
