"""The program that an input makes of a network: every module's `__call__` runs in a scope of its own."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Var

from aa_flax.downsample import Downsample
from aa_flax.upsample import BlurUpsample, PolyphaseUpsample

_OWN = (Downsample, BlurUpsample, PolyphaseUpsample)
_SCOPE, ANTIALIASED = "module=", "antialiased="
TOOK, GAVE = "took=", "gave="


class Call(NamedTuple):
    """One call of a module: the shapes of what it took first and gave, and whether it took nothing else."""

    took: tuple[int, ...]
    gave: tuple[int, ...]
    alone: bool


class Calls:
    """The calls of each module, under its dotted path.

    A plain object, which is equal to itself alone: it hangs on modules as a static attribute, and those are compared.
    """

    def __init__(self):
        self.of: dict[str, list[Call]] = {}

    def note(self, path: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if args and isinstance(args[0], jax.Array) and isinstance(output, jax.Array):
            call = Call(args[0].shape, output.shape, len(args) == 1 and not kwargs)
            self.of.setdefault(path, []).append(call)


@dataclasses.dataclass(frozen=True)
class TracedProgram:
    """What one input makes a network compute.

    Attributes:
        jaxpr: the program. Modules run in scopes of their names, and the arrays that they take first and give carry
            their names too (`TOOK`, `GAVE`).
        inputs: the variables that hold the input.
        calls: the calls of each module that takes an array first and gives one.
    """

    jaxpr: Jaxpr
    inputs: frozenset[Var]
    calls: dict[str, list[Call]]


def dotted(path: Sequence[Any]) -> str:
    return ".".join(map(str, path))


def traced(model: nnx.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> TracedProgram:
    """The program of a network in evaluation mode; only shapes and dtypes of `args` matter."""
    graphdef, state = nnx.split(model, graph=True)
    calls = Calls()

    def run(state: Any, *args: Any) -> Any:
        copy = nnx.merge(graphdef, state)
        copy.eval()
        for path, module in list(nnx.iter_modules(copy, graph=True)):
            _give_scope(module, dotted(path), calls)
        # Only what it computes matters, and outputs may be of any type.
        outputs = jax.tree.leaves(copy(*args, **(kwargs or {})))
        return [leaf for leaf in outputs if isinstance(leaf, jax.Array)]

    jaxpr = jax.make_jaxpr(run)(state, *args).jaxpr
    return TracedProgram(jaxpr, frozenset(jaxpr.invars[len(jax.tree.leaves(state)) :]), calls.of)


@functools.cache
def _scoped(kind: type) -> type:
    """A subclass whose calls run in a scope that names the instance."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        path = self._traced_scope.partition("=")[2]
        with jax.named_scope(self._traced_scope):
            if args and isinstance(args[0], jax.Array):
                args = (checkpoint_name(args[0], TOOK + path), *args[1:])
            output = kind.__call__(self, *args, **kwargs)
            self._traced_calls.note(path, args, kwargs, output)
            return checkpoint_name(output, GAVE + path) if isinstance(output, jax.Array) else output

    def choose(self: Any, *args: Any, **kwargs: Any) -> Any:
        with jax.named_scope(self._traced_scope):
            return kind.choose(self, *args, **kwargs)  # type: ignore[attr-defined]

    own: dict[str, Any] = {"__call__": call, "__module__": kind.__module__}
    if issubclass(kind, Downsample):
        own["choose"] = choose
    return type(kind.__name__, (kind,), own)


def _give_scope(module: nnx.Module, path: str, calls: Calls) -> None:
    if not callable(module):
        return  # containers count and list what they hold
    scope = f"{ANTIALIASED if isinstance(module, _OWN) else _SCOPE}{path}"
    nodes = module._pytree__nodes.update({"_traced_scope": False, "_traced_calls": False})
    # Past the class's own __setattr__: a frozen dataclass can be traced, too.
    for name, value in (("_pytree__nodes", nodes), ("_traced_scope", scope), ("_traced_calls", calls)):
        object.__setattr__(module, name, value)
    object.__setattr__(module, "__class__", _scoped(type(module)))


def module_of(scopes: str) -> str:
    """The dotted path of the module that runs in these scopes."""
    return innermost(scopes, _SCOPE)


def innermost(scopes: str, mark: str) -> str:
    """What the innermost scope with this mark says; nothing if there is none."""
    return next((s[len(mark) :] for s in reversed(scopes.split("/")) if s.startswith(mark)), "")


def inner_programs(equation: JaxprEqn) -> Iterator[Jaxpr]:
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item
