"""Ten updates beside ten of PyTorch's SGD: same start, same batches, same losses, same weights at the end.

In float64: training multiplies every difference, and in float32 two correct programs are a percent apart after ten
updates of a randomly initialised network, which would hide an error in the optimiser.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType
from jax.tree_util import Partial

from aa_flax.weights.mapping import convert_state_dict, to_torch_state_dict
from tests.parity import oracles
from train.fit.distributed import Placement
from train.fit.optim import OptimConfig, learning_rate, optimizer, sgd
from train.fit.step import StepOptions, compile_step, initial_state, make_train_step, split_model

torch = oracles.torch
STEPS, BATCH, CLASSES, SIZE = 10, 8, 1000, 64


def batches() -> list[dict[str, np.ndarray]]:
    """Patterns that differ by class, so that there is something to learn, as bytes."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(STEPS):
        labels = random.integers(0, CLASSES, BATCH, dtype=np.int32)
        images = random.integers(0, 256, (BATCH, SIZE, SIZE, 3), dtype=np.uint8)
        images[..., 0] = (labels * 37 % 256)[:, None, None]
        found.append({"image": images, "label": labels})
    return found


def theirs(net: torch.nn.Module, optim: OptimConfig, accumulate: int) -> list[float]:
    net.train()
    optimizer = torch.optim.SGD(
        net.parameters(),
        lr=optim.lr,
        momentum=optim.momentum,
        weight_decay=optim.weight_decay,
        nesterov=optim.nesterov,
    )
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=optim.label_smoothing)
    losses = []
    for batch in batches():
        optimizer.zero_grad()
        parts = []
        for i in range(accumulate):
            images = np.asarray(batch["image"][i::accumulate], np.float64) / 64 - 2
            labels = torch.from_numpy(batch["label"][i::accumulate].astype(np.int64))
            loss = criterion(net(oracles.nchw(images)), labels) / accumulate
            loss.backward()
            parts.append(loss.item())
        optimizer.step()
        losses.append(sum(parts))
    return losses


def ours(model, optim: OptimConfig, accumulate: int):
    graphdef, params, stats = split_model(model)
    rate = learning_rate(optim, epochs=1, steps_per_epoch=STEPS)
    optimizer = sgd(optim, rate)
    options = StepOptions(accumulate=accumulate, label_smoothing=optim.label_smoothing)
    step = make_train_step(graphdef, optimizer, rate, lambda images, _: images.astype(jnp.float64) / 64 - 2, options)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
    placement = Placement(mesh)
    compiled = compile_step(placement.mesh)
    state = placement.everywhere(initial_state(params, stats, optimizer))
    losses = []
    for batch in batches():
        state, metrics = compiled(Partial(step), state, placement.batch(batch))
        losses.append(float(metrics["loss"]))
    assert compiled._cache_size() == 1
    return losses, state


@pytest.mark.parametrize(
    ("name", "filter_size", "accumulate", "options"),
    [
        pytest.param("resnet18", 4, 1, {}, marks=pytest.mark.deep),
        ("resnet18", None, 2, {"nesterov": True, "label_smoothing": 0.1}),
        # A smaller rate: MobileNetV2 would amplify the rounding of float64 to 1e-3 in ten updates.
        ("mobilenet_v2", 3, 1, {"weight_decay": 4e-5, "lr": 2**-10}),
    ],
)
def test_ten_updates_are_torch_s(name, filter_size, accumulate, options):
    # A rate that float32 holds exactly: schedules are computed in it.
    optim = OptimConfig(schedule="constant", **{"lr": 2**-7, "weight_decay": 1e-4, **options})
    net = oracles.network(name, filter_size, seed=5, dtype=torch.float64)
    spec = f"{name}_plain" if filter_size is None else f"{name}_lpf{filter_size}"
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    with jax.enable_x64(True):
        model = convert_state_dict(oracles.arrays(net), spec, dtype=jnp.float64, param_dtype=jnp.float64)
        model.train()
        our_losses, state = ours(model, optim, accumulate)
        their_losses = theirs(net, optim, accumulate)
        np.testing.assert_allclose(our_losses, their_losses, rtol=0, atol=1e-8)
        assert abs(our_losses[0] - our_losses[-1]) > 0.1
        _assert_same_weights(model, state, net)


def _assert_same_weights(model, state, net) -> None:
    nnx.update(model, nnx.State(state.params), nnx.State(state.stats))
    expected = oracles.arrays(net)
    for name, array in to_torch_state_dict(model).items():
        if name.endswith(("num_batches_tracked", "filt")):
            continue
        worst = np.abs(np.asarray(array) - expected[name]).max()
        assert worst <= 1e-8 * max(1.0, np.abs(expected[name]).max()), (name, worst)


def test_adamw_is_torch_s():
    optim = OptimConfig(name="adamw", schedule="constant", lr=2**-7, weight_decay=0.05)
    random = np.random.default_rng(0)
    start = {"kernel": random.normal(size=(4, 3)), "bias": random.normal(size=3)}
    gradients = [{name: random.normal(size=value.shape) for name, value in start.items()} for _ in range(STEPS)]
    theirs = {name: torch.nn.Parameter(torch.from_numpy(value.copy())) for name, value in start.items()}
    groups = [{"params": [theirs["kernel"]]}, {"params": [theirs["bias"]], "weight_decay": 0.0}]
    their_optimizer = torch.optim.AdamW(groups, lr=optim.lr, weight_decay=optim.weight_decay)
    with jax.enable_x64(True):
        chosen = optimizer(optim, learning_rate(optim, epochs=1, steps_per_epoch=STEPS))
        params = jax.tree.map(jnp.asarray, start)
        state = chosen.init(params)
        for gradient in gradients:
            for name, value in theirs.items():
                value.grad = torch.from_numpy(gradient[name])
            their_optimizer.step()
            updates, state = chosen.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        for name, value in theirs.items():
            np.testing.assert_allclose(params[name], value.detach().numpy(), rtol=0, atol=1e-12)
