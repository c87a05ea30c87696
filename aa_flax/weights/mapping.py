"""PyTorch state dicts to networks and back."""

import dataclasses
import itertools
from collections.abc import Collection, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from aa_flax.downsample import ContentAdaptiveBlur
from aa_flax.models.abstract import build_abstract, fresh_values
from aa_flax.models.base import ModelSpec, Network
from aa_flax.models.registry import MODELS
from aa_flax.models.resnet import dilated_stages
from aa_flax.models.specs import common_options, config_of, resolve_spec
from aa_flax.models.variables import variables
from aa_flax.weights.errors import CheckpointError
from aa_flax.weights.filling import fill, listing
from aa_flax.weights.identity import spec_of
from aa_flax.weights.torch.layout import (
    Layout,
    below_prefix,
    binomial_kernel,
    clean_names,
    detect_layout,
    prefixes,
)
from aa_flax.weights.torch.names import HEADS, Rule, blur_sites, rules

# The options that move blurs from one place to another.
_PLACEMENTS = {
    "pool_only": (True, False),
    "relu_first": (True, False),
    "replace_stride_with_dilation": tuple(itertools.product((False, True), repeat=3)),
}

Shapes = dict[str, tuple[int, ...]]


def convert_state_dict(
    state: Mapping[str, Any],
    spec: str,
    *,
    skip_head: bool = False,
    allow_filter_change: bool = False,
    rngs: nnx.Rngs | None = None,
    what: str = "the state dict",
    dtype: jax.typing.DTypeLike = jnp.float32,
    param_dtype: jax.typing.DTypeLike = jnp.float32,
    **options: Any,
) -> Network:
    """A network filled with the weights of a PyTorch state dict, in eval mode.

    Understood are the names of `antialiased-cnns` (any filter size and option), of torchvision, and of old DenseNet
    files, behind `module.` of DataParallel as well. Every tensor must land and every variable must be filled.
    torchvision's weights may go into an anti-aliased network of any filter size: that is where fine-tuning starts.

    Args:
        state: tensors by name: NumPy arrays, or what `np.asarray` takes, in PyTorch's layouts.
        spec: the network, as for `create_model`.
        skip_head: leave the last linear layer as freshly initialised, and whatever `state` has in its place, to
            fine-tune on other classes. (With `num_classes=0` the network has no head, and the file's is left out.)
        allow_filter_change: take the weights of a network that blurs with another filter or in other places than the
            one asked for. Its accuracy is lost until it is fine-tuned.
        rngs: source of what stays fresh (the head; learned filters of `downsample="ddac"`); None means `nnx.Rngs(0)`.
        what: what the state dict is called in errors, e.g. the file's name.
        dtype: what layers compute and answer in.
        param_dtype: dtype of the parameters.
        **options: further arguments of `create_model`, such as `num_classes` or `pool_only`.

    Raises:
        CheckpointError: (a ValueError) tensors missing, left over, of another shape, not floating-point or with NaN
            or infinite values; a filter that is not binomial; filters that contradict the network.
        TypeError, ValueError: what `create_model` raises.
    """
    tensors = clean_names(state, what)
    layout = detect_layout(tensors, what)
    wanted = resolve_spec(spec, **options)
    _check_unfolded(wanted, "convert_state_dict")
    model = build_abstract(wanted, dtype=dtype, param_dtype=param_dtype)
    shapes = _shapes(model)
    table = rules(_family(wanted), shapes, layout.blurs)
    filters = {place: tensors.pop(f"{place}.filt") for place in layout.blurs}
    if skip_head or not wanted.num_classes:
        # Whatever else stands where the head does belongs to it: people put several layers there.
        around = _around_head(wanted)
        table = [rule for rule in table if not rule.path.startswith(_head(wanted))]
        kept = {rule.key for rule in table}
        tensors = {key: array for key, array in tensors.items() if key in kept or not key.startswith(around)}
    _check_tensors(tensors, filters, table, wanted, shapes, what)
    _check_filters(filters, layout, wanted, shapes, allow_filter_change, what)
    arrays = {rule.path: rule.from_torch(tensors[rule.key]) for rule in table}
    rest = variables(model).keys() - arrays.keys()
    if rest:
        key = (nnx.Rngs(0) if rngs is None else rngs).params()
        fresh = fresh_values(wanted, rest, key=key, param_dtype=param_dtype)
        arrays |= {path: np.asarray(value) for path, value in fresh.items()}
    fill(model, arrays, what=what)
    model.eval()
    return model


