"""Work in cells: what a killed process leaves, what a budget lets begin, what is expected of the rest."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.cells import BudgetSpent, Deadline, Ledger, append_line, read

ROOT = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Brick:
    """A cell that takes as many seconds as it has epochs, and four more to compile."""

    name: str
    seed: int
    epochs: int = 10
    colour: str = "red"

    @property
    def kind(self) -> str:
        return self.name


class Clock:
    """Time that passes when somebody works."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def line(brick: Brick, seconds: float) -> dict:
    return {**dataclasses.asdict(brick), "train_seconds": seconds - 1, "measure_seconds": 1.0}


def bricks(*names: str, seeds: int = 2) -> list[Brick]:
    return [Brick(name=name, seed=seed) for name in names for seed in range(seeds)]


@given(lines=st.lists(st.dictionaries(st.text(), st.text() | st.integers()), min_size=1, max_size=4), data=st.data())
def test_a_write_that_was_cut_anywhere_loses_no_earlier_line(tmp_path_factory, lines, data):
    path = tmp_path_factory.mktemp("cut") / "runs.jsonl"
    for each in lines:
        append_line(path, each)
    whole = path.read_bytes()
    last = len(whole) - len(whole.splitlines(keepends=True)[-1])
    path.write_bytes(whole[: data.draw(st.integers(last, len(whole)))])
    survived = lines[:-1] if path.read_bytes() not in (whole, whole[:-1]) else lines
    append_line(path, {"after": 1})
    assert [json.loads(text) for text in path.read_text().splitlines()] == [*survived, {"after": 1}]


def test_cells_are_read_past_a_line_without_an_end(tmp_path):
    path, (one, two) = tmp_path / "runs.jsonl", bricks("a")
    append_line(path, line(one, 5.0))
    with path.open("a") as file:
        file.write(json.dumps(line(two, 5.0))[:-9])
    assert [*read(path, Brick)] == [one]


def test_fields_with_defaults_may_be_missing_in_older_lines(tmp_path):
    path = tmp_path / "runs.jsonl"
    append_line(path, {"name": "a", "seed": 0, "measure_seconds": 1.0})
    assert [*read(path, Brick)] == [Brick(name="a", seed=0)]


WRITER = """
from pathlib import Path
from examples.cells import append_line
number = 0
while True:
    append_line(Path({path!r}), {{"number": number, "text": "x" * 200_000}})
    number += 1
    if number == 3:
        print("three", flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_a_process_killed_while_it_writes_leaves_a_readable_file(tmp_path):
    path = tmp_path / "runs.jsonl"
    command = [sys.executable, "-c", WRITER.format(path=str(path))]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    append_line(path, {"number": "last"})
    *numbers, last = [json.loads(text)["number"] for text in path.read_text().splitlines()]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) >= 3
    assert last == "last"


def test_what_does_not_fit_gives_way_to_what_does_and_the_next_call_goes_on(tmp_path):
    clock, path = Clock(), tmp_path / "runs.jsonl"
    made = []

    def make(brick: Brick) -> dict:
        made.append(str(brick.name))
        seconds = {"dear": 50.0, "cheap": 10.0}[brick.name]
        clock.now += seconds
        return line(brick, seconds)

    history = tmp_path / "others.jsonl"
    append_line(history, line(Brick(name="dear", seed=7, epochs=5), 25.0))
    append_line(history, line(Brick(name="cheap", seed=7, epochs=5), 5.0))
    wanted = bricks("dear", "cheap")
    Ledger(Brick, path, wanted, like=[history]).make_all(make, Deadline(65.0, clock))
    assert made == ["dear", "cheap"]
    assert clock.now == 160.0
    again = Ledger(Brick, path, wanted, like=[history])
    assert again.missing == [wanted[1], wanted[3]]
    again.make_all(make, Deadline(None, clock))
    assert made == ["dear", "cheap", "dear", "cheap"]
    assert len(read(path, Brick)) == len(path.read_text().splitlines()) == 4
    assert not again.missing


def test_a_spent_budget_ends_the_run_that_is_on_its_way_and_keeps_the_others(tmp_path, capsys):
    clock, path = Clock(), tmp_path / "runs.jsonl"
    deadline = Deadline(25.0, clock)

    def make(brick: Brick) -> dict:
        for _ in range(brick.epochs):
            clock.now += 1
            deadline.check()
        return line(brick, 10.0)

    wanted = bricks("a", "b")
    wanted[2] = Brick(name="b", seed=0, epochs=1000)
    append_line(path, line(Brick(name="b", seed=5, epochs=1000), 1.0))
    Ledger(Brick, path, wanted).make_all(make, deadline)
    assert [*read(path, Brick)][1:] == wanted[:2]
    assert clock.now == 126.0
    assert "2 runs are missing, 3 are there" in capsys.readouterr().out
    with pytest.raises(BudgetSpent):
        deadline.check()


def test_what_is_expected(tmp_path):
    path, other = tmp_path / "runs.jsonl", tmp_path / "others.jsonl"
    append_line(other, line(Brick(name="a", seed=0, epochs=10), 14.0))
    append_line(other, line(Brick(name="a", seed=1, epochs=10), 10.0))
    append_line(other, line(Brick(name="huge", seed=0, epochs=10), 5010.0))
    append_line(other, line(Brick(name="huge", seed=1, epochs=10), 10.0))
    wanted = [Brick(name=name, seed=seed, epochs=30) for name in ("a", "huge", "new") for seed in range(2)]
    ledger = Ledger(Brick, path, wanted, like=[other], guess=7.0)
    # A second an epoch, four to compile; more than 160 only where others were at work; of others the mean of all.
    assert [seconds for _, seconds in ledger.rows()] == [34.0, 30.0, 190.0, 30.0, 1261.0, 1261.0]
    ledger.add(wanted[0], line(wanted[0], 60.0))
    assert [seconds for _, seconds in ledger.rows()] == [60.0, 190.0, 30.0, 60.0, 60.0]
    assert Ledger(Brick, tmp_path / "none.jsonl", wanted, guess=7.0).rows()[0] == (wanted[0], 7.0)
    assert Ledger(Brick, tmp_path / "none.jsonl", wanted).rows()[0] == (wanted[0], None)
