"""Processes that train together: what they compare before they start, and what is said of those that are missing."""

import dataclasses
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.training_runs import SMALL, finish, free_port, kill, start, start_pair, wait_for_step
from train.data import ArraySource, ImageFolder
from train.data.fingerprint import fingerprint
from train.environment import code
from train.errors import CommandError
from train.fit import agreement
from train.fit.agreement import AgreedError, disagreements, prove_shared, require_same, together
from train.fit.distributed import Watch
from train.fit.heartbeat import silent_processes
from train.fit.optim import OptimConfig
from train.fit.presets import preset
from train.fit.record import OWN, plain, shared_options


@pytest.fixture
def second(monkeypatch):
    """A second process, whose answers a test gives one after the other; None stands for the same as here."""
    answers: list[str | None] = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(agreement, "gather", lambda text: [text, text if (said := answers.pop(0)) is None else said])
    return answers


def test_what_differs_is_named_with_who_has_what():
    told = [{"--lr": 0.1, "--ema": None, "jax": "0.10"} for _ in range(6)]
    assert disagreements(told) == []
    told[1] = {**told[1], "--lr": 0.2}
    told[4] = {"--lr": 0.1, "--ema": 0.9}
    assert disagreements(told) == [
        "--lr is 0.1 in processes 0, 2-5 and 0.2 in process 1",
        "--ema is not given in processes 0-3, 5 and 0.9 in process 4",
        "jax is 0.10 in processes 0-3, 5 and not given in process 4",
    ]


def test_facts_that_differ_are_refused_and_equal_ones_are_not(second):
    second += [None, json.dumps({"--seed": 2})]
    require_same({"--seed": 1}, "Start them alike")
    with pytest.raises(AgreedError, match=r"differ: --seed is 1 in process 0 and 2 in process 1\. Start them alike$"):
        require_same({"--seed": 1}, "Start them alike")


def test_every_option_is_compared_but_those_of_the_process_itself():
    config = preset("digits", None)
    options = shared_options(config)
    names = {name for name, _ in _leaves(plain(config))}
    assert len(options) == len(names - OWN)
    assert names >= OWN
    other = dataclasses.replace(config, run_dir=Path("elsewhere"), optim=OptimConfig(lr=3.0))
    assert [line.split(" is ")[0] for line in disagreements([options, shared_options(other)])][:1] == ["--optim.lr"]
    assert "--run-dir" not in options


def _leaves(tree, prefix=""):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def test_the_code_is_known_by_its_packages_and_its_files(tmp_path):
    found = code()
    assert found["jax"] == jax.__version__
    assert len(found["the code of train and aa_flax"]) == 12
    assert found == code()

    (tmp_path / "train").mkdir()
    known = [found, code(tmp_path)]
    for text in ("x = 1", "x = 2"):
        (tmp_path / "train" / "a.py").write_text(text)
        known.append(code(tmp_path))
    assert len({each["the code of train and aa_flax"] for each in known}) == len(known)


def test_an_action_refused_in_one_process_is_refused_in_all(second):
    second += [None, "--data.dir is missing", ""]
    assert together(lambda: 5) == 5
    with pytest.raises(AgreedError, match=r"^process 1: --data\.dir is missing$"):
        together(lambda: 5)

    def broken() -> None:
        raise PermissionError(13, "Permission denied", "x/y")

    with pytest.raises(AgreedError, match=r"^process 0: x/y: Permission denied$"):
        together(broken)


def test_a_directory_that_another_process_does_not_see_is_refused(second, tmp_path):
    second += [None, None, None]
    prove_shared(tmp_path)
    second += [None, None, ""]
    with pytest.raises(CommandError, match=r"--run-dir .* is not the directory of process 0 in process 1: put it on"):
        prove_shared(tmp_path)
    assert not list(tmp_path.iterdir())


