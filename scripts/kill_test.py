"""Trains a small network many times, kills each run with kill -9 at a random moment, continues it, compares the bits.

    python -m scripts.kill_test --runs 20
    python -m scripts.kill_test --runs 10 --emulator

Every other run is killed while a checkpoint is being written. The parameters, statistics, momenta and losses at the
end must equal those of a run that nobody disturbed, bit for bit.
"""

import dataclasses
import os
import random
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import tyro

from aa_flax.buckets import AnyPath, BucketPath
from tests.emulator import BUCKET, emulator
from tests.training_runs import (
    SMALL,
    STEPS,
    assert_same_arrays,
    final_arrays,
    finish,
    kill,
    killed,
    lines,
    losses,
    start,
    wait_until_stopped,
)
from train.fit.storage import TEMPORARY, WHOLE, quiet_storage_library
from train.local_paths import Place


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Kill and continue small trainings."""

    runs: int = 20
    """How many."""

    seed: int = 0
    """Of the moments."""

    directory: Place | None = None
    """Where the runs live, such as gs://bucket/kills; a temporary directory when not given."""

    emulator: bool = False
    """They live in a bucket of a storage emulator on this machine."""


def run(config: Config) -> int:
    """Prints a line for each run; 0 when all ended as the undisturbed one."""
    quiet_storage_library()
    chance = random.Random(config.seed)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        root = config.directory or folder
        if config.emulator:
            os.environ.update(stack.enter_context(emulator()))
            root = BucketPath(f"gs://{BUCKET}/kills")
        finish(start(*SMALL, "--run-dir", str(folder / "undisturbed"), cache=folder / "compiled"))
        for i in range(config.runs):
            began = time.monotonic()
            moment = disturbed(root / str(i), folder / "compiled", chance, inside_a_save=i % 2 == 1)
            compare(root / str(i), folder / "undisturbed")
            seconds = time.monotonic() - began
            print(f"run {i + 1:2}/{config.runs}: killed {moment}; continued; equal, {seconds:.0f} s", flush=True)
    print(f"{config.runs} of {config.runs} runs ended bit for bit as the undisturbed one")
    return 0


def disturbed(run_dir: AnyPath, cache: Path, chance: random.Random, *, inside_a_save: bool) -> str:
    """One run, killed once and continued to its end.

    Args:
        run_dir: where it lives.
        cache: compiled programs, to save time.
        chance: picks the moment.
        inside_a_save: kill it while a checkpoint is being written.

    Returns:
        When it was killed, in words.
    """
    words = (*SMALL, "--run-dir", str(run_dir), "--checkpoint-every", "2")
    if inside_a_save:
        killed(*words, stop_at=f"save {chance.randrange(1, STEPS // 2)}", cache=cache)
    else:
        process = start(*words, cache=cache, stop_at=f"step {chance.randrange(1, STEPS - 4)}")
        wait_until_stopped(process)
        process.send_signal(signal.SIGCONT)
        time.sleep(chance.random() * 0.1)
        kill(process)
    half = _half_written(run_dir)
    where = f"after step {_last_step(run_dir)}" + (f", while writing {half[0]}" if half else "")
    finish(start(*words, cache=cache))
    return where


def compare(run_dir: AnyPath, undisturbed: AnyPath) -> None:
    """Fails unless both runs ended with the same bits and had the same losses on the way."""
    assert_same_arrays(final_arrays(run_dir), final_arrays(undisturbed))
    assert losses(run_dir) == losses(undisturbed)


def _last_step(run_dir: AnyPath) -> int:
    found = lines(run_dir)
    return found[-1]["step"] if found else 0


def _half_written(run_dir: AnyPath) -> list[str]:
    """The checkpoints that are being written, or were."""
    checkpoints = run_dir / "checkpoints"
    if isinstance(checkpoints, BucketPath):
        return [step.name for step in checkpoints.iterdir() if not (step / WHOLE).is_file()]
    return [path.name for path in checkpoints.glob(f"*{TEMPORARY}")]


if __name__ == "__main__":
    sys.exit(run(tyro.cli(Config, prog="python -m scripts.kill_test")))
