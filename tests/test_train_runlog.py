"""The written trace of a run: read back by another reader, cut back on resume, and honest about a full disk."""

import json
import logging
import struct
import sys
import types
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event  # type: ignore[attr-defined]

from tests.training_runs import small_files
from train.errors import CommandError
from train.fit.config import LogConfig
from train.fit.runlog import SCORES, RunLog, TensorBoard, read_scores


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
    log.validation(3, dict.fromkeys(SCORES, 75.0))
    # Nothing need be closed for a validated epoch to be on the disk.
    scalars = [(e.step, v.tag, v.simple_value) for e in events(tmp_path) for v in e.summary.value]
    assert scalars[0] == (1, "train/loss", 1.0)
    assert scalars[-4] == (3, "validation/accuracy", 75.0)
    assert len(scalars) == 10
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


def test_damaged_lines_are_left_out_with_a_word_and_a_line_cut_off_without(tmp_path, caplog):
    sound = json.dumps({"kind": "train", "step": 1, "loss": 2.0})
    odd = ['{"kind": "train", "step": "abc"}', '{"kind": 3, "step": 1}', "[1]", "[" * 10_000, "null", '{"step": 1']
    (tmp_path / "metrics.jsonl").write_text("\n".join([sound, *odd]))
    with caplog.at_level(logging.WARNING):
        RunLog(tmp_path, LogConfig(tensorboard=False), step=2, settings={}).close()
    assert (tmp_path / "metrics.jsonl").read_text() == sound + "\n"
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'metrics.jsonl'}: 5 damaged lines left out"
    ]


GOOD = dict.fromkeys(SCORES, 50.0)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"16": {}}, "accuracy is None"),
        ({"16": {**GOOD, "consistency": "high"}}, "consistency is 'high'"),
        ({"16": {**GOOD, "accuracy": float("nan")}}, "accuracy is nan"),
        ({"16": [1]}, "no attribute"),
        ({"abc": GOOD}, "invalid literal"),
        ([GOOD], "no attribute"),
    ],
)
def test_damaged_scores_are_refused_with_what_to_do(tmp_path, content, problem):
    (tmp_path / "validation.json").write_text(json.dumps(content))
    with pytest.raises(CommandError, match=f"is damaged .*{problem}.*; delete it to go on without"):
        read_scores(tmp_path)
    (tmp_path / "validation.json").write_text(json.dumps({"16": GOOD}))
    assert read_scores(tmp_path) == {16: GOOD}


def test_wandb_gets_a_name_of_its_own_for_each_directory_and_the_same_again(tmp_path, monkeypatch):
    class Error(Exception):
        pass

    started = []
    fake = types.SimpleNamespace(Error=Error, init=lambda **options: started.append(options))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for place in ("a", "b", "a"):
        (tmp_path / place / "run").mkdir(parents=True, exist_ok=True)
        RunLog(tmp_path / place / "run", LogConfig(tensorboard=False, wandb="project"), step=0, settings={}).close()
    assert [options["name"] for options in started] == ["run"] * 3
    one, other, again = [options["id"] for options in started]
    assert one == again != other

    def refuse(**options):
        raise Error("api_key not configured (no-tty).\nCall wandb.login()")

    fake.init = refuse
    with pytest.raises(CommandError, match=r"^--log\.wandb project: api_key not .* `wandb login`, or set WANDB_MODE="):
        RunLog(tmp_path / "a" / "run", LogConfig(tensorboard=False, wandb="project"), step=0, settings={})