def test_data_are_known_by_names_labels_and_pixels(tmp_path):
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (40, 6, 5, 3), dtype=np.uint8)
    labels = np.arange(40) % 3
    same = fingerprint(ArraySource(pixels, labels, "set"))
    assert fingerprint(ArraySource(pixels.copy(), labels.copy(), "set")) == same
    moved = labels.copy()
    moved[7] = (moved[7] + 1) % 3
    others = [(pixels, moved, "set"), (255 - pixels, labels, "set"), (pixels[:39], labels[:39], "set")]
    assert len({same, *(fingerprint(ArraySource(*other)) for other in others)}) == 4

    for name in ("a/1.png", "a/2.png", "b/é.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels[0]).save(tmp_path / name)
    before = fingerprint(ImageFolder(tmp_path))
    assert fingerprint(ImageFolder(tmp_path)) == before
    (tmp_path / "a/2.png").rename(tmp_path / "a/3.png")
    assert fingerprint(ImageFolder(tmp_path)) != before
    (tmp_path / "a/3.png").write_text("no image")
    assert fingerprint(ImageFolder(tmp_path))


def test_waiting_is_told_as_long_as_nothing_moves(capsys):
    moving = iter(range(10**6))
    with Watch("them", "look after them", sign=lambda: next(moving), patience=0.02):
        time.sleep(0.2)
    assert capsys.readouterr().err == ""
    with Watch("them", "look after them", patience=0.02):
        said = ""
        while "\n" not in said:
            said += capsys.readouterr().err
    assert re.match(r"waiting for them since \d+ s: look after them\n", said)


def test_a_process_is_silent_once_its_sign_is_old():
    heard: dict[str, tuple[str, float]] = {}
    assert silent_processes(heard, [("a/0", "0"), ("a/1", "0")], now=0, timeout=10) == []
    assert silent_processes(heard, [("a/0", "1"), ("a/1", "1")], now=10, timeout=10) == []
    assert silent_processes(heard, [("a/0", "2"), ("a/1", "1"), ("a/12", "0")], now=20, timeout=10) == []
    assert silent_processes(heard, [("a/0", "3"), ("a/1", "1"), ("a/12", "1")], now=21, timeout=10) == ["1"]
    assert silent_processes(heard, [("a/0", "4"), ("a/1", "2"), ("a/12", "1")], now=22, timeout=10) == []


def test_a_missing_process_is_waited_for_and_named():
    program = (
        "import sys; from train.fit.distributed import LaunchConfig, start\n"
        f"start(LaunchConfig(distributed=True, coordinator='127.0.0.1:{free_port()}', num_processes=2, process_id=1,\n"
        "                    start_timeout=1))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[1], capture_output=True, text=True
    )
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: waited 1 s for all 2 processes (this is process 1): see that each is started")
    assert "--start-timeout" in last


@pytest.mark.slow
def test_two_processes_that_differ_are_both_refused_and_leave_nothing(tmp_path, cache):
    for options, said in (
        (("--optim.lr", "0.2"), "--optim.lr is 0.005 in process 0 and 0.2 in process 1"),
        (("--run-dir", str(tmp_path / "other")), "is not the directory of process 0 in process 1"),
        (("--data.name", "imagenet", "--data.dir", "nowhere"), "--data.name is synthetic in process 0 and imagenet"),
    ):
        for process in differing_pair(tmp_path / "run", options, cache):
            last = finish(process, code=2).strip().splitlines()[-1]
            assert last.startswith("error: ")
            assert said in last
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_when_one_process_cannot_go_on_both_end_and_say_why(tmp_path, cache):
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (40, 20, 20, 3), dtype=np.uint8)
    for place in ("one", "other"):
        for i, picture in enumerate(pixels):
            for split in ("train", "val"):
                path = tmp_path / place / split / f"class{i // 20}" / f"{i:02}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(path)
    # Not among those whose pixels are compared.
    (tmp_path / "other" / "train" / "class0" / "01.png").write_text("no image")
    data = ("--data.name", "imagenet", "--data.image-size", "16", "--batch", "8", "--data.max-bad-fraction", "0")
    pair = differing_pair(
        tmp_path / "run",
        ("--data.dir", str(tmp_path / "other")),
        cache,
        both=(*data, "--data.dir", str(tmp_path / "one")),
    )
    said = [finish(process, code=2).strip().splitlines()[-1] for process in pair]
    assert said[0].startswith("error: process 0: another process of this run is gone")
    assert said[1].startswith("error: process 1: 1 of 40 images are unreadable")


def differing_pair(
    run_dir: Path, options: tuple[str, ...], cache: Path, *, both: tuple[str, ...] = ()
) -> list[subprocess.Popen[str]]:
    """Two processes, the second of which has further options."""
    together = ("--distributed", "--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", "2")
    words = (*SMALL, *both, "--run-dir", str(run_dir), *together)
    return [
        start(*words, "--process-id", "0", cache=cache),
        start(*words, "--process-id", "1", *options, cache=cache),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("dead", [0, 1])
def test_when_a_process_dies_the_other_ends_with_a_line(tmp_path, cache, dead):
    pair = start_pair(tmp_path / "run", "--epochs", "500", cache=cache, devices=1)
    wait_for_step(pair[0], tmp_path / "run", 10)
    kill(pair[dead])
    last = finish(pair[1 - dead], code=2).strip().splitlines()[-1]
    assert last.startswith(f"error: process {1 - dead}: another process of this run is gone")
    assert "Start them all again" in last


@pytest.mark.slow
def test_when_a_process_hangs_the_other_names_it(tmp_path, cache):
    pair = start_pair(tmp_path / "run", "--epochs", "500", "--heartbeat-timeout", "30", cache=cache, devices=1)
    wait_for_step(pair[0], tmp_path / "run", 10)
    pair[1].send_signal(signal.SIGSTOP)
    last = finish(pair[0], code=2).strip().splitlines()[-1]
    kill(pair[1])
    assert last.startswith("error: process 0: no sign of life from process 1 for 30 s; all processes end")
