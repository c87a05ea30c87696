"""The long proofs: many kills, several processes, other numbers of devices (make test-slow)."""

import random

import pytest

from scripts.kill_test import compare, disturbed
from tests.training_runs import (
    SMALL,
    STEPS,
    assert_losses_agree,
    finish,
    kill,
    killed,
    lines,
    losses,
    start,
    start_pair,
    wait_for_step,
)

pytestmark = pytest.mark.slow


def test_runs_are_killed_and_end_as_the_undisturbed_one(tmp_path, cache, undisturbed):
    """Eight; `python -m scripts.kill_test` kills as many as one likes."""
    chance = random.Random(0)
    moments = []
    for i in range(8):
        moments.append(disturbed(tmp_path / str(i), cache, chance, inside_a_save=i % 2 == 1))
        compare(tmp_path / str(i), undisturbed)
    assert sum("while writing" in moment for moment in moments) >= 4, moments


def test_8_and_64_devices_and_two_processes_have_the_losses_of_one_device(tmp_path, cache):
    # An image for each device.
    words = (*SMALL, "--batch", "64", "--data.synthetic-size", "512")
    for devices in (1, 8, 64):
        finish(start(*words, "--run-dir", str(tmp_path / str(devices)), cache=cache, devices=devices))
    for process in start_pair(tmp_path / "pair", cache=cache, words=words):
        finish(process)
    for name in ("8", "64", "pair"):
        assert_losses_agree(tmp_path / name, tmp_path / "1")
        assert len(lines(tmp_path / name, "validation")) == 3


def test_a_run_moves_from_one_device_to_eight_and_back(tmp_path, cache, undisturbed):
    run_dir = tmp_path / "run"
    words = (*SMALL, "--run-dir", str(run_dir), "--checkpoint-every", "2")
    for devices, until in ((1, 6), (8, 14)):
        killed(*words, stop_at=f"step {until}", cache=cache, devices=devices)
    assert "continuing from step" in finish(start(*words, cache=cache))
    assert_losses_agree(run_dir, undisturbed)


def test_two_processes_go_on_exactly_after_one_was_killed(tmp_path, cache):
    for process in start_pair(tmp_path / "undisturbed", cache=cache):
        finish(process)
    run_dir = tmp_path / "run"
    pair = start_pair(run_dir, "--checkpoint-every", "2", cache=cache)
    wait_for_step(pair[0], run_dir, 9)
    kill(pair[1])
    # What a cluster does once one of its processes is gone.
    kill(pair[0])
    for process in start_pair(run_dir, "--checkpoint-every", "2", cache=cache):
        finish(process)
    assert losses(run_dir) == losses(tmp_path / "undisturbed")
    assert len(losses(run_dir)) == STEPS


def test_sigterm_to_one_of_two_processes_stops_both_and_loses_nothing(tmp_path, cache):
    pair = start_pair(tmp_path / "run", "--epochs", "40", cache=cache)
    wait_for_step(pair[0], tmp_path / "run", 20)
    pair[1].terminate()
    outputs = [finish(process) for process in pair]
    assert "stopped by SIGTERM at step" in outputs[0]
    assert any((tmp_path / "run" / "checkpoints").iterdir())


def test_a_reader_that_goes_away_does_not_end_the_run(tmp_path, cache):
    process = start(*SMALL, "--run-dir", str(tmp_path / "run"), cache=cache)
    assert process.stdout is not None
    assert "· compiling" in process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=300) == 0
    assert len(losses(tmp_path / "run")) == STEPS
