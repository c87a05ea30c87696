"""Presets, the command line, checks before anything starts, and the record beside a run."""

import dataclasses
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.zoo import TIMM, ZHANG
from train.data import DataConfig
from train.errors import CommandError
from train.fit.command import parse
from train.fit.config import NetworkConfig, TrainConfig, validate
from train.fit.distributed import LaunchConfig, check_batch
from train.fit.optim import OptimConfig, learning_rate, lps_temperature, scaled
from train.fit.presets import preset
from train.fit.record import FILE_NAME, Record, differences, plain, read_record, write_record
from train.fit.rundir import claimed, default_run_dir, leave_record, may_continue

# SPEC section 4: learning rate, schedule, weight decay, epochs.
PUBLISHED = {
    **dict.fromkeys(("alexnet", "vgg11", "vgg13", "vgg16", "vgg19"), (0.01, "steps", 0.0001, 90)),
    **{f"vgg{depth}_bn": (0.05, "steps", 1e-4, 90) for depth in (11, 13, 16, 19)},
    **{f"resnet{depth}": (0.1, "steps", 1e-4, 90) for depth in (18, 34, 50, 101, 152)},
    **dict.fromkeys(
        ("resnext50_32x4d", "resnext101_32x8d", "wide_resnet50_2", "wide_resnet101_2"), (0.1, "steps", 0.0001, 90)
    ),
    **{f"densenet{depth}": (0.1, "steps", 1e-4, 90) for depth in (121, 161, 169, 201)},
    "mobilenet_v2": (0.05, "cosine_epochs", 4e-5, 150),
}


def test_every_network_has_its_published_recipe():
    assert sorted(PUBLISHED) == ZHANG
    for name, (lr, schedule, decay, epochs) in PUBLISHED.items():
        config = preset("zhang2019", f"{name}_lpf3")
        optim = config.optim
        assert (optim.lr, optim.schedule, optim.weight_decay, config.epochs) == (lr, schedule, decay, epochs), name
        assert (config.batch, optim.momentum, optim.nesterov, optim.decay_all) == (256, 0.9, False, True), name
        assert config.data.augment == "standard"
        validate(config)


def test_timms_networks_are_trained_as_resnets_are():
    """What timm trained its own with is not told with the weights."""
    for name in TIMM:
        config = preset("zhang2019", name)
        assert (config.optim.lr, config.optim.schedule, config.epochs) == (0.1, "steps", 90)
        validate(config)


def test_fine_tuning_is_a_tenth_of_the_rate_for_sixty_epochs():
    for name, (lr, *_) in PUBLISHED.items():
        config = preset("finetune", name)
        assert config.optim.lr == pytest.approx(lr / 10)
        assert config.epochs == 60
        validate(dataclasses.replace(config, init=f"{name}_plain"))
        with pytest.raises(CommandError, match=f"give --init, for instance a directory .* of a file of {name}"):
            validate(config)


@pytest.mark.parametrize("name", ["zhang2019", "modern", "pod", "rsb_a3", "convnext", "cifar10", "digits"])
def test_every_preset_is_sound_for_every_network(name):
    for network in PUBLISHED:
        for spec in (network, f"{network}_lpf5", f"{network}_plain"):
            config = preset(name, spec)
            assert (config.model, config.preset) == (spec, name)
            validate(config)


def test_recipes_of_papers_have_their_numbers():
    pod, rsb, convnext = preset("pod"), preset("rsb_a3"), preset("convnext")
    for config in (pod, rsb, convnext):
        assert scaled(config.optim, config.batch).lr == config.optim.lr
    assert (pod.batch, pod.optim.name, pod.optim.lr, pod.optim.warmup_epochs) == (32768, "lars", 31.2, 25)
    assert (rsb.batch, rsb.optim.name, rsb.optim.lr, rsb.optim.weight_decay, rsb.epochs) == (
        2048,
        "lamb",
        8e-3,
        0.02,
        100,
    )
    assert (rsb.data.train_size, rsb.data.mixup, rsb.data.cutmix, rsb.optim.loss) == (160, 0.1, 1.0, "bce")
    assert (convnext.model, convnext.optim.name, convnext.optim.lr) == ("convnext_tiny_lpf4", "adamw", 4e-3)
    assert (convnext.batch, convnext.epochs, convnext.data.mixup, convnext.optim.weight_decay) == (4096, 300, 0.8, 0.05)


