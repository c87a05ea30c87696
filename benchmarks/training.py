"""One update of a whole network: ours beside the reference in eager mixed precision and torch.compile."""

import copy
import dataclasses
import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import measure, networks, peers
from benchmarks.measure import Case
from benchmarks.networks import Variant
from benchmarks.options import Common
from benchmarks.report import Report
from train.fit.step import StepOptions, initial_state, make_train_step, split_model

TITLE = "Training step"
MEAN, DEVIATION = 118.0, 58.0
RATE, MOMENTUM, DECAY = 0.01, 0.9, 1e-4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Common):
    """Times an update (uint8 images in, SGD with momentum and decay) with float32 weights."""

    models: tuple[str, ...] = ("resnet50", "alexnet", "vgg16_bn", "densenet121", "mobilenet_v2")
    """Networks; one of each family by default."""

    variants: tuple[Literal["antialiased", "plain"], ...] = ("antialiased", "plain")
    """The network with its blurs, torchvision's without, or both."""

    filter_size: int = 4
    """Taps of the anti-aliased networks."""

    batch: int | None = None
    """Images; 256 on an accelerator and 8 on a CPU by default."""

    image_size: int = 224
    """Height and width of the images."""

    dtype: Literal["bfloat16", "float32"] | None = None
    """Type of the computation; bfloat16 (PyTorch: automatic mixed precision) on an accelerator, float32 on a CPU by
    default."""

    remat: tuple[Literal["none", "keep_convs"], ...] = ("none",)
    """What to recompute in the backward pass, see `python -m train fit --help`; the first is the one compared."""

    eager: bool = True
    """Measure the reference in eager PyTorch, in each of its layouts."""


def run(config: Config) -> int:
    """Measures every network; see `Config`."""
    on_cpu = jax.default_backend() == "cpu"
    batch = config.batch or (8 if on_cpu else 256)
    dtype = config.dtype or ("float32" if on_cpu else "bfloat16")
    config = dataclasses.replace(config, batch=4 if config.smoke else batch, dtype=dtype)
    if config.smoke:
        config = dataclasses.replace(config, image_size=96)
    chosen = list(networks.variants(config.models, config.variants, config.filter_size))
    report = Report("training", config.output)
    reason = peers.missing() if config.torch else "PyTorch's part was left out: --no-torch"
    if reason:
        report.note(reason)
    for variant in chosen:
        _measure(variant, config, report, with_torch=reason is None)
    add_costs(report)
    print(report.markdown())
    return 0


class _Ours:
    """The update of `python -m train fit` on a batch that stays on the device."""

    def __init__(self, variant: Variant, remat: Any, config: Config, state: dict[str, np.ndarray] | None):
        model = variant.create(config.dtype, state=state)
        graphdef, params, stats = split_model(model)
        optimizer = optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(RATE, momentum=MOMENTUM))
        options = StepOptions(remat=remat)
        prepare = functools.partial(_prepare, dtype=config.dtype)
        step = make_train_step(graphdef, optimizer, lambda _: jnp.float32(RATE), prepare, options)
        params, stats = jax.tree.map(jnp.copy, (params, stats))
        self.state = initial_state(params, stats, optimizer)
        self.batch = jax.tree.map(jnp.asarray, _batch(config))
        self.run = jax.jit(step, donate_argnums=0).lower(self.state, self.batch).compile()

    def __call__(self) -> jax.Array:
        self.state, metrics = self.run(self.state, self.batch)
        return metrics["loss"]


def _prepare(images: jax.Array, step: jax.Array, *, dtype: Any) -> jax.Array:
    return ((images.astype(jnp.float32) - MEAN) / DEVIATION).astype(dtype)


def _batch(config: Config) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    assert config.batch is not None
    shape = (config.batch, config.image_size, config.image_size, 3)
    return {
        "image": rng.integers(0, 256, shape, np.uint8),
        "label": rng.integers(0, 1000, config.batch, np.int32),
    }


