"""Anti-aliasing somebody's own NNX network: every stride moves from its layer into a blur.

Zhang 2019 (arXiv 1904.11486), section 3.2. What an object graph shows is changed here: convolutions, pooling
functions held by a module, and the slots that a class declares. A pool that is called inside `__call__` is not
visible; `aa_flax.find_strided` finds those.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, get_args

import jax
import jax.numpy as jnp
from flax import nnx

from aa_flax import blurpool
from aa_flax.axes import whole_number
from aa_flax.downsample import METHODS, Downsample, method
from aa_flax.models import specs
from aa_flax.models.base import Network
from aa_flax.models.registry import family_of
from aa_flax.surgery.plan import Place, Plan, Slots, Survey
from aa_flax.surgery.refusals import ALREADY
from aa_flax.surgery.report import STRIDE_1, SurgeryReport
from aa_flax.surgery.slots import check_classes, check_slots
from aa_flax.surgery.walk import Surgeon
from aa_flax.tracing.program import TracedProgram, traced
from aa_flax.weights.identity import first_difference

AnyModule = TypeVar("AnyModule", bound=nnx.Module)


def antialias(
    model: AnyModule,
    filter_size: int = 4,
    *,
    pad_type: str | None = None,
    where: Callable[[str, Any], bool] | None = None,
    first: bool = False,
    min_channels: int = 0,
    spatial_dims: int = 2,
    slots: Mapping[type, Slots] | None = None,
    replace: Mapping[type, Callable[[Any], Any]] | None = None,
    place: Place = "activation",
    downsample: str | Callable[[int | None, tuple[int, ...]], Downsample] = "blur",
    example: Any = None,
    rngs: nnx.Rngs | None = None,
    share: bool = False,
) -> tuple[AnyModule, SurgeryReport]:
    """A copy of a network with its strides anti-aliased: each strided layer becomes dense, a blur subsamples.

    Output sizes, parameters and the parameters' paths stay the same, so that weights and checkpoints of the network
    load into the copy. With `filter_size=1` the copy computes what the network computes, up to the order of sums.

    Changed are convolutions (`nnx.Conv`) and pools (`functools.partial(nnx.max_pool, ...)` or `avg_pool`) in
    attributes, `nnx.List`, `nnx.Dict`, `nnx.Sequential`, tuples and dicts, however nested. The blur comes after
    the non-linearity where the structure shows it:

    - in an `nnx.Sequential`: behind the activation that follows the convolution, normalisation in between or not;
    - in a module whose class declares `antialias_slots = {"blur": "conv1"}`: attribute `blur` takes over the stride
      of `conv1` (a dotted path works too). If it holds None it becomes a blur, which the class applies where it
      belongs when there is one; if it holds an activation function, that is wrapped, and `{"act.fn": "conv1"}`
      reaches a function that the module `act` holds. `{"->conv2": "conv1"}` needs nothing in the class: whatever
      `conv2` is, its first argument is blurred and subsampled, which is behind whatever lies in between.
      `{"blur": 2}` stands for a pool of stride 2 inside `__call__`, which the class makes dense when there is a
      blur. The networks of this package declare slots, and `slots` does it for classes that cannot be edited.

    With an `example` the surgery finds such a `conv2` itself: the one module that takes what an activation makes of
    the convolution's output.

    Elsewhere the input of the convolution is blurred, and the convolution keeps its stride: that gives the numbers of a
    blur straight behind it, inside the border, for a quarter of the operations. A stride of 4 is blurred for 2, as in
    the paper's AlexNet; the report says what stays.

    Args:
        model: any NNX module, in train or eval mode; its variables may be abstract. It is not changed.
        filter_size: taps of the blurs. Even ones move the grid, see docs/where-the-grid-moves.md.
        pad_type: padding of the blurs, see `aa_flax.blur_pool`. None follows the network: `circular` for a
            convolution that pads so, and for pools where every convolution does; otherwise `reflect`.
        where: called with each strided layer's dotted path and the layer (or its module, for a declared pool); only
            layers for which it is true are changed.
        first: also change the convolutions that read the input. The paper's ResNets leave theirs alone for its cost.
        min_channels: leave convolutions with fewer input channels alone.
        spatial_dims: spatial axes of the network's maps: 2 for images, 1 for sequences, 3 for volumes.
        slots: what the class attribute `antialias_slots` says, for classes that do not say it.
        replace: for layers of other packages: a class, and what makes the anti-aliased layer from an instance of it,
            such as `{MaxPool2D: lambda pool: aa_flax.nn.MaxBlurPool(pool.window, pool.strides)}`.
        place: for convolutions that no slot names: `activation` as above, `before` each convolution at its cost
            without, or `after` it, dense, whatever follows.
        downsample: what subsamples: `blur`, `aps`, `ddac` or `ideal`, see `aa_flax.downsample`, or a
            function of the map's channels (None behind pools) and the strides that makes the layer. Those other than
            `blur` never stand before a convolution that keeps its stride.
        example: an input of the network, or its shape and dtype; a tuple for several. It tells which convolutions read
            the input, what follows the others, and what the changes cost. Without it those are taken for readers that
            have the fewest input channels, or three or fewer, and no 1x1 window.
        rngs: source of the initial values of layers with parameters, such as `ddac`.
        share: let network and copy share their variables, so that training one trains the other; otherwise the copy
            has its own arrays.

    Returns:
        The copy, in the mode that `model` is in, and a report of every layer: what was done, where the blur went,
        what it costs, which stride stays, or why it was skipped.

    Raises:
        TypeError: if `model` is no NNX module.
        ValueError: if nothing was changed (says why), and for unknown filter sizes and pad types, layers of other
            than `spatial_dims` axes, strided layers used in two places, frozen modules, enlarging layers
            that `where` asks for, and slots or classes that do not fit the network.
    """
    _check_model(model)
    filter_size = whole_number("filter_size", filter_size)
    plan = Plan(
        filter_size=filter_size,
        pad_type=None if pad_type is None else blurpool.canonical_pad_type(pad_type),
        where=where,
        first=first,
        min_channels=min_channels,
        spatial_dims=spatial_dims,
        slots={} if slots is None else slots,
        replace={} if replace is None else replace,
        place=place,
        downsample=downsample,
        rngs=rngs,
    )
    _check_plan(plan)
    copy = _copy(model, share)
    survey = Survey(model, copy, _program(copy, example))
    for argument, table in (("slots", plan.slots), ("replace", plan.replace)):
        check_classes(argument, table, survey.kinds)
    surgeon = Surgeon(plan, survey)
    surgeon.visit((), copy)
    report = surgeon.report()
    if not report.antialiased:
        raise ValueError(_nothing_changed(model, report))
    if isinstance(copy, Network):
        _update_spec(copy, plan, surgeon.blurs.pad_type())
    return copy, report


def _check_plan(plan: Plan) -> None:
    check_slots(plan.slots)
    if plan.place not in get_args(Place):
        raise ValueError(f"place must be one of {', '.join(get_args(Place))}, got {plan.place!r}")
    if not callable(plan.downsample) and str(plan.downsample).partition(":")[0] not in METHODS:
        raise ValueError(f"downsample must be one of {', '.join(METHODS)} or a function, got {plan.downsample!r}")
    if plan.place == "before" and plan.downsample != "blur":
        raise ValueError("place='before' lets the convolution subsample: downsample has to be 'blur'")
    if plan.needs_channels and plan.rngs is None:
        raise ValueError(f"downsample={plan.downsample!r} has parameters: give rngs=nnx.Rngs(0) or others")
    if not isinstance(plan.replace, Mapping) or not all(map(callable, plan.replace.values())):
        raise ValueError("replace takes {PoolClass: function of an instance that makes the layer in its place}")


def _program(model: nnx.Module, example: Any) -> TracedProgram | None:
    if example is None:
        return None
    return traced(model, tuple(example) if isinstance(example, tuple | list) else (example,))


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
    strided = [c for c in report.changes if c.detail != STRIDE_1] or report.changes
    if all(c.detail == ALREADY for c in strided):
        return f"nothing to antialias in {name}: every stride is {ALREADY}"
    reasons = [f"  {c.path}: {c.layer}: {c.detail}" for c in strided[:8]]
    more = [f"  ... and {len(strided) - 8} more"] if len(strided) > 8 else []
    return "\n".join([f"nothing to antialias in {name}:", *reasons, *more])


def _update_spec(model: Network, plan: Plan, pad_type: str) -> None:
    """Gives a network of this package the spec of what it has become; none if no spec builds it."""
    if model.spec is None:
        return
    further = family_of(model.spec.name).antialias_option
    if further:
        spec = specs.with_options(model.spec, **{further: plan.filter_size})
    else:
        spec = dataclasses.replace(model.spec, filter_size=plan.filter_size, pad_type=pad_type)
    if isinstance(plan.downsample, str):
        spec = specs.with_options(spec, downsample=str(method(plan.downsample)))
    if plan.first and "pool_only" in specs.default_options(spec.name):
        spec = specs.with_options(spec, pool_only=False)
    nnx_model: Any = model
    before, nnx_model.config = nnx_model.config, specs.config_of(spec)
    if first_difference(model, spec):
        nnx_model.config, model.spec, model.changed_by = before, None, "antialias"
    else:
        model.spec = spec
