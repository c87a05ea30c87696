"""Anti-aliasing somebody's own NNX network: every stride moves from its layer into a blur behind it.

Zhang 2019 (arXiv 1904.11486), section 3.2. What an object graph shows is changed here: convolutions, pooling
functions held by a module, and the slots that a class declares. A pool that is called inside ``__call__`` is not
visible; :func:`aa_flax.find_strided` finds those.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from aa_flax import blurpool
from aa_flax.models import registry
from aa_flax.models.base import Network
from aa_flax.surgery.kinds import dotted, strides_of
from aa_flax.surgery.report import SurgeryReport
from aa_flax.surgery.walk import Slots, Surgeon
from aa_flax.weights.abstract import abstract_model

AnyModule = TypeVar("AnyModule", bound=nnx.Module)


def antialias(
    model: AnyModule,
    filter_size: int = 4,
    *,
    pad_type: str = "reflect",
    where: Callable[[str, Any], bool] | None = None,
    first: bool = False,
    min_channels: int = 0,
    spatial_dims: int = 2,
    slots: Mapping[type, Slots] | None = None,
    share: bool = False,
) -> tuple[AnyModule, SurgeryReport]:
    """A copy of a network with its strides anti-aliased: each strided layer becomes dense, a blur subsamples.

    Output sizes, parameters and the parameters' paths stay the same, so that weights and checkpoints of the network
    load into the copy. With ``filter_size=1`` the copy computes what the network computes.

    Changed are convolutions (``nnx.Conv``) and pools (``functools.partial(nnx.max_pool, ...)`` or ``avg_pool``) in
    attributes, ``nnx.List``, ``nnx.Dict``, ``nnx.Sequential``, tuples and dicts, however nested. The blur comes after
    the non-linearity where the structure shows it:

    - in an ``nnx.Sequential``: behind the activation that follows the convolution, normalisation in between or not;
    - in a module whose class declares ``antialias_slots = {"blur": "conv1"}``: attribute ``blur`` takes over the stride
      of ``conv1`` (a dotted path works too). If it holds None it becomes a blur, which the class applies where it
      belongs when there is one; if it holds an activation function, that is wrapped, and ``{"act.fn": "conv1"}``
      reaches a function that the module ``act`` holds. ``{"blur": 2}`` stands for a pool of stride 2 inside
      ``__call__``, which the class makes dense when there is a blur. The networks of this package do this, and
      ``slots`` does it for classes that cannot be edited.

    Elsewhere the blur follows the convolution directly. A convolution of stride 4 keeps 2 of it, as in the paper.

    Args:
        model: any NNX module, in train or eval mode; its variables may be abstract. It is not changed.
        filter_size: taps of the blurs.
        pad_type: padding of the blurs, see :func:`aa_flax.blur_pool`.
        where: called with each strided layer's dotted path and the layer (or its module, for a declared pool); only
            layers for which it is true are changed.
        first: also change the convolution that reads the image. The paper's ResNets leave it alone for its cost.
        min_channels: leave convolutions with fewer input channels alone.
        spatial_dims: spatial axes of the network's maps: 2 for images, 1 for sequences, 3 for volumes.
        slots: what the class attribute ``antialias_slots`` says, for classes that do not say it.
        share: let network and copy share their variables, so that training one trains the other; otherwise the copy
            has its own arrays.

    Returns:
        The copy, in the mode that ``model`` is in, and a report of every layer: what was done, where the blur went,
        or why it was skipped.

    Raises:
        TypeError: if ``model`` is no NNX module.
        ValueError: if nothing was changed (says why), and for unknown filter sizes and pad types, layers of other
            than ``spatial_dims`` axes, strided layers used in two places, frozen modules, enlarging layers
            that ``where`` asks for, and slots that do not fit their class.
    """
    _check_model(model)
    blurpool.binomial_filter(filter_size)
    surgeon = Surgeon(
        filter_size, blurpool.canonical_pad_type(pad_type), where, min_channels, spatial_dims, slots or {}
    )
    copy = _copy(model, share)
    surgeon.survey(model, copy, first)
    surgeon.visit((), copy)
    report = surgeon.report()
    if not report.antialiased:
        raise ValueError(_nothing_changed(model, report))
    if isinstance(copy, Network):
        _update_spec(copy, filter_size, surgeon.pad_type, first)
    return copy, report


def _check_model(model: Any) -> None:
    if isinstance(model, nnx.Module):
        return
    what = f"{type(model).__name__} {model!r}"[:80]
    if isinstance(model, type):
        hint = "this is a class: build the network first"
    elif dataclasses.is_dataclass(model) and hasattr(model, "apply") and hasattr(model, "init"):
        hint = "a Linen module is a frozen dataclass without layers until it runs: use aa_flax.nn's pools in its code"
    elif dataclasses.is_dataclass(model):
        hint = "a dataclass only describes a network: build it first"
    else:
        hint = "wrap functions in a module that holds their layers"
    raise TypeError(f"antialias takes a flax.nnx.Module, got {what}: {hint}")


def _copy(model: AnyModule, share: bool) -> AnyModule:
    if share:
        return nnx.clone(model, variables=False, graph=True)
    graphdef, state = nnx.split(model, graph=True)
    # Own arrays, not only own variables: a training step that donates the copy's must not delete the model's.
    state = jax.tree.map(lambda a: jnp.copy(a) if isinstance(a, jax.Array) else a, state)
    return nnx.merge(graphdef, state)


def _nothing_changed(model: nnx.Module, report: SurgeryReport) -> str:
    name = type(model).__name__
    if not report.changes:
        return (
            f"{name} has no convolution and no pool among its attributes, so there is nothing to antialias. Pools "
            "called inside __call__ cannot be seen from outside: aa_flax.find_strided(model, x) names them, and "
            "aa_flax.nn.max_pool, avg_pool and Conv take their place"
        )
    reasons = [f"  {c.path}: {c.layer}: {c.detail}" for c in report.changes[:8]]
    more = [f"  ... and {len(report.changes) - 8} more"] if len(report.changes) > 8 else []
    return "\n".join([f"nothing to antialias in {name}:", *reasons, *more])


def _update_spec(model: Network, filter_size: int, pad_type: str, first: bool) -> None:
    """Gives a network of this package the spec of what it has become; none if no spec builds it."""
    config = registry.MODELS[model.spec.name][1]
    options = dict(model.spec.options)
    if first and hasattr(config, "pool_only"):
        options["pool_only"] = False
        options = {k: v for k, v in options.items() if v != getattr(config, k)}
    spec = dataclasses.replace(
        model.spec, filter_size=filter_size, pad_type=pad_type, options=tuple(sorted(options.items()))
    )
    twin: Any = abstract_model(
        str(spec),
        num_classes=spec.num_classes,
        in_channels=spec.in_channels,
        pad_type=spec.pad_type,
        **dict(spec.options),
    )
    if _structure(twin) == _structure(model):
        model.spec = spec
        nnx_model: Any = model
        nnx_model.config = twin.config
    else:
        del model.spec


def _structure(model: nnx.Module) -> dict[str, Any]:
    """What decides a network's function, apart from dropout and dtypes."""
    found: dict[str, Any] = {}
    for path, module in nnx.iter_modules(model, graph=True):
        name = dotted(path)
        if isinstance(module, nnx.Conv):
            found[name] = (module.kernel.shape, strides_of(module))
        elif isinstance(module, blurpool.BlurPool2D):
            found[name] = (module.filter_size, module.stride, module.pad_type)
    return found
