"""Pretrained directories: what is saved comes back to the bit, what does not fit is named, nothing is left half."""

import dataclasses
import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from aa_flax.models.abstract import abstract_model
from aa_flax.models.base import Network
from aa_flax.models.specs import resolve_spec
from aa_flax.weights import catalog, mapping, names, safetensors_file
from aa_flax.weights.config import Preprocessing, PretrainedConfig
from aa_flax.weights.errors import CheckpointError
from aa_flax.weights.store import fill, load_pretrained, read_config, save_pretrained, variables
from tests.torch_format import saved


def random_network(spec: str = "mobilenet_v2_lpf3", *, dtype=np.float32, **options) -> Network:
    """A network filled from NumPy: much faster than JAX's own initial values."""
    options = {"num_classes": 5, **({"width_mult": 0.25} if spec.startswith("mobilenet") else {}), **options}
    model = abstract_model(spec, **options)
    draw = np.random.default_rng(0)
    arrays = {key: draw.uniform(0.5, 1, variable.shape).astype(dtype) for key, variable in variables(model).items()}
    fill(model, arrays, what="random numbers", keep_dtype=True)
    model.eval()
    return model


def values(model: nnx.Module) -> dict[str, np.ndarray]:
    return {key: np.asarray(variable.get_value()) for key, variable in variables(model).items()}


def assert_same(found: nnx.Module, expected: nnx.Module) -> None:
    found_values, expected_values = values(found), values(expected)
    assert list(found_values) == list(expected_values)
    for key, array in expected_values.items():
        assert found_values[key].dtype == array.dtype, key
        np.testing.assert_array_equal(found_values[key], array, err_msg=key)


@pytest.fixture(scope="module")
def network() -> Network:
    return random_network()


@pytest.fixture
def directory(tmp_path, network) -> Path:
    return save_pretrained(network, tmp_path / "saved")


def test_round_trip(tmp_path, network):
    assert save_pretrained(network, tmp_path / "a" / "b") == tmp_path / "a" / "b"
    loaded = load_pretrained(tmp_path / "a" / "b")
    assert_same(loaded, network)
    assert loaded.spec == network.spec
    images = jnp.linspace(0, 1, 2 * 33 * 33 * 3).reshape(2, 33, 33, 3)
    # Dropout and batch statistics would show here, were the loaded network not in eval mode.
    logits = nnx.jit(lambda model, images: model(images))
    np.testing.assert_array_equal(logits(loaded, images), logits(network, images))


def test_another_padding_can_be_asked_for(directory, network):
    loaded = load_pretrained(directory, pad_type="zero")
    assert_same(loaded, network)
    assert loaded.spec == dataclasses.replace(network.spec, pad_type="zero")
    with pytest.raises(ValueError, match=r"pad_type must be one of .*'mirror'"):
        load_pretrained(directory, pad_type="mirror")


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16])
def test_stored_types_are_kept(tmp_path, dtype):
    network = random_network(dtype=dtype)
    save_pretrained(network, tmp_path / "a")
    assert {array.dtype for array in load_file(tmp_path / "a" / "model.safetensors").values()} == {np.dtype(dtype)}
    loaded = load_pretrained(str(tmp_path / "a"))
    assert_same(loaded, network)
    assert loaded.stem.conv.dtype == jnp.float32
    assert load_pretrained(tmp_path / "a", dtype=jnp.bfloat16).stem.conv.dtype == jnp.bfloat16


def test_float64(tmp_path):
    jax.config.update("jax_enable_x64", True)
    try:
        network = random_network(dtype=np.float64)
        save_pretrained(network, tmp_path / "a")
        loaded = load_pretrained(tmp_path / "a")
        assert_same(loaded, network)
        assert loaded.stem.conv.dtype == jnp.float64
    finally:
        jax.config.update("jax_enable_x64", False)
    with pytest.raises(CheckpointError, match="jax_enable_x64=True"):
        load_pretrained(tmp_path / "a")


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        ("resnet50_lpf5", {"replace_stride_with_dilation": (False, True, True), "pad_type": "zero", "in_channels": 1}),
        ("resnet18_plain", {"depths": (1, 1, 12, 1), "num_classes": 2}),
        ("alexnet_lpf2", {"pool_only": True, "num_classes": 2}),
    ],
)
def test_every_path_and_option_survives(tmp_path, spec, options):
    model = abstract_model(spec, **options)
    # Each variable is one number, so that exchanged layers of one shape would show.
    shapes = {key: variable.shape for key, variable in variables(model).items()}
    numbers = {key: np.broadcast_to(np.float32(n), shape) for n, (key, shape) in enumerate(shapes.items())}
    fill(model, numbers, what="numbers")
    channels = model.spec.in_channels
    save_pretrained(model, tmp_path, preprocessing=Preprocessing(mean=(0.5,) * channels, std=(0.25,) * channels))
    loaded = load_pretrained(tmp_path)
    assert loaded.spec == model.spec
    assert {key: float(array.flat[0]) for key, array in values(loaded).items()} == {
        key: float(n) for n, key in enumerate(numbers)
    }


