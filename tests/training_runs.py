"""Small trainings as separate processes, which tests start, kill, continue and compare."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from aa_flax.buckets import AnyPath

ROOT = Path(__file__).resolve().parents[1]
# Three epochs of eight updates on small noise; what they learn is of no interest here. At the preset's rate each update
# would amplify the rounding by which devices differ up to tenfold.
SMALL = (
    *("fit", "mobilenet_v2_lpf3", "--preset", "digits", "--net.width-mult", "0.25", "--optim.lr", "0.005"),
    *("--data.name", "synthetic", "--data.image-size", "16", "--data.synthetic-size", "256"),
    *("--epochs", "3", "--batch", "32", "--log.every", "1", "--log.no-tensorboard"),
)
STEPS = 24


def assert_losses_agree(one: AnyPath, other: AnyPath) -> None:
    """Runs on different numbers of devices or processes have the same losses, but for rounding.

    Sums over more devices round otherwise, and every update makes a difference somewhat larger: from some 1e-7 to
    some 1e-5 over the 24 updates of a network that is fitted to noise.
    """
    epoch = STEPS // 3
    np.testing.assert_allclose(losses(one)[:epoch], losses(other)[:epoch], rtol=0, atol=1e-5)
    np.testing.assert_allclose(losses(one), losses(other), rtol=0, atol=1e-3)


def start(*options: str, cache: Path, devices: int = 1, stop_at: str = "", **popen: Any) -> subprocess.Popen[str]:
    """Starts `python -m train` on the small network.

    Args:
        options: the words of the command line.
        cache: where compiled programs are kept from one process to the next.
        devices: simulated CPU devices.
        stop_at: where it stops itself to be met by `wait_until_stopped`: "step 7" or "save 2", see small_train.py.
        popen: further arguments of `subprocess.Popen`.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "COLUMNS": "120",
        "STOP_AT": stop_at,
    }
    return subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "small_train.py"), *options],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **popen,
    )


def finish(process: subprocess.Popen[str], *, code: int = 0, timeout: float = 300) -> str:
    """Waits for a process; returns what it printed, and fails when it ended otherwise than expected."""
    try:
        output = process.communicate(timeout=timeout)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        output = process.communicate()[0]
        raise AssertionError(f"still running after {timeout} s:\n{output}") from None
    assert process.returncode == code, f"exit code {process.returncode}, expected {code}:\n{output}"
    return output


def lines(run_dir: AnyPath, kind: str = "train") -> list[dict[str, Any]]:
    """The lines of one kind in a run's metrics.jsonl."""
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        return []
    whole = [text for text in path.read_text().splitlines(keepends=True) if text.endswith("\n")]
    return [line for line in map(json.loads, whole) if line["kind"] == kind]


def losses(run_dir: AnyPath) -> list[float]:
    """The training loss of every update, in order; each exactly once."""
    found = lines(run_dir)
    assert [line["step"] for line in found] == list(range(1, len(found) + 1))
    return [line["loss"] for line in found]


def wait_for_step(process: subprocess.Popen[str], run_dir: AnyPath, step: int, timeout: float = 240) -> None:
    """Waits until a run has logged an update."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        found = lines(run_dir)
        if found and found[-1]["step"] >= step:
            return
        assert process.poll() is None, f"ended with code {process.returncode}:\n{process.communicate()[0]}"
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached in {timeout} s")


def wait_until_stopped(process: subprocess.Popen[str]) -> None:
    """Waits for a process that was started with `stop_at`; there it stays until it is killed or sent SIGCONT."""
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status), f"ended before it stopped:\n{process.communicate()[0]}"


def kill(process: subprocess.Popen[str]) -> None:
    """kill -9."""
    process.send_signal(signal.SIGKILL)
    process.communicate()


def killed(*options: str, stop_at: str, cache: Path, devices: int = 1) -> None:
    """A process that dies at a certain moment; the moments are those of `start`."""
    process = start(*options, cache=cache, devices=devices, stop_at=stop_at)
    wait_until_stopped(process)
    kill(process)


def final_arrays(run_dir: AnyPath) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint, read without the trainer."""
    import orbax.checkpoint as ocp
    from etils import epath

    newest = max(int(entry.name) for entry in (run_dir / "checkpoints").iterdir() if entry.name.isdigit())
    state = epath.Path(str(run_dir.absolute() / "checkpoints" / str(newest) / "state"))
    with ocp.StandardCheckpointer() as reader:
        metadata = reader.metadata(state)
        targets = {name: np.empty(leaf.shape, leaf.dtype) for name, leaf in metadata.item_metadata.tree.items()}
        return reader.restore(state, targets)


def assert_same_arrays(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    """Fails, naming the array, unless both hold the same bits."""
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert np.asarray(array).tobytes() == np.asarray(other[name]).tobytes(), name


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """Within it, no file of this process can grow beyond so many bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def free_port() -> int:
    """A TCP port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start_pair(
    run_dir: AnyPath, *options: str, cache: Path, devices: int = 4, words: Sequence[str] = SMALL
) -> list[subprocess.Popen[str]]:
    """Starts two processes on this machine that train together."""
    address = f"127.0.0.1:{free_port()}"
    together = ("--distributed", "--coordinator", address, "--num-processes", "2")
    return [
        start(
            *(*words, "--run-dir", str(run_dir), *together, "--process-id", str(i), *options),
            cache=cache,
            devices=devices,
        )
        for i in range(2)
    ]
