"""The strict way to fill a model's variables.

Used by the store (safetensors) and by the conversion of PyTorch checkpoints, so that both refuse
the same things with the same words.
"""

from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from aa_flax.models.variables import variables
from aa_flax.weights.errors import CheckpointError

_SHOWN = 8


def fill(
    model: nnx.Module,
    arrays: Mapping[str, np.ndarray],
    *,
    what: str,
    keep_dtype: bool = False,
) -> None:
    """Sets every variable of a model, strict both ways, or changes nothing.

    Args:
        model: the module to fill in place; may be abstract (`nnx.eval_shape`), so that each array is allocated once.
        arrays: one array for every path of `variables(model)`, in this library's layouts. They may be memory-mapped:
            each is copied once, onto JAX's default device.
        what: what is being loaded, named in errors, e.g. `"resnet50_lpf4.pth"`.
        keep_dtype: keep the arrays' own floating types instead of casting each to its variable's.

    Raises:
        CheckpointError: (a ValueError) paths missing or left over, other shapes than expected, arrays that are not
            floating-point, NaN or infinite values, values too large for the type they are cast to, or float64 to be
            kept while JAX has 64-bit types switched off. Lists at most eight of each, and their count.
    """
    targets = variables(model)
    problems = _mismatches(targets, arrays)
    if not problems:
        problems = _unusable_values(targets, arrays, keep_dtype)
    if problems:
        raise CheckpointError(f"{what} does not fit the model:\n" + "\n".join(problems))
    for key, variable in targets.items():
        dtype = arrays[key].dtype if keep_dtype else variable.dtype
        # A copy, never an alias: the file behind a memory map may change or vanish later.
        variable.set_value(jnp.array(arrays[key], dtype=dtype, copy=True))


def _mismatches(targets: Mapping[str, nnx.Variable], arrays: Mapping[str, np.ndarray]) -> list[str]:
    missing = [f"{key} {_shape(v.shape)}" for key, v in targets.items() if key not in arrays]
    left_over = [f"{key} {_shape(a.shape)}" for key, a in arrays.items() if key not in targets]
    misshapen = [
        f"{key}: expected {_shape(variable.shape)}, found {_shape(arrays[key].shape)}"
        for key, variable in targets.items()
        if key in arrays and tuple(variable.shape) != tuple(arrays[key].shape)
    ]
    return [
        *listing("missing", missing),
        *listing("left over", left_over),
        *listing("of another shape", misshapen),
    ]


def _unusable_values(
    targets: Mapping[str, nnx.Variable], arrays: Mapping[str, np.ndarray], keep_dtype: bool
) -> list[str]:
    not_float, not_finite, too_wide = [], [], []
    for key, variable in targets.items():
        array = arrays[key]
        if not jnp.issubdtype(array.dtype, jnp.floating):
            not_float.append(f"{key}: expected {variable.dtype}, found {array.dtype}")
        elif not np.isfinite(array).all():
            not_finite.append(key)
        elif not keep_dtype and _overflows(array, variable.dtype):
            too_wide.append(f"{key}: its values exceed {variable.dtype}")
        elif keep_dtype and jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
            too_wide.append(f"{key}: {array.dtype} needs JAX's jax_enable_x64=True")
    return [
        *listing("not floating-point", not_float),
        *listing("with NaN or infinite values", not_finite),
        *listing("too wide", too_wide),
    ]


def _overflows(array: np.ndarray, dtype: jax.typing.DTypeLike) -> bool:
    largest = jnp.finfo(dtype).max
    return bool(array.size and jnp.finfo(array.dtype).max > largest and np.abs(array).max() > largest)


def listing(title: str, items: Iterable[str]) -> list[str]:
    """One indented line a problem, at most eight, under a title with their count."""
    items = list(items)
    if not items:
        return []
    shown = [f"    {item}" for item in items[:_SHOWN]]
    rest = [f"    ... and {len(items) - _SHOWN} more"] if len(items) > _SHOWN else []
    return [f"  {len(items)} {title}:", *shown, *rest]


def _shape(shape: Iterable[int]) -> str:
    return str(tuple(int(size) for size in shape))
