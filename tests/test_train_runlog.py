"""The written trace of a run: read back by another reader, cut back on resume, and honest about a full disk."""

import json
import struct
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event  # type: ignore[attr-defined]

from tests.training_runs import small_files
from train.config import LogConfig
from train.runlog import RunLog, TensorBoard


def events(run_dir: Path) -> list[Event]:
    """The records of the TensorBoard files, oldest first: length, its checksum, content, its checksum."""
    found = []
    for path in sorted((run_dir / "tensorboard").iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            found.append(Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    return found


def test_tensorboard_gets_every_scalar_and_forgets_what_is_done_again(tmp_path):
    log = RunLog(tmp_path, LogConfig(), step=0, settings={})
    for step in (1, 2, 3):
        log.training(step, {"loss": 1 / step, "lr": 0.5})
    log.validation(3, {"accuracy": 75.0})
    # Nothing need be closed for a validated epoch to be on the disk.
    scalars = [(e.step, v.tag, v.simple_value) for e in events(tmp_path) for v in e.summary.value]
    assert scalars[0] == (1, "train/loss", 1.0)
    assert scalars[-1] == (3, "validation/accuracy", 75.0)
    assert len(scalars) == 7
    log.close()
    again = RunLog(tmp_path, LogConfig(), step=2, settings={})
    again.close()
    assert [e.step for e in events(tmp_path) if e.HasField("session_log")] == [3]
    kept = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in kept] == [1, 2]


def test_a_full_disk_is_raised_and_does_not_make_the_run_wait(tmp_path):
    board = TensorBoard(tmp_path, 0)

    def write() -> None:
        for step in range(1000):
            board.add(dict.fromkeys("abcdefgh", 1.0), step)

    with small_files(20_000), pytest.raises(OSError, match="File too large"):
        write()