def test_loaded_arrays_do_not_alias_the_file(directory, network):
    loaded = load_pretrained(directory)
    path = directory / "model.safetensors"
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\xff" * 1000)
    assert_same(loaded, network)


def test_config_says_everything(tmp_path, network):
    preprocessing = Preprocessing(resize=40, crop=32, interpolation="bicubic", mean=(0.5,) * 3, std=(0.25, 0.5, 1))
    given = {
        "preprocessing": preprocessing,
        "class_names": ("a", "b", "c", "dog é", "e"),
        "source": {"file": "x.pth", "sha256": "00"},
        "license": "CC BY-NC-SA 4.0",
        "metrics": {"top1": 71.5, "consistency": {"crop": 91.0}},
    }
    save_pretrained(network, tmp_path, **given)
    config = read_config(tmp_path)
    assert config == PretrainedConfig(spec=network.spec, **given)
    assert (config.model, config.num_classes, config.options) == ("mobilenet_v2_lpf3", 5, {"width_mult": 0.25})
    assert json.loads((tmp_path / "config.json").read_text("utf-8"))["format_version"] == 1


KNOWN = {
    "preprocessing": Preprocessing(resize=40, crop=32),
    "class_names": ("a", "b", "c", "d", "e"),
    "source": {"file": "x.pth"},
    "license": "CC BY-NC-SA 4.0",
    "metrics": {"top1": 71.5},
}


def said_of(model: nnx.Module, directory: Path, **given) -> dict:
    config = read_config(save_pretrained(model, directory, **given))
    return {name: getattr(config, name) for name in KNOWN}


def test_what_was_known_stays_known(tmp_path, network):
    """Through loading, and whatever makes a copy of the network or takes it apart and together."""
    loaded = load_pretrained(save_pretrained(network, tmp_path / "a", **KNOWN))
    assert loaded.provenance.config == read_config(tmp_path / "a")
    assert network.provenance is None
    copies = [loaded, nnx.clone(loaded), nnx.merge(*nnx.split(loaded)), pickle.loads(pickle.dumps(loaded))]
    for n, copy in enumerate([*copies, nnx.jit(lambda model: model)(loaded)]):
        assert said_of(copy, tmp_path / str(n)) == KNOWN
    replaced = {"license": "MIT", "metrics": {}, "source": {"file": "y"}}
    assert said_of(loaded, tmp_path / "b", **replaced) == KNOWN | replaced
    assert said_of(load_pretrained(tmp_path / "b"), tmp_path / "c") == KNOWN | replaced


def test_a_second_size_is_kept_with_the_weights_and_unsaid_where_there_is_none(tmp_path, network):
    larger = Preprocessing.of_share(48, 1, interpolation="bicubic")
    loaded = load_pretrained(save_pretrained(network, tmp_path / "a", **KNOWN, test_preprocessing=larger))
    again = read_config(save_pretrained(loaded, tmp_path / "b"))
    assert (again.preprocessing, again.test_preprocessing) == (KNOWN["preprocessing"], larger)
    # For other images that size is another one.
    other = read_config(save_pretrained(loaded, tmp_path / "c", preprocessing=Preprocessing(resize=20, crop=16)))
    assert other.test_preprocessing is None
    assert "test_preprocessing" not in json.loads((tmp_path / "c/config.json").read_text("utf-8"))
    grey = load_pretrained(tmp_path / "a", in_channels=1)
    fields = {"mean": (0.5,), "std": (0.2,)}
    saved = save_pretrained(grey, tmp_path / "d", preprocessing=Preprocessing(**fields))
    assert read_config(saved).test_preprocessing is None