def test_a_record_from_before_an_option_was_there_still_continues(tmp_path):
    """What it does not name is what was done then."""
    content = {"config": plain(preset("zhang2019", "resnet18_lpf2")), "dataset": {}, "environment": {}}
    for part, names in {
        "optim": ("name", "scale_lr_to", "beta2", "epsilon", "trust_coefficient", "loss", "bce_threshold"),
        "data": ("train_size", "auto_augment", "rand_ops", "rand_magnitude", "random_erase", "mixup", "cutmix"),
        "net": ("stochastic_depth_prob",),
    }.items():
        for name in names:
            del content["config"][part][name]
    (tmp_path / FILE_NAME).write_text(json.dumps(content))
    old = read_record(tmp_path / FILE_NAME).config
    assert differences(old, preset("zhang2019", "resnet18_lpf2")) == []
    assert (old.optim.name, old.optim.loss, old.data.auto_augment, old.data.train_size) == (
        *("sgd", "cross_entropy", "none"),
        None,
    )


def rates(config: OptimConfig, epochs: int, steps: int = 10) -> np.ndarray:
    rate = learning_rate(config, epochs=epochs, steps_per_epoch=steps)
    return np.array([float(rate(step)) for step in range(epochs * steps)])


def test_steps_divide_by_ten_every_thirty_epochs():
    found = rates(OptimConfig(lr=0.1), epochs=90, steps=2)
    expected = np.repeat([0.1, 0.01, 0.001], 60)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_cosine_by_epochs_is_the_reference_formula():
    found = rates(OptimConfig(lr=0.05, schedule="cosine_epochs"), epochs=5, steps=3)
    expected = 0.05 * 0.5 * (1 + np.cos(np.pi * np.repeat(np.arange(5), 3) / 5))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)


def test_warm_up_rises_linearly_into_a_cosine_that_ends_near_zero():
    found = rates(OptimConfig(lr=1.0, schedule="cosine", warmup_epochs=2), epochs=10)
    np.testing.assert_allclose(found[:20], np.arange(1, 21) / 20, rtol=1e-5)
    expected = 0.5 * (1 + np.cos(np.pi * np.arange(80) / 80))
    np.testing.assert_allclose(found[20:], expected, rtol=1e-4, atol=1e-6)


def test_a_warm_up_into_a_parabola_that_ends_near_zero():
    found = rates(OptimConfig(lr=1.0, schedule="polynomial", warmup_epochs=2), epochs=10)
    np.testing.assert_allclose(found[:20], np.arange(1, 21) / 20, rtol=1e-5)
    np.testing.assert_allclose(found[20:], (1 - np.arange(80) / 80) ** 2, rtol=1e-4, atol=1e-6)


def test_a_schedule_may_have_traced_numbers():
    config = OptimConfig(lr=0.2, schedule="cosine", warmup_epochs=2)

    @jax.jit
    def traced(step, epochs, lr, warmup):
        numbers = dataclasses.replace(config, lr=lr, warmup_epochs=warmup)
        return learning_rate(numbers, epochs=epochs, steps_per_epoch=4)(step)

    for warmup in (0.0, 2.0):
        found = [traced(step, 5.0, 0.2, warmup) for step in range(20)]
        expected = rates(dataclasses.replace(config, warmup_epochs=warmup), epochs=5, steps=4)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)