def to_torch_state_dict(
    model: Network, layout: Literal["reference", "torchvision"] | None = None
) -> dict[str, np.ndarray]:
    """The reverse of `convert_state_dict`: what `load_state_dict` of the PyTorch network takes.

    Args:
        model: a network of `create_model`.
        layout: `reference` for the network of `antialiased-cnns`, with its filters; `torchvision` for torchvision's,
            which an anti-aliased network's weights fit as well. None means the one with the same function.

    Returns:
        float32 arrays (float64 where the parameters are) and, for batch norm, `num_batches_tracked` of 0.

    Raises:
        ValueError: for the reference's layout of a plain network, or of one that downsamples in another way than by
            blurs, neither of which the reference has; for a network whose batch normalisation is folded, or that no
            spec describes.
    """
    spec = spec_of(model, "to_torch_state_dict")
    _check_unfolded(spec, "to_torch_state_dict")
    filter_size = spec.filter_size
    layout = layout or ("torchvision" if filter_size is None else "reference")
    if layout not in ("reference", "torchvision"):
        raise ValueError(f"layout must be reference or torchvision, got {layout!r}")
    if layout == "reference" and (filter_size is None or not _blurs_plainly(spec)):
        raise ValueError(f"{spec} is no network of the reference: layout='torchvision' exports its weights")
    blurs = _sites(spec, _shapes(model)) if layout == "reference" else {}
    state = tensors_in_layout(model, Layout(filter_size if blurs else None, frozenset(blurs)))
    counters = [key.replace("running_var", "num_batches_tracked") for key in state if key.endswith("running_var")]
    state |= dict.fromkeys(counters, np.zeros((), np.int64))
    for place, channels in blurs.items():
        assert filter_size is not None
        state[f"{place}.filt"] = np.tile(binomial_kernel(filter_size).astype(np.float32), (channels, 1, 1, 1))
    return state


def tensors_in_layout(model: Network, layout: Layout, *, skip_head: bool = False) -> dict[str, np.ndarray]:
    """A network's weights and statistics under the names and in the shapes of a file's layout; no filters.

    Args:
        model: a network of `create_model`.
        layout: as `detect_layout` gives it.
        skip_head: leave out the last linear layer.

    Returns:
        C-contiguous arrays, float32 or wider.
    """
    spec = spec_of(model, "tensors_in_layout")
    state, found = {}, variables(model)
    for rule in rules(_family(spec), _shapes(model), layout.blurs):
        if skip_head and rule.path.startswith(_head(spec)):
            continue
        variable = found[rule.path]
        array = rule.to_torch(np.asarray(variable[...]))
        state[rule.key] = np.array(array, np.promote_types(array.dtype, np.float32), order="C")
    return state


def blurs_alike(layout: Layout, model: Network) -> bool:
    """Whether the network of a file with this layout has the same filters in the same places as the model."""
    spec = spec_of(model, "blurs_alike")
    if layout.filter_size != spec.filter_size or not _blurs_plainly(spec):
        return False
    return layout.filter_size is None or layout.blurs == _sites(spec, _shapes(model)).keys()


def _family(spec: ModelSpec) -> str:
    return MODELS[spec.name][0].__name__


def _head(spec: ModelSpec) -> str:
    return f"{HEADS[_family(spec)]}."


def _around_head(spec: ModelSpec) -> str:
    """The prefix of the module in PyTorch that has the last linear layer, alone or behind others."""
    return f"{HEADS[_family(spec)].replace('fc8', 'classifier')}."


def _blurs_plainly(spec: ModelSpec) -> bool:
    return common_options(spec).downsample == "blur"


def _check_unfolded(spec: ModelSpec, function: str) -> None:
    if common_options(spec).folded_bn:
        raise ValueError(
            f"{function}: PyTorch's networks have no folded batch normalisation: use the network as it was before "
            "fold_batchnorm (folded_bn=False), and fold afterwards"
        )


def _shapes(model: Network) -> Shapes:
    """The variables that PyTorch's networks have too: filters that are learned belong to us alone."""
    graph = nnx.iter_graph(model)
    learned = tuple(f"{'.'.join(map(str, path))}." for path, node in graph if isinstance(node, ContentAdaptiveBlur))
    found = variables(model).items()
    return {path: tuple(v.shape) for path, v in found if not path.startswith(learned)}


def _sites(spec: ModelSpec, shapes: Shapes) -> dict[str, int]:
    return blur_sites(_family(spec), shapes, config_of(spec))


def _check_filters(
    filters: Mapping[str, np.ndarray], layout: Layout, spec: ModelSpec, shapes: Shapes, allow_change: bool, what: str
) -> None:
    """Refuses filters that contradict the network, whose other tensors are known to fit."""
    if layout.filter_size is None:
        return
    sites = _sites(spec, shapes)
    problems = [
        f"{place}.filt: expected {sites[place]} channels, found {len(array)}"
        for place, array in filters.items()
        if len(array) != sites.get(place, len(array))
    ]
    if problems:
        raise CheckpointError("\n".join([f"{what} does not fit {spec}:", *listing("odd filters", problems)]))
    if allow_change:
        return
    taps = f"{layout.filter_size} tap" + "s" * (layout.filter_size != 1)
    advice = "ask for that network, or allow the change of filters (allow_filter_change) and fine-tune"
    if spec.filter_size is None:
        raise CheckpointError(f"{what} holds an anti-aliased network (filters of {taps}), {spec} has no blur: {advice}")
    if not _blurs_plainly(spec):
        raise CheckpointError(
            f"{what} holds a network that blurs (filters of {taps}), the one asked for downsamples otherwise: {advice}"
        )
    if layout.filter_size != spec.filter_size:
        raise CheckpointError(f"{what} holds filters of {taps}, {spec} blurs with {spec.filter_size}: {advice}")
    if layout.blurs != sites.keys():
        options = _placement(layout.blurs, spec, shapes)
        if options:
            raise CheckpointError(f"{what} holds {spec} with {options}, unlike the network asked for: {advice}")
        problems = [
            *listing("missing", [f"{place}.filt" for place in sorted(sites.keys() - layout.blurs)]),
            *listing("left over", [f"{place}.filt" for place in sorted(layout.blurs - sites.keys())]),
        ]
        raise CheckpointError("\n".join([f"{what} blurs in other places than {spec}:", *problems]))