@pytest.mark.parametrize(
    ("crop", "share", "resize"),
    [(224, 0.875, 256), (224, 0.95, 235), (288, 1.0, 288), (288, 0.95, 303), (384, 0.95, 404), (1, 1, 1)],
)
def test_a_size_and_its_share_of_the_shorter_side(crop, share, resize):
    """As timm's rule has them."""
    assert Preprocessing.of_share(crop, share) == Preprocessing(resize=resize, crop=crop)


@pytest.mark.parametrize("share", [0, -0.5, 1.01, float("nan"), True, "1", None])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match="share must be above 0 and at most 1, got "):
        Preprocessing.of_share(224, share)
    with pytest.raises(ValueError, match=r"preprocessing.crop must be a whole number of pixels"):
        Preprocessing.of_share(0, 0.9)


def test_trained_weights_name_those_they_began_with(tmp_path, network):
    save_pretrained(network, tmp_path / "a", **KNOWN)
    trained = load_pretrained(tmp_path / "a")
    trained.classifier.bias[...] += 1
    parent = {"model": "mobilenet_v2_lpf3", "license": KNOWN["license"], "source": KNOWN["source"]}
    changed = {"source": {"parents": [parent]}, "metrics": {}}
    assert said_of(trained, tmp_path / "b") == KNOWN | changed
    source = {"parents": [parent], "data": "flowers"}
    assert said_of(trained, tmp_path / "c", source={"data": "flowers"}) == KNOWN | changed | {"source": source}
    # Once more: the parents' parents stay, and new facts about the child are its own.
    again = load_pretrained(tmp_path / "c")
    assert said_of(again, tmp_path / "d") == KNOWN | changed | {"source": source}
    again.classifier.bias[...] += 1
    assert said_of(again, tmp_path / "e")["source"] == {"parents": [parent | {"source": source}]}


def test_figures_belong_to_the_network_that_was_measured(tmp_path, network):
    save_pretrained(network, tmp_path / "a", **KNOWN)
    padded = load_pretrained(tmp_path / "a", pad_type="zero")
    found = said_of(padded, tmp_path / "b")
    assert found["metrics"] == {}
    assert found["source"]["parents"][0]["source"] == KNOWN["source"]


def test_two_networks_of_one_compiled_function_keep_their_own_facts(tmp_path, network):
    step = nnx.jit(lambda model: model.classifier.bias.set_value(model.classifier.bias + 1))
    for n in (1, 2):
        loaded = load_pretrained(save_pretrained(network, tmp_path / str(n), license=f"licence {n}"))
        step(loaded)
        assert loaded.provenance.config.license == f"licence {n}"


def test_short_config_has_defaults(tmp_path):
    (tmp_path / "config.json").write_text('{"format_version": 1, "model": "resnet50"}')
    assert read_config(tmp_path) == PretrainedConfig(spec=resolve_spec("resnet50"))


