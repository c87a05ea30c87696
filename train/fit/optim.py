"""Learning-rate schedules and the optimiser, with PyTorch's meaning of every number."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

Schedule = Callable[[jax.typing.ArrayLike], jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How the weights move."""

    lr: float = 0.1
    """Peak learning rate for the batch as given; it is not rescaled with --batch."""

    schedule: Literal["steps", "cosine", "cosine_epochs", "constant"] = "steps"
    """steps divides by 10 every --optim.drop-every epochs; cosine falls to 0 step by step; cosine_epochs changes
    once an epoch, as the reference does for MobileNetV2."""

    drop_every: int = 30
    """Epochs between the divisions by 10 of the schedule `steps`."""

    warmup_epochs: float = 0.0
    """Epochs over which the learning rate first rises linearly from 0."""

    momentum: float = 0.9
    """Momentum of SGD, from 0 to below 1."""

    nesterov: bool = False
    """Look one step ahead (Nesterov's momentum)."""

    weight_decay: float = 1e-4
    """L2 penalty, added to the gradient before the momentum as PyTorch's SGD does."""

    decay_all: bool = True
    """Decay every parameter, as the reference does; otherwise only kernels, not biases and BatchNorm's scales."""

    label_smoothing: float = 0.0
    """Share of the target spread evenly over the classes, from 0 to below 1."""

    clip_norm: float | None = None
    """Largest global norm of a gradient; longer ones are scaled down to it."""

    lps_temperature: tuple[tuple[float, float], ...] = ((0.0, 1.0),)
    """With --net.downsample lps: pairs of an epoch and the temperature of the Gumbel-softmax there, with straight
    lines in between; 0 1 62 0.5 82 0.05 90 0.01 is the paper's for ImageNet."""

    ema: float | None = None
    """Decay per step of an exponential moving average of weights and statistics, for instance 0.9999; the average is
    what is evaluated and exported."""


def learning_rate(config: OptimConfig, *, epochs: int | jax.Array, steps_per_epoch: int) -> Schedule:
    """The learning rate as a function of the number of updates already made.

    Args:
        config: which schedule, its peak and its warm-up; both numbers may be traced.
        epochs: length of the whole training; may be traced.
        steps_per_epoch: updates in an epoch.

    Returns:
        A traceable function of the update count, with a float32 answer.
    """
    warmup = config.warmup_epochs * steps_per_epoch

    def rate(step: jax.typing.ArrayLike) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        match config.schedule:
            case "steps":
                factor = 0.1 ** jnp.floor(step / (config.drop_every * steps_per_epoch))
            case "cosine":
                progress = (step - warmup) / jnp.maximum(epochs * steps_per_epoch - warmup, 1)
                factor = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0, 1)))
            case "cosine_epochs":
                factor = 0.5 * (1 + jnp.cos(jnp.pi * jnp.floor(step / steps_per_epoch) / epochs))
            case "constant":
                factor = jnp.float32(1)
        rising = jnp.minimum((step + 1) / jnp.maximum(warmup, 1), 1)
        return config.lr * jnp.where(step < warmup, rising, factor)

    return rate


def lps_temperature(config: OptimConfig, *, steps_per_epoch: int) -> Schedule:
    """The temperature of learnable polyphase sampling as a function of the number of updates already made."""
    epochs, values = zip(*config.lps_temperature, strict=True)

    def temperature(step: jax.typing.ArrayLike) -> jax.Array:
        epoch = jnp.asarray(step, jnp.float32) / steps_per_epoch
        return jnp.interp(epoch, jnp.array(epochs, jnp.float32), jnp.array(values, jnp.float32))

    return temperature


def sgd(config: OptimConfig, rate: Schedule, *, frozen_norms: bool = False) -> optax.GradientTransformation:
    """PyTorch's SGD: decay joins the gradient, the momentum has no damping, the rate multiplies last.

    Args:
        config: the numbers.
        rate: the learning rate.
        frozen_norms: the network's normalisations are frozen: what has no gradient is not to decay either.
    """
    steps: list[optax.GradientTransformation] = []
    if config.clip_norm is not None:
        steps.append(optax.clip_by_global_norm(config.clip_norm))
    if config.weight_decay:
        everything = without_norms if frozen_norms else None
        steps.append(optax.add_decayed_weights(config.weight_decay, everything if config.decay_all else kernels))
    momentum = config.momentum or None
    steps.append(optax.sgd(rate, momentum=momentum, nesterov=config.nesterov))
    return optax.chain(*steps)


def kernels(params: Any) -> Any:
    """A tree of booleans: True for kernels, False for biases and BatchNorm's scales."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


def without_norms(params: Any) -> Any:
    """A tree of booleans: False for the scales and biases of normalisations, the layers that have a scale."""
    if not isinstance(params, dict):
        return True
    return {name: without_norms(each) if "scale" not in params else False for name, each in params.items()}
