"""Exported programs: bit-equal answers, a free batch, three platforms, and damaged files."""

import functools
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

import aa_flax
from aa_flax.models.abstract import abstract_model
from aa_flax.weights import CheckpointError, safetensors_file
from tests.foreign_networks import run, with_values

pytestmark = pytest.mark.every_platform


class Tiny(nnx.Module):
    """Somebody's network, with everything that an export has to cope with: eleven blocks, dropout, a blur."""

    def __init__(self, rngs: nnx.Rngs):
        self.stem = nnx.Conv(3, 4, (3, 3), 2, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(11)])
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.stem(x)))
        for block in self.blocks:
            x = x + block(x)
        return {"logits": self.dropout(x).mean((1, 2)), "map": x}


class Mean(nnx.Module):
    """The smallest network with weights."""

    def __init__(self, rngs: nnx.Rngs):
        self.fc = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        return self.fc(x.mean((1, 2)))


def tiny() -> Tiny:
    model = Tiny(nnx.Rngs(0))
    for i, block in enumerate(model.blocks):
        block.kernel[...] = jax.random.normal(jax.random.key(i), (4, 4))
    return aa_flax.antialias(model, first=True)[0]


def images(batch: int, dtype=jnp.float32) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=(batch, 16, 18, 3)), dtype)


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[Tiny, Path]:
    model = tiny()
    directory = tmp_path_factory.mktemp("export") / "tiny"
    return model, aa_flax.export(model, directory, image_size=(16, 18), in_channels=3)


def test_the_program_answers_as_the_network_does_for_any_batch(exported):
    model, directory = exported
    assert model.norm.use_running_average is None or not model.norm.use_running_average
    network = aa_flax.load_exported(directory)
    assert network.platforms == ("cpu", "cuda", "tpu")
    assert network.input_shape == ("b", 16, 18, 3)
    model.eval()
    for batch in (1, 3):
        want = run(model, images(batch))
        jax.tree.map(np.testing.assert_array_equal, network(images(batch)), want)
    # Inside another program the weights are constants, which the compiler may fold into other roundings.
    for got, there in zip(*map(jax.tree.leaves, (jax.jit(network)(images(3)), want)), strict=True):
        np.testing.assert_allclose(got, there, atol=1e-5 * float(jnp.abs(there).max()))


def test_the_weights_lie_beside_the_program_and_can_be_exchanged(exported, tmp_path):
    model, directory = exported
    assert sorted(p.name for p in directory.iterdir()) == ["export.json", "program.jax", "weights.safetensors"]
    assert len({p.stat().st_mode for p in directory.iterdir()}) == 1, "whoever reads one file reads them all"
    weights = load_file(directory / "weights.safetensors")
    assert "blocks.10.kernel" in weights
    np.testing.assert_array_equal(weights["blocks.10.kernel"], model.blocks[10].kernel[...])
    other = tmp_path / "other"
    other.mkdir()
    for name in ("export.json", "program.jax"):
        (other / name).write_bytes((directory / name).read_bytes())
    save_file({name: np.zeros_like(a) for name, a in weights.items()}, other / "weights.safetensors")
    assert not aa_flax.load_exported(other)(images(1))["logits"].any()


def test_a_program_runs_without_flax(exported):
    """What an application needs is jax and safetensors alone."""
    model, directory = exported
    code = f"""
import jax, numpy as np, sys
from pathlib import Path
from safetensors.numpy import load_file
program = jax.export.deserialize(bytearray(Path({str(directory)!r}, "program.jax").read_bytes()))
weights = load_file(Path({str(directory)!r}, "weights.safetensors"))
x = np.random.default_rng(0).normal(size=(1, 16, 18, 3)).astype("f4")
assert "flax" not in sys.modules and "aa_flax" not in sys.modules
print(float(program.call(weights, x)["logits"][0, 0]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    model.eval()
    # That the bits are those of the network is tested in one process: this one compiles with other options.
    assert float(done.stdout) == pytest.approx(float(run(model, images(1))["logits"][0, 0]), rel=1e-5)


def test_networks_of_this_package_export(tmp_path):
    """One of ResNet's and one that flattens its map, for a fixed and a free batch; both ways of NNX."""
    model = with_values(lambda: abstract_model("resnet18_lpf3", num_classes=3, dtype=jnp.bfloat16))
    lower = functools.partial(aa_flax.export, model, image_size=32, platforms=("cpu",))
    with nnx.set_graph_mode(False), nnx.set_graph_updates(False):
        lower(tmp_path / "tree")
    network = aa_flax.load_exported(lower(tmp_path / "graph", batch=2))
    assert network.model == "resnet18_lpf3"
    assert network.input_shape == (2, 32, 32, 3)
    assert network.platforms == ("cpu",)
    same = aa_flax.load_exported(tmp_path / "tree").program
    assert same.in_avals[:-1] == network.program.in_avals[:-1]
    assert str(same.out_avals[0].shape) == "(b, 3)"