def test_the_temperature_follows_straight_lines():
    config = parse(["--net.downsample", "lps", "--optim.lps-temperature", "1", "1", "3", "0.5", "4", "0.1"], "fit")
    validate(config)
    temperature = lps_temperature(config.optim, steps_per_epoch=10)
    found = [float(temperature(step)) for step in (0, 10, 20, 30, 35, 40, 90)]
    np.testing.assert_allclose(found, [1, 1, 0.75, 0.5, 0.3, 0.1, 0.1], rtol=1e-6)
    assert float(lps_temperature(OptimConfig(), steps_per_epoch=10)(77)) == 1


WRONG = [
    (("--optim.lr", "-1"), "--optim.lr is -1.0, but must be a positive number"),
    (("--optim.lr", "nan"), "--optim.lr is nan"),
    (("--optim.momentum", "1"), "--optim.momentum is 1.0"),
    (("--optim.weight-decay", "-0.1"), "--optim.weight-decay is -0.1"),
    (("--optim.label-smoothing", "1"), "--optim.label-smoothing is 1.0"),
    (("--optim.ema", "1.5"), "--optim.ema is 1.5"),
    (("--optim.ema", "0"), "--optim.ema is 0.0"),
    (("--optim.clip-norm", "0"), "--optim.clip-norm is 0.0"),
    (("--optim.loss", "bce", "--optim.bce-threshold", "1"), "--optim.bce-threshold is 1.0"),
    (("--optim.bce-threshold", "0.2"), "--optim.bce-threshold is for --optim.loss bce"),
    (("--data.random-erase", "1.5"), "--data.random-erase is 1.5; it must be from 0 to 1"),
    (("--data.mixup", "-1"), "--data.mixup is -1.0; it must be 0 (off) or more"),
    (("--data.cutmix", "nan"), "--data.cutmix is nan"),
    (("--optim.warmup-epochs", "99"), "--optim.warmup-epochs is 99.0, but must be from 0 to --epochs (12)"),
    (("--optim.drop-every", "0"), "--optim.drop-every is 0"),
    (("--optim.scale-lr-to", "0"), "--optim.scale-lr-to is 0"),
    (("--optim.beta2", "1"), "--optim.beta2 is 1.0"),
    (("--optim.epsilon", "0"), "--optim.epsilon is 0.0"),
    (("--optim.trust-coefficient", "-1"), "--optim.trust-coefficient is -1.0"),
    (("--optim.name", "lamb", "--optim.nesterov"), "--optim.nesterov is for sgd and lars, not lamb"),
    (("--epochs", "0"), "--epochs is 0, but must be at least 1"),
    (("--batch", "0"), "--batch is 0"),
    (("--accumulate", "0"), "--accumulate is 0"),
    (("--accumulate", "3"), "--accumulate is 3, but must divide --batch (64)"),
    (("--bn-group", "7"), "--bn-group is 7, but must divide the 64 images"),
    (("--bn-group", "0"), "--bn-group is 0"),
    (("--validate-every", "0"), "--validate-every is 0"),
    (("--checkpoint-every", "0"), "--checkpoint-every is 0"),
    (("--log.every", "0"), "--log.every is 0"),
    (("--profile", "-1"), "--profile is -1"),
    (("--seed", "-1"), "--seed is -1"),
    (("--new-head",), "--new-head"),
    (("--recalibrate-bn", "4"), "it needs --init"),
    (("--recalibrate-bn", "0", "--init", "x"), "--recalibrate-bn is 0"),
    (("--recalibrate-bn", "4", "--init", "x", "--net.frozen-bn"), "exclude each other"),
    (("--net.drop-rate", "0.5"), "drop_rate"),
    (("--optim.lps-temperature", "0", "0.5"), "--optim.lps-temperature is for --net.downsample lps"),
    *(
        (
            ("--net.downsample", "lps", "--optim.lps-temperature", *points.split()),
            f"--optim.lps-temperature is {points},",
        )
        for points in ("0 1 5 0", "5 1 2 0.5", "0 1 0 0.5", "0 nan")
    ),
    (("--net.width-mult", "0"), "--net.width-mult is 0.0"),
    (("--coordinator", "localhost:1"), "--coordinator, --num-processes and --process-id need --distributed"),
    (("--distributed", "--coordinator", "localhost:1"), "give all or none"),
    (
        ("--distributed", "--coordinator", "x:1", "--num-processes", "2", "--process-id", "2"),
        "--process-id is 2, but must be from 0 to 1",
    ),
]


