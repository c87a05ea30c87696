"""The network of a run: its structure, and where its weights start: fresh, or from trained ones (fine-tuning)."""

import logging
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx

from aa_flax.models.base import Network
from aa_flax.models.batch_norm import BatchNorm
from aa_flax.models.create import build_model
from aa_flax.models.specs import lost_exactness
from aa_flax.models.variables import variables
from aa_flax.weights.config import Preprocessing
from aa_flax.weights.identity import spec_of
from aa_flax.weights.store import load_weights
from train.data import Dataset
from train.errors import CommandError
from train.fit.config import TrainConfig, network_spec
from train.fit.gradients import widen_gradients
from train.networks import named_weights

log = logging.getLogger(__name__)


def create_network(config: TrainConfig, num_classes: int) -> Network:
    """The network of a run, in training mode, with the initial values that the seed gives.

    Raises:
        CommandError: the options make no network.
    """
    spec = network_spec(config, num_classes)
    try:
        model = build_model(spec, dtype=jnp.dtype(config.dtype), rngs=nnx.Rngs(config.seed))
    except (ValueError, TypeError) as error:
        raise CommandError(f"model {config.model}: {error}") from error
    for _, layer in nnx.iter_modules(model):
        if isinstance(layer, BatchNorm):
            layer.group_size = config.bn_group
    if config.dtype != "float32":
        widen_gradients(model)
    return model


def abstract_network(config: TrainConfig, num_classes: int) -> nnx.Module:
    """The network's structure without its arrays."""
    return nnx.eval_shape(lambda: create_network(config, num_classes))


def initial_network(config: TrainConfig, dataset: Dataset) -> Network:
    """The network of a run with its first weights, in training mode.

    Plain weights go into an anti-aliased network and the other way round: both have the same parameters. A classifier
    of the data's classes in another order is put into theirs. What else the weights were trained with and the data do
    not have is logged as a warning.

    Args:
        config: the run; `init` names the weights to start from, `new_head` leaves their classifier out.
        dataset: the data.

    Raises:
        CommandError: no such weights, or weights that do not fit the network or the data.
    """
    num_classes = dataset.num_classes
    model = create_network(config, num_classes)
    notice = lost_exactness(network_spec(config, num_classes))
    if notice:
        log.warning("%s", notice)
    if config.init is None:
        return model
    try:
        source = load_weights(named_weights(config.init, config.model, option="--init"))
    except (ValueError, OSError) as error:
        raise CommandError(f"--init {config.init}: {' '.join(str(error).split())}") from error
    found, wanted = variables(source), variables(model)
    head = f"{model.last_linear}."
    classes = spec_of(source, "fit --init").num_classes
    if not config.new_head and classes != num_classes:
        raise CommandError(
            f"--init {config.init} has {classes} classes, the data have {num_classes}: "
            "add --new-head to start the classifier afresh"
        )
    kept = {name: v for name, v in wanted.items() if not (config.new_head and name.startswith(head))}
    for name, variable in kept.items():
        if name not in found or found[name].shape != variable.shape:
            shape = found[name].shape if name in found else "nothing"
            raise CommandError(
                f"--init {config.init} ({source.spec}) does not fit {config.model}: "
                f"{name} has {shape} there and {variable.shape} here"
                + _about_channels(source.provenance.config.in_channels, config.net.in_channels or 3)
            )
    said = source.provenance.config
    _compare_preprocessing(config, said.preprocessing, dataset.preprocessing)
    order = None if config.new_head else _class_order(config, said.class_names, dataset.class_names)
    for name, variable in kept.items():
        array = found[name][...]
        taken = array[..., jnp.array(order)] if order and name.startswith(head) else array
        variable.set_value(jnp.array(taken, variable.dtype, copy=True))
    return model


def _about_channels(there: int, here: int) -> str:
    if there == here:
        return ""
    return (
        f": it reads images of {there} channels, this network of {here} (--net.in-channels); convert_weights.py "
        f"--in-channels {here} makes the checkpoint fit"
    )


def _compare_preprocessing(config: TrainConfig, given: Preprocessing, here: Preprocessing) -> None:
    for name in ("mean", "std"):
        before, now = getattr(given, name), getattr(here, name)
        if before != now:
            log.warning(
                "--init %s was trained on images of %s %s, the data are prepared with %s: training has to undo that",
                *(config.init, name, _numbers(before), _numbers(now)),
            )


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _class_order(config: TrainConfig, there: Sequence[str] | None, here: Sequence[str]) -> list[int] | None:
    """Where the weights have each class of the data; None where they have all in place, or do not name them."""
    if there is None or list(there) == list(here):
        return None
    if sorted(there) != sorted(here) or len(set(here)) < len(here):
        first = next(i for i, (one, other) in enumerate(zip(there, here, strict=True)) if one != other)
        log.warning(
            "--init %s has other classes, number %d is %r there and %r in the data: --new-head starts afresh",
            *(config.init, first, there[first], here[first]),
        )
        return None
    log.warning("--init %s has its classes in another order: its classifier is put into that of the data", config.init)
    return [list(there).index(name) for name in here]
