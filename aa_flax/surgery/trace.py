"""What a network does with an input: the strides that it still has, and which layers read the input.

Both are read from a trace in which every module's ``__call__`` runs in a scope of its own.
"""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax
import jax
from flax import nnx
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from aa_flax import blurpool, downsample, upsample
from aa_flax.strided import BLURRED_SCOPE

_OWN = (
    blurpool.BlurPool1D,
    blurpool.BlurPool2D,
    blurpool.BlurPool3D,
    downsample.AdaptivePolyphase,
    downsample.ContentAdaptiveBlur,
    downsample.IdealLowPass,
    upsample.BlurUpsample,
)
_SCOPE, _ANTIALIASED = "module=", "antialiased="
_PACKAGE = Path(__file__).parents[1]
_LIBRARIES = tuple(str(Path(str(library.__file__)).parent) for library in (jax, flax))


@dataclasses.dataclass(frozen=True)
class StridedOperation:
    """An operation that drops samples without a low-pass filter before it.

    Attributes:
        module: dotted path of the module whose ``__call__`` runs it; empty for the model itself.
        kind: ``convolution``, ``pool`` or ``slice``.
        stride: step along each axis of its input, channels and batch included.
        shape: shape of its input.
        source: file, line and function that run it, outside of JAX, Flax and this package's layers.
    """

    module: str
    kind: str
    stride: tuple[int, ...]
    shape: tuple[int, ...]
    source: str

    def __str__(self) -> str:
        step = "x".join(map(str, self.stride))
        return f"{self.module or '(model)'}: {self.kind} of stride {step} on {self.shape}, {self.source}"


def find_strided(model: nnx.Module, *args: Any, **kwargs: Any) -> tuple[StridedOperation, ...]:
    """Traces a network and names every strided operation that is left in it, and the module that runs it.

    Unlike :func:`aa_flax.antialias` this looks at what runs, not at what the object graph holds, so that it finds
    pools and slices written inside ``__call__``. It finds convolutions, pools (``reduce_window``) and slices such as
    ``x[:, ::2]``; it does not see subsampling by index arrays, by reshaping into patches, or by ``jax.image.resize``.
    A pool over the whole map is none: give images of the usual size, on which only a global pool reaches that far.

    Args:
        model: any NNX module; it is traced in evaluation mode and not changed.
        *args: its inputs, arrays or ``jax.ShapeDtypeStruct``: only shapes and dtypes matter.
        **kwargs: keyword arguments of the call, passed on as they are.

    Returns:
        One entry for each place in the code, in the order of execution; the layers of this package are not listed.
    """
    if not isinstance(model, nnx.Module):
        raise TypeError(f"find_strided takes a flax.nnx.Module, got {type(model).__name__}")
    found: dict[tuple[str, str, str], StridedOperation] = {}
    jaxpr, _, _ = _traced(model, args, kwargs)
    for operation in _operations(jaxpr, ""):
        key = operation.module, operation.kind, operation.source
        if key in found:
            stride = tuple(map(max, found[key].stride, operation.stride))
            operation = dataclasses.replace(found[key], stride=stride)
        found[key] = operation
    return tuple(found.values())


class Calls:
    """The shapes of what each module took and gave, call by call, under its dotted path.

    A plain object, which is equal to itself alone: it hangs on modules as a static attribute, and those are compared.
    """

    def __init__(self):
        self.shapes: dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]] = {}

    def note(self, path: str, args: tuple[Any, ...], output: Any) -> None:
        if args and isinstance(args[0], jax.Array) and isinstance(output, jax.Array):
            self.shapes.setdefault(path, []).append((args[0].shape, output.shape))


@dataclasses.dataclass(frozen=True)
class Trace:
    """What one input shows about a network.

    Attributes:
        readers: dotted paths of the modules that are the first to take a product with the input.
        shapes: for each module its calls, shapes of input and output.
    """

    readers: frozenset[str]
    shapes: dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]]


def examine(model: nnx.Module, *args: Any) -> Trace:
    """Traces a network in evaluation mode on inputs, of which only shapes and dtypes matter."""
    jaxpr, calls, inputs = _traced(model, args, {})
    readers: set[str] = set()
    _follow(jaxpr, "", [v in inputs for v in jaxpr.invars], readers)
    return Trace(frozenset(readers), calls.shapes)


def _traced(model: nnx.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Jaxpr, Calls, set[Var]]:
    """The network's program, the calls of its modules, and the variables of the program that hold ``args``."""
    graphdef, state = nnx.split(model, graph=True)
    calls = Calls()

    def run(state: Any, *args: Any) -> Any:
        traced = nnx.merge(graphdef, state)
        traced.eval()
        for path, module in list(nnx.iter_modules(traced, graph=True)):
            _give_scope(module, ".".join(map(str, path)), calls)
        # Only what it computes matters, and outputs may be of any type.
        outputs = jax.tree.leaves(traced(*args, **kwargs))
        return [leaf for leaf in outputs if isinstance(leaf, jax.Array)]

    jaxpr = jax.make_jaxpr(run)(state, *args).jaxpr
    return jaxpr, calls, set(jaxpr.invars[len(jax.tree.leaves(state)) :])


