"""The strides that are left in a network, found in its traced program."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax
import jax
from flax import nnx
from jax.extend.core import Jaxpr, JaxprEqn

from aa_flax.strided import BLURRED_SCOPE
from aa_flax.tracing.program import ANTIALIASED, inner_programs, innermost, module_of, traced

_PACKAGE = Path(__file__).parents[1]
_LAYERS = (_PACKAGE, *(_PACKAGE / name for name in ("downsample", "surgery", "tracing")))
_LIBRARIES = tuple(str(Path(str(library.__file__)).parent) for library in (jax, flax))


@dataclasses.dataclass(frozen=True)
class StridedOperation:
    """An operation that drops samples without a low-pass filter before it.

    Attributes:
        module: dotted path of the module whose `__call__` runs it; empty for the model itself.
        kind: `convolution`, `pool` or `slice`.
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

    Unlike `aa_flax.antialias` this looks at what runs, not at what the object graph holds, so that it finds
    pools and slices written inside `__call__`. It finds convolutions, pools (`reduce_window`) and slices such as
    `x[:, ::2]`; it does not see subsampling by index arrays, by reshaping into patches, or by `jax.image.resize`.
    A pool over the whole map is none: give images of the usual size, on which only a global pool reaches that far.

    Args:
        model: any NNX module; it is traced in evaluation mode and not changed.
        *args: its inputs, arrays or `jax.ShapeDtypeStruct`: only shapes and dtypes matter.
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


def _operations(jaxpr: Jaxpr, outer: str) -> Iterator[StridedOperation]:
    for equation in jaxpr.eqns:
        # Equations inside a jitted function only know the scopes inside it.
        scopes = f"{outer}/{equation.source_info.name_stack}"
        if ANTIALIASED in scopes:
            continue
        for inner in inner_programs(equation):
            yield from _operations(inner, scopes)
        kind, stride = _stride(equation)
        if factors := innermost(scopes, BLURRED_SCOPE):
            stride = _left(kind, stride, factors)
        if max(stride, default=1) > 1:
            yield StridedOperation(module_of(scopes), kind, stride, _shape(equation), _source(equation))


def _left(kind: str, stride: tuple[int, ...], factors: str) -> tuple[int, ...]:
    """What is left of a convolution's stride where a blur before it is made for these factors of it."""
    if kind != "convolution":
        return ()  # how the convolution is computed
    return (1, *(s // int(f) for s, f in zip(stride[1:-1], factors.split("x"), strict=True)), 1)


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
        own = Path(frame.file_name).parent in _LAYERS
        if not own and not frame.file_name.startswith(_LIBRARIES):
            return f"{Path(frame.file_name).name}:{frame.line_num} ({frame.function_name})"
    return "source unknown"
