"""Whole runs: continued bit for bit after every way to die, repeated, exported, refused with one line."""

import json
import resource
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from aa_flax.models import mobilenet
from aa_flax.weights.store import load_pretrained, read_config, save_pretrained
from tests.small_train import shrink
from tests.training_runs import (
    SMALL,
    STEPS,
    assert_losses_agree,
    assert_same_arrays,
    final_arrays,
    finish,
    killed,
    lines,
    losses,
    start,
    start_pair,
    wait_until_stopped,
)
from train.__main__ import main
from train.fit.storage import TEMPORARY
from train.fit.validation import Validator


@pytest.fixture
def small_network(monkeypatch):
    """The small network in this process too."""
    stages = mobilenet.STAGES
    shrink()
    yield
    mobilenet.STAGES = stages


def test_a_run_killed_stopped_and_damaged_ends_as_the_undisturbed_one(tmp_path, cache, undisturbed):
    run_dir = tmp_path / "run"
    words = (*SMALL, "--run-dir", str(run_dir), "--checkpoint-every", "3")

    killed(*words, stop_at="save 2", cache=cache)
    assert list((run_dir / "checkpoints").glob(f"*{TEMPORARY}"))

    process = start(*words, cache=cache, stop_at="step 13")
    wait_until_stopped(process)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    output = finish(process)
    assert "stopped by SIGTERM at step" in output
    assert "The same command continues." in output

    newest = max((run_dir / "checkpoints").iterdir(), key=lambda path: int(path.name) if path.name.isdigit() else -1)
    file = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)

    output = finish(start(*words, cache=cache))
    assert f"checkpoint of step {newest.name} is damaged" in output
    assert "continuing from step" in output
    assert_same_arrays(final_arrays(run_dir), final_arrays(undisturbed))
    assert losses(run_dir) == losses(undisturbed)
    assert [line["step"] for line in lines(run_dir, "validation")] == [8, 16, 24]


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(tmp_path, cache, undisturbed):
    for process in start_pair(tmp_path / "run", cache=cache, devices=1):
        finish(process)
    assert_losses_agree(tmp_path / "run", undisturbed)


def test_the_record_beside_a_run_repeats_it_once_the_disk_has_room(tmp_path, cache, undisturbed):
    record = json.loads((undisturbed / "config.json").read_text())
    assert record["config"]["batch"] == 32
    assert record["dataset"]["num_classes"] == 10
    environment = record["environment"]
    assert environment["devices"] == ["cpu 0"]
    assert environment["packages"]["jax"] == jax.__version__
    assert {"git", "command", "python", "started"} <= environment.keys()

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))

    run_dir = tmp_path / "again"
    words = ("fit", "--config", str(undisturbed / "config.json"), "--run-dir", str(run_dir))
    output = finish(start(*words, cache=cache, preexec_fn=limit), code=2)
    message = output.strip().splitlines()[-1]
    assert message.startswith(f"error: checkpoint could not be written to {run_dir}/checkpoints: File too large")
    assert "Traceback" not in output
    assert not list((run_dir / "checkpoints").iterdir())
    # With room again, the same command goes on.
    finish(start(*words, cache=cache))
    assert losses(run_dir) == losses(undisturbed)
    assert_same_arrays(final_arrays(run_dir), final_arrays(undisturbed))


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, cache, undisturbed):
    run_dir = shutil.copytree(undisturbed, tmp_path / "run")
    hopeless = ("--optim.lr", "1e30", "--optim.schedule", "constant", "--epochs", "4", "--accept-changes")
    output = finish(start(*SMALL, "--run-dir", str(run_dir), *hopeless, cache=cache), code=2)
    message = output.strip().splitlines()[-1]
    assert message.startswith("error: the ")
    assert "at step 26 (learning rate 1e+30)" in message or "at step 27 (learning rate 1e+30)" in message
    assert f"the last good checkpoint is of step {STEPS}" in message
    assert str(run_dir / "checkpoints") in message


@pytest.mark.usefixtures("small_network")
def test_an_exported_run_is_the_network_it_trained(tmp_path, undisturbed, capsys):
    assert main(["export", str(undisturbed), "--output", str(tmp_path / "out"), "--license", "MIT"]) == 0
    assert str(tmp_path / "out") in capsys.readouterr().out
    model = load_pretrained(tmp_path / "out")
    arrays = final_arrays(undisturbed)
    np.testing.assert_array_equal(model.classifier.kernel[...], arrays["params.classifier.kernel"])
    np.testing.assert_array_equal(model.head.bn.var[...], arrays["stats.head.bn.var"])
    config = read_config(tmp_path / "out")
    assert (config.num_classes, config.license, config.source["step"]) == (10, "MIT", STEPS)
    assert config.class_names == tuple(f"class{i}" for i in range(10))
    assert config.preprocessing.crop == 16
    assert config.metrics == json.loads((undisturbed / "validation.json").read_text())[str(STEPS)]