@functools.cache
def _scoped(kind: type) -> type:
    """A subclass whose calls run in a scope that names the instance."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with jax.named_scope(self._strided_scope):
            output = kind.__call__(self, *args, **kwargs)
        self._strided_calls.note(self._strided_scope.partition("=")[2], args, output)
        return output

    return type(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__})


def _give_scope(module: nnx.Module, path: str, calls: Calls) -> None:
    if not callable(module):
        return  # containers count and list what they hold
    scope = f"{_ANTIALIASED if isinstance(module, _OWN) else _SCOPE}{path}"
    nodes = module._pytree__nodes.update({"_strided_scope": False, "_strided_calls": False})
    # Past the class's own __setattr__: a frozen dataclass can be traced, too.
    for name, value in (("_pytree__nodes", nodes), ("_strided_scope", scope), ("_strided_calls", calls)):
        object.__setattr__(module, name, value)
    object.__setattr__(module, "__class__", _scoped(type(module)))


def _operations(jaxpr: Jaxpr, outer: str) -> Iterator[StridedOperation]:
    for equation in jaxpr.eqns:
        # Equations inside a jitted function only know the scopes inside it.
        scopes = f"{outer}/{equation.source_info.name_stack}"
        if _ANTIALIASED in scopes:
            continue
        for inner in _inner(equation):
            yield from _operations(inner, scopes)
        kind, stride = _stride(equation)
        if factors := _innermost(scopes, BLURRED_SCOPE):
            stride = _left(kind, stride, factors)
        if max(stride, default=1) > 1:
            yield StridedOperation(_innermost(scopes, _SCOPE), kind, stride, _shape(equation), _source(equation))


def _follow(jaxpr: Jaxpr, outer: str, holds: list[bool], readers: set[str]) -> list[bool]:
    """Follows the input through a program up to the first products, whose modules become ``readers``.

    Args:
        jaxpr: the program.
        outer: the scopes that it runs in.
        holds: for each of its arguments, whether that is made of the input.
        readers: dotted paths, to which the ones in this program are added.

    Returns:
        For each of the program's outputs, whether it is made of the input.
    """
    made = {v for v, held in zip(jaxpr.invars, holds, strict=True) if held}

    def held(variables: Any) -> list[bool]:
        return [not isinstance(v, Literal) and v in made for v in variables]

    for equation in jaxpr.eqns:
        scopes, operands = f"{outer}/{equation.source_info.name_stack}", held(equation.invars)
        if not any(operands):
            continue
        if equation.primitive.name in ("conv_general_dilated", "dot_general"):
            readers.add(_innermost(scopes, _SCOPE))
            continue
        results = [True] * len(equation.outvars)
        for inner in _inner(equation):
            # Where the counts differ (branches, loops) the arguments in common are the last ones.
            given = ([False] * len(inner.invars) + operands)[-len(inner.invars) :] if inner.invars else []
            results = _follow(inner, scopes, given, readers)
        made.update(v for v, result in zip(equation.outvars, results, strict=False) if result)
    return held(jaxpr.outvars)


def _innermost(scopes: str, mark: str) -> str:
    """What the innermost scope with this mark says; nothing if there is none."""
    return next((s[len(mark) :] for s in reversed(scopes.split("/")) if s.startswith(mark)), "")


def _left(kind: str, stride: tuple[int, ...], factors: str) -> tuple[int, ...]:
    """What is left of a convolution's stride where a blur before it is made for these factors of it."""
    if kind != "convolution":
        return ()  # how the convolution is computed
    return (1, *(s // int(f) for s, f in zip(stride[1:-1], factors.split("x"), strict=True)), 1)


def _inner(equation: JaxprEqn) -> Iterator[Jaxpr]:
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item


def _shape(equation: JaxprEqn) -> tuple[int, ...]:
    aval: Any = equation.invars[0].aval
    return aval.shape


def _stride(equation: JaxprEqn) -> tuple[str, tuple[int, ...]]:
    name, params = equation.primitive.name, equation.params
    if name == "conv_general_dilated":
        spatial = params["dimension_numbers"].lhs_spec[2:]
        stride = [1] * len(_shape(equation))
        for axis, step in zip(spatial, params["window_strides"], strict=True):
            stride[axis] = step
        return "convolution", tuple(stride)
    if name.startswith("reduce_window"):
        # A window over the whole axis leaves one sample, whatever its step: global pooling drops nothing.
        geometry = (params[name] for name in ("window_strides", "window_dimensions", "padding"))
        axes = zip(_shape(equation), *geometry, strict=True)
        return "pool", tuple(1 if window == size and pad == (0, 0) else step for size, step, window, pad in axes)
    if name == "slice":
        return "slice", tuple(params["strides"] or ())
    return "", ()


def _source(equation: JaxprEqn) -> str:
    traceback = equation.source_info.traceback
    for frame in traceback.frames if traceback else ():
        # The networks' own code counts as a place, the layers they are made of do not.
        own = Path(frame.file_name).parent in (_PACKAGE, _PACKAGE / "surgery")
        if not own and not frame.file_name.startswith(_LIBRARIES):
            return f"{Path(frame.file_name).name}:{frame.line_num} ({frame.function_name})"
    return "source unknown"