def test_other_inputs_are_refused(exported):
    network = aa_flax.load_exported(exported[1])
    for x in (images(1)[:, :15], images(1)[0], images(1, jnp.bfloat16)):
        with pytest.raises(ValueError, match=r"the program takes float32 \('b', 16, 18, 3\), got .*export it again"):
            network(x)


def test_damaged_and_missing_files(exported, tmp_path):
    def broken(**changes: bytes | None) -> Path:
        copy = tmp_path / f"copy{len(list(tmp_path.iterdir()))}"
        copy.mkdir()
        for file in exported[1].iterdir():
            content = changes.get(file.stem, file.read_bytes())
            if content is not None:
                (copy / file.name).write_bytes(content)
        return copy

    program = bytearray((exported[1] / "program.jax").read_bytes())
    program[len(program) // 2] ^= 1
    weights = load_file(exported[1] / "weights.safetensors")
    weights.pop("stem.bias")
    fewer = tmp_path / "fewer.safetensors"
    save_file(weights, fewer)
    description = json.loads((exported[1] / "export.json").read_text())
    for directory, error, message in (
        (broken(program=bytes(program)), ValueError, "program.jax: not the file that was exported"),
        (broken(weights=fewer.read_bytes(), export=json.dumps(description).encode()), ValueError, "stem.bias"),
        (broken(weights=b"too short"), ValueError, "weights.safetensors: "),
        (broken(weights=None), FileNotFoundError, "weights.safetensors: not found; export the network again"),
        (broken(export=b"{}"), ValueError, "export.json: damaged"),
        (tmp_path / "nowhere", FileNotFoundError, "export.json: not found"),
    ):
        with pytest.raises(error, match=message):
            aa_flax.load_exported(directory)


def test_crafted_programs_are_one_kind_of_error(tmp_path):
    """Three hundred programs whose digest is right and whose bytes are not: read, or refused in one line."""
    directory = aa_flax.export(Mean(nnx.Rngs(0)), tmp_path / "e", image_size=4, in_channels=3, platforms=("cpu",))
    program, described = directory / "program.jax", json.loads((directory / "export.json").read_text())
    weights = load_file(directory / "weights.safetensors")
    save_file(weights, directory / "weights.safetensors")
    assert aa_flax.load_exported(directory).input_shape == ("b", 4, 4, 3)
    sound, random, refused = program.read_bytes(), np.random.default_rng(0), 0
    for _ in range(300):
        crafted = bytearray(sound[: random.integers(8, 2 * len(sound))])
        for place in random.integers(0, len(crafted), random.integers(1, 9)):
            crafted[place] = random.choice([0, 1, 127, 128, 255])
        program.write_bytes(crafted)
        described["sha256"] = hashlib.sha256(crafted).hexdigest()
        (directory / "export.json").write_text(json.dumps(described))
        try:
            aa_flax.load_exported(directory)
        except CheckpointError as error:
            assert len(str(error).splitlines()) == 1  # noqa: PT017
            refused += 1
    assert refused > 150


def test_the_description_has_to_be_that_of_the_program(exported, tmp_path):
    shutil.copytree(exported[1], tmp_path / "e")
    path = tmp_path / "e" / "export.json"
    sound = json.loads(path.read_text())
    for field, value in (
        ("input_shape", ["b", 16, 18, 4]),
        ("input_shape", 5),
        ("dtype", "bfloat16"),
        ("platforms", "cpu"),
        ("platforms", ["cpu"]),
        ("model", 3),
        ("sha256", None),
    ):
        path.write_text(json.dumps(sound | {field: value}))
        with pytest.raises(CheckpointError, match=r"export\.json: (it says|damaged)|not the file that was exported"):
            aa_flax.load_exported(tmp_path / "e")


def test_a_full_disk_is_an_error_of_the_system(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(safetensors_file, "save_file", full)
    with pytest.raises(OSError, match=r"x: weights.safetensors cannot be written \(No space left"):
        aa_flax.export(tiny(), tmp_path / "x", in_channels=3, image_size=16, platforms=("cpu",))
    assert not list(tmp_path.iterdir())


def test_misuse(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"in_channels is needed to export Tiny, which has no spec"):
        aa_flax.export(tiny(), tmp_path / "x")
    with pytest.raises(ValueError, match=r"export needs a model with values, but bn1\.bias has none"):
        aa_flax.export(abstract_model("resnet18"), tmp_path / "x")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="it is a file"):
        aa_flax.export(tiny(), tmp_path / "file", in_channels=3, image_size=16, platforms=("cpu",))
    write = functools.partial(aa_flax.export, tiny(), tmp_path / "x", in_channels=3, image_size=16)
    for options, message in (
        ({"platforms": "cpu"}, "platforms must be a list of cpu, cuda, rocm, tpu, got 'cpu'"),
        ({"platforms": ("cpu", "gpu")}, r"platforms must be .*, got \('cpu', 'gpu'\)"),
        ({"batch": "a b"}, "batch must be a name such as 'b' or a whole number >= 1, got 'a b'"),
        ({"batch": 0}, "batch must be .*, got 0"),
        ({"image_size": "large"}, "image_size must be a whole number >= 1 or 2 of them, .* got 'large'"),
        ({"image_size": (16, 0)}, r"image_size must be .*, got \(16, 0\)"),
    ):
        with pytest.raises(ValueError, match=message):
            write(**options)
    with pytest.raises(TypeError, match=r"export takes a flax\.nnx\.Module, got function"):
        aa_flax.export(lambda x: x, tmp_path / "x", in_channels=3)
    assert not (tmp_path / "x").exists()
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(ImportError, match="pip install flatbuffers"):
        aa_flax.load_exported(tmp_path)


def test_height_and_width_can_be_free_where_no_table_depends_on_them(tmp_path):
    """One program for images of any size and shape; equal to what each size gives by itself."""
    model = with_values(lambda: abstract_model("resnet18_plain", num_classes=3, depths=(1, 1, 1, 1)))
    aa_flax.export(model, tmp_path / "plain", image_size=("h", "w"), platforms=("cpu",))
    network = aa_flax.load_exported(tmp_path / "plain")
    assert network.input_shape == ("b", "h", "w", 3)
    model.eval()
    for shape in ((1, 64, 64, 3), (2, 70, 97, 3)):
        x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
        want = run(model, x)
        np.testing.assert_allclose(network(x), want, atol=1e-5 * float(jnp.abs(want).max()))
    with pytest.raises(ValueError, match="h"):
        network(x[:, :63])


@pytest.mark.parametrize(
    "spec", ["resnet50_plain", "mobilenet_v2_plain", "densenet121_plain", "vgg11_plain", "alexnet_plain"]
)
def test_every_plain_family_lowers_for_free_sizes(spec):
    depths = {"depths": (1, 1, 1, 1)} if spec[:3] in ("res", "den") else {}
    model = abstract_model(spec, num_classes=0, **depths)
    model.eval()
    graphdef, state = nnx.split(model)
    shape = jax.export.symbolic_shape("b, h, w, 3", constraints=["h >= 64", "w >= 64"])
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    assert str(jax.eval_shape(lambda s, x: nnx.merge(graphdef, s)(x), state, x).shape[0]) == "b"


def test_sizes_that_a_network_depends_on_cannot_be_free(tmp_path):
    model = with_values(lambda: abstract_model("resnet18_lpf3", num_classes=3, depths=(1, 1, 1, 1)))
    for size in (("n", "n"), ("h", 64)):
        with pytest.raises(ValueError, match=r"ResNet depends on the size of its images, as every blur does: give num"):
            aa_flax.export(model, tmp_path / "x", image_size=size, platforms=("cpu",))
    for size in (("a b", 64), ("h", 0), ("h", "w", "d")):
        with pytest.raises(ValueError, match="image_size must be a whole number >= 1 or 2 of them"):
            aa_flax.export(model, tmp_path / "x", image_size=size)
    assert not list(tmp_path.iterdir())
