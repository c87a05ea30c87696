"""What every test shares: eight simulated devices and the data that lies beside the project."""

import os
from pathlib import Path

import jax
import pytest

# Before any backend is used, so that sharding is tested on every machine.
jax.config.update("jax_num_cpu_devices", 8)


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
