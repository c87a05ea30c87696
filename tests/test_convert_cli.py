"""`convert_weights.py` as a person uses it: what it writes, prints and refuses."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from safetensors.numpy import save_file

import aa_flax.weights.safetensors_file
import aa_flax.weights.store
import convert_weights
from aa_flax.models.variables import variables
from aa_flax.weights import catalog, conversion, names
from aa_flax.weights.config import Preprocessing
from aa_flax.weights.mapping import convert_state_dict
from aa_flax.weights.store import load_pretrained, read_config
from tests.state_files import file_of
from tests.torch_format import storage, tensor, zip_file

TINY = {"depths": (1, 1, 1, 1), "growth_rate": 4, "num_init_features": 8, "num_classes": 5}
TINY_WORDS = [
    "--num-classes", "5",
    "--option", "depths=[1,1,1,1]",
    "--option", "growth_rate=4",
    "--option", "num_init_features=8",
]  # fmt: skip


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A file of the reference's tiny DenseNet, k=4."""
    path = tmp_path / "tiny.safetensors"
    save_file(file_of("densenet121_lpf4", **TINY), path)
    return path


def convert(*words: object) -> int:
    return convert_weights.main([str(word) for word in words])


def test_a_checkpoint(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "deep" / "out"
    assert convert(checkpoint, "--model", "densenet121_lpf4", "--output", out, "--verify", *TINY_WORDS) == 0
    printed = capsys.readouterr()
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert "reference layout, blurs of 4 taps" in printed.out
    assert digest[:16] in printed.out
    assert "5 classes" in printed.out
    assert re.search(r"verified +\d+ tensors", printed.out)
    assert f"converting {checkpoint.name}" in printed.err
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors"]

    config = read_config(out)
    assert (config.model, config.num_classes, config.options["growth_rate"]) == ("densenet121_lpf4", 5, 4)
    assert config.preprocessing.mean == (0.485, 0.456, 0.406)
    assert config.source == {
        "file": checkpoint.name,
        "sha256": digest,
        "layout": "reference",
        "filter_size": 4,
    }
    assert (config.license, config.metrics) == (None, {})
    loaded, expected = (
        load_pretrained(out),
        convert_state_dict(file_of("densenet121_lpf4", **TINY), "densenet121", **TINY),
    )
    for path, variable in variables(expected).items():
        np.testing.assert_array_equal(variables(loaded)[path][...], variable[...], err_msg=path)


def test_a_published_checkpoint_keeps_its_licence_and_figures(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    published = catalog.Published(
        model="densenet121",
        filter_size=4,
        training="finetuned",
        top1=75.79,
        consistency=90.35,
        sha256_prefix=digest[:8],
        license="CC BY-NC-SA 4.0",
        sources=(catalog.Source("https://example.org/densenet121.pth"),),
    )
    monkeypatch.setattr(catalog, "published", lambda: (published,))
    monkeypatch.setattr(names, "fetch", lambda *args: (checkpoint, digest))
    assert convert("--model", "densenet121", "--output", tmp_path / "a", *TINY_WORDS) == 0
    out = capsys.readouterr().out
    assert "finetuned, top1 75.79 %, consistency 90.35 %" in out
    assert "CC BY-NC-SA 4.0" in out
    config = read_config(tmp_path / "a")
    assert config.license == "CC BY-NC-SA 4.0"
    assert config.source["url"] == published.url
    assert config.metrics == {"published": {"top1": 75.79, "consistency": 90.35}}

    changed = ["--model", "densenet121_lpf3", "--output", tmp_path / "b", "--allow-filter-change", *TINY_WORDS]
    assert convert(checkpoint, *changed) == 0
    config = read_config(tmp_path / "b")
    assert (config.metrics, config.license) == ({}, "CC BY-NC-SA 4.0")
    assert "trained with other blurs or none: fine-tune" in capsys.readouterr().out


def test_a_fresh_head(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = [*TINY_WORDS, "--num-classes", 3, "--skip-head", "--verify"]
    assert convert(checkpoint, "--model", "densenet121", "--output", tmp_path / "out", *words) == 0
    assert "classifier is fresh" in capsys.readouterr().out
    assert load_pretrained(tmp_path / "out").spec.num_classes == 3


def training_checkpoint(path: Path) -> dict[str, np.ndarray]:
    """Writes a file as PyTorch would with the tiny network twice, the second being the average; returns the first."""
    state = file_of("densenet121_lpf4", **TINY)
    average = {name: array + 1 if name.endswith(".bias") else array for name, array in state.items()}
    sets = {"state_dict": state, "state_dict_ema": average}
    arrays = {f"{key}/{name}": array for key, tensors in sets.items() for name, array in tensors.items()}
    root = {
        key: {
            f"model.{name}": tensor(storage(f"{key}/{name}", a.dtype, a.size), a.shape) for name, a in tensors.items()
        }
        for key, tensors in sets.items()
    }
    path.write_bytes(zip_file({**root, "epoch": 3}, {name: array.tobytes() for name, array in arrays.items()}))
    return state


def test_one_of_several_state_dicts_below_a_prefix(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path, out = tmp_path / "last.pth", tmp_path / "out"
    state = training_checkpoint(path)
    words = [path, "--model", "densenet121", "--output", out, *TINY_WORDS]
    assert convert(*words) == 2
    assert "fit without the prefix 'model.': read the file with --prefix model (in" in capsys.readouterr().err
    assert convert(*words, "--prefix", "model", "--verify") == 0
    count = len(state)
    assert (
        f"note        taken is 'state_dict' ({count} tensors); the file also has 'state_dict_ema' ({count} tensors): "
        "--key takes another" in capsys.readouterr().out
    )
    bias = state["classifier.bias"]
    np.testing.assert_array_equal(variables(load_pretrained(out))["classifier.bias"][...], bias)
    assert read_config(out).source["prefix"] == "model"
    other = [*words, "--prefix", "model", "--key", "state_dict_ema", "--verify"]
    assert convert(*other) == 2
    assert "holds other weights" in capsys.readouterr().err
    assert convert(*other, "--overwrite") == 0
    assert convert(*other) == 0
    assert "note" not in capsys.readouterr().out
    np.testing.assert_array_equal(variables(load_pretrained(out))["classifier.bias"][...], bias + 1)
    assert read_config(out).source["key"] == "state_dict_ema"
    assert convert(*words, "--key", "ema", "--prefix", "model", "--overwrite") == 2
    assert "no state dict 'ema': choose one as key (--key): 'state_dict'" in capsys.readouterr().err


def test_an_average_of_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    state = {f"module.{name}": array for name, array in file_of("densenet121_lpf4", **TINY).items()}
    save_file(state | {"n_averaged": np.array(5)}, tmp_path / "swa.safetensors")
    words = ["--model", "densenet121", "--output", tmp_path / "out", "--verify", *TINY_WORDS]
    assert convert(tmp_path / "swa.safetensors", *words) == 0
    assert "the average of 5 sets of weights" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("channels", "mean", "way"),
    [(1, (0.449,), "summed"), (4, (0.485, 0.456, 0.406, 0.485), "repeated in order and scaled by 3/4")],
)
def test_images_of_other_channels(
    channels: int, mean: tuple, way: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["--model", "densenet121", "--output", tmp_path / "out", "--verify", *TINY_WORDS]
    assert convert(checkpoint, *words, "--in-channels", channels) == 0
    assert (
        f"reads {channels} channel{'s' * (channels > 1)} here, 3 in the file: its kernels were {way}"
        in capsys.readouterr().out
    )
    config, model = read_config(tmp_path / "out"), load_pretrained(tmp_path / "out")
    assert (config.in_channels, config.preprocessing.mean, config.metrics) == (channels, mean, {})
    kernel = file_of("densenet121_lpf4", **TINY)["features.conv0.weight"].transpose(2, 3, 1, 0)
    expected = kernel.sum(2, keepdims=True) if channels == 1 else kernel[:, :, [0, 1, 2, 0]] * 0.75
    np.testing.assert_allclose(variables(model)["conv0.kernel"][...], expected, rtol=1e-6, atol=1e-7)


def test_how_images_are_prepared(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = [checkpoint, "--model", "densenet121", "--output", tmp_path / "out", *TINY_WORDS]
    given = ["--resize", 64, "--crop", 60, "--interpolation", "bicubic", "--mean", "0.5,0.4,0.3", "--std", "1,1,2"]
    assert convert(*words, *given) == 0
    expected = Preprocessing(resize=64, crop=60, interpolation="bicubic", mean=(0.5, 0.4, 0.3), std=(1.0, 1.0, 2.0))
    assert read_config(tmp_path / "out").preprocessing == expected
    for bad, message in (
        (["--crop", 0], "preprocessing.crop must be a whole number of pixels from 1"),
        (["--resize", 64], "preprocessing.crop must be at most resize (64), got 224"),
        (["--std", "1,0,1"], "preprocessing.std must be above 0 everywhere"),
        (["--mean", "0.5", "--std", "0.5"], "mean and std have 1 numbers, the images 3 channels"),
    ):
        capsys.readouterr()
        assert convert(*words, *bad) == 2
        assert message in capsys.readouterr().err
    assert read_config(tmp_path / "out").preprocessing == expected


def test_again_and_over_something_else(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    words = ["--model", "densenet121", "--output", out, *TINY_WORDS]
    assert convert(checkpoint, *words) == 0
    assert convert(checkpoint, *words) == 0
    state = file_of("densenet121_lpf4", **TINY)
    state["classifier.bias"] = state["classifier.bias"] + 1
    other = tmp_path / "other.safetensors"
    save_file(state, other)
    before = (out / "model.safetensors").read_bytes()
    capsys.readouterr()
    assert convert(other, *words) == 2
    assert "holds other weights; give another --output, or --overwrite" in capsys.readouterr().err
    assert (out / "model.safetensors").read_bytes() == before
    assert convert(other, *words, "--overwrite") == 0
    assert (out / "model.safetensors").read_bytes() != before
    assert convert(other, *words, "--option", "pad_type=zero") == 2
    assert "holds other weights" in capsys.readouterr().err
    assert read_config(out).pad_type == "reflect"
    assert convert(other, *words, "--option", "pad_type=zero", "--overwrite") == 0
    assert read_config(out).pad_type == "zero"


def _without_a_key(state: dict[str, np.ndarray]) -> None:
    del state["classifier.bias"]


def _with_another_key(state: dict[str, np.ndarray]) -> None:
    state["extra"] = np.ones(2, np.float32)


def _with_nan(state: dict[str, np.ndarray]) -> None:
    state["classifier.bias"] = np.full(5, np.nan, np.float32)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without_a_key, "1 missing:\n    classifier.bias (5,)"),
        (_with_another_key, "1 left over:\n    extra (2,)"),
        (_with_nan, "1 with NaN or infinite values:\n    classifier.bias"),
    ],
)
def test_a_file_that_does_not_fit(spoil, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    state = file_of("densenet121_lpf4", **TINY)
    spoil(state)
    path = tmp_path / "bad.safetensors"
    save_file(state, path)
    assert convert(path, "--model", "densenet121", "--output", tmp_path / "out", *TINY_WORDS) == 2
    error = capsys.readouterr().err
    assert f"error: {path} does not fit densenet121_lpf4" in error
    assert message in error
    assert "Traceback" not in error
    assert [p.name for p in tmp_path.iterdir()] == ["bad.safetensors"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["IN", "--model", "densenet121_lpf3", *TINY_WORDS], "holds filters of 4 taps, densenet121_lpf3 blurs with 3"),
        (["IN", "--model", "densenet112"], "did you mean densenet"),
        (["IN", "--model", "densenet121", "--option", "depth=3"], "has no option 'depth'"),
        (["IN", "--model", "densenet121", "--option", "pool_only"], "write NAME=VALUE"),
        (["IN", "--model", "densenet121", "--option", "=1"], "write NAME=VALUE"),
        (["IN", "--model", "densenet121", "--option", "pool_only=maybe"], "pool_only must be of the kind of True, got"),
        (["IN", "--model", "densenet121", "--option", "pad_type=mirror"], "pad_type must be one of"),
        (["IN", "--model", "resnet18", "--option", "depths=3"], "depths must be of the kind of (2, 2, 2, 2), got 3"),
        (["IN", "--model", "resnet50", "--option", "width_per_group=0"], "width_per_group=0: makes no network"),
        (["IN", "--model", "vgg11", "--option", "depths=[1,0,1,1,1]"], "depths=(1, 0, 1, 1, 1): makes no network"),
        (["IN", "--model", "densenet121", "--option", "growth_rate=0"], "growth_rate=0: makes no network"),
        (["IN", "--model", "densenet121", "--option", "drop_rate=2"], "drop_rate is a probability below 1, got 2"),
        (
            ["IN", "--model", "mobilenet_v2", "--option", "width_mult=-0.5"],
            "width_mult must leave at least one channel",
        ),
        (["IN", "--model", "densenet121", "--num-classes", "-1"], "num_classes must be"),
        (["nothing.pth", "--model", "densenet121"], "nothing.pth: there is no such directory or file"),
        ([".", "--model", "densenet121"], "config.json: not found; give a directory that"),
        (["s3://bucket/x.pth", "--model", "densenet121"], "s3://bucket/x.pth: no path of this machine"),
        (["IN", *TINY_WORDS], "it does not say which network it is of: give spec=, on a command line --model"),
        (["--model", "densenet121_lpf7"], "nothing is published for densenet121_lpf7"),
        (["--list", "resnet51"], "nothing published matches 'resnet51'"),
    ],
)
def test_bad_input(
    words: list[str], message: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = [str(checkpoint) if word == "IN" else word for word in words]
    assert convert(*words, "--output", tmp_path / "out") == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.out == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "IN or --model is needed"),
        (["--output", "out"], "IN or --model is needed"),
        (["x.pth"], "--output is needed"),
        (["x.pth", "--model", "resnet18"], "--output is needed"),
    ],
)
def test_usage(words: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        convert(*words)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_an_interrupt_leaves_nothing(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def interrupted(*args: object, **kwargs: object):
        raise KeyboardInterrupt

    monkeypatch.setattr(aa_flax.weights.safetensors_file, "save_file", interrupted)
    assert convert(checkpoint, "--model", "densenet121", "--output", tmp_path / "out", *TINY_WORDS) == 130
    assert capsys.readouterr().err.endswith("interrupted: nothing was written\n")
    assert [p.name for p in tmp_path.iterdir()] == [checkpoint.name]


def test_an_interrupted_verification_does_not_deny_what_was_written(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def interrupted(directory: Path):
        raise KeyboardInterrupt

    monkeypatch.setattr(conversion, "load_pretrained", interrupted)
    out = tmp_path / "out"
    assert convert(checkpoint, "--model", "densenet121", "--output", out, "--verify", *TINY_WORDS) == 130
    assert capsys.readouterr().err.endswith(f"interrupted: {out} is written, but not verified\n")
    assert load_pretrained(out).spec.num_classes == 5


def test_verify_notices_a_difference(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def damaged(directory: Path):
        model = load_pretrained(directory)
        variables(model)["classifier.bias"][...] += 1
        return model

    monkeypatch.setattr(conversion, "load_pretrained", damaged)
    assert convert(checkpoint, "--model", "densenet121", "--output", tmp_path / "o", "--verify", *TINY_WORDS) == 2
    assert "classifier.bias differs from what was converted" in capsys.readouterr().err


def test_the_list(capsys: pytest.CaptureFixture[str]):
    assert convert("--list") == 0
    lines = capsys.readouterr().out.splitlines()
    count = len(catalog.published())
    assert len(lines) == 1 + count + 3
    assert lines[0].split("  ")[-1].endswith("reachable from")
    table = "\n".join(lines)
    for row in (
        r"resnet50_lpf4\.finetuned +77\.41 +- +91\.32 +CC BY-NC-SA 4\.0 +dropbox\.com \(the paper's author, not",
        r"resnet50_lpf3\.scratch +76\.83 +- +90\.91 +CC BY-NC-SA 4\.0 +nowhere known$",
        r"resnet50_plain\.torchvision +76\.16 +- +89\.20 +not stated +download\.pytorch\.org$",
        r"resnetaa50\.a1h_in1k +80\.61 +95\.21 +- +Apache-2\.0 +huggingface\.co$",
    ):
        assert re.search(row, table, re.MULTILINE)
    assert "antialiased-cnns.s3.us-east-2.amazonaws.com answers 403 since January 2024." in table
    assert f"{count} checkpoints" in lines[-1]
    assert convert("--list", "*_lpf5") == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 9 + 3


def test_as_a_program(tmp_path: Path):
    """Exit code and one line in a fresh process, and no accelerator taken."""
    script = Path(convert_weights.__file__)
    bad = tmp_path / "bad.pth"
    bad.write_bytes(b"PK\x03\x04 not a zip")
    run = subprocess.run(
        [sys.executable, script, bad, "--model", "resnet18", "--output", tmp_path / "out"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(script.parent)},
    )
    assert run.returncode == 2
    assert "error: " in run.stderr
    assert "Traceback" not in run.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bad.pth"]


def _photo(path: Path) -> np.ndarray:
    """A photo as ImageNet's networks take it (SPEC: shorter side 256, Pillow bilinear, centre 224)."""
    with Image.open(path) as image:
        image = image.convert("RGB")
        width, height = image.size
        short, long = 256, int(256 * max(width, height) / min(width, height))
        image = image.resize((short, long) if width <= height else (long, short), Image.Resampling.BILINEAR)
        left, top = (round((size - 224) / 2.0) for size in image.size)
        pixels = np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32) / 255
    return (pixels - np.array([0.485, 0.456, 0.406], np.float32)) / np.array([0.229, 0.224, 0.225], np.float32)


def test_real_weights_on_real_photos(shared: Path, tmp_path: Path):
    """An ImageNet-trained MobileNetV2, plain and its weights in the four anti-aliased networks, on three photos."""
    expected = json.loads((shared / "weights" / "expected.json").read_text())
    folder = shared / "data" / "imagenet-sample" / "val"
    photos = jnp.asarray(np.stack([_photo(folder / name) for name in expected["files"][:3]]))
    source = shared / "weights" / "mobilenet_v2_imagenet.pth"
    checked = 0
    for title, figures in expected["models"].items():
        spec = "mobilenet_v2_plain" if "(plain)" in title else title.split()[0]
        assert convert(source, "--model", spec, "--output", tmp_path / spec, "--verify") == 0
        with jax.default_matmul_precision("highest"):
            logits = np.asarray(nnx.jit(lambda model, x: model(x))(load_pretrained(tmp_path / spec), photos))
        # The expected numbers are rounded to five digits after the point.
        np.testing.assert_allclose(logits[:, :8], figures["logits_first3"], rtol=0, atol=1e-4, err_msg=spec)
        np.testing.assert_array_equal(logits.argmax(1), figures["predictions"][:3])
        checked += 1
    assert checked == 5
