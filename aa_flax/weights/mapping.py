"""PyTorch state dicts to networks and back."""

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from aa_flax.alias_free import AliasFreeActivation
from aa_flax.downsample import Downsample
from aa_flax.models.abstract import build_abstract, fresh_values
from aa_flax.models.base import ModelSpec, Network
from aa_flax.models.registry import family_of
from aa_flax.models.specs import common_options, resolve_spec
from aa_flax.models.variables import variables
from aa_flax.weights.filling import fill
from aa_flax.weights.identity import spec_of
from aa_flax.weights.torch.fitting import (
    around_head,
    blurs_plainly,
    check_filters,
    check_tensors,
    head_of,
    layout_for,
)
from aa_flax.weights.torch.layout import Layout, binomial_kernel, clean_names, detect_layout
from aa_flax.weights.torch.names import Shapes, blur_sites, module_name, package_of, rules


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

    Understood are the names of `antialiased-cnns` (any filter size and option), of torchvision, of timm for its own
    networks, and of old DenseNet files, behind `module.` of DataParallel as well. Every tensor must land and every
    variable must be filled.
    torchvision's weights may go into an anti-aliased network of any filter size: that is where fine-tuning starts.

    Args:
        state: tensors by name: NumPy arrays, or what `np.asarray` takes, in PyTorch's layouts.
        spec: the network, as for `create_model`.
        skip_head: leave the last linear layer as freshly initialised, and whatever `state` has in its place, to
            fine-tune on other classes. (With `num_classes=0` the network has no head, and the file's is left out.)
        allow_filter_change: take the weights of a network that blurs with another filter or in other places than the
            one asked for. Its accuracy is lost until it is fine-tuned.
        rngs: source of what stays fresh (the head; what layers learn that PyTorch's network lacks); None means
            `nnx.Rngs(0)`.
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
    table = rules(wanted, shapes, layout.blurs)
    filters = {place: tensors.pop(f"{place}.filt") for place in layout.blurs}
    if skip_head or not wanted.num_classes:
        # Whatever else stands where the head does belongs to it: people put several layers there.
        around = around_head(wanted)
        table = [rule for rule in table if not rule.path.startswith(head_of(wanted))]
        kept = {rule.key for rule in table}
        tensors = {key: array for key, array in tensors.items() if key in kept or not key.startswith(around)}
    check_tensors(tensors, filters, table, wanted, shapes, what)
    check_filters(filters, layout, wanted, shapes, allow_filter_change, what)
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
    model: Network, layout: Literal["reference", "torchvision", "timm"] | None = None
) -> dict[str, np.ndarray]:
    """The reverse of `convert_state_dict`: what `load_state_dict` of the PyTorch network takes.

    Args:
        model: a network of `create_model`.
        layout: `reference` for the network of `antialiased-cnns`, with its filters; `torchvision` for torchvision's,
            which an anti-aliased network's weights fit as well; `timm` for a network of timm's. None means the one
            with the same function.

    Returns:
        float32 arrays (float64 where the parameters are) and, for batch norm, `num_batches_tracked` of 0.

    Raises:
        ValueError: for the reference's layout of a plain network, or of one that downsamples in another way than by
            blurs, neither of which the reference has; for a network whose batch normalisation is folded, or that no
            spec describes.
    """
    spec = spec_of(model, "to_torch_state_dict")
    _check_unfolded(spec, "to_torch_state_dict")
    filter_size, package = spec.filter_size, package_of(spec)
    wanted = layout or ("reference" if filter_size is not None and spec.suffix else package)
    if wanted not in ("reference", package):
        raise ValueError(f"layout must be reference or {package}, got {wanted!r}")
    blurs = blur_sites(spec, _shapes(model)) if wanted == "reference" else {}
    if wanted == "reference" and (filter_size is None or not spec.suffix or not blurs_plainly(spec) or not blurs):
        raise ValueError(f"{spec} is no network of the reference: layout={package!r} exports its weights")
    state = tensors_in_layout(model, Layout(blurs=frozenset(blurs)))
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
    for rule in rules(spec, _shapes(model), layout.blurs):
        if skip_head and rule.path.startswith(head_of(spec)):
            continue
        variable = found[rule.path]
        array = rule.to_torch(np.asarray(variable[...]))
        state[rule.key] = np.array(array, np.promote_types(array.dtype, np.float32), order="C")
    return state


def counts_in(state: Mapping[str, Any], spec: ModelSpec, what: str = "the state dict") -> dict[str, int]:
    """The classes and channels that a state dict has, as far as it shows: `num_classes` and `in_channels`."""
    tensors, network = clean_names(state, what), family_of(spec.name).network
    places = (("num_classes", network.last_linear, 0), ("in_channels", network.first_conv, 1))
    found, blurs = {}, detect_layout(tensors, what).blurs
    for count, module, axis in places:
        tensor = tensors.get(f"{module_name(module, spec, blurs)}.weight")
        if tensor is not None and np.ndim(tensor) >= 2 and np.shape(tensor)[axis] > 0:
            found[count] = np.shape(tensor)[axis]
    return found


def layout_of(state: Mapping[str, Any], spec: ModelSpec, what: str = "the state dict") -> Layout:
    """Whose names a state dict of a network has, and which filters."""
    return layout_for(spec, detect_layout(state, what))


def blurs_alike(layout: Layout, model: Network) -> bool:
    """Whether the network of a file with this layout has the same filters in the same places as the model."""
    spec = spec_of(model, "blurs_alike")
    layout = layout_for(spec, layout)
    if layout.filter_size != spec.filter_size or not blurs_plainly(spec):
        return False
    if not spec.suffix and family_of(spec.name).antialias_option in dict(spec.options):
        return False
    return layout.filter_size is None or layout.blurs == blur_sites(spec, _shapes(model)).keys()


def _check_unfolded(spec: ModelSpec, function: str) -> None:
    if common_options(spec).folded_bn:
        raise ValueError(
            f"{function}: PyTorch's networks have no folded batch normalisation: use the network as it was before "
            "fold_batchnorm (folded_bn=False), and fold afterwards"
        )


def _shapes(model: Network) -> Shapes:
    """The variables that PyTorch's networks have too: what subsampling and activations learn belongs to us alone."""
    alone = Downsample | AliasFreeActivation
    ours = tuple(f"{'.'.join(map(str, path))}." for path, node in nnx.iter_graph(model) if isinstance(node, alone))
    found = variables(model).items()
    return {path: tuple(v.shape) for path, v in found if not path.startswith(ours)}
