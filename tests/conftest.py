"""What every test shares: eight simulated devices and the data that lies beside the project."""

import gc
import logging
import os
import secrets
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from hypothesis import HealthCheck, settings
from jax._src import compiler
from jax._src.interpreters import partial_eval
from jax._src.lru_cache import LRUCache

import aa_flax
from aa_flax.platforms import platform_of

# Before any backend is used, so that sharding is tested on every machine.
jax.config.update("jax_num_cpu_devices", 8)

# Nearly all time goes into compiling. Programs are kept for the other workers and for the next run, those of processes
# that tests start in a folder of their own; each is compiled without the optimisations that cost more than they save.
_PROGRAMS = Path(__file__).parents[1] / ".pytest_cache" / "programs"
_QUICK = {
    "jax_compilation_cache_dir": str(_PROGRAMS),
    "jax_persistent_cache_min_compile_time_secs": 0,
    "jax_persistent_cache_min_entry_size_bytes": 0,
    "jax_disable_most_optimizations": True,
}
for _name, _value in _QUICK.items():
    jax.config.update(_name, _value)
    os.environ.setdefault(_name.upper(), str(_value))
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(_PROGRAMS / os.environ.get("PYTEST_XDIST_WORKER", "alone"))


def _put_whole(self: LRUCache, key: str, value: bytes) -> None:
    """JAX writes the file where it belongs, and another worker may read half of it."""
    path = Path(self.path, f"{key}-cache")
    if not path.exists():
        half = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        half.write_bytes(value)
        half.replace(path)


LRUCache.put = _put_whole

# XLA's newer way to write loops for the CPU takes two to three times as long to compile as the older one, where it has
# both. JAX takes such options for one program at a time; here they are for all, those of single operations included.
_OLDER_LOOPS = {"xla_cpu_use_fusion_emitters": False}
_compile_options = compiler.get_compile_options


def _quick_options(*args: Any, env_options_overrides: dict[str, Any] | None = None, **kwargs: Any) -> Any:
    options = _OLDER_LOOPS | (env_options_overrides or {})
    return _compile_options(*args, env_options_overrides=options, **kwargs)


# JAX 0.10 looks through the whole trace whenever NNX asks a traced array for its sharding, only to word an error that
# nobody reads: a quarter of the time that it takes to make a network abstractly.
if hasattr(partial_eval.DynamicJaxprTracer, "_origin_msg"):
    partial_eval.DynamicJaxprTracer._origin_msg = lambda self: ""


def _is_known(options: dict[str, Any]) -> bool:
    """Whether this XLA has the options; one that does not, refuses every program."""
    try:
        jax.jit(lambda: 0).lower().compile(options)
    except jax.errors.JaxRuntimeError:
        return False
    return True


if _is_known(_OLDER_LOOPS):
    compiler.get_compile_options = _quick_options


@pytest.fixture(scope="module", autouse=True)
def _forget_programs() -> Iterator[None]:
    """What one module has compiled is of little use to the next and would fill the memory."""
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True)
def _forget_log_handlers() -> Iterator[None]:
    """Commands log to the standard error of their process; what they set up must not outlive the test's."""
    root = logging.getLogger()
    before = root.handlers[:]
    yield
    for handler in root.handlers[:]:
        if handler not in before:
            root.removeHandler(handler)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled programs of the small network, shared by the processes that tests start."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A small run from start to end, in a process of its own, on this disk and one device."""
    from tests.training_runs import SMALL, finish, start

    run_dir = tmp_path_factory.mktemp("undisturbed") / "a base] é"
    output = finish(start(*SMALL, "--run-dir", str(run_dir), cache=cache))
    assert "finished" in output
    assert f"next: python -m train export {shlex.quote(str(run_dir))} --output DIR" in output.splitlines()
    return run_dir


# The same examples on every run, and no limit to the time that one takes: a test fails for what was changed, never by
# chance. `--hypothesis-profile default` draws others.
settings.register_profile("repeated", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("repeated")


def pytest_collection_finish() -> None:
    """What lives on need not be looked through for garbage again and again: that takes a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


# Begun first, as one of these begun last would leave the other worker idle.
_LONG = (
    *("train_slow", "train_fit", "docs", "benchmarks", "models", "meshes", "recorded", "downsample", "reproduce"),
    "evaluate",
)


# Whole commands, pages, files and recorded numbers: they stand on what the other tests hold, and seldom on one version
# of JAX.
_OUTER = {
    *("benchmarks", "buckets", "catalog", "cells", "cifar10_study", "compare", "composition", "consistency"),
    *("consistency_laws", "consistency_views", "convert_cli", "data_decode", "data_loader", "data_sources", "docs"),
    *("download", "equivariance", "evaluate", "explain", "grid", "hub", "inputs", "interactive", "layout"),
    *("local_paths", "mapping", "measurable", "methods_comparison", "names", "preprocess", "promotion"),
    *("published_weights", "recorded", "report", "report_browser", "reproduce", "store", "sweep", "timm_networks"),
    *("torch_reader", "tpu", "train_bucket", "train_config", "video"),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {f"test_{name}": i for i, name in enumerate(_LONG)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))
    for item in items:
        if item.path.stem.removeprefix("test_") in _OUTER:
            item.add_marker(pytest.mark.outer)


@pytest.fixture(scope="module", autouse=True)
def _one_platform(request: pytest.FixtureRequest) -> Iterator[None]:
    """Networks hold the form of their blurs for this platform alone: tracing the others takes longer than all else.

    What is compiled is the same. Modules whose subject the forms are, or the choice between them, are marked
    `every_platform`; so is, unmarked, all that runs as a process of its own.
    """
    if request.node.get_closest_marker("every_platform"):
        yield
        return
    with aa_flax.traced_for(platform_of(jax.devices()[0])):
        yield


@pytest.fixture
def optimised() -> Iterator[None]:
    """For tests that compute more than they compile: programs are optimised as a user's are."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


def shared_folder() -> Path | None:
    """The folder of real photos, CIFAR-10 and a real checkpoint, or None where there is none."""
    beside = Path(os.environ.get("AA_SHARED", Path(__file__).parents[2] / "shared"))
    return beside if (beside / "data").is_dir() else None


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = shared_folder()
    if folder is None:
        message = "no ../shared (or $AA_SHARED) with the photos and the checkpoint"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return folder


@pytest.fixture(scope="session")
def chromium() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    message = "no chromium; on Debian: apt-get install chromium"
    if os.environ.get("CI") == "true" and shutil.which("apt-get"):
        pytest.fail(message)
    pytest.skip(message)