@pytest.mark.parametrize(
    ("options", "message"), WRONG, ids=lambda value: " ".join(value) if type(value) is tuple else ""
)
def test_wrong_values_name_their_option(options, message):
    with pytest.raises(CommandError) as caught:
        validate(parse(list(options), "fit"))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_network_lists_close_ones():
    with pytest.raises(CommandError, match="resnet50"):
        parse(["resnet5"], "fit")


@pytest.mark.parametrize(
    "options", [("--optim.lr", "fast"), ("--batch", "1.5"), ("--preset", "nothing"), ("--learn", "1")]
)
def test_what_is_no_value_at_all_ends_with_code_two(options, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(list(options), "fit")
    assert caught.value.code == 2
    assert options[0] in capsys.readouterr().err


def test_options_win_over_the_preset_wherever_they_stand():
    config = parse(["--optim.lr", "0.05", "vgg16_lpf2", "--preset", "zhang2019", "--epochs", "3"], "fit")
    assert (config.model, config.optim.lr, config.epochs, config.optim.weight_decay) == ("vgg16_lpf2", 0.05, 3, 1e-4)
    assert config.optim.schedule == "steps"


def test_the_recipe_follows_from_the_data_unless_it_is_named():
    assert parse([], "fit").preset == "digits"
    assert parse(["resnet18"], "fit").preset == "digits"
    assert parse(["resnet18", "--data.dir", "/data"], "fit").preset == "zhang2019"
    assert parse(["--data.dir", "/data"], "fit").model == "resnet50_lpf4"
    assert parse(["--data.dir", "/data", "--preset", "modern"], "fit").preset == "modern"
    # How data are loaded names none.
    assert parse(["--data.workers", "2"], "fit").preset == "digits"
    assert parse(["--data.name", "digits"], "fit") == preset("digits")
    cifar10 = parse(["--data.name", "tfds_cifar10", "--data.dir", "/data"], "fit")
    assert (cifar10.preset, cifar10.data.name, cifar10.data.image_size) == ("cifar10", "tfds_cifar10", 64)
    assert parse(["--data.name", "synthetic"], "fit").preset == "zhang2019"
    assert parse(["--init", "resnet50_plain", "resnet34_lpf4"], "fit").model == "resnet34_lpf4"


def test_help_shows_the_defaults_of_the_named_preset(capsys):
    with pytest.raises(SystemExit) as caught:
        parse(["mobilenet_v2", "--preset", "zhang2019", "--help"], "fit")
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Passes over the training images. (default: 150)" in text
    assert "[STR]" in text or "MODEL" in text


def record(config: TrainConfig) -> Record:
    return Record(config=config, dataset={"num_classes": 10}, environment={"python": "3"})


def test_the_record_gives_the_configuration_back(tmp_path):
    config = dataclasses.replace(
        preset("modern", "resnet50_lpf3"),
        run_dir=Path("somewhere"),
        bn_group=32,
        net=NetworkConfig(pool_only=False),
        data=DataConfig(name="cifar10", dir=Path("/data")),
        launch=LaunchConfig(distributed=True),
    )
    write_record(tmp_path / FILE_NAME, record(config))
    assert read_record(tmp_path / FILE_NAME) == record(config)


def test_a_run_is_repeated_from_its_record(tmp_path):
    config = dataclasses.replace(preset("cifar10", "resnet18_lpf2"), run_dir=Path("old"), seed=5, profile=3)
    config = dataclasses.replace(config, accept_changes=True, launch=LaunchConfig(distributed=True, process_id=1))
    write_record(tmp_path / "config.json", record(config))
    again = parse(["--config", str(tmp_path / "config.json"), "--epochs", "2"], "fit")
    assert again.epochs == 2
    assert (again.run_dir, again.profile, again.seed, again.model) == (None, 0, 5, "resnet18_lpf2")
    assert (again.accept_changes, again.launch) == (False, LaunchConfig())
    assert differences(config, again) == ["--epochs: 30 -> 2"]
    with pytest.raises(CommandError, match="leave --preset out"):
        parse(["--preset", "modern", "--config", str(tmp_path / "config.json")], "fit")
    with pytest.raises(CommandError, match="leave resnet50 out"):
        parse(["resnet50", "--config", str(tmp_path / "config.json")], "fit")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("config", "epochs"), "many", "epochs is 'many', but must be of type int"),
        (("config", "epochs"), True, "epochs is True"),
        (("config", "optim", "lr"), None, "lr is None"),
        (("config", "optim", "schedule"), "zigzag", "schedule is 'zigzag', but must be one of steps"),
        (("config", "optim", "lps_temperature"), 3, "lps_temperature is 3, but must be a list"),
        (("config", "optim", "lps_temperature"), [[0, 1, 2]], "lps_temperature: 0 has 3 entries, but must have 2"),
        (("config", "optim", "lps_temperature"), [[0, "x"]], "lps_temperature: 0: 1 is 'x', but must be of type float"),
        (("config", "surprise"), 1, "unknown field 'surprise'"),
        (("config", "data"), 3, "data: expected an object"),
        (("config", "data", "workers"), -1, "--data.workers is -1"),
        (("dataset",), [1], "dataset: expected an object, found [1]"),
        (("environment",), "linux", "environment: expected an object"),
        (("init",), 3, "init is 3, but must be text"),
        (("dataset", "num_classes"), "ten", "num_classes is 'ten', but must be of type int"),
        (("dataset", "num_classes"), 0, "num_classes is 0, but must be at least 1"),
        (("dataset", "class_names"), [1, 2], "class_names must be text"),
        (("dataset", "preprocessing"), {"crop": "x"}, "preprocessing.crop"),
        (("dataset", "preprocessing"), {"zoom": 1}, "zoom"),
    ],
)
def test_a_damaged_record_names_the_field(tmp_path, path, value, message):
    content = {"config": plain(preset("digits")), "dataset": {}, "environment": {}}
    target = content
    for name in path[:-1]:
        target = target[name]
    target[path[-1]] = value
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(CommandError) as caught:
        read_record(tmp_path / "config.json")
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "[" * 100_000])
def test_what_is_no_record_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CommandError, match=r"config\.json is not"):
        read_record(tmp_path / "config.json")
    with pytest.raises(CommandError, match="No such file"):
        parse(["--config", str(tmp_path / "nothing.json")], "fit")


