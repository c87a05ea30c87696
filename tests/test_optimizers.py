"""LARS, LAMB and AdamW against their papers' formulas in float64, and that a checkpoint holds all there is of them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from train.fit.checkpoint import Checkpoints
from train.fit.optim import OptimConfig, learning_rate, optimizer, scaled
from train.fit.step import TrainState, initial_state

STEPS = 5
# Exact in float32, in which schedules are computed.
RATE = 2**-4
Tree = dict[str, np.ndarray]


def numbers(name: str, **options) -> OptimConfig:
    return OptimConfig(name=name, lr=RATE, schedule="constant", weight_decay=0.02, **options)


def start() -> Tree:
    """A kernel, one of zeros, and what neither decays nor is scaled; the gradients are of very different lengths."""
    random = np.random.default_rng(0)
    kernel, scale = random.normal(size=(3, 4, 5)), random.normal(size=5)
    return {"kernel": kernel, "zeros": np.zeros((4, 2)), "scale": scale, "bias": np.zeros(5)}


def gradients() -> list[Tree]:
    random = np.random.default_rng(1)
    return [
        {name: random.normal(size=value.shape) * 10.0 ** random.integers(-4, 2) for name, value in start().items()}
        for _ in range(STEPS)
    ]


def ours(config: OptimConfig) -> Tree:
    chosen = optimizer(config, learning_rate(config, epochs=1, steps_per_epoch=STEPS))

    @jax.jit
    def step(gradient, state, params):
        updates, state = chosen.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, start())
        state = chosen.init(params)
        for gradient in gradients():
            params, state = step(gradient, state, params)
        return jax.device_get(params)


def assert_follows(config: OptimConfig, formula) -> None:
    """The formula gets the number of the update, a gradient, the values, a dictionary of its own; and moves them."""
    found = ours(config)
    for name, value in start().items():
        memory = {"m": np.zeros_like(value), "v": np.zeros_like(value)}
        for i, each in enumerate(gradients(), 1):
            value = formula(i, each[name], value, memory, name in ("kernel", "zeros"))
        np.testing.assert_allclose(found[name], value, rtol=1e-12, atol=1e-14, err_msg=name)


@pytest.mark.parametrize("nesterov", [False, True])
def test_lars_is_the_paper_s(nesterov):
    """Algorithm 1 of arXiv 1708.03888: lambda = eta |w| / (|g| + beta |w|); v = m v + gamma lambda (g + beta w)."""
    config = numbers("lars", momentum=0.8, trust_coefficient=0.003, nesterov=nesterov)

    def formula(i, g, w, memory, kernel):
        decay = config.weight_decay if kernel else 0
        norm = np.sqrt((w**2).sum())
        local = 0.003 * norm / (np.sqrt((g**2).sum()) + decay * norm) if kernel and norm else 1
        moved = RATE * local * (g + decay * w)
        memory["v"] = 0.8 * memory["v"] + moved
        return w - (0.8 * memory["v"] + moved if nesterov else memory["v"])

    assert_follows(config, formula)


def adam(i, g, memory, beta1: float, beta2: float, epsilon: float) -> np.ndarray:
    memory["m"] = beta1 * memory["m"] + (1 - beta1) * g
    memory["v"] = beta2 * memory["v"] + (1 - beta2) * g**2
    return memory["m"] / (1 - beta1**i) / (np.sqrt(memory["v"] / (1 - beta2**i)) + epsilon)


@pytest.mark.parametrize("epsilon", [None, 1e-3])
def test_lamb_is_the_paper_s(epsilon):
    """Algorithm 2 of arXiv 1904.00962: r = adam + lambda w; w = w - eta |w| / |r| r."""

    def formula(i, g, w, memory, kernel):
        r = adam(i, g, memory, 0.9, 0.99, epsilon or 1e-6) + (0.02 * w if kernel else 0)
        norm = np.sqrt((w**2).sum())
        return w - RATE * (norm / np.sqrt((r**2).sum()) if kernel and norm else 1) * r

    assert_follows(numbers("lamb", beta2=0.99, epsilon=epsilon), formula)


def test_adamw_is_the_paper_s():
    """Algorithm 2 of arXiv 1711.05101, the decay multiplied by the rate as in PyTorch."""

    def formula(i, g, w, memory, kernel):
        return w - RATE * (adam(i, g, memory, 0.9, 0.999, 1e-8) + (0.02 * w if kernel else 0))

    assert_follows(numbers("adamw"), formula)


@pytest.mark.parametrize("name", ["lars", "lamb", "adamw"])
def test_a_long_gradient_is_scaled_down_first(name):
    """With its length at 1e-3 every time, what differs between the gradients is their direction."""
    config = numbers(name, clip_norm=1e-3)
    found = ours(config)
    chosen = optimizer(numbers(name), lambda _: jnp.float32(RATE))
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, start())
        state = chosen.init(params)
        for gradient in gradients():
            length = np.sqrt(sum((g**2).sum() for g in gradient.values()))
            short = {key: g * min(1, 1e-3 / length) for key, g in gradient.items()}
            updates, state = chosen.update(short, state, params)
            params = optax.apply_updates(params, updates)
        for key, value in params.items():
            np.testing.assert_allclose(found[key], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["lars", "lamb", "adamw"])
def test_a_checkpoint_continues_bit_for_bit(tmp_path, name):
    config = numbers(name)
    chosen = optimizer(config, learning_rate(config, epochs=1, steps_per_epoch=STEPS))
    params = {key: value.astype(np.float32) for key, value in start().items()}
    steps = [{key: value.astype(np.float32) for key, value in gradient.items()} for gradient in gradients()]

    @jax.jit
    def step(state: TrainState, gradient: Tree) -> TrainState:
        updates, opt_state = chosen.update(gradient, state.opt_state, state.params)
        return state._replace(
            step=state.step + 1, params=optax.apply_updates(state.params, updates), opt_state=opt_state
        )

    state = initial_state(params, {}, chosen)
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), x.dtype, sharding=where), state)
    for gradient in steps[:2]:
        state = step(state, gradient)
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(2, state)
    checkpoints.close()
    restored = Checkpoints(tmp_path / "c").restore(like)
    assert restored is not None
    again = restored.state
    for gradient in steps[2:]:
        state, again = step(state, gradient), step(again, gradient)
    assert int(again.step) == STEPS
    jax.tree.map(np.testing.assert_array_equal, again, state)


def test_the_rate_is_in_proportion_to_the_batch_where_it_is_told_for_one():
    config = OptimConfig(lr=0.1)
    assert scaled(config, 32768) is config
    assert scaled(OptimConfig(lr=0.1, scale_lr_to=256), 32768).lr == pytest.approx(12.8)
    assert scaled(OptimConfig(lr=0.1, scale_lr_to=256), 64).lr == pytest.approx(0.025)