BAD_CONFIGS = [
    ({"format_version": 2}, "format_version is 2.*update aa_flax"),
    ({"format_version": None}, "format_version is None"),
    ({"format_version": True}, "format_version is True"),
    ({"modle": "a"}, "unknown field modle; known are model,"),
    ({"model": 7}, "model must be a network's name, got 7"),
    ({"model": "resnet51"}, "unknown network 'resnet51'.*did you mean"),
    ({"num_classes": "ten"}, "num_classes must be .*'ten'"),
    ({"num_classes": True}, "num_classes must be"),
    ({"in_channels": 0}, "in_channels must be"),
    ({"pad_type": 3}, "pad_type must be a name, got 3"),
    ({"pad_type": "mirror"}, "mirror"),
    ({"options": []}, "options must be a dictionary"),
    ({"options": {"width": 2}}, "no option 'width'"),
    ({"options": {"width_mult": "wide"}}, "width_mult must be of the kind of 1.0, got 'wide'"),
    ({"options": {"width_mult": -0.5}}, "config.json: its options make no network"),
    ({"options": {"num_classes": 3}}, "num_classes"),
    ({"preprocessing": None}, "preprocessing must be a JSON object"),
    ({"preprocessing": {"size": 3}}, "unknown field preprocessing.size; known are resize"),
    ({"preprocessing": {"resize": 256.0}}, "preprocessing.resize must be a whole number of pixels"),
    ({"preprocessing": {"crop": 300}}, r"preprocessing.crop must be at most resize \(256\), got 300"),
    ({"preprocessing": {"interpolation": ["bilinear"]}}, "preprocessing.interpolation must be one of nearest"),
    ({"preprocessing": {"mean": 0.5}}, "preprocessing.mean must be one finite number a channel"),
    ({"preprocessing": {"mean": []}}, "preprocessing.mean must be one finite number a channel"),
    ({"preprocessing": {"std": [0.2, 0.2, float("nan")]}}, "preprocessing.std must be one finite number a channel"),
    ({"preprocessing": {"std": [0.2, 0, 0.2]}}, "preprocessing.std must be above 0"),
    ({"preprocessing": {"std": [0.2, 0.2]}}, "preprocessing.std must be as long as"),
    ({"preprocessing": {"mean": [0.5], "std": [0.25]}}, r"mean must be 3 numbers, one a channel.*got \(0.5,\)"),
    ({"test_preprocessing": None}, "test_preprocessing must be a JSON object"),
    ({"test_preprocessing": {"crop": 300}}, r"json: test_preprocessing.crop must be at most resize \(256\), got 300"),
    ({"test_preprocessing": {"mean": [0.5], "std": [0.25]}}, "test_preprocessing.mean must be 3 numbers"),
    ({"class_names": "abcde"}, "class_names must be a list of texts"),
    ({"class_names": ["a", 1, "c", "d", "e"]}, "class_names must be a list of texts"),
    ({"class_names": ["a", "b"]}, r"class_names must be 5 names \(num_classes\), got 2"),
    ({"source": "web"}, "source must be a dictionary"),
    ({"license": 4}, "license must be a text or null, got 4"),
    ({"metrics": [1]}, "metrics must be a dictionary"),
]


@pytest.mark.parametrize(("change", "message"), BAD_CONFIGS, ids=lambda value: str(value)[:40])
def test_bad_config(directory, change, message):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message) as caught:
        load_pretrained(directory)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "[" * 100_000, "\xff", '{"a": ' + "9" * 9000 + "}"])
def test_config_that_is_no_json_object(directory, text):
    (directory / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"config\.json: (not valid JSON|the file must be a JSON object)"):
        load_pretrained(directory)


def test_files_that_do_not_belong_together(directory):
    path = directory / "config.json"
    path.write_text(path.read_text().replace("mobilenet_v2_lpf3", "mobilenet_v2_lpf4"))
    with pytest.raises(CheckpointError, match=r"saved from 'mobilenet_v2_lpf3', but config\.json says"):
        load_pretrained(directory)


def rewrite(directory: Path, change) -> None:
    arrays = load_file(directory / "model.safetensors")
    change(arrays)
    save_file(arrays, directory / "model.safetensors")


def test_weights_that_do_not_fit_are_listed(directory):
    def change(arrays):
        for key in [key for key in arrays if key.startswith("blocks.3.")]:
            del arrays[key]
        arrays["classifier.kernel"] = np.zeros((7, 5), np.float32)
        arrays["extra"] = np.zeros(3, np.float32)

    rewrite(directory, change)
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(directory)
    lines = str(caught.value).split("\n")
    assert lines[0] == f"{directory / 'model.safetensors'} does not fit the model:"
    assert lines[1] == "  15 missing:"
    assert lines[10] == "    ... and 7 more"
    assert lines[11:] == [
        "  1 left over:",
        "    extra (3,)",
        "  1 of another shape:",
        "    classifier.kernel: expected (1280, 5), found (7, 5)",
    ]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_none_are_refused(directory, network, value):
    rewrite(directory, lambda arrays: arrays["stem.bn.mean"].__setitem__(0, value))
    with pytest.raises(CheckpointError, match=r"with NaN or infinite values:\n    stem\.bn\.mean"):
        load_pretrained(directory)


def test_integers_are_refused(directory):
    rewrite(directory, lambda arrays: arrays.update({"classifier.bias": np.ones(5, np.int32)}))
    with pytest.raises(
        CheckpointError, match=r"not floating-point:\n    classifier.bias: expected float32, found int32"
    ):
        load_pretrained(directory)


def test_truncated_or_missing_weights(directory):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: it is a damaged or truncated safetensors file"):
        load_pretrained(directory)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: it is too short"):
        load_pretrained(directory)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors: not found"):
        load_pretrained(directory)


