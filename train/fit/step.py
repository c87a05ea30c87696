"""One update of the weights as a pure function, and that function compiled once for a mesh of devices."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jax.tree_util import Partial

from aa_flax.platforms import platform_of, traced_for
from train.fit.losses import binary_cross_entropy, cross_entropy
from train.fit.optim import Schedule

Tree = Any
Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
Prepare = Callable[[jax.Array, jax.Array], jax.Array]
Mix = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
TrainStep = Callable[["TrainState", Batch], tuple["TrainState", Metrics]]
Remat = Literal["none", "keep_convs"]
METRICS = ("loss", "accuracy", "lr", "grad_norm")
# Keeps the dropout masks apart from what augmentation draws from the same seed and step.
DROPOUT = 0x64726F70


class TrainState(NamedTuple):
    """Everything that training changes; a tree of arrays without Python objects.

    Attributes:
        step: updates made, an int32 scalar. The data position and every random number follow from it.
        params: trainable parameters, nested dictionaries of float32 arrays.
        stats: BatchNorm's running statistics, in the same form.
        opt_state: the optimiser's momenta and counters.
        ema: moving averages, `{"params": ..., "stats": ...}`, or None when none are kept.
    """

    step: jax.Array
    params: Tree
    stats: Tree
    opt_state: Tree
    ema: Tree


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepOptions:
    """What an update does besides forward, backward and optimiser.

    Attributes:
        seed: root of the dropout masks and of other noise in the network; may be traced.
        accumulate: micro-batches whose gradients are averaged into one update.
        label_smoothing: share of the target spread evenly over the classes.
        loss: `"cross_entropy"`, or `"bce"` for that of each class by itself.
        bce_threshold: with `"bce"`, see `train.fit.losses.binary_cross_entropy`.
        mix: `(images, labels, step) -> (images, (N, classes) shares)`, of a whole batch; None to mix none.
        ema: decay of the moving averages per update, None to keep none.
        temperature: that of learnable polyphase sampling as a function of the step; None for networks without.
        remat: `"keep_convs"` stores only what convolutions and matrix products put out and recomputes the
            normalisations, activations, pools and blurs in the backward pass.
    """

    seed: int | jax.Array = 0
    accumulate: int = 1
    label_smoothing: float = 0.0
    loss: Literal["cross_entropy", "bce"] = "cross_entropy"
    bce_threshold: float | None = None
    mix: Mix | None = None
    ema: float | None = None
    temperature: Schedule | None = None
    remat: Remat = "none"


def split_model(model: nnx.Module) -> tuple[nnx.GraphDef, Tree, Tree]:
    """The network's structure, and its parameters and statistics as plain nested dictionaries."""
    graphdef, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(stats)


def initial_state(
    params: Tree, stats: Tree, optimizer: optax.GradientTransformation, *, ema: bool = False
) -> TrainState:
    """The state before the first update. Arrays of the moving averages are copies, so that all can be donated."""
    averages = jax.tree.map(jnp.copy, {"params": params, "stats": stats}) if ema else None
    return TrainState(jnp.zeros((), jnp.int32), params, stats, optimizer.init(params), averages)


def _is_product(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name in ("conv_general_dilated", "dot_general")


def make_loss(graphdef: nnx.GraphDef, options: StepOptions) -> Callable[..., tuple[jax.Array, tuple[Tree, jax.Array]]]:
    """Builds the loss of a network in training mode.

    Returns:
        `(params, stats, images, labels, key) -> (loss, (new stats, accuracy in percent))`, differentiable in the
        parameters; the key feeds dropout and other noise. Labels are whole numbers (N,), or shares (N, classes), of
        which the largest is what counts as accurate.
    """
    criterion: Callable[..., jax.Array] = cross_entropy
    if options.loss == "bce":
        criterion = functools.partial(binary_cross_entropy, threshold=options.bce_threshold)

    def loss(params: Tree, stats: Tree, images: jax.Array, labels: jax.Array, key: jax.Array):
        model = nnx.merge(graphdef, params, stats)
        logits = model(images, rngs=nnx.Rngs(dropout=key))
        classes = labels if labels.ndim == 1 else labels.argmax(-1)
        right = jnp.mean(logits.argmax(-1) == classes, dtype=jnp.float32)
        new_stats = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
        return criterion(logits, labels, options.label_smoothing), (new_stats, 100 * right)

    if options.remat == "keep_convs":
        return jax.checkpoint(loss, policy=_is_product)
    return loss


def make_train_step(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    rate: Schedule,
    prepare: Prepare,
    options: StepOptions = StepOptions(),
) -> TrainStep:
    """Builds the update `(state, batch) -> (state, metrics)`, pure and traceable.

    Args:
        graphdef: structure of a network in training mode, from `split_model`.
        optimizer: what turns gradients into updates.
        rate: learning rate of the optimiser as a function of the step, for the log.
        prepare: `(images uint8 (N, H, W, C), step) -> float images`: augmentation and normalisation.
        options: see `StepOptions`.

    Returns:
        A function of a `TrainState` and `{"image": uint8 (N, H, W, C), "label": int32 (N,)}`. Its metrics are
        float32 scalars: `loss`, `accuracy` (percent, of the training batch), `lr` and `grad_norm`.
    """
    loss_and_gradient = jax.value_and_grad(make_loss(graphdef, options), has_aux=True)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(options.seed), DROPOUT), state.step)
        images, labels = prepare(batch["image"], state.step), batch["label"]
        if options.mix is not None:
            images, labels = options.mix(images, labels, state.step)
        if options.temperature is not None:
            state = state._replace(stats=with_temperature(state.stats, options.temperature(state.step)))
        value, accuracy, stats, gradient = _accumulated(
            loss_and_gradient, state, images, labels, key, options.accumulate
        )
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = _averaged(state, {"params": params, "stats": stats}, options.ema)
        metrics = {
            "loss": value,
            "accuracy": accuracy,
            "lr": jnp.asarray(rate(state.step), jnp.float32),
            "grad_norm": optax.tree.norm(gradient),
        }
        return TrainState(state.step + 1, params, stats, opt_state, ema), metrics

    return train_step