@pytest.mark.usefixtures("small_network")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--weights", "ema"), "--weights ema: the run"),
        (("--checkpoint", "5"), "--checkpoint 5: "),
    ],
)
def test_what_cannot_be_exported_is_refused(tmp_path, undisturbed, capsys, options, message):
    assert main(["export", str(undisturbed), "--output", str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_directory_without_a_run_is_not_exported(tmp_path, capsys):
    assert main(["export", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    assert "config.json cannot be read: No such file" in capsys.readouterr().err


@pytest.mark.usefixtures("small_network")
def test_an_export_replaces_weights_only_when_told_to(tmp_path, undisturbed, capsys):
    words = ["export", str(undisturbed), "--output", str(tmp_path / "out")]
    assert main(words) == 0
    assert main(words) == 2
    assert "--output" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0


def refused(words, capsys) -> str:
    """The one line that a command ends with, and its exit code 2; what is to be trained may have been said before."""
    assert main(["fit", *words]) == 2
    *opening, error = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert not opening or (len(opening) == 1 and "· compiling" in opening[0]), opening
    return error


def test_bad_data_are_refused_with_one_line(tmp_path, capsys):
    run = ("--run-dir", str(tmp_path / "run"))
    missing = tmp_path / "missing"
    assert str(missing / "train") in refused(["--data.name", "imagenet", "--data.dir", str(missing), *run], capsys)
    for split in ("train", "val"):
        (tmp_path / "empty" / split / "cat").mkdir(parents=True)
    assert "no images" in refused(["--data.name", "imagenet", "--data.dir", str(tmp_path / "empty"), *run], capsys)
    assert "--data.dir is needed" in refused(["--data.name", "cifar10", *run], capsys)
    few = ["--data.name", "synthetic", "--data.synthetic-size", "8", "--batch", "64"]
    assert "8 training images, fewer than one batch of 64" in refused([*few, *run], capsys)
    assert not (tmp_path / "run").exists()


def test_a_run_directory_that_cannot_be_written_to_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "file/run cannot be written to" in refused(["--run-dir", str(tmp_path / "file" / "run")], capsys)


def test_devices_that_cannot_share_the_batch_are_refused(tmp_path, capsys):
    assert "60, which 8 devices" in refused(["--batch", "60", "--run-dir", str(tmp_path / "run")], capsys)


@pytest.mark.usefixtures("small_network")
def test_weights_that_do_not_fit_are_refused(tmp_path, capsys):
    from flax import nnx

    import aa_flax

    model = aa_flax.create_model("mobilenet_v2_plain", num_classes=7, width_mult=0.25, rngs=nnx.Rngs(0))
    save_pretrained(model, tmp_path / "weights")
    words = ["mobilenet_v2_lpf4", "--net.width-mult", "0.25", "--data.name", "synthetic", "--data.image-size", "16"]
    words += ["--preset", "digits", "--init", str(tmp_path / "weights"), "--run-dir", str(tmp_path / "run")]
    assert "has 7 classes, the data have 10: add --new-head" in refused(words, capsys)
    assert "does not fit" in refused([*words, "--new-head", "--net.width-mult", "0.5"], capsys)
    missing = [*words[:-4], "--init", str(tmp_path / "nothing"), *words[-2:]]
    assert f"--init {tmp_path / 'nothing'}" in refused(missing, capsys)
    (tmp_path / "a run" / "checkpoints").mkdir(parents=True)
    of_a_run = [*words[:-4], "--init", str(tmp_path / "a run"), *words[-2:]]
    assert f"export its weights first: python -m train export '{tmp_path}/a run'" in refused(of_a_run, capsys)
    assert not (tmp_path / "run").exists()


IN_PROCESS = [*SMALL, "--epochs", "1", "--data.augment", "standard"]


@pytest.mark.slow
@pytest.mark.usefixtures("small_network")
def test_data_on_the_devices_train_as_the_loader_does(tmp_path):
    options = ["--accumulate", "2", "--bn-group", "4", "--optim.ema", "0.9", "--optim.label-smoothing", "0.1"]
    assert main([*IN_PROCESS, *options, "--run-dir", str(tmp_path / "loader")]) == 0
    options += ["--on-device", "--log.every", "9", "--profile", "2"]
    assert main([*IN_PROCESS, *options, "--run-dir", str(tmp_path / "device")]) == 0
    # Traced at the end of a run too short for more, between updates that are otherwise made in one call.
    assert list((tmp_path / "device" / "profile").rglob("*.xplane.pb"))
    found, expected = lines(tmp_path / "device"), losses(tmp_path / "loader")
    assert [line["step"] for line in found] == [8]
    np.testing.assert_allclose(found[0]["loss"], np.mean(expected), rtol=1e-5)
    assert main(["export", str(tmp_path / "loader"), "--output", str(tmp_path / "out")]) == 0
    assert read_config(tmp_path / "out").source["weights"] == "ema"
    arrays = final_arrays(tmp_path / "loader")
    exported = load_pretrained(tmp_path / "out").classifier.kernel[...]
    np.testing.assert_array_equal(exported, arrays["ema.params.classifier.kernel"])
    assert np.abs(exported - arrays["params.classifier.kernel"]).max() > 0


@pytest.mark.slow
@pytest.mark.usefixtures("small_network")
@pytest.mark.parametrize("name", ["lars", "lamb", "adamw"])
def test_every_optimiser_and_augmentation_goes_on_bit_for_bit(tmp_path, name):
    words = [*IN_PROCESS, "--optim.name", name, "--optim.schedule", "constant"]
    words += ["--optim.loss", "bce", "--optim.bce-threshold", "0.2", "--optim.scale-lr-to", "64"]
    words += ["--data.auto-augment", "trivial", "--data.random-erase", "0.5", "--data.mixup", "0.2"]
    words += ["--data.cutmix", "1", "--data.train-size", "12"]
    assert main([*words, "--epochs", "2", "--run-dir", str(tmp_path / "whole")]) == 0
    assert main([*words, "--run-dir", str(tmp_path / "parts")]) == 0
    assert main([*words, "--epochs", "2", "--accept-changes", "--run-dir", str(tmp_path / "parts")]) == 0
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert_same_arrays(final_arrays(tmp_path / "parts"), final_arrays(tmp_path / "whole"))
    # 0.005 for a batch of 64, after one epoch of warm-up.
    assert [line["lr"] for line in lines(tmp_path / "whole")][7:] == pytest.approx([0.0025] * 9)


@pytest.mark.usefixtures("small_network")
def test_a_run_whose_directory_is_removed_goes_on_in_a_new_one_that_can_be_exported(tmp_path, monkeypatch, capsys):
    run_dir = tmp_path / "run"
    validate = Validator.__call__

    def after_which_it_is_removed(self, *arguments):
        result = validate(self, *arguments)
        if not (tmp_path / "moved").exists():
            run_dir.rename(tmp_path / "moved")
        return result

    monkeypatch.setattr(Validator, "__call__", after_which_it_is_removed)
    words = [word for word in IN_PROCESS if word != "--log.no-tensorboard"]
    assert main([*words, "--epochs", "3", "--run-dir", str(run_dir)]) == 0
    assert f"{run_dir} was removed while training" in capsys.readouterr().err
    assert (run_dir / "config.json").read_text() == (tmp_path / "moved" / "config.json").read_text()
    assert [line["step"] for line in lines(run_dir)][-8:] == list(range(17, 25))
    assert json.loads((run_dir / "validation.json").read_text()).keys() == {"8", "16", "24"}
    assert list((run_dir / "tensorboard").iterdir())
    assert main(["export", str(run_dir), "--output", str(tmp_path / "out")]) == 0
    assert read_config(tmp_path / "out").source["step"] == STEPS
    # It can be continued too, or rather found to be finished.
    before = (run_dir / "metrics.jsonl").read_text()
    assert main([*words, "--epochs", "3", "--run-dir", str(run_dir)]) == 0
    assert "finished" in "".join(capsys.readouterr())
    assert (run_dir / "metrics.jsonl").read_text() == before


@pytest.mark.usefixtures("small_network")
def test_bfloat16_on_grey_keeps_float32_weights_and_writes_logs_and_a_trace(tmp_path):
    words = [word for word in IN_PROCESS if word != "--log.no-tensorboard"]
    options = ["--dtype", "bfloat16", "--profile", "2", "--epochs", "2", "--remat", "keep_convs"]
    options += ["--net.in-channels", "1"]
    assert main([*words, *options, "--run-dir", str(tmp_path / "run")]) == 0
    found = losses(tmp_path / "run")
    assert found[-1] < found[0]
    arrays = final_arrays(tmp_path / "run")
    assert {array.dtype.name for array in arrays.values()} <= {"float32", "int32"}
    assert arrays["params.stem.conv.kernel"].shape[2] == 1
    assert main(["export", str(tmp_path / "run"), "--output", str(tmp_path / "out")]) == 0
    config = read_config(tmp_path / "out")
    assert (config.in_channels, config.preprocessing.mean, config.preprocessing.std) == (1, (0.5,), (0.5,))
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    line = lines(tmp_path / "run")[-1]
    assert {"loss", "accuracy", "lr", "grad_norm", "epoch", "images_per_second", "data_wait"} <= line.keys()


@pytest.fixture
def never_trained(tmp_path) -> Path:
    """Weights whose BatchNorm statistics are no images'."""
    from flax import nnx

    import aa_flax

    model = aa_flax.create_model("mobilenet_v2_lpf3", num_classes=10, width_mult=0.25, rngs=nnx.Rngs(3))
    return save_pretrained(model, tmp_path / "weights")


@pytest.mark.usefixtures("small_network")
def test_statistics_that_are_no_images_are_told_and_taken_anew(tmp_path, never_trained, capsys):
    words = [*IN_PROCESS, "--init", str(never_trained), "--optim.lr", "1e-9", "--optim.weight-decay", "0"]
    assert main([*words, "--recalibrate-bn", "2", "--run-dir", str(tmp_path / "anew")]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "statistics are now those of 2 batches of training images; " in told
    assert "folded layers still compute what they did" in told
    assert "classes have" not in told
    # Weights that do not move do not learn, and that is told too.
    assert "the loss is still that of guessing, ln(10) = 2.3026: nothing is learned so far." in told
    # The scale is that of the two batches, the variance has followed eight others.
    arrays = final_arrays(tmp_path / "anew")
    first = arrays["params.head.bn.scale"]
    np.testing.assert_allclose(first, np.sqrt(arrays["stats.head.bn.var"] + 1e-5), rtol=0.5)


@pytest.mark.usefixtures("small_network")
def test_what_the_weights_said_goes_through_every_step(tmp_path, never_trained, capsys):
    """Licence and origin into the export and on, the classifier in the order of the data's classes."""
    names = [f"class{i}" for i in reversed(range(10))]
    before = load_pretrained(never_trained)
    source = {"file": "x.pth"}
    given = save_pretrained(before, tmp_path / "given", class_names=names, license="CC BY-NC-SA 4.0", source=source)
    words = [*IN_PROCESS, "--init", str(given), "--optim.lr", "1e-9", "--optim.weight-decay", "0"]
    assert main([*words, "--run-dir", str(tmp_path / "run")]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "images of mean 0.485, 0.456, 0.406, the data are prepared with 0.5, 0.5, 0.5: training has to undo" in told
    assert "its classes in another order: its classifier is put into that of the data" in told
    kernel = final_arrays(tmp_path / "run")["params.classifier.kernel"]
    np.testing.assert_allclose(kernel, before.classifier.kernel[...][:, ::-1], atol=1e-6)
    # The weights may be gone by now.
    shutil.rmtree(given)
    assert main(["export", str(tmp_path / "run"), "--output", str(tmp_path / "out"), "--license", "MIT"]) == 0
    assert "licence CC BY-NC-SA 4.0: inherited" in capsys.readouterr().out
    config = read_config(tmp_path / "out")
    parent = {"model": "mobilenet_v2_lpf3", "license": "CC BY-NC-SA 4.0", "source": source}
    assert (config.license, config.source["parents"], config.source["data"]) == (
        "CC BY-NC-SA 4.0",
        [parent],
        "synthetic",
    )
    assert read_config(save_pretrained(load_pretrained(tmp_path / "out"), tmp_path / "again")) == config


@pytest.mark.usefixtures("small_network")
def test_frozen_normalisations_stay_as_they_are(tmp_path, never_trained, capsys):
    words = [*IN_PROCESS, "--init", str(never_trained), "--net.frozen-bn"]
    assert main([*words, "--run-dir", str(tmp_path / "run")]) == 0
    assert "BatchNorm layers" not in capsys.readouterr().err
    arrays, before = final_arrays(tmp_path / "run"), load_pretrained(never_trained)
    assert not np.array_equal(arrays["params.head.conv.kernel"], before.head.conv.kernel[...])
    for kind, name in (("params", "scale"), ("params", "bias"), ("stats", "mean"), ("stats", "var")):
        np.testing.assert_array_equal(arrays[f"{kind}.head.bn.{name}"], getattr(before.head.bn, name)[...])
    assert main(["export", str(tmp_path / "run"), "--output", str(tmp_path / "out")]) == 0
    assert read_config(tmp_path / "out").options["frozen_bn"] is True