def test_names_that_lead_nowhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such directory"):
        load_pretrained("here/there")
    with pytest.raises(FileNotFoundError, match="no such directory"):
        load_pretrained(tmp_path / "there")
    with pytest.raises(ValueError, match=r"no directory or file 'resnet51' either.*did you mean"):
        load_pretrained("resnet51")
    with pytest.raises(FileNotFoundError, match=r"config\.json: not found; give a directory that"):
        load_pretrained(".")
    (tmp_path / "a.pth").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.pth: it does not say which network it is of: give spec="):
        load_pretrained("a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth: it is empty"):
        load_pretrained("a.pth", spec="resnet18")


def test_what_cannot_be_saved(tmp_path, network):
    target = tmp_path / "a"
    with pytest.raises(ValueError, match=r"needs a network of aa_flax\.create_model, got Linear"):
        save_pretrained(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), target)
    with pytest.raises(ValueError, match=r"blocks\.1\.depthwise\.bn\.bias has none"):
        save_pretrained(abstract_model("mobilenet_v2"), target)
    broken = random_network()
    broken.classifier.bias.set_value(jnp.array([0, 0, jnp.nan, 0, 0]))
    with pytest.raises(ValueError, match=r"NaN or infinity:\n    classifier.bias"):
        save_pretrained(broken, target)
    for other in (random_network(in_channels=1), random_network(in_channels=4)):
        with pytest.raises(ValueError, match=r"mean must be [14] numbers, one a channel: give Preprocessing\(mean="):
            save_pretrained(other, target)
    with pytest.raises(ValueError, match=r"preprocessing.mean must be 3 numbers, one a channel.*got \(0.5,\)"):
        save_pretrained(network, target, preprocessing=Preprocessing(mean=(0.5,), std=(0.25,)))
    with pytest.raises(ValueError, match="5 names"):
        save_pretrained(network, target, class_names=["a"])
    with pytest.raises(ValueError, match="what JSON can"):
        save_pretrained(network, target, metrics={"top1": np.float32(3)})
    with pytest.raises(ValueError, match="what JSON can"):
        save_pretrained(network, target, metrics={"top1": float("nan")})
    assert not target.exists()
    target.write_text("a file")
    with pytest.raises(FileExistsError, match="it is a file"):
        save_pretrained(network, target)


def test_a_place_that_cannot_be_written(tmp_path, monkeypatch, network):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"file/a: cannot be written to \(.*; give another directory"):
        save_pretrained(network, tmp_path / "file" / "a")

    def full(arrays, path, metadata):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors_file, "save_file", full)
    with pytest.raises(OSError, match=r"full: model\.safetensors cannot be written \(.*No space left"):
        save_pretrained(network, tmp_path / "full")
    assert os.listdir(tmp_path) == ["file"]


def test_overwriting(directory, network):
    (directory / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"already holds config\.json"):
        save_pretrained(network, directory, overwrite=False)
    save_pretrained(network, directory, license="MIT")
    assert read_config(directory).license == "MIT"
    assert sorted(os.listdir(directory)) == ["config.json", "model.safetensors", "notes.txt"]


def test_files_and_folders_have_the_usual_permissions(tmp_path, network):
    (tmp_path / "usual").mkdir()
    (tmp_path / "usual" / "file").touch()
    save_pretrained(network, tmp_path / "a")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "usual").stat().st_mode
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).stat().st_mode == (tmp_path / "usual" / "file").stat().st_mode


class Interruption(KeyboardInterrupt):
    pass


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("moment", ["while writing", "while flushing"])
def test_interrupted_save_changes_nothing(tmp_path, monkeypatch, network, exists, moment):
    target = tmp_path / "target"
    if exists:
        save_pretrained(network, target, license="old")

    def write_half(arrays, path, metadata):
        Path(path).write_bytes(b"half")
        raise Interruption

    def interrupt(*args):
        raise Interruption

    with monkeypatch.context() as patch:
        if moment == "while writing":
            patch.setattr(safetensors_file, "save_file", write_half)
        else:
            patch.setattr(os, "fsync", interrupt)
        with pytest.raises(Interruption):
            save_pretrained(network, target, license="new")
    if exists:
        assert sorted(os.listdir(target)) == ["config.json", "model.safetensors"]
        assert read_config(target).license == "old"
        assert_same(load_pretrained(target), network)
    assert os.listdir(tmp_path) == (["target"] if exists else [])


