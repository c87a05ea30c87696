"""What a network does with an input, traced: every module's ``__call__`` runs in a scope of its own.

:func:`find_strided` reads the strides from it that are left, :mod:`aa_flax.surgery.flow` what follows what.
"""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax
import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Var

from aa_flax.downsample import Downsample
from aa_flax.strided import BLURRED_SCOPE
from aa_flax.upsample import BlurUpsample

_OWN = (Downsample, BlurUpsample)
_SCOPE, _ANTIALIASED = "module=", "antialiased="
TOOK, GAVE = "took=", "gave="
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
    for operation in _operations(traced(model, args, kwargs).jaxpr, ""):
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
class TracedProgram:
    """What one input makes a network compute.

    Attributes:
        jaxpr: the program. Modules run in scopes of their names, and the arrays that they take first and give carry
            their names too (``TOOK``, ``GAVE``).
        inputs: the variables that hold the input.
        shapes: for each module its calls, shapes of what it took first and gave.
    """

    jaxpr: Jaxpr
    inputs: frozenset[Var]
    shapes: dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]]


def traced(model: nnx.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> TracedProgram:
    """The program of a network in evaluation mode; only shapes and dtypes of ``args`` matter."""
    graphdef, state = nnx.split(model, graph=True)
    calls = Calls()

    def run(state: Any, *args: Any) -> Any:
        copy = nnx.merge(graphdef, state)
        copy.eval()
        for path, module in list(nnx.iter_modules(copy, graph=True)):
            _give_scope(module, ".".join(map(str, path)), calls)
        # Only what it computes matters, and outputs may be of any type.
        outputs = jax.tree.leaves(copy(*args, **(kwargs or {})))
        return [leaf for leaf in outputs if isinstance(leaf, jax.Array)]

    jaxpr = jax.make_jaxpr(run)(state, *args).jaxpr
    return TracedProgram(jaxpr, frozenset(jaxpr.invars[len(jax.tree.leaves(state)) :]), calls.shapes)


@functools.cache
def _scoped(kind: type) -> type:
    """A subclass whose calls run in a scope that names the instance."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        path = self._strided_scope.partition("=")[2]
        with jax.named_scope(self._strided_scope):
            if args and isinstance(args[0], jax.Array):
                args = (checkpoint_name(args[0], TOOK + path), *args[1:])
            output = kind.__call__(self, *args, **kwargs)
            self._strided_calls.note(path, args, output)
            return checkpoint_name(output, GAVE + path) if isinstance(output, jax.Array) else output

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
        for inner in inner_programs(equation):
            yield from _operations(inner, scopes)
        kind, stride = _stride(equation)
        if factors := _innermost(scopes, BLURRED_SCOPE):
            stride = _left(kind, stride, factors)
        if max(stride, default=1) > 1:
            yield StridedOperation(module_of(scopes), kind, stride, _shape(equation), _source(equation))


def module_of(scopes: str) -> str:
    """The dotted path of the module that runs in these scopes."""
    return _innermost(scopes, _SCOPE)


def _innermost(scopes: str, mark: str) -> str:
    """What the innermost scope with this mark says; nothing if there is none."""
    return next((s[len(mark) :] for s in reversed(scopes.split("/")) if s.startswith(mark)), "")


def _left(kind: str, stride: tuple[int, ...], factors: str) -> tuple[int, ...]:
    """What is left of a convolution's stride where a blur before it is made for these factors of it."""
    if kind != "convolution":
        return ()  # how the convolution is computed
    return (1, *(s // int(f) for s, f in zip(stride[1:-1], factors.split("x"), strict=True)), 1)


def inner_programs(equation: JaxprEqn) -> Iterator[Jaxpr]:
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
        own = Path(frame.file_name).parent in (_PACKAGE, _PACKAGE / "surgery", _PACKAGE / "downsample")
        if not own and not frame.file_name.startswith(_LIBRARIES):
            return f"{Path(frame.file_name).name}:{frame.line_num} ({frame.function_name})"
    return "source unknown"
