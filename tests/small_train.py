"""`python -m train` with a MobileNetV2 cut down to two blocks, so that a test spends its time on the trainer.

With $STOP_AT the process stops itself, as SIGSTOP does, where a test wants to meet it: "step 7" is when that update has
been logged, "save 2" when the second checkpoint is written but not yet in its place.
"""

import gc
import itertools
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from etils import epath

import aa_flax
from aa_flax.models import mobilenet

SMALL_STAGES = ((1, 16, 1, 1), (6, 24, 1, 2))


def shrink() -> None:
    """Cuts the network down in this process."""
    mobilenet.STAGES = SMALL_STAGES


def stop() -> None:
    """Stops all threads, this one before it does anything else: what is sent to the process may reach another first."""
    signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


def stop_at_step(number: int) -> None:
    from train.fit.runlog import RunLog

    write = RunLog.training

    def write_and_stop(self: RunLog, step: int, values: Any) -> None:
        write(self, step, values)
        if step == number:
            stop()

    RunLog.training = write_and_stop  # type: ignore[method-assign]


def stop_at_save(number: int) -> None:
    rename, write_text, saves = os.rename, epath.Path.write_text, itertools.count(1)

    # In a bucket a checkpoint is in its place once this object is written.
    def stop_and_write(self: epath.Path, *content: Any) -> int:
        if self.name == "commit_success.txt" and self.parent.name.isdigit() and next(saves) == number:
            stop()
        return write_text(self, *content)

    def stop_and_rename(source: Any, target: Any, **options: Any) -> None:
        target = Path(target)
        if target.parent.name == "checkpoints" and target.name.isdigit() and next(saves) == number:
            stop()
        rename(source, target, **options)

    os.rename = stop_and_rename
    epath.Path.write_text = stop_and_write  # type: ignore[method-assign]


if __name__ == "__main__":
    shrink()
    if moment := os.environ.get("STOP_AT"):
        kind, number = moment.split()
        {"step": stop_at_step, "save": stop_at_save}[kind](int(number))
    from train.__main__ import main

    # As tests/conftest.py has it for those that run no process.
    gc.set_threshold(50_000, 20, 20)
    with aa_flax.traced_for("cpu"):
        sys.exit(main())