def test_killed_save_leaves_the_old_files(directory, network):
    """Power off in the middle: what is left of the new save is a hidden folder, which nothing reads."""
    program = """
        import os, signal, sys
        from aa_flax.weights.store import load_pretrained, save_pretrained
        model = load_pretrained(sys.argv[1])
        os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)
        save_pretrained(model, sys.argv[1], license="new")
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(directory)]
    killed = subprocess.run(command, check=False, timeout=300, cwd=Path(__file__).parents[1])
    assert killed.returncode == -signal.SIGKILL
    visible = [name for name in sorted(os.listdir(directory)) if not name.startswith(".")]
    assert visible == ["config.json", "model.safetensors"]
    assert read_config(directory).license is None
    assert_same(load_pretrained(directory), network)


def test_published_weights(tmp_path, monkeypatch, network):
    path = tmp_path / "mobilenet_v2_lpf3.pth"
    network = random_network(num_classes=1000, width_mult=1.0)
    path.write_bytes(saved(mapping.to_torch_state_dict(network)))
    asked = []

    def fetch(entry, directory, progress):
        asked.append(entry.name)
        return path, hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(names, "fetch", fetch)
    monkeypatch.chdir(tmp_path)
    assert_same(load_pretrained("mobilenet_v2_lpf3"), network)
    assert load_pretrained("mobilenet_v2_lpf3", dtype=jnp.bfloat16).stem.conv.dtype == jnp.bfloat16
    assert load_pretrained("mobilenet_v2_lpf3", pad_type="zero").spec.pad_type == "zero"
    assert asked == ["mobilenet_v2_lpf3.scratch"] * 3
    config = read_config(save_pretrained(load_pretrained("mobilenet_v2_lpf3"), tmp_path / "a"))
    entry = catalog.find("mobilenet_v2_lpf3")
    assert (config.license, config.metrics) == ("CC BY-NC-SA 4.0", entry.metrics)
    assert config.source["url"] == entry.url


class Small(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.linear = nnx.Linear(2, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.items = nnx.Dict({"10": nnx.Linear(1, 1, rngs=rngs), "9": nnx.Linear(1, 1, rngs=rngs)})
        self.dropout = nnx.Dropout(0.5, rngs=rngs)


def test_variables_are_the_models_own():
    model = Small(nnx.Rngs(0))
    found = variables(model)
    assert list(found) == [
        *("items.10.bias", "items.10.kernel", "items.9.bias", "items.9.kernel"),
        *("linear.bias", "linear.kernel", "norm.bias", "norm.mean", "norm.scale", "norm.var"),
    ]
    assert found["norm.mean"] is model.norm.mean


def small_arrays() -> dict[str, np.ndarray]:
    return {key: np.full(variable.shape, 2, np.float64) for key, variable in variables(Small(nnx.Rngs(0))).items()}


def test_fill_casts_to_the_models_types():
    model = Small(nnx.Rngs(0))
    fill(model, small_arrays(), what="a test")
    assert {array.dtype for array in values(model).values()} == {np.dtype(np.float32)}
    assert all((array == 2).all() for array in values(model).values())


@pytest.mark.parametrize(
    ("key", "array", "message"),
    [
        ("linear.kernel", np.zeros((3, 2)), r"linear.kernel: expected \(2, 3\), found \(3, 2\)"),
        ("linear.kernel", np.full((2, 3), 1e300), "linear.kernel: its values exceed float32"),
        ("linear.bias", np.array([1, 2, np.nan]), "NaN or infinite values:\n    linear.bias"),
        ("linear.bias", np.array([True, False, True]), "linear.bias: expected float32, found bool"),
        ("other", np.zeros(()), r"1 left over:\n    other \(\)"),
    ],
)
def test_fill_changes_nothing_when_something_is_wrong(key, array, message):
    model = Small(nnx.Rngs(0))
    before = values(model)
    with pytest.raises(CheckpointError, match=f"(?s)a test does not fit the model:\n.*{message}"):
        fill(model, small_arrays() | {key: array}, what="a test")
    for path, value in values(model).items():
        np.testing.assert_array_equal(value, before[path])
