"""Whether a network is still what its spec builds: the one place that every function asks which has to build it."""

import functools
from typing import Any

from flax import nnx

from aa_flax.downsample import Downsample
from aa_flax.models.abstract import build_abstract
from aa_flax.models.base import ModelSpec
from aa_flax.models.variables import variables
from aa_flax.strided import BlurredConvolution


def spec_of(model: nnx.Module, function: str) -> ModelSpec:
    """The spec of a network, for a function that needs what the spec builds.

    Args:
        model: the network.
        function: who asks, for the error.

    Raises:
        ValueError: if no spec builds the network: it is of another package, a function has made of it what no spec
            describes, or somebody has changed it since.
    """
    spec = getattr(model, "spec", None)
    if isinstance(spec, ModelSpec):
        difference = first_difference(model, spec)
        if difference:
            raise ValueError(
                f"{function}: the network was changed by hand and is not what its spec {spec} builds: {difference}; "
                "build it that way by create_model's arguments, such as num_classes"
            )
        return spec
    name, changed = type(model).__name__, getattr(model, "changed_by", "")
    if changed:
        raise ValueError(
            f"{function} needs a network that a spec describes, and none describes what {changed} has made of this "
            f"{name}: call {function} before it, or keep the whole by pickle, nnx.split or aa_flax.export"
        )
    raise ValueError(f"{function} needs a network of aa_flax.create_model, got {name} without a spec")


def first_difference(model: nnx.Module, spec: ModelSpec) -> str:
    """The first thing in which a network is not what a spec builds; empty if there is none."""
    found, wanted = structure(model), _structure_of(spec)
    for path in sorted(found.keys() | wanted.keys(), key=lambda path: (path not in wanted, path)):
        here, there = (side.get(path, "missing") for side in (found, wanted))
        if here != there:
            return f"{path} is {here}, not {there}" if there != "missing" else f"{path} ({here}) is left over"
    return ""


def structure(model: nnx.Module) -> dict[str, Any]:
    """What decides a network's function, values, dtypes, dropout and mode apart: by path, shapes and settings."""
    found: dict[str, Any] = {path: tuple(variable.shape) for path, variable in variables(model).items()}
    found["config"] = getattr(model, "config", None)
    for path, module in nnx.iter_modules(model, graph=True):
        setting = _setting(module)
        if setting is not None:
            found[".".join(map(str, path))] = setting
    return found


@functools.lru_cache(maxsize=64)
def _structure_of(spec: ModelSpec) -> dict[str, Any]:
    return structure(build_abstract(spec))


def _setting(module: nnx.Module) -> tuple[Any, ...] | None:
    name = type(module).__name__
    if isinstance(module, nnx.Conv):
        hook = module.conv_general_dilated
        blur = hook if isinstance(hook, BlurredConvolution) else None
        return (name, module.strides, module.padding, module.kernel_dilation, module.feature_group_count, blur)
    if isinstance(module, Downsample):
        return (name, *module.settings)
    if isinstance(module, nnx.BatchNorm):
        return (name, module.epsilon, module.axis)
    return None
