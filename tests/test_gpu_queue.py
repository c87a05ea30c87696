"""The queue for GPUs: its order, its budget, and what waits for what. Nothing here needs a GPU."""

import json
import os
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.__main__ import main
from benchmarks.gpu import Config, Job, Measurement, chosen_rate, jobs, measure, run_until, work
from benchmarks.options import NINE
from examples.cells import BudgetSpent, Deadline, Ledger, append_line


def made(model: str, taps: int, rate: float, loss: float | None) -> dict:
    run = {"model": model, "filter_size": taps, "augment": "shift", "recipe": "scratch", "seed": 99}
    return run | {"epochs": 20, "batch": 256, "rate": rate, "warmup_epochs": 5, "clip_norm": 1.0, "loss": loss}


def test_the_queue_has_every_cell_of_the_study_once_and_its_order(tmp_path):
    queue = [*jobs(Config(output=tmp_path))]
    assert queue[0].title.startswith("DenseNet-121")
    cells = [(job, cell) for job in queue for cell in job.ledger.missing]
    assert len({cell for _, cell in cells}) == len(cells)
    reported = [cell for _, cell in cells if getattr(cell, "seed", 99) != 99 and hasattr(cell, "epochs")]
    assert {(run.model, run.filter_size, run.seed) for run in reported} == {
        (model, taps, seed) for model in NINE for taps in (0, 4) for seed in range(3)
    }
    assert {(run.epochs, run.augment) for run in reported} == {(20, "shift")}
    assert {run.model for run in reported if run.clip_norm} == {"alexnet", "vgg16"}
    assert [job.title for job in queue if job.waits] == ["alexnet on CIFAR-10", "vgg16 on CIFAR-10"]
    measured = [cell for _, cell in cells if isinstance(cell, Measurement)]
    assert [cell.benchmark for cell in measured] == sorted([c.benchmark for c in measured], key=_order)


def _order(benchmark: str) -> int:
    return ["inference", "training", "convolutions"].index(benchmark)


def test_the_rate_is_that_at_which_the_worse_of_two_networks_learns_most(tmp_path):
    path = tmp_path / "cifar10-rates.jsonl"
    assert chosen_rate(path, "vgg16") is None
    losses = {1.0: (0.1, 0.9), 2.0: (None, 0.01), 0.5: (0.5, 0.4)}
    for rate, pair in losses.items():
        for taps, loss in zip((0, 4), pair, strict=True):
            assert chosen_rate(path, "vgg16") is None
            append_line(path, made("vgg16", taps, rate, loss))
    assert chosen_rate(path, "vgg16") == 0.5
    assert chosen_rate(path, "alexnet") is None
    (waiting, ready) = list(jobs(Config(output=tmp_path)))[5:7]
    assert waiting.waits
    assert ready.waits is None
    assert {run.rate for run in ready.ledger.missing} == {0.5}


def test_jobs_that_fit_run_in_order_and_one_that_fails_does_not_end_the_queue(tmp_path, capsys):
    ran = []

    def job(title: str, seconds: float, code: int = 0, waits: str | None = None) -> Job:
        ledger = Ledger(Measurement, tmp_path / "x.jsonl", [Measurement(benchmark=title, options="")], guess=seconds)
        return Job(title, ledger, lambda deadline: ran.append(title) or code, waits)

    queue = [job("one", 10, code=3), job("long", 90), job("waiting", 1, waits="one"), job("two", 20)]
    assert work(iter(queue), Deadline(100.0, clock=lambda: 0.0)) == 3
    assert ran == ["one", "two"]
    assert "one: ended with exit code 3, the queue goes on" in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="the queue ends jobs by POSIX's signals")
def test_what_does_not_end_is_ended_with_all_it_has_started(tmp_path):
    ids = tmp_path / "ids"
    child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(10**6)"
    code = f"""
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {child!r}])
open({str(ids)!r}, "w").write(f"{{child.pid}} {{os.getpid()}}")
time.sleep(10**6)
"""

    class UntilItRuns(Deadline):
        """A budget that is spent as soon as the command is at work."""

        @property
        def left(self) -> float:
            while not ids.exists() or len(ids.read_text().split()) < 2:
                time.sleep(0.01)
            return 0.0

    with pytest.raises(BudgetSpent):
        run_until([sys.executable, "-c", code], UntilItRuns(None))
    # What was killed is gone when the system comes to it.
    deadline = time.monotonic() + 300
    while any(_runs(int(each)) for each in ids.read_text().split()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _runs(process: int) -> bool:
    """Whether a process is at work; one that has ended and that nobody has asked about is not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_benchmark_is_a_line_and_so_is_its_failure(tmp_path, monkeypatch):
    commands = []

    def ended(command, deadline):
        commands.append(command)
        folder = Path(command[command.index("--output") + 1])
        if "resnet18" in command:
            report = {"name": "x", "facts": {"device": "cpu"}, "tables": {"Forward": [{"ms": 1.5}]}, "notes": []}
            (folder / "inference.json").write_text(json.dumps(report))
            return 0
        return 2

    monkeypatch.setattr(gpu, "run_until", ended)
    good = measure(Measurement(benchmark="inference", options="--models resnet18"), Deadline(9.0), smoke=True)
    assert good["tables"] == {"Forward": [{"ms": 1.5}]}
    assert good["facts"]["device"] == "cpu"
    assert commands[0][-1] == "--smoke"
    bad = measure(Measurement(benchmark="inference", options="--models vgg16"), Deadline(9.0), smoke=False)
    assert bad["failed"] == "exit code 2"
    ledger = Ledger(Measurement, tmp_path / "b.jsonl", [Measurement(benchmark="inference", options="--models vgg16")])
    ledger.add(ledger.missing[0], bad)
    assert not ledger.missing


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "/nowhere"], "--data /nowhere does not exist"),
        (["--data", ".", "--small"], "--small would add to docs/results"),
        (["--data", "gs://bucket/cifar"], "gs://"),
    ],
)
def test_bad_input_is_one_line(words, message, capsys):
    assert main(["gpu", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_processor_alone_is_no_gpu(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu.peers, "missing", lambda: None)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert main(["gpu", "--data", str(tmp_path), "--output", str(tmp_path)]) == 2
    assert "JAX runs on cpu here, and the queue is for GPUs" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_a_dry_run_lists_and_makes_nothing(tmp_path, capsys):
    assert main(["gpu", "--dry-run", "--output", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "DenseNet-121 on CIFAR-10: 6 missing, 0 there" in shown
    assert "alexnet on CIFAR-10: 6 missing, wait for its rate, 0 there" in shown
    assert shown.splitlines()[-1].startswith("in all ")
    assert not [*tmp_path.iterdir()]
