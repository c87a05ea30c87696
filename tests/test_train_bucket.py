"""A run that lives in a bucket: trained, cut off, continued, exported, measured and trained further."""

import json
import random
import threading
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from aa_flax import bucket_client, load_pretrained, read_config
from aa_flax.buckets import BucketPath
from aa_flax.models import mobilenet
from scripts.kill_test import compare, disturbed
from tests.emulator import BUCKET, emulator
from tests.small_train import shrink
from tests.training_runs import (
    SMALL,
    STEPS,
    assert_losses_agree,
    assert_same_arrays,
    final_arrays,
    finish,
    lines,
    losses,
    start,
    start_pair,
)
from train.__main__ import main
from train.fit.checkpoint import Checkpoints
from train.fit.storage import WHOLE
from train.fit.validation import Validator

WORDS = [word for word in SMALL if word != "--log.no-tensorboard"]


@pytest.fixture(scope="module", autouse=True)
def _server():
    with pytest.MonkeyPatch.context() as patch, emulator() as environment:
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setattr(bucket_client, "_thread", threading.local())
        patch.setattr(mobilenet, "STAGES", mobilenet.STAGES)
        shrink()
        yield


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory) -> Path:
    """A run from start to end on this disk."""
    run_dir = tmp_path_factory.mktemp("disk") / "run"
    assert main([*SMALL, "--run-dir", str(run_dir)]) == 0
    return run_dir


class Cut(Exception):
    """The end of a process, as far as a test has it."""


@pytest.fixture(scope="module")
def in_bucket() -> BucketPath:
    """The same run in a bucket, cut off while it is saved for the second time, and continued to its end."""
    run_dir = BucketPath(f"gs://{BUCKET}/runs/one")
    words, checkpoints = [*WORDS, "--run-dir", str(run_dir)], run_dir / "checkpoints"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", _cut_in_the_middle(Checkpoints.save, checkpoints))
        with pytest.raises(Cut):
            main(words)
    assert [step.name for step in checkpoints.iterdir() if not (step / WHOLE).is_file()] == ["16"]
    assert main([*words, "--profile", "2"]) == 0
    return run_dir


def _cut_in_the_middle(save, checkpoints: BucketPath):
    def cut(self, step, state):
        save(self, step, state)
        if step == 16:
            self.wait()
            (checkpoints / "16" / WHOLE).unlink()
            raise Cut

    return cut


def test_a_run_that_was_cut_off_ends_as_one_on_a_disk(in_bucket, on_disk):
    assert_same_arrays(final_arrays(in_bucket), final_arrays(on_disk))
    assert losses(in_bucket) == losses(on_disk)
    assert [line["step"] for line in lines(in_bucket, "validation")] == [8, 16, 24]
    assert (in_bucket / "validation.json").read_bytes() == (on_disk / "validation.json").read_bytes()
    config = json.loads((in_bucket / "config.json").read_bytes())["config"]
    assert config["run_dir"] == str(in_bucket)
    # The lease is given back, and no part of a log is left.
    names = ["checkpoints", "config.json", "metrics.jsonl", "profile", "tensorboard", "validation.json"]
    assert [path.name for path in in_bucket.iterdir()] == names
    assert len(list((in_bucket / "tensorboard").iterdir())) == 2
    assert any(path.name.endswith(".xplane.pb") for path in (in_bucket / "profile").tree())


def test_tensorboard_reads_what_is_there(in_bucket):
    from tensorboardX.proto.event_pb2 import Event  # type: ignore[attr-defined]

    seen = {}
    for path in (in_bucket / "tensorboard").iterdir():
        content = path.read_bytes()
        while content:
            length = int.from_bytes(content[:8], "little")
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            for value in event.summary.value:
                if value.tag == "train/loss":
                    seen[event.step] = value.simple_value
    np.testing.assert_allclose([seen[step] for step in sorted(seen)], losses(in_bucket), rtol=1e-6)