def test_how_a_run_is_carried_out_is_no_difference():
    base = preset("digits")
    conduct = dataclasses.replace(
        base,
        run_dir=Path("x"),
        on_device=True,
        checkpoint_every=5,
        launch=LaunchConfig(distributed=True),
        data=dataclasses.replace(base.data, workers=3),
        log=dataclasses.replace(base.log, every=1),
    )
    assert differences(base, conduct) == []
    changed = dataclasses.replace(base, batch=32, optim=dataclasses.replace(base.optim, lr=1.0))
    assert differences(base, changed) == ["--batch: 64 -> 32", "--optim.lr: 0.025 -> 1.0"]


def test_another_configuration_may_not_continue_a_run(tmp_path):
    config = preset("digits")
    facts = {"train_images": 10, "num_classes": 10, "preprocessing": {}}
    leave_record(tmp_path, config, facts)
    changed = dataclasses.replace(config, seed=1)
    # Nothing is saved yet, so there is nothing to contradict.
    assert may_continue(tmp_path, changed, facts) == []
    leave_record(tmp_path, changed, facts)
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    with pytest.raises(CommandError, match=r"other options: --seed: 1 -> 0\. Choose another --run-dir"):
        may_continue(tmp_path, config, facts)
    assert read_record(tmp_path / FILE_NAME).config == changed
    with pytest.raises(CommandError, match="data: train_images 10 -> 9"):
        may_continue(tmp_path, changed, {**facts, "train_images": 9})
    with pytest.raises(CommandError, match="--resume never"):
        may_continue(tmp_path, dataclasses.replace(changed, resume="never"), facts)
    assert may_continue(tmp_path, dataclasses.replace(config, accept_changes=True), facts) == ["--seed: 1 -> 0"]
    (tmp_path / FILE_NAME).unlink()
    with pytest.raises(CommandError, match=r"holds checkpoints without the config\.json of the run they belong to"):
        may_continue(tmp_path, config, facts)