def with_temperature(stats: Tree, value: jax.Array) -> Tree:
    """The statistics with another temperature in every layer of learnable polyphase sampling."""
    if not isinstance(stats, dict):
        return stats
    return {name: value if name == "temperature" else with_temperature(each, value) for name, each in stats.items()}


def _accumulated(
    loss_and_gradient: Callable[..., Any],
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array,
    parts: int,
) -> tuple[jax.Array, jax.Array, Tree, Tree]:
    """Loss, accuracy, statistics and gradient of a batch, in `parts` micro-batches one after the other."""
    if parts == 1:
        (value, (stats, accuracy)), gradient = loss_and_gradient(
            state.params, state.stats, images, labels, jax.random.fold_in(key, 0)
        )
        return value, accuracy, stats, gradient

    def split(x: jax.Array) -> jax.Array:
        # Every parts-th example: each device then holds an equal share of each micro-batch, and none moves.
        return x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)

    def add(carry: tuple[Tree, Tree], part: tuple[jax.Array, jax.Array, jax.Array]):
        stats, total = carry
        micro_images, micro_labels, i = part
        (value, (stats, accuracy)), gradient = loss_and_gradient(
            state.params, stats, micro_images, micro_labels, jax.random.fold_in(key, i)
        )
        return (stats, jax.tree.map(jnp.add, total, (value, accuracy, gradient))), None

    batches = (split(images), split(labels), jnp.arange(parts))
    first = jax.tree.map(lambda x: x[0], batches[:2])
    (value, (_, accuracy)), gradient = jax.eval_shape(loss_and_gradient, state.params, state.stats, *first, key)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (value, accuracy, gradient))
    (stats, total), _ = jax.lax.scan(add, (state.stats, zeros), batches)
    value, accuracy, gradient = jax.tree.map(lambda x: x / parts, total)
    return value, accuracy, stats, gradient


def _averaged(state: TrainState, new: Tree, decay: float | None) -> Tree:
    """The moving averages after an update; early on they follow faster, so that the start is soon forgotten."""
    if decay is None:
        return state.ema
    count = state.step.astype(jnp.float32)
    weight = 1 - jnp.minimum(decay, (1 + count) / (10 + count))
    return jax.tree.map(lambda old, value: old + weight * (value - old), state.ema, new)


def compile_step(mesh: jax.sharding.Mesh) -> Any:
    """Jits updates for a mesh: state replicated and donated, batch sharded over its first axis.

    Returns:
        A compiled `(train_step, state, batch) -> (state, metrics)`: `train_step` the update as
        `Partial(function, *arrays)`, compiled once for each function.
    """
    replicated = NamedSharding(mesh, PartitionSpec())
    sharded = NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
    platform = platform_of(mesh.devices.flat[0])

    def one(train_step: Partial, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        # The devices are known: to trace the forms for others, and their gradients, would take as long again.
        with traced_for(platform):
            return train_step(state, batch)

    shardings = (replicated, replicated, sharded)
    return jax.jit(one, in_shardings=shardings, out_shardings=replicated, donate_argnums=1)


def compile_steps(mesh: jax.sharding.Mesh, limit: int) -> Any:
    """Jits many updates over data that stay on the devices, for data sets small enough to be held there.

    Args:
        mesh: devices; the batch of each update is sharded over the first axis.
        limit: most updates of one call.

    Returns:
        A compiled `(train_step, state, data, order, window) -> (state, metrics)`: `train_step` the update as
        `Partial(function, *arrays)`, compiled once for each function; `data` the whole set as
        `{"image": uint8 (M, H, W, C), "label": int32 (M,)}`, `order` int32 (limit, N) the rows of each batch,
        `window` int32 (2,) the first of these batches and how many. Metrics are arrays of `limit` values, of
        which the first so many mean something. The window is traced: any number of updates is one compilation.
    """
    replicated = NamedSharding(mesh, PartitionSpec())
    sharded = NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
    platform = platform_of(mesh.devices.flat[0])

    def many(train_step: Partial, state: TrainState, data: Batch, order: jax.Array, window: jax.Array):
        first, count = window

        def body(i: jax.Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
            state, history = carry
            batch = {name: jnp.take(values, order[first + i], axis=0) for name, values in data.items()}
            batch = jax.lax.with_sharding_constraint(batch, sharded)
            with traced_for(platform):
                state, metrics = train_step(state, batch)
            return state, {name: history[name].at[i].set(value) for name, value in metrics.items()}

        history = {name: jnp.zeros(limit, jnp.float32) for name in METRICS}
        return jax.lax.fori_loop(0, count, body, (state, history))

    return jax.jit(many, in_shardings=replicated, out_shardings=replicated, donate_argnums=1)
