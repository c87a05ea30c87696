"""Addresses that no path can be are refused wherever a path is taken; none becomes a folder called `s3:`."""

import dataclasses
import importlib
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from flax import nnx

import aa_flax
import convert_weights
from aa_flax.export import export, load_exported
from aa_flax.hub import push_to_hub
from aa_flax.local_paths import check_local_paths, local_path
from aa_flax.weights.safetensors_file import read_safetensors
from aa_flax.weights.torch.reader import list_state_dicts
from train.__main__ import main
from train.data import DataConfig, open_dataset
from train.errors import CommandError
from train.fit.config import validate
from train.fit.presets import preset

ROOT = Path(__file__).parents[1]
ADDRESS = "s3://bucket/some/run"
# Taken where tests/test_buckets.py and tests/test_train_bucket.py say so, and nowhere else.
IN_BUCKET = "gs://bucket/some/run"
SAVED = str(ROOT / "weights" / "mobilenet_v2_plain-cifar10")


@pytest.fixture(autouse=True)
def _nothing_appears(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scheme", ["gs", "s3", "hf", "az", "http", "https", "r2+x", "file"])
@pytest.mark.parametrize("kind", [str, Path])
def test_any_scheme_is_refused_as_text_and_as_a_path(scheme, kind):
    with pytest.raises(ValueError, match=rf"^{scheme.replace('+', '.')}://bucket/x: no path of this machine") as caught:
        local_path(kind(f"{scheme}://bucket/x"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["a", "/a/b", "./gs/x", "/tmp/gs:/x", "C:/x", "a:b", "runs/12:30/x", "~/x", "x/gs://b", ""]
)
def test_local_paths_are_left_as_they_are(text):
    assert local_path(text) == Path(text)
    assert local_path(Path(text)) == Path(text)


def test_the_remedy_fits_the_scheme():
    with pytest.raises(ValueError, match="leave the scheme out: /data/x"):
        local_path("file:///data/x")
    with pytest.raises(ValueError, match=r"aa_flax\.load_pretrained"):
        local_path("hf://owner/name")
    with pytest.raises(ValueError, match=r"\(gcsfuse --implicit-dirs bucket DIRECTORY\), and give DIRECTORY/some/run$"):
        local_path(IN_BUCKET)


COMMANDS = {
    "fit": [
        ("--run-dir", ADDRESS),
        ("--data.name", "cifar10", "--data.dir", ADDRESS),
        ("--data.cache-dir", ADDRESS),
        ("--init", ADDRESS),
        ("--compilation-cache", ADDRESS),
        ("--config", ADDRESS),
    ],
    "export": [(ADDRESS, "--output", "out"), ("run", "--output", ADDRESS)],
    "evaluate": [
        ("--data", ADDRESS, "--model", "resnet18"),
        *(
            ("--data", "photos", "--model", "resnet18", option, ADDRESS)
            for option in ("--weights", "--output", "--save-images", "--save-diagonal", "--offsets")
        ),
    ],
    "explain": [
        ("--model", "resnet18", "--weights", ADDRESS, "--image", "x.jpg", "--output", "out"),
        ("--model", "resnet18", "--weights", "w", "--image", ADDRESS, "--output", "out"),
        ("--model", "resnet18", "--weights", "w", "--image", "x.jpg", "--output", ADDRESS),
        ("--weights", SAVED, "--image", "x", "--output", "o", "--compare", "resnet18", ADDRESS),
    ],
    "reproduce": [
        ("--output", ADDRESS, "--published-only"),
        ("--output", "out", "--data", ADDRESS, "--weights-root", "w"),
        ("--output", "out", "--data", "d", "--weights-root", ADDRESS),
    ],
    "prepare": [
        ("--name", "cifar10", "--dir", ADDRESS),
        ("--name", "imagenet2012", "--dir", "d", "--manual-dir", ADDRESS),
    ],
}


def refusal(capsys) -> str:
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert f"{ADDRESS}: no path of this machine" in error
    return error


@pytest.mark.parametrize(("name", "options"), [(name, words) for name in COMMANDS for words in COMMANDS[name]])
def test_every_command_names_the_option(name, options, capsys):
    assert main([name, *options]) == 2
    before = [word for word in options[: options.index(ADDRESS)] if word.startswith("--")]
    assert (before[-1] if before else "--run") in refusal(capsys)


@pytest.mark.parametrize("option", [("--data.name", "cifar10", "--data.dir"), ("--data.cache-dir",)])
def test_data_do_not_come_from_buckets(option, capsys):
    assert main(["fit", *option, IN_BUCKET]) == 2
    assert f"error: {option[-1]}: {IN_BUCKET}: no path of this machine" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [(ADDRESS, "--model", "resnet18", "--output", "out"), ("--model", "resnet18", "--output", ADDRESS)]
)
def test_convert_weights(words, capsys):
    assert convert_weights.main(words) == 2
    refusal(capsys)


def test_training_from_python(monkeypatch):
    for changes in ({"run_dir": Path(ADDRESS)}, {"init": ADDRESS}):
        with pytest.raises(CommandError, match="no path of this machine"):
            validate(dataclasses.replace(preset("digits"), **changes))
    with pytest.raises(CommandError, match=r"^--data\.dir: s3://bucket"):
        DataConfig(dir=Path(ADDRESS))
    monkeypatch.setenv("AA_FLAX_CACHE", ADDRESS)
    with pytest.raises(CommandError, match=r"^\$AA_FLAX_CACHE: s3://bucket"):
        open_dataset(DataConfig(name="cifar10", dir=Path("photos")))


@pytest.mark.parametrize("kind", [str, Path])
def test_every_function_of_the_library(kind, monkeypatch):
    path, model = kind(ADDRESS), nnx.eval_shape(lambda: aa_flax.create_model("resnet18", rngs=nnx.Rngs(0)))
    linear = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    doors = (
        aa_flax.load_pretrained,
        aa_flax.read_config,
        aa_flax.read_torch_checkpoint,
        list_state_dicts,
        read_safetensors,
        load_exported,
        lambda path: push_to_hub(path, "owner/name"),
        lambda path: export(linear, path, in_channels=2, image_size=4),
        lambda path: aa_flax.save_pretrained(_filled(model), path),
    )
    for door in doors:
        with pytest.raises(ValueError, match=r"s3://bucket/some/run: no path of this machine"):
            door(path)
    monkeypatch.setenv("AA_FLAX_CACHE", ADDRESS)
    with pytest.raises(ValueError, match="no path of this machine"):
        aa_flax.load_pretrained("resnet50_lpf4")


def _filled(model: nnx.Module) -> nnx.Module:
    nnx.update(model, jax.tree.map(lambda x: jax.numpy.ones(x.shape, x.dtype), nnx.state(model)))
    return model


EXAMPLES = [
    path
    for path in sorted((ROOT / "examples").glob("*.py"))
    if all(word in path.read_text() for word in (": Path", "tyro.cli("))
]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_with_paths_asks(path):
    assert "    check_local_paths(" in path.read_text()


def test_an_example_ends_with_one_line(tmp_path):
    words = [sys.executable, str(ROOT / "examples/cifar10_tables.py"), "results.jsonl", "--picture", ADDRESS]
    ended = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("cifar10_tables: --picture: s3://bucket")
    assert ended.stderr.count("\n") == 1


def test_benchmarks_name_the_option(capsys):
    assert importlib.import_module("benchmarks.__main__").main(["consistency", "--smoke", "--data", ADDRESS]) == 2
    assert "--data: s3://bucket" in capsys.readouterr().err


def test_options_within_options_and_tuples_are_found():
    @dataclasses.dataclass
    class Inner:
        pair: tuple[str, Path]

    @dataclasses.dataclass
    class Outer:
        inner: Inner
        text: str = "https://creativecommons.org/licenses/by/4.0"

    check_local_paths(Outer(Inner(("a", Path("b")))))
    with pytest.raises(ValueError, match=r"^--inner\.pair: s3://b"):
        check_local_paths(Outer(Inner(("a", Path("s3://b")))))
