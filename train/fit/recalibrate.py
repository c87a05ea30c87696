"""BatchNorm's statistics of given weights, before a training starts from them: noticed, or taken anew."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from aa_flax.models.base import Network
from aa_flax.models.batch_norm import BatchNorm
from aa_flax.weights.statistics import describe_folded_norms, folded_norms
from train.data import Dataset, train_batches
from train.errors import CommandError
from train.fit.config import TrainConfig
from train.fit.distributed import Placement
from train.fit.step import Prepare

Moments = dict[str, tuple[jax.Array, jax.Array]]


class _Measured(nnx.Module):
    """A normalisation, with the statistics of its input beside it.

    Args:
        layer: the normalisation.
        running: whether it goes on normalising by its running statistics.
    """

    def __init__(self, layer: BatchNorm, *, running: bool):
        self.layer, self.running = layer, running
        self.statistics = BatchNorm(layer.num_features, group_size=layer.group_size, rngs=nnx.Rngs(0))
        # Without momentum the running statistics are those of the last batch.
        self.statistics.momentum = 0.0

    def __call__(self, x: jax.Array) -> jax.Array:
        self.statistics(x, use_running_average=False)
        return self.layer(x, use_running_average=self.running)


def settle_statistics(
    model: Network,
    config: TrainConfig,
    dataset: Dataset,
    placement: Placement,
    prepare: Prepare,
    say: Callable[[str], None],
) -> None:
    """Recalibrates given weights where that is asked for, and otherwise says when it is needed.

    Args:
        model: the network with its first weights, in training mode; changed in place.
        config: the run's.
        dataset: where batches come from.
        placement: the devices.
        prepare: augmentation and normalisation.
        say: tells a person.

    Raises:
        CommandError: there is nothing to recalibrate.
    """
    if config.init is None:
        return
    if config.recalibrate_bn is None:
        notice = describe_folded_norms(model)
        if notice and not config.net.frozen_bn:
            say(
                f"--init {config.init}: {notice}. --recalibrate-bn 50 takes statistics from training images and keeps "
                "what the network computes; --net.frozen-bn trains with these"
            )
        return
    if not any(isinstance(layer, BatchNorm) for _, layer in nnx.iter_modules(model)):
        raise CommandError(f"--recalibrate-bn: {config.model} has no BatchNorm; leave it out")
    count = config.recalibrate_bn
    # No weights are touched, so the batch is that of one pass through the network.
    batches = train_batches(
        dataset,
        global_batch=config.batch // config.accumulate,
        seed=config.seed,
        stop_step=count,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    try:
        images = (placement.batch({"image": batch["image"]})["image"] for batch in batches)
        kept = recalibrate(model, images, prepare, placement)
    finally:
        batches.close()
    unchanged = f"; {kept} folded layers still compute what they did" if kept else ""
    say(f"BatchNorm's statistics are now those of {count} batches of training images{unchanged}")


def recalibrate(
    model: Network,
    batches: Iterable[jax.Array],
    prepare: Prepare,
    placement: Placement,
) -> int:
    """Sets BatchNorm's statistics to the mean of those of some batches; no other weight learns from them.

    A layer whose own statistics belong to images normalises by each batch in this pass, as in training, and gets
    the new statistics in place of its own. A folded one (`aa_flax.weights.statistics`) stays what it is in this pass,
    and its scale and bias take up the difference: afterwards it computes the same with statistics that are true, in
    training as well.

    Args:
        model: the network in training mode; changed in place.
        batches: images (N, H, W, C), at least one batch.
        prepare: makes of them, and of the number of the batch, what the network takes.
        placement: the devices.

    Returns:
        How many layers were folded.
    """
    folded = set(folded_norms(model))

    def measured(path: tuple[Any, ...], node: Any) -> Any:
        # A frozen layer normalises by its running statistics whatever it is told.
        return _Measured(node, running=_name(path) in folded) if isinstance(node, BatchNorm) else node

    graphdef, state = nnx.split(nnx.recursive_map(measured, nnx.clone(model)))
    state = placement.everywhere(nnx.to_pure_dict(state))

    def moments(state: Any, images: jax.Array, step: jax.Array) -> Moments:
        network = nnx.merge(graphdef, state)
        network(prepare(images, step), rngs=nnx.Rngs(dropout=jax.random.key(0)))
        return {
            _name(path): (layer.statistics.mean[...], layer.statistics.var[...])
            for path, layer in nnx.iter_modules(network)
            if isinstance(layer, _Measured)
        }

    compiled = jax.jit(moments, out_shardings=placement.replicated)
    found = [jax.device_get(compiled(state, images, np.int32(step))) for step, images in enumerate(batches)]
    layers = {_name(path): layer for path, layer in nnx.iter_modules(model) if isinstance(layer, BatchNorm)}
    for name, layer in layers.items():
        mean, var = (np.mean([np.float64(each[name][i]) for each in found], axis=0) for i in (0, 1))
        if name in folded:
            _keep_function(layer, mean, var)
        layer.mean[...], layer.var[...] = (jnp.asarray(v, layer.mean.dtype) for v in (mean, var))
    return len(folded)


def _keep_function(layer: BatchNorm, mean: np.ndarray, var: np.ndarray) -> None:
    """Scale and bias with which a layer computes under new statistics what it does under its own."""
    assert layer.scale is not None
    assert layer.bias is not None
    factor = np.float64(layer.scale[...]) / np.sqrt(np.float64(layer.var[...]) + layer.epsilon)
    bias = np.float64(layer.bias[...]) + (mean - np.float64(layer.mean[...])) * factor
    layer.scale[...] = jnp.asarray(factor * np.sqrt(var + layer.epsilon), layer.scale.dtype)
    layer.bias[...] = jnp.asarray(bias, layer.bias.dtype)


def _name(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))