def test_its_weights_are_exported_and_measured(in_bucket, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("AA_FLAX_CACHE", str(tmp_path / "cache"))
    weights = f"gs://{BUCKET}/weights/one"
    assert main(["export", str(in_bucket), "--output", weights, "--license", "MIT"]) == 0
    assert f"aa_flax.load_pretrained('{weights}')" in capsys.readouterr().out
    arrays = final_arrays(in_bucket)
    np.testing.assert_array_equal(load_pretrained(weights).classifier.kernel[...], arrays["params.classifier.kernel"])
    assert read_config(weights).source["step"] == STEPS
    assert main(["export", str(in_bucket), "--output", weights]) == 2
    assert f"--output {weights}: {weights}: already holds config.json" in capsys.readouterr().err

    rng = np.random.default_rng(0)
    for i in range(4):
        (tmp_path / "val" / f"class{i}").mkdir(parents=True)
        pixels = rng.integers(0, 256, (18, 18, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "val" / f"class{i}" / "photo.png")
    report = f"gs://{BUCKET}/reports/one.json"
    assert main(["evaluate", "--data", str(tmp_path / "val"), "--weights", weights, "--output", report]) == 0
    assert json.loads(BucketPath(report).read_bytes())["repeat"]["options"]["weights"] == weights


@pytest.mark.slow
def test_a_run_starts_from_configuration_and_weights_in_a_bucket(in_bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("AA_FLAX_CACHE", str(tmp_path / "cache"))
    weights, further = f"gs://{BUCKET}/weights/other", f"gs://{BUCKET}/runs/further"
    assert main(["export", str(in_bucket), "--output", weights, "--license", "MIT"]) == 0
    words = ["fit", "--config", f"{in_bucket}/config.json", "--init", weights, "--epochs", "1", "--run-dir", further]
    assert main(words) == 0
    record = json.loads(BucketPath(f"{further}/config.json").read_bytes())
    assert record["config"]["init"] == weights
    assert record["parent"]["license"] == "MIT"


def test_a_damaged_checkpoint_is_set_aside_and_its_step_saved_again(monkeypatch):
    # One name of an emulator is enough.
    monkeypatch.delenv("TENSORSTORE_GCS_HTTP_URL")
    run_dir = BucketPath(f"gs://{BUCKET}/runs/damaged")
    state = {"a": jnp.arange(5000.0), "b": jnp.float32(1)}
    checkpoints = Checkpoints(run_dir / "checkpoints")
    for step in (1, 2, 3):
        checkpoints.save(step, {"a": state["a"] + step, "b": state["b"]})
    checkpoints.close()
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["2", "3"]
    largest = max((run_dir / "checkpoints" / "3").tree(), key=lambda path: path.stat().size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(bytes(content))
    checkpoints = Checkpoints(run_dir / "checkpoints")
    restored = checkpoints.restore(state)
    assert restored is not None
    assert (restored.step, len(restored.damaged)) == (2, 1)
    np.testing.assert_array_equal(restored.state["a"], state["a"] + 2)
    assert (run_dir / "damaged" / "3.0" / WHOLE).is_file()
    checkpoints.save(3, state)
    checkpoints.close()
    again = Checkpoints(run_dir / "checkpoints", read_only=True).restore(state)
    assert again is not None
    assert (again.step, again.damaged) == (3, ())


@pytest.mark.slow
def test_the_network_gone_is_one_line(monkeypatch, capsys, in_bucket):
    validate = Validator.__call__

    def gone(self, *arguments):
        result = validate(self, *arguments)
        monkeypatch.setattr(bucket_client, "_thread", threading.local())
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
        for name in ("FIRST_SECONDS", "ANSWER_SECONDS", "PATIENCE_SECONDS"):
            monkeypatch.setattr(bucket_client, name, 0.1)
        return result

    monkeypatch.setattr(Validator, "__call__", gone)
    words = [*SMALL, "--run-dir", f"gs://{BUCKET}/runs/gone", "--epochs", "1"]
    assert main(words) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"gs://{BUCKET}/runs/gone" in error
    assert "Connect call failed" in error or "the storage service cannot be reached" in error


@pytest.mark.slow
def test_runs_are_killed_and_end_as_the_undisturbed_one(cache, undisturbed):
    chance, moments = random.Random(0), []
    for i in range(4):
        run_dir = BucketPath(f"gs://{BUCKET}/kills/{i}")
        moments.append(disturbed(run_dir, cache, chance, inside_a_save=i % 2 == 1))
        compare(run_dir, undisturbed)
    assert any("while writing" in moment for moment in moments), moments


@pytest.mark.slow
def test_two_processes_share_a_directory_and_a_third_is_refused(cache, undisturbed):
    run_dir = BucketPath(f"gs://{BUCKET}/runs/pair")
    pair = start_pair(run_dir, cache=cache, devices=1)
    while not (run_dir / "config.json").is_file():
        assert all(process.poll() is None for process in pair), [process.communicate()[0] for process in pair]
    output = finish(start(*SMALL, "--run-dir", str(run_dir), cache=cache), code=2)
    assert f"another process is training in it: process {pair[0].pid} of" in output
    for process in pair:
        finish(process)
    assert_losses_agree(run_dir, undisturbed)
    assert not (run_dir / ".lock").exists()
