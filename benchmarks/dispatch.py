"""Python's share of a call: what an update or a forward pass costs before and after the compiled program runs.

The programs here take and give the very trees of arrays that a network's do, but every array holds one number and the
body adds one to it. What such a call takes is what Python and JAX's runtime add to the real program. The peer is
`nnx.jit` over the model and optimiser objects.
"""

import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.tree_util import Partial

import aa_flax
from benchmarks import measure
from benchmarks.measure import Case
from benchmarks.options import Common
from benchmarks.report import Report
from train.fit.distributed import Placement
from train.fit.optim import OptimConfig, learning_rate, sgd
from train.fit.step import METRICS, TrainState, compile_step, initial_state, split_model

LIMIT_MS = 3.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Common):
    """Times calls whose compiled program does next to nothing; milliseconds for a call."""

    model: str = "resnet50_lpf4"
    """Network whose trees of arrays are passed."""


def run(config: Config) -> int:
    """Measures every way to call; see `Config`."""
    if config.smoke:
        config = dataclasses.replace(config, model="resnet18_lpf4")
    report = Report("dispatch", config.output)
    update = {"ours: jax.jit over plain arrays": _our_update(config.model), "nnx.jit": _nnx_update(config.model)}
    forward = {"ours: jax.jit over plain arrays": _our_forward(config.model), "nnx.jit": _nnx_forward(config.model)}
    for title, cases in (("One update", update), ("One forward pass", forward)):
        timings = measure.alternate(cases, **config.timing)
        ours = timings["ours: jax.jit over plain arrays"].median
        for name, timing in timings.items():
            row = {"call": name, "ms": 1e3 * timing.median, "low": 1e3 * timing.low, "high": 1e3 * timing.high}
            cpu = _processor_ms(cases[name], 2 if config.smoke else 50)
            report.add(f"{title}, {config.model}", {**row, "CPU ms": cpu, "times ours": timing.median / ours})
    report.note(f"The update includes sending the batch and reading the metrics. Target: below {LIMIT_MS:g} ms.")
    report.note("`CPU ms`: processor time of the calling thread, which grows less than the clock on a busy machine.")
    print(report.markdown())
    return 0


def _processor_ms(case: Case, calls: int) -> float:
    """Milliseconds of the calling thread's processor time for a call."""
    start = time.thread_time()
    for _ in range(calls):
        case.wait(case.call())
    return 1e3 * (time.thread_time() - start) / calls


@functools.cache
def _structure(spec: str) -> tuple[Any, Any]:
    """A network's parameters and statistics with one number in each array."""
    _, params, stats = split_model(nnx.eval_shape(lambda: aa_flax.create_model(spec, rngs=nnx.Rngs(0))))
    return jax.tree.map(lambda _: jnp.zeros(()), (params, stats))


def _batch(devices: int) -> dict[str, np.ndarray]:
    return {"image": np.zeros((devices, 1, 1, 3), np.uint8), "label": np.zeros(devices, np.int32)}


def _add_one(tree: Any) -> Any:
    return jax.tree.map(lambda x: x + 1, tree)


def _our_update(spec: str) -> Case:
    """What the training loop does for an update, around a program that does nothing."""
    placement = Placement.of_all_devices()
    optim = OptimConfig()
    optimizer = sgd(optim, learning_rate(optim, epochs=1, steps_per_epoch=1))
    state = placement.everywhere(initial_state(*_structure(spec), optimizer))
    batch = _batch(jax.device_count())

    def nothing(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        seen = batch["image"].sum() + batch["label"].sum()
        return _add_one(state), {name: seen.astype(jnp.float32) for name in METRICS}

    step, update = compile_step(placement.mesh), Partial(nothing)
    holder = [state]

    def call() -> dict[str, np.ndarray]:
        with jax.transfer_guard("disallow"):
            holder[0], metrics = step(update, holder[0], placement.batch(batch))
        return jax.device_get(metrics)

    return Case(call, lambda _: None)


def _nnx_update(spec: str) -> Case:
    model = _tiny(spec)
    optimizer = nnx.Optimizer(model, optax.sgd(0.1, momentum=0.9), wrt=nnx.Param)
    batch = jax.tree.map(jnp.asarray, _batch(1))

    @nnx.jit
    def step(model: nnx.Module, optimizer: nnx.Optimizer, batch: Any) -> dict[str, jax.Array]:
        for thing in (model, optimizer):
            nnx.update(thing, _add_one(nnx.state(thing)))
        seen = batch["image"].sum() + batch["label"].sum()
        return {name: seen.astype(jnp.float32) for name in METRICS}

    return Case(lambda: jax.device_get(step(model, optimizer, batch)), lambda _: None)


def _tiny(spec: str) -> nnx.Module:
    graphdef = split_model(nnx.eval_shape(lambda: aa_flax.create_model(spec, rngs=nnx.Rngs(0))))[0]
    return nnx.merge(graphdef, *_structure(spec))


def _our_forward(spec: str) -> Case:
    arrays = _structure(spec)

    @jax.jit
    def forward(arrays: Any, x: jax.Array) -> jax.Array:
        return x + sum(jax.tree.leaves(arrays))

    x = jnp.zeros(())
    return Case(lambda: forward(arrays, x), jax.block_until_ready)


def _nnx_forward(spec: str) -> Case:
    model = _tiny(spec)

    @nnx.jit
    def forward(model: nnx.Module, x: jax.Array) -> jax.Array:
        return x + sum(jax.tree.leaves(nnx.state(model)))

    x = jnp.zeros(())
    return Case(lambda: forward(model, x), jax.block_until_ready)