def _torch_step(net: Any, layout: str, config: Config) -> Any:
    """The same update in PyTorch, with its fused optimiser and, in bfloat16, automatic mixed precision."""
    torch = peers.torch()
    device = peers.device()
    net = peers.placed(net.train(), layout, torch.float32)
    optimizer = torch.optim.SGD(
        net.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY, fused=device == "cuda"
    )
    batch = _batch(config)
    pixels = torch.from_numpy(batch["image"]).to(device).permute(0, 3, 1, 2)
    labels = torch.from_numpy(batch["label"]).long().to(device)

    def step() -> Any:
        with torch.autocast(device, torch.bfloat16, enabled=config.dtype == "bfloat16"):
            images = ((pixels.float() - MEAN) / DEVIATION).contiguous(memory_format=peers.memory_format(layout))
            loss = torch.nn.functional.cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def _measure(variant: Variant, config: Config, report: Report, *, with_torch: bool) -> None:
    net = peers.network(variant.name, variant.filter_size) if with_torch else None
    if with_torch and net is None:
        report.note(f"{variant}: no package that is installed has such a network")
    state = None if net is None else peers.arrays(net)
    cases: dict[str, Case] = {}
    memory: dict[str, int | None] = {}
    losses: dict[str, float] = {}
    for i, remat in enumerate(config.remat):
        name = "ours" if i == 0 else f"ours, remat {remat}"
        ours = _Ours(variant, remat, config, state)
        losses[name] = float(ours())
        cases[name] = Case(ours, jax.block_until_ready)
        memory[name] = networks.planned_memory(ours.run)
    if net is not None and state is not None:
        peers.allow_tf32()
        layouts = {name: config.compile if "compile" in name else config.eager for name in peers.layouts(net)}
        for layout in (name for name, asked in layouts.items() if asked):
            net.load_state_dict({k: peers.torch().from_numpy(v) for k, v in state.items()})
            step = _torch_step(copy.deepcopy(net), layout, config)
            losses[f"torch {layout}"] = step().item()
            memory[f"torch {layout}"] = peers.peak_memory(step)
            cases[f"torch {layout}"] = peers.case(step)
    _compare(variant, losses)
    times = measure.alternate(cases, **config.timing)  # type: ignore[arg-type]
    if not all(math.isfinite(float(case.call())) for case in cases.values()):
        raise ValueError(f"{variant}: the loss left the finite numbers while it was timed")
    report.add(TITLE, _row(variant, config, times, memory))
    if net is not None:
        peers.forget()


def _compare(variant: Variant, losses: dict[str, float]) -> None:
    """The loss of the first update must agree: same weights, same images. Dropout draws differ."""
    dropout = variant.name.startswith(("alexnet", "vgg")) or str(variant) == "mobilenet_v2_plain"
    for name, loss in losses.items():
        measure.check(f"{variant} {name}: first loss", loss, losses["ours"], 0.2 if dropout else 0.03)


def _row(variant: Variant, config: Config, times: dict, memory: dict[str, int | None]) -> dict[str, Any]:
    ours = times["ours"].median
    assert config.batch is not None
    row: dict[str, Any] = {
        "network": str(variant),
        "type": config.dtype,
        "batch": config.batch,
        "ms": ours * 1e3,
        "images/s": config.batch / ours,
        "spread": max(t.spread for t in times.values()),
    }
    row |= {f"{name} / ours": t.median / ours for name, t in times.items() if name != "ours"}
    row |= {f"GB {name}": None if b is None else b / 1e9 for name, b in memory.items()}
    return row | {"seconds": {name: t.median for name, t in times.items()}}


def add_costs(report: Report) -> None:
    """What anti-aliasing costs, and our anti-aliased update beside torch.compile's plain one."""
    rows = {row["network"]: row["seconds"] for row in report.tables.get(TITLE, [])}
    for network, seconds in rows.items():
        plain = rows.get(network.rsplit("_lpf", 1)[0] + "_plain")
        if "_lpf" not in network or plain is None:
            continue
        cost = {f"percent {n}": 100 * (s / plain[n] - 1) for n, s in seconds.items() if n in plain}
        beside = {f"plain {n} / ours": s / seconds["ours"] for n, s in plain.items() if n.startswith("torch")}
        report.add("Cost of anti-aliasing", {"network": network} | cost | beside)
