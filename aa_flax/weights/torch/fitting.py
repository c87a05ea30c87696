"""Whether a PyTorch file fits a network, and what to say where it does not."""

import re
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from aa_flax.models.base import ModelSpec
from aa_flax.models.registry import family_of
from aa_flax.models.specs import common_options, config_of
from aa_flax.weights.errors import CheckpointError
from aa_flax.weights.filling import listing
from aa_flax.weights.torch.layout import Layout, below_prefix, detect_layout, prefixes
from aa_flax.weights.torch.names import (
    Rule,
    Shapes,
    blur_sites,
    configuration_with,
    differing,
    module_name,
    package_of,
    rules,
)


def head_of(spec: ModelSpec) -> str:
    """The prefix of the variables of the last linear layer."""
    return f"{family_of(spec.name).network.last_linear}."


def around_head(spec: ModelSpec) -> str:
    """The prefix of the module in PyTorch that has the last linear layer, alone or behind others."""
    return re.sub(r"(\.\d+)+$", "", module_name(head_of(spec)[:-1], spec)) + "."


def blurs_plainly(spec: ModelSpec) -> bool:
    """Whether a network subsamples by blurs, as the reference's do, or without."""
    return common_options(spec).downsample == "blur"


def layout_for(spec: ModelSpec, layout: Layout) -> Layout:
    """What a network takes a file of this layout for: names that say the filters stand for files without them."""
    own = family_of(spec.name).filter_size
    return layout if own is None or layout.blurs else Layout(own, name=package_of(spec))


def check_tensors(
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
        if rule.path == f"{head_of(spec)}kernel" and classes != spec.num_classes:
            problems.append(
                f"  the file's head has {classes} classes, the network's {spec.num_classes}: set num_classes "
                f"to {classes}, or keep a fresh head with skip_head"
            )
    whole = {**tensors, **{f"{place}.filt": array for place, array in filters.items()}}
    fitting = len(both) - len(misshapen)
    hints = _prefix_hints(whole, fitting, len(table), spec, shapes) if problems else []
    apart = expected.keys() ^ tensors.keys()
    if apart and all(key.startswith(around_head(spec)) for key in apart):
        problems.append("  the file has another head than this network: keep a fresh one with skip_head (--skip-head)")
    if hints:
        # Where all fit, the names that do not are no news.
        problems = hints if hints[0].startswith("  all ") else [*hints, *problems]
    elif not both or len(apart) > max(16, len(expected) // 10):
        # Of another network: lists, of eight missing and eight left over at most, would only say so at length.
        raise CheckpointError(f"{what} does not fit {spec}: {_of_another(tensors, expected)}")
    elif not problems:
        bad = [key for key in expected if not np.isfinite(tensors[key]).all()]
        problems = listing("with NaN or infinite values", bad)
    if problems:
        raise CheckpointError("\n".join([f"{what} does not fit {spec}:", *problems]))


def _of_another(tensors: Mapping[str, np.ndarray], expected: Shapes) -> str:
    """What a file of another network has too much and too little."""
    common = len(tensors.keys() & expected.keys())
    if not common:
        return f"none of the {len(tensors)} tensors in it belongs to this network"
    sides = (("is not this network's", tensors.keys() - expected.keys()), ("is missing", expected.keys() - tensors))
    found = [f"{min(names)} {fault}" for fault, names in sides if names]
    return f"{common} of the {len(tensors)} tensors in it have names of this network's; {', '.join(found)}"


def check_filters(
    filters: Mapping[str, np.ndarray], layout: Layout, spec: ModelSpec, shapes: Shapes, allow_change: bool, what: str
) -> None:
    """Refuses filters that contradict the network, whose other tensors are known to fit."""
    if not layout.blurs:
        return
    if not spec.suffix:
        raise CheckpointError(
            f"{what} holds a network of antialiased-cnns (filters of {layout.filter_size} taps): {spec} is another one"
        )
    sites = blur_sites(spec, shapes)
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
    if not blurs_plainly(spec):
        raise CheckpointError(
            f"{what} holds a network that blurs (filters of {taps}), the one asked for downsamples otherwise: {advice}"
        )
    if layout.filter_size != spec.filter_size:
        raise CheckpointError(f"{what} holds filters of {taps}, {spec} blurs with {spec.filter_size}: {advice}")
    if layout.blurs != sites.keys():
        config = configuration_with(layout.blurs, spec)
        if config is not None:
            options = ", ".join(f"{name}={value}" for name, value in differing(config, config_of(spec)).items())
            raise CheckpointError(f"{what} holds {spec} with {options}, unlike the network asked for: {advice}")
        problems = [
            *listing("missing", [f"{place}.filt" for place in sorted(sites.keys() - layout.blurs)]),
            *listing("left over", [f"{place}.filt" for place in sorted(layout.blurs - sites.keys())]),
        ]
        raise CheckpointError("\n".join([f"{what} blurs in other places than {spec}:", *problems]))


def _prefix_hints(
    tensors: Mapping[str, np.ndarray], fitting: int, total: int, spec: ModelSpec, shapes: Shapes
) -> list[str]:
    """A line for each prefix of names without which more tensors fit the network than do with it."""
    found = {}
    for prefix in prefixes(tensors, total // 2):
        below = below_prefix(tensors, prefix)
        try:
            table = rules(spec, shapes, detect_layout(below).blurs)
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
