"""What it takes until the first result and until the first update: import, creation, tracing, compilation with and
without the persistent cache."""

import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import peers
from benchmarks.options import Common
from benchmarks.report import Report

# Each is a process of its own and prints seconds, those that pass and those of the processor cores. {spec} is ours,
# {name} the reference's.
_TIMED = """
import sys, time
sys.path.insert(0, {root!r})
{before}
start, busy = time.perf_counter(), time.process_time()
{timed}
print(time.perf_counter() - start, time.process_time() - busy)
"""
_OURS = "import jax, jax.numpy as jnp, aa_flax\nfrom flax import nnx\njax.devices()"
_COMPILE = """
model = aa_flax.create_model({spec!r}, rngs=nnx.Rngs(0))
model.eval()
graph, state = nnx.split(model)
forward = jax.jit(lambda state, x: nnx.merge(graph, state)(x))
x = jnp.zeros((1, {size}, {size}, 3))
"""
_CACHE = """
jax.config.update("jax_compilation_cache_dir", {cache!r})
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
"""
_FIRST = "forward(state, x).block_until_ready()"
# The trainer's update as it compiles it: for the device's platform alone, of arrays that need not exist.
_UPDATE = """
import optax
from aa_flax.platforms import platform_of
from train.fit.step import StepOptions, initial_state, make_train_step, split_model
graph, params, stats = split_model(nnx.eval_shape(lambda: aa_flax.create_model({spec!r}, rngs=nnx.Rngs(0))))
optimizer = optax.sgd(0.1, momentum=0.9)
def prepare(images, step):
    return images.astype(jnp.float32)
update = make_train_step(graph, optimizer, lambda step: jnp.float32(0.1), prepare, StepOptions())
state = jax.eval_shape(lambda params, stats: initial_state(params, stats, optimizer), params, stats)
images = jax.ShapeDtypeStruct(({batch}, {size}, {size}, 3), jnp.uint8)
batch = {{"image": images, "label": jax.ShapeDtypeStruct(({batch},), jnp.int32)}}
def lower():
    with aa_flax.traced_for(platform_of(jax.devices()[0])):
        return jax.jit(update, donate_argnums=0).lower(state, batch)
"""
_REFERENCE = "import antialiased_cnns"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Common):
    """Times fresh processes; seconds, medians over `--rounds`. Those of the processor cores say something on a busy
    machine too."""

    model: str = "resnet50_lpf4"
    """Network that is created and compiled."""

    update: str = "densenet121_lpf4"
    """Network whose update is traced and compiled."""

    image_size: int = 224
    """Height and width of the image."""

    update_size: int = 64
    """Height and width of the update's images."""

    batch: int = 8
    """The update's images."""


def run(config: Config) -> int:
    """Measures every step; see `Config`."""
    if config.smoke:
        config = dataclasses.replace(
            config, model="resnet18_lpf4", update="resnet18_lpf4", image_size=32, update_size=32, rounds=1
        )
    report = Report("startup", config.output)
    reason = peers.missing() if config.torch else "PyTorch's part was left out: --no-torch"
    if reason:
        report.note(reason)
    with tempfile.TemporaryDirectory() as cache:
        for step, before, timed in _steps(config, cache, with_torch=reason is None):
            seconds, busy = zip(*(_seconds(before, timed, config) for _ in range(config.rounds)), strict=True)
            row = {"step": step, "seconds": statistics.median(seconds), "low": min(seconds), "high": max(seconds)}
            row["CPU seconds"] = statistics.median(busy)
            report.add("Seconds in a fresh process", row)
    print(report.markdown())
    return 0


def _steps(config: Config, cache: str, *, with_torch: bool) -> list[tuple[str, str, str]]:
    create = f"aa_flax.create_model({config.model!r}, rngs=nnx.Rngs(0))"
    compiling = _OURS + _COMPILE.format(spec=config.model, size=config.image_size)
    updating = _OURS + _UPDATE.format(spec=config.update, size=config.update_size, batch=config.batch)
    cached = compiling + _CACHE.format(cache=cache)
    steps = [
        ("import jax and flax.nnx", "", "import jax; from flax import nnx"),
        ("import aa_flax", "", "import aa_flax"),
        (f"create {config.model}", _OURS, create),
        ("first call: compile", compiling, _FIRST),
        ("first call: compile, filling the cache", cached, _FIRST),
        ("first call: out of the cache", cached, _FIRST),
        (f"update of {config.update}: trace", updating, "lower()"),
        (f"update of {config.update}: compile", updating + "lowered = lower()", "lowered.compile()"),
    ]
    name = config.model.rsplit("_lpf", 1)[0]
    if with_torch and hasattr(peers.reference(), name):
        # The reference downloads nothing and initialises as ours does.
        create = f"antialiased_cnns.{name}(pretrained=False)"
        steps.append(("import the reference", "", _REFERENCE))
        steps.append((f"create the reference's {name}", _REFERENCE, create))
    return steps


def _seconds(before: str, timed: str, config: Config) -> tuple[float, float]:
    code = _TIMED.format(root=str(Path(__file__).resolve().parents[1]), before=before, timed=timed)
    # A cache of the caller's would hide what is timed here.
    env = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    if done.returncode:
        raise ValueError(f"a step of the benchmark failed: {done.stderr.strip().splitlines()[-1]}")
    passed, busy = map(float, done.stdout.split()[-2:])
    return passed, busy
