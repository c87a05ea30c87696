"""What every test shares: eight simulated devices and the data that lies beside the project."""

import os
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

# Before any backend is used, so that sharding is tested on every machine.
jax.config.update("jax_num_cpu_devices", 8)

# Nearly all time goes into compiling. Programs are kept for the other workers, for the processes that tests start,
# and for the next run; each is compiled without the optimisations that cost more than they save here.
_QUICK = {
    "jax_compilation_cache_dir": str(Path(__file__).parents[1] / ".pytest_cache" / "programs"),
    "jax_persistent_cache_min_compile_time_secs": 0.05,
    "jax_persistent_cache_min_entry_size_bytes": 0,
    "jax_disable_most_optimizations": True,
}
for _name, _value in _QUICK.items():
    jax.config.update(_name, _value)
    os.environ.setdefault(_name.upper(), str(_value))


@pytest.fixture(scope="module", autouse=True)
def _forget_programs() -> Iterator[None]:
    """What one module has compiled is of little use to the next and would fill the memory."""
    yield
    jax.clear_caches()


@pytest.fixture
def optimised() -> Iterator[None]:
    """For tests that compute more than they compile: programs are compiled as a user's are."""
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