def _placement(blurs: Collection[str], spec: ModelSpec, shapes: Shapes) -> str:
    """The options under which the network has its blurs in these places, empty if there are none."""
    given = config_of(spec)
    if hasattr(given, "output_stride"):
        # The one way to dilate in the words of the other.
        dilated = dilated_stages(given)
        given = dataclasses.replace(given, output_stride=32, replace_stride_with_dilation=dilated)
    names = [name for name in _PLACEMENTS if hasattr(given, name)]
    for values in itertools.product(*(_PLACEMENTS[name] for name in names)):
        config = dataclasses.replace(given, **dict(zip(names, values, strict=True)))
        if blur_sites(_family(spec), shapes, config).keys() == blurs:
            changed = [name for name in names if getattr(config, name) != getattr(given, name)]
            return ", ".join(f"{name}={getattr(config, name)}" for name in changed)
    return ""


def _prefix_hints(
    tensors: Mapping[str, np.ndarray], fitting: int, total: int, spec: ModelSpec, shapes: Shapes
) -> list[str]:
    """A line for each prefix of names without which more tensors fit the network than do with it."""
    found = {}
    for prefix in prefixes(tensors, total // 2):
        below = below_prefix(tensors, prefix)
        try:
            table = rules(_family(spec), shapes, detect_layout(below).blurs)
        except CheckpointError:
            continue
        found[prefix] = sum(rule.key in below and below[rule.key].shape == rule.torch_shape for rule in table)
    best = max(found.values(), default=0)
    if best <= max(fitting, total // 2):
        return []
    count = f"all {total}" if best >= total else f"{best} of {total}"
    return [
        f"  {count} fit without the prefix {prefix!r}: read the file with --prefix {prefix.rstrip('.')} "
        f"(in Python read_torch_checkpoint(..., prefix={prefix!r}))"
        for prefix, number in found.items()
        if number == best
    ]


def _check_tensors(
    tensors: Mapping[str, np.ndarray],
    filters: Mapping[str, np.ndarray],
    table: list[Rule],
    spec: ModelSpec,
    shapes: Shapes,
    what: str,
) -> None:
    """Refuses what does not match one to one, in the file's own names."""
    expected = {rule.key: rule.torch_shape for rule in table}
    both = [rule for rule in table if rule.key in tensors]
    misshapen = [rule for rule in both if tensors[rule.key].shape != rule.torch_shape]
    not_float = [k for k in expected if k in tensors and not jnp.issubdtype(tensors[k].dtype, jnp.floating)]
    problems = [
        *listing("missing", [f"{key} {shape}" for key, shape in expected.items() if key not in tensors]),
        *listing("left over", [f"{key} {a.shape}" for key, a in tensors.items() if key not in expected]),
        *listing(
            "of another shape",
            [f"{r.key}: expected {r.torch_shape}, found {tensors[r.key].shape}" for r in misshapen],
        ),
        *listing("not floating-point", [f"{key}: {tensors[key].dtype}" for key in not_float]),
    ]
    for rule in misshapen:
        classes = next(iter(tensors[rule.key].shape), 0)
        if rule.path == f"{_head(spec)}kernel" and classes != spec.num_classes:
            problems.append(
                f"  the file's head has {classes} classes, the network's {spec.num_classes}: set num_classes "
                f"to {classes}, or keep a fresh head with skip_head"
            )
    whole = {**tensors, **{f"{place}.filt": array for place, array in filters.items()}}
    hints = _prefix_hints(whole, len(both) - len(misshapen), len(table), spec, shapes) if problems else []
    apart = expected.keys() ^ tensors.keys()
    if apart and all(key.startswith(_around_head(spec)) for key in apart):
        problems.append("  the file has another head than this network: keep a fresh one with skip_head (--skip-head)")
    if hints:
        # Where all fit, the names that do not are no news.
        problems = hints if hints[0].startswith("  all ") else [*hints, *problems]
    elif not both:
        problems = [f"  none of the {len(tensors)} tensors in it belongs to this network", *problems]
    elif not problems:
        bad = [key for key in expected if not np.isfinite(tensors[key]).all()]
        problems = listing("with NaN or infinite values", bad)
    if problems:
        raise CheckpointError("\n".join([f"{what} does not fit {spec}:", *problems]))
