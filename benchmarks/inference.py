"""Whole networks, forward: ours beside the reference in eager and compiled PyTorch."""

import copy
import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import aa_flax
from aa_flax.inference import fold_batchnorm
from benchmarks import measure, networks, peers
from benchmarks.measure import Case
from benchmarks.networks import Variant
from benchmarks.options import NINE, Common
from benchmarks.report import Report

TITLE = "Forward"
CHECKED = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Common):
    """Times forward passes. `ours` has its batch normalisation folded (aa_flax.fold_batchnorm), `unfolded` has not."""

    models: tuple[str, ...] = NINE
    """Networks; those of the paper's tables by default."""

    all: bool = False
    """All networks of `aa_flax.list_models()`."""

    batches: tuple[int, ...] | None = None
    """Batch sizes; 1, 48 and 256 on an accelerator, 1 and 8 on a CPU by default."""

    dtypes: tuple[Literal["bfloat16", "float32"], ...] | None = None
    """Types of weights and images; both on an accelerator, float32 on a CPU by default. float32 products may run as
    TF32, on both sides."""

    variants: tuple[Literal["antialiased", "plain"], ...] = ("antialiased", "plain")
    """The network with its blurs, torchvision's without, or both."""

    filter_size: int = 4
    """Taps of the anti-aliased networks."""

    image_size: int = 224
    """Height and width of the images."""

    unfolded: bool = True
    """Measure the network as it is created too."""


def run(config: Config) -> int:
    """Measures every combination; see `Config`."""
    names = aa_flax.list_models() if config.all else config.models
    on_cpu = jax.default_backend() == "cpu"
    batches = config.batches or ((1, 8) if on_cpu else (1, 48, 256))
    dtypes = config.dtypes or (("float32",) if on_cpu else ("bfloat16", "float32"))
    config = dataclasses.replace(config, batches=batches, dtypes=dtypes)
    if config.smoke:
        config = dataclasses.replace(config, batches=(2,), image_size=96)
    chosen = list(networks.variants(names, config.variants, config.filter_size))
    report = Report("inference", config.output)
    reason = peers.missing() if config.torch else "PyTorch's part was left out: --no-torch"
    if reason:
        report.note(reason)
    for variant in chosen:
        _measure(variant, config, report, with_torch=reason is None)
    add_costs(report)
    print(report.markdown())
    return 0


def _measure(variant: Variant, config: Config, report: Report, *, with_torch: bool) -> None:
    state = want = None
    x = networks.images(CHECKED, config.image_size)
    net = peers.network(variant.name, variant.filter_size) if with_torch else None
    if with_torch and net is None:
        report.note(f"{variant}: no package that is installed has such a network")
    if net is not None:
        peers.allow_tf32()
        peers.randomize(net)
        state, want = peers.arrays(net), networks.reference_logits(net, x)
    assert config.dtypes is not None
    assert config.batches is not None
    for dtype in config.dtypes:
        ours = variant.create(dtype, dtype, state)
        ours.eval()
        forms = {"ours": fold_batchnorm(variant.create(dtype, state=state), param_dtype=dtype)}
        if config.unfolded:
            forms["unfolded"] = ours
        for batch in config.batches:
            _measure_batch(variant, dtype, batch, forms, net, (x, want), config, report)


def _measure_batch(
    variant: Variant,
    dtype: str,
    batch: int,
    forms: dict[str, Any],
    net: Any,
    checked: tuple[np.ndarray, np.ndarray | None],
    config: Config,
    report: Report,
) -> None:
    batches = [networks.images(batch, config.image_size, seed) for seed in (1, 2)]
    x, want = checked
    cases: dict[str, Case] = {}
    memory: dict[str, int | None] = {}
    for name, model in forms.items():
        compiled = networks.forward(model, batch, config.image_size, dtype)
        given = [jnp.asarray(images, dtype) for images in batches]
        # The checked images ride in the timed shape, among others.
        probe = jnp.asarray(np.concatenate([x, batches[0]])[:batch], dtype)
        measure.poison(jax.ShapeDtypeStruct((batch, 1000), dtype))
        logits = np.asarray(compiled(probe), np.float64)[: len(x)]
        if want is None:
            want = logits
        measure.check(f"{variant} {name}", logits, want[: len(logits)], _tolerance(dtype))
        cases[name] = measure.jax_case(compiled, [(images,) for images in given])
        memory[name] = compiled.memory
    if net is not None:
        cases |= _torch_cases(net, dtype, batches, checked, memory, config)
    times = measure.alternate(cases, **config.timing)  # type: ignore[arg-type]
    row = _row(variant, dtype, batch, times, memory)
    report.add(TITLE, row | {"GFLOP an image": networks.gflop(variant, config.image_size)})
    if net is not None:
        peers.forget()


def _tolerance(dtype: str) -> float:
    return 6e-2 if dtype == "bfloat16" else 5e-3


def _torch_cases(
    net: Any,
    dtype: str,
    batches: list[np.ndarray],
    checked: tuple[np.ndarray, np.ndarray | None],
    memory: dict[str, int | None],
    config: Config,
) -> dict[str, Case]:
    torch = peers.torch()
    kind = getattr(torch, dtype)
    x, want = checked
    assert want is not None
    cases = {}
    for layout in peers.layouts(net) if config.compile else peers.layouts(net)[:-1]:
        placed = peers.placed(copy.deepcopy(net).eval(), layout, kind)
        given = [peers.nchw(images, layout, kind) for images in batches]
        turn = iter(range(1 << 60))

        def call(placed: Any = placed, given: list[Any] = given, turn: Any = turn) -> Any:
            with torch.inference_mode():
                return placed(given[next(turn) % len(given)])

        with torch.inference_mode():
            probe = peers.nchw(np.concatenate([x, batches[0]])[: len(batches[0])], layout, kind)
            logits = placed(probe).double().cpu().numpy()[: len(x)]
        measure.check(f"torch {layout}", logits, want[: len(logits)], _tolerance(dtype))
        memory[f"torch {layout}"] = peers.peak_memory(call)
        cases[f"torch {layout}"] = peers.case(call)
    return cases


def _row(variant: Variant, dtype: str, batch: int, times: dict, memory: dict[str, int | None]) -> dict[str, Any]:
    ours = times["ours"].median
    row: dict[str, Any] = {
        "network": str(variant),
        "type": dtype,
        "batch": batch,
        "images/s": batch / ours,
        "ms": ours * 1e3,
        "spread": max(t.spread for t in times.values()),
    }
    row |= {f"{name} / ours": t.median / ours for name, t in times.items() if name != "ours"}
    row |= {f"MB {name}": None if b is None else b / 1e6 for name, b in memory.items()}
    row["seconds"] = {name: t.median for name, t in times.items()}
    return row


def add_costs(report: Report) -> None:
    """What anti-aliasing costs on each side: its time over the plain network's."""
    rows = report.tables.get(TITLE, [])
    plain = {(r["network"].removesuffix("_plain"), r["type"], r["batch"]): r for r in rows if "_plain" in r["network"]}
    for row in rows:
        key = (row["network"].rsplit("_lpf", 1)[0], row["type"], row["batch"])
        if "_lpf" in row["network"] and key in plain:
            there = plain[key]["seconds"]
            cost = {n: 100 * (s / there[n] - 1) for n, s in row["seconds"].items() if n in there}
            entry = dict(zip(("network", "type", "batch"), (row["network"], *key[1:]), strict=True))
            report.add("Cost of anti-aliasing in percent", entry | cost)
