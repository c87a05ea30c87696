"""The operator, forward and backward, against the obvious convolution and the PyTorch reference."""

import dataclasses
import importlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import aa_flax
from aa_flax.blurpool import blur_band
from benchmarks import candidates, measure, peers
from benchmarks.measure import Case
from benchmarks.options import Common
from benchmarks.report import Report

# Height, width and channels of the maps that ResNet-50 blurs.
MAPS = ((112, 112, 64), (56, 56, 256), (28, 28, 512), (14, 14, 1024))
STRIDE = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Common):
    """Times BlurPool on maps of ResNet-50; bytes moved over time beside the copy bandwidth of the device."""

    batch: int | None = None
    """Images; 256 on an accelerator and 8 on a CPU by default."""

    maps: tuple[int, ...] = (112, 56, 28, 14)
    """Heights of the maps to measure, out of 112, 56, 28 and 14."""

    filter_sizes: tuple[int, ...] = (2, 3, 4, 5)
    """Numbers of taps."""

    dtypes: tuple[Literal["float32", "bfloat16"], ...] | None = None
    """Types of the maps; both on an accelerator, float32 on a CPU by default."""

    candidates: bool = False
    """Measure the other forms of the operator as well, see benchmarks/candidates.py."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One map, filter, type and direction; all peers of a job are timed against each other."""

    shape: tuple[int, int, int, int]
    filter_size: int
    dtype: str
    direction: Literal["forward", "backward"]

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        n, h, w, c = self.shape
        return n, -(-h // STRIDE), -(-w // STRIDE), c

    @property
    def given(self) -> tuple[int, int, int, int]:
        """Shape of what the timed function takes: the map, or the gradient of the result."""
        return self.shape if self.direction == "forward" else self.out_shape

    @property
    def bytes(self) -> int:
        """The fewest bytes that have to move: each input read once, each output written once."""
        return int(np.prod(self.shape) + np.prod(self.out_shape)) * jnp.dtype(self.dtype).itemsize

    @property
    def tolerance(self) -> float:
        return 6e-3 if self.dtype == "bfloat16" else 2e-6


def run(config: Config) -> int:
    """Measures every combination; see `Config`."""
    jobs = _jobs(config)
    report = Report("blurpool", config.output)
    reason = peers.missing() if config.torch else "PyTorch's part was left out: --no-torch"
    if reason:
        report.note(reason)
    bandwidth = measure.copy_bandwidth(1 << 20 if config.smoke else 1 << 30, **config.timing)  # type: ignore[arg-type]
    report.note(f"Copy bandwidth of the device in this run: {bandwidth / 1e9:,.0f} GB/s.")
    for job in jobs:
        _measure(job, config, report, bandwidth, with_torch=reason is None)
    print(report.markdown())
    return 0


def _jobs(config: Config) -> list[Job]:
    unknown = set(config.maps) - {h for h, _, _ in MAPS}
    if unknown:
        raise ValueError(f"--maps {min(unknown)} is none of 112, 56, 28, 14")
    on_cpu = jax.default_backend() == "cpu"
    batch = config.batch or (8 if on_cpu else 256)
    dtypes = config.dtypes or (("float32",) if on_cpu else ("float32", "bfloat16"))
    shapes = [(batch, *m) for m in MAPS if m[0] in config.maps]
    if config.smoke:
        shapes = [(2, 13, 14, 8)]
    return [
        Job(shape, k, dtype, direction)
        for shape in shapes
        for dtype in dtypes
        for k in config.filter_sizes
        for direction in ("forward", "backward")
    ]


def _measure(job: Job, config: Config, report: Report, bandwidth: float, *, with_torch: bool) -> None:
    inputs = [np.random.default_rng(seed).standard_normal(job.given, np.float32) for seed in range(2)]
    want = _reference(inputs[0][:2], job)
    cases: dict[str, Case] = {}
    device_inputs = [jnp.asarray(x, job.dtype) for x in inputs]
    for name, function in _compiled(job, config).items():
        measure.poison(jax.ShapeDtypeStruct(job.out_shape if job.direction == "forward" else job.shape, job.dtype))
        got = function(device_inputs[0])
        measure.check(name, got[:2], want, max(job.tolerance, 3e-5 if "kron" in name else 0.0))
        if not bool(jnp.isfinite(got).all()):
            raise ValueError(f"{name} left parts of its result unwritten")
        cases[name] = measure.jax_case(function, [(x,) for x in device_inputs])
    if with_torch:
        cases |= _torch_cases(job, config, inputs, want)
    times = measure.alternate(cases, **config.timing)  # type: ignore[arg-type]
    row: dict[str, Any] = {
        "map": "x".join(map(str, job.shape)),
        "type": job.dtype,
        "k": job.filter_size,
        "us": times["aa_flax"].median * 1e6,
        "spread": times["aa_flax"].spread,
        "share of copy": job.bytes / times["aa_flax"].median / bandwidth,
    }
    for name, timing in times.items():
        if name != "aa_flax":
            row[f"{name} / ours"] = timing.median / times["aa_flax"].median
    report.add(job.direction.capitalize(), row)


def _functions(job: Job, config: Config) -> dict[str, Callable[[jax.Array], jax.Array]]:
    """Every form on the JAX side, as a function of the map or of the gradient of the result."""
    forms: dict[str, Callable[[jax.Array], jax.Array]] = {
        "aa_flax": lambda x: aa_flax.blur_pool(x, job.filter_size),
        "depthwise": lambda x: candidates.depthwise(x, job.filter_size),
    }
    if config.candidates:
        for name, form in candidates.PORTABLE.items():
            if "kron" not in name or (job.shape[1] < 28 and jax.default_backend() == "gpu"):
                forms[name] = lambda x, form=form: form(x, job.filter_size)
    if job.direction == "backward":
        # Of the two halves that vjp gives only the gradient is asked for: the forward pass is not computed.
        forms = {n: lambda g, f=f: jax.vjp(f, jnp.zeros(job.shape, job.dtype))[1](g)[0] for n, f in forms.items()}
    if config.candidates and (jax.default_backend() == "gpu" or config.smoke):
        interpret = jax.default_backend() != "gpu"
        if job.direction == "forward":
            forms["pallas"] = lambda x: candidates.pallas_forward(x, job.filter_size, interpret=interpret)
        else:
            forms["pallas"] = lambda g: candidates.pallas_backward(
                g, job.shape[1:3], job.filter_size, interpret=interpret
            )
    return forms


def _compiled(job: Job, config: Config) -> dict[str, Any]:
    given = jax.ShapeDtypeStruct(job.given, job.dtype)
    lowered = {name: jax.jit(form).lower(given) for name, form in _functions(job, config).items()}
    with ThreadPoolExecutor(8) as pool:
        return dict(zip(lowered, pool.map(lambda step: step.compile(), lowered.values()), strict=True))


def _reference(x: np.ndarray, job: Job) -> np.ndarray:
    rows, columns = (blur_band(size, job.filter_size, STRIDE, "reflect", 0)[0].dense(size) for size in job.shape[1:3])
    if job.direction == "backward":
        rows, columns = rows.T, columns.T
    # Values as the device sees them: rounding the input is no error of the operator.
    seen = np.asarray(jnp.asarray(x, job.dtype), np.float64)
    return np.einsum("ph,qw,nhwc->npqc", rows, columns, seen, optimize=True)


def _torch_cases(job: Job, config: Config, inputs: list[np.ndarray], want: np.ndarray) -> dict[str, Case]:
    torch = peers.torch()
    dtype = getattr(torch, job.dtype)
    cases = {}
    for layout in peers.LAYOUTS if config.compile else peers.LAYOUTS[:2]:
        layer = peers.reference().BlurPool(job.shape[-1], filt_size=job.filter_size, stride=STRIDE)
        layer = peers.placed(layer, layout, dtype)
        given = [peers.nchw(x, layout, dtype) for x in inputs]
        call = _torch_call(job, layer, layout, given)
        result = call()[:2].float().permute(0, 2, 3, 1).cpu().numpy()
        # The reference sums in the type of the map.
        measure.check(f"torch {layout}", result, want, 2e-2 if job.dtype == "bfloat16" else 1e-5)
        cases[f"torch {layout}"] = peers.case(call)
    return cases


def _torch_call(job: Job, layer: Any, layout: str, given: list[Any]) -> Callable[[], Any]:
    torch = peers.torch()
    turn = iter(range(1 << 60))
    if job.direction == "forward":

        def forward() -> Any:
            with torch.inference_mode():
                return layer(given[next(turn) % len(given)])

        return forward
    # Compiled graphs free what they saved after one backward pass unless told not to.
    setattr(importlib.import_module("torch._functorch.config"), "donated_buffer", False)  # noqa: B010
    x = peers.nchw(np.zeros(job.shape, np.float32), layout, given[0].dtype).requires_grad_()
    y = layer(x)
    return lambda: torch.autograd.grad(y, x, given[next(turn) % len(given)], retain_graph=True)[0]