def test_a_directory_is_trained_in_by_one_process(tmp_path):
    with (
        claimed(tmp_path / "run"),
        pytest.raises(CommandError, match="another process is training"),
        claimed(tmp_path / "run"),
    ):
        pass
    with claimed(tmp_path / "run"):
        (tmp_path / "run" / "checkpoints").mkdir()
    assert not (tmp_path / "run").exists()
    with claimed(tmp_path / "run"):
        (tmp_path / "run" / "checkpoints" / "mine").mkdir(parents=True)
    assert (tmp_path / "run" / "checkpoints" / "mine").exists()


def test_a_directory_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(CommandError, match=r"--run-dir .*file/run cannot be written to: Not a directory"),
        claimed(tmp_path / "file" / "run"),
    ):
        pass


def test_the_same_command_finds_its_run_again():
    assert default_run_dir(preset("digits")) == Path("runs/mobilenet_v2_lpf4-digits")


@pytest.mark.parametrize(
    ("batch", "accumulate", "devices", "message"),
    [(100, 1, 8, "96 or 104 would do"), (4, 1, 8, "; 8 would do"), (64, 3, 8, "48 or 72 would do")],
)
def test_a_batch_must_be_shared_evenly(batch, accumulate, devices, message):
    with pytest.raises(CommandError, match=message):
        check_batch(batch, accumulate, devices)
    check_batch(64, 2, 8)


@pytest.mark.parametrize("name", ["[base]", "runs/[a-z] x", "a[!b]"])
def test_a_directory_whose_checkpoints_would_be_lost_is_refused(tmp_path, name):
    with pytest.raises(CommandError, match=r"--run-dir .*would be lost.*choose a directory"), claimed(tmp_path / name):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [os.fsdecode(b"caf\xe9"), "caf\udce9/x"])
def test_a_name_that_is_not_utf8_is_refused(tmp_path, name):
    with pytest.raises(CommandError, match=r"names in UTF-8, .* set PYTHONUTF8=1"), claimed(tmp_path / name):
        pass
    assert not list(tmp_path.iterdir())


def test_a_name_that_the_locale_writes_in_other_bytes_is_refused(tmp_path, monkeypatch):
    # As Python does where LC_ALL is en_US.ISO-8859-1.
    monkeypatch.setattr("train.fit.rundir.os.fsencode", lambda path: str(path).encode("latin-1"))
    with pytest.raises(CommandError, match="set PYTHONUTF8=1"), claimed(tmp_path / "é"):
        pass


@pytest.mark.parametrize("name", ["base]", "a*", "b?", "[", "é {x}"])
def test_other_names_are_taken(tmp_path, name):
    with claimed(tmp_path / name):
        assert (tmp_path / name).is_dir()
