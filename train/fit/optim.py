"""Learning-rate schedules and optimisers, with PyTorch's meaning of every number and the papers' of LARS and LAMB."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

Schedule = Callable[[jax.typing.ArrayLike], jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How the weights move."""

    name: Literal["sgd", "lars", "lamb", "adamw"] = "sgd"
    """sgd is PyTorch's. lars, lamb: for very large batches; each kernel moves by a share of its own length. adamw:
    Adam with decoupled decay. The last three neither decay nor rescale biases and the scales of normalisations."""

    lr: float = 0.1
    """Peak learning rate: for the batch as given, unless --optim.scale-lr-to says for which batch it is."""

    scale_lr_to: int | None = None
    """The batch that --optim.lr is for, such as 256: the rate of another --batch is in proportion to it."""

    schedule: Literal["steps", "cosine", "cosine_epochs", "polynomial", "constant"] = "steps"
    """steps divides by 10 every --optim.drop-every epochs; cosine and polynomial (of degree 2) fall to 0 step by step;
    cosine_epochs changes once an epoch, as the reference does for MobileNetV2."""

    drop_every: int = 30
    """Epochs between the divisions by 10 of the schedule `steps`."""

    warmup_epochs: float = 0.0
    """Epochs over which the learning rate first rises linearly from 0."""

    momentum: float = 0.9
    """Momentum of SGD and LARS, from 0 to below 1; what LAMB and AdamW call beta1."""

    nesterov: bool = False
    """sgd, lars: look one step ahead (Nesterov's momentum)."""

    beta2: float = 0.999
    """lamb, adamw: decay of the mean of squared gradients, from 0 to below 1."""

    epsilon: float | None = None
    """lamb, adamw: added to the root of that mean; 1e-6 and 1e-8 when not given."""

    trust_coefficient: float = 0.001
    """lars: the share of its length by which a kernel moves at a learning rate of 1."""

    weight_decay: float = 1e-4
    """L2 penalty, added to the gradient before the momentum as PyTorch's SGD does; with lamb and adamw the share of a
    kernel that an update takes away at a learning rate of 1."""

    decay_all: bool = True
    """sgd: decay every parameter, as the reference does; otherwise only kernels, not biases and BatchNorm's scales."""

    label_smoothing: float = 0.0
    """Share of the target spread evenly over the classes, from 0 to below 1."""

    loss: Literal["cross_entropy", "bce"] = "cross_entropy"
    """cross_entropy of the softmax; bce: binary cross entropy of each class by itself, its mean over the classes."""

    bce_threshold: float | None = None
    """bce with mixed images: a class counts as wholly there if its share is larger, such as 0.2; otherwise the shares
    are the targets."""

    clip_norm: float | None = None
    """Largest global norm of a gradient; longer ones are scaled down to it."""

    lps_temperature: tuple[tuple[float, float], ...] = ((0.0, 1.0),)
    """With --net.downsample lps: pairs of an epoch and the temperature of the Gumbel-softmax there, with straight
    lines in between; 0 1 62 0.5 82 0.05 90 0.01 is the paper's for ImageNet."""

    ema: float | None = None
    """Decay per step of an exponential moving average of weights and statistics, for instance 0.9999; the average is
    what is evaluated and exported."""


def scaled(config: OptimConfig, batch: int) -> OptimConfig:
    """The numbers for batches of so many images: linear scaling of the rate (Goyal et al. 2017, arXiv 1706.02677)."""
    if config.scale_lr_to is None:
        return config
    return dataclasses.replace(config, lr=config.lr * (batch / config.scale_lr_to))


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
            case "polynomial":
                progress = (step - warmup) / jnp.maximum(epochs * steps_per_epoch - warmup, 1)
                factor = (1 - jnp.clip(progress, 0, 1)) ** 2
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


def optimizer(config: OptimConfig, rate: Schedule, *, frozen_norms: bool = False) -> optax.GradientTransformation:
    """The optimiser that a configuration names.

    Args:
        config: which one, and its numbers.
        rate: the learning rate.
        frozen_norms: see `sgd`; the others never decay what belongs to a normalisation.
    """
    if config.name == "sgd":
        return sgd(config, rate, frozen_norms=frozen_norms)
    make = {"lars": lars, "lamb": lamb, "adamw": adamw}[config.name]
    steps = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    return optax.chain(*steps, make(config, rate))


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


def lars(config: OptimConfig, rate: Schedule) -> optax.GradientTransformation:
    """LARS (You et al. 2017, arXiv 1708.03888, algorithm 1); biases and scales move as with SGD without decay.

    Not `optax.lars`, which divides by the length of the sum of gradient and decay, not by the sum of their lengths.
    """
    local_rate = functools.partial(_local_rate, decay=config.weight_decay, coefficient=config.trust_coefficient)

    def layerwise(gradients: Any, params: Any) -> Any:
        return jax.tree.map(local_rate, gradients, params)

    return optax.chain(
        optax.masked(optax.stateless(layerwise), kernels),
        optax.scale_by_learning_rate(rate),
        # Outside: every term of the momentum keeps the rate at which it came in.
        optax.trace(decay=config.momentum, nesterov=config.nesterov),
    )


def _local_rate(gradient: jax.Array, kernel: jax.Array, *, decay: float, coefficient: float) -> jax.Array:
    """Gradient and decay of a kernel, times the paper's local learning rate; one of zeros moves as with SGD."""
    length = jnp.linalg.norm(kernel.ravel())
    both = jnp.linalg.norm(gradient.ravel()) + decay * length
    local = jnp.where((length > 0) & (both > 0), coefficient * length / jnp.where(both > 0, both, 1), 1)
    return local * (gradient + decay * kernel)


def lamb(config: OptimConfig, rate: Schedule) -> optax.GradientTransformation:
    """LAMB (You et al. 2019, arXiv 1904.00962, algorithm 2), with biases and scales as in Adam without decay."""
    return optax.chain(
        _adam(config, 1e-6),
        optax.add_decayed_weights(config.weight_decay, kernels),
        optax.masked(optax.scale_by_trust_ratio(), kernels),
        optax.scale_by_learning_rate(rate),
    )


def adamw(config: OptimConfig, rate: Schedule) -> optax.GradientTransformation:
    """PyTorch's AdamW (Loshchilov and Hutter 2017, arXiv 1711.05101), with decay on kernels only."""
    return optax.chain(
        _adam(config, 1e-8),
        optax.add_decayed_weights(config.weight_decay, kernels),
        optax.scale_by_learning_rate(rate),
    )


def _adam(config: OptimConfig, epsilon: float) -> optax.GradientTransformation:
    epsilon = epsilon if config.epsilon is None else config.epsilon
    return optax.scale_by_adam(b1=config.momentum, b2=config.beta2, eps=epsilon)


def kernels(params: Any) -> Any:
    """A tree of booleans: True for kernels, False for biases and BatchNorm's scales."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


def without_norms(params: Any) -> Any:
    """A tree of booleans: False for the scales and biases of normalisations, the layers that have a scale."""
    if not isinstance(params, dict):
        return True
    return {name: without_norms(each) if "scale" not in params else False for name, each in params.items()}
