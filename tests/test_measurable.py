"""Networks that are not ours: ONNX files, exported programs and functions measured as if they were."""

import dataclasses
import json
import re
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from flax import nnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import aa_flax
from aa_flax.weights.config import Preprocessing
from train.__main__ import main
from train.errors import CommandError
from train.measurable.network import HostFunction, Input, Told, input_of_shape
from train.measurable.onnx_file import open_onnx
from train.measurable.program import open_function

SIZE = ["--size", "32", "--resize", "40"]


def write_onnx(
    path: Path, shape: list, *, last: str | None = None, metadata: dict | None = None, classes: int = 3
) -> Path:
    """A network whose logits are products of one pixel, near the upper left, with a matrix of odd numbers."""
    channels_first = shape[1] == 3
    starts, ends, axes = [5, 5], [6, 6], [2, 3] if channels_first else [1, 2]
    matrix = np.random.default_rng(1).normal(size=(3, classes)).astype(np.float32)
    constants = [
        *(numpy_helper.from_array(np.array(v), n) for n, v in (("starts", starts), ("ends", ends), ("axes", axes))),
        numpy_helper.from_array(matrix, "matrix"),
    ]
    nodes = [
        helper.make_node("Slice", ["images", "starts", "ends", "axes"], ["pixel"]),
        helper.make_node("Flatten", ["pixel"], ["flat"]),
        helper.make_node("MatMul", ["flat", "matrix"], ["product"]),
        helper.make_node(last or "Identity", ["product"], ["logits"]),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [shape[0], classes])
    graph = helper.make_graph(nodes, "network", [images], [logits], constants)
    network = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    helper.set_model_props(network, {name: json.dumps(value) for name, value in (metadata or {}).items()})
    onnx.save(network, str(path))
    return path


def pixel(images) -> np.ndarray:
    """The same in NumPy."""
    return np.asarray(images)[:, 5, 5] @ np.random.default_rng(1).normal(size=(3, 3)).astype(np.float32)


def pixel_first(images) -> np.ndarray:
    return pixel(images.transpose(0, 2, 3, 1))


def broken(images):
    raise KeyError("weights")


def flat(images):
    return images.mean()


module = nnx.Sequential(nnx.Dropout(0.9, rngs=nnx.Rngs(0)), lambda x: x[:, 5, 5])
not_callable = 3


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Noise, so that every shift is another pixel."""
    root, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(13):
        path = root / "abc"[number % 3] / f"{number:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (44, 60, 3), np.uint8)).save(path)
    return root


def report(photos: Path, tmp_path: Path, *options: str) -> dict:
    output = tmp_path / "report.json"
    command = ["evaluate", "--data", str(photos), "--output", str(output), "--protocols", "accuracy,crop,diagonal"]
    assert main([*command, "--batch-size", "8", *options]) == 0
    return json.loads(output.read_text())


KINDS = {
    "channels first": (["b", 3, 32, 32], {}, SIZE),
    "channels last": (["b", 32, 32, 3], {}, SIZE),
    "five at a time": ([5, 3, 32, 32], {}, SIZE),
    "any size": (["b", 3, "h", "w"], {}, SIZE),
    "said by the file": (["b", "h", "w", 3], {"preprocessing": {"resize": 40, "crop": 32}}, []),
}


@pytest.fixture(scope="module")
def expected(photos, tmp_path_factory) -> dict:
    """What the same function gives without ONNX."""
    return report(photos, tmp_path_factory.mktemp("expected"), "--fn", "tests.test_measurable:pixel", *SIZE)


@pytest.mark.parametrize("kind", KINDS)
def test_an_onnx_file_is_measured_as_the_function_that_it_is(photos, expected, tmp_path, kind, capsys):
    shape, metadata, options = KINDS[kind]
    path = write_onnx(tmp_path / "network.onnx", shape, metadata=metadata)
    found = report(photos, tmp_path, "--onnx", str(path), *options)
    assert 0 < found["consistency"]["crop"]["value"] < 100
    for key in ("top1", "top5", "consistency", "classes"):
        assert found[key] == expected[key]
    for name in ("accuracy", "crop", "diagonal"):
        assert found["per_image"][name]["predictions"] == expected["per_image"][name]["predictions"]
    np.testing.assert_allclose(
        found["per_image"]["diagonal"]["probability"], expected["per_image"]["diagonal"]["probability"], atol=1e-5
    )
    assert found["model"] == "network"
    assert found["repeat"]["pretrained"]["layout"] == ("nhwc" if shape[3] == 3 else "nchw")
    assert found["repeat"]["pretrained"]["preprocessing"]["crop"] == 32
    assert len(found["repeat"]["weights_sha256"]) == 64
    assert "network on 13 photos" in capsys.readouterr().out


def test_what_a_file_says_and_holds_is_known(tmp_path):
    rule = Preprocessing(resize=40, crop=32, interpolation="bicubic", mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3))
    said = {"preprocessing": dataclasses.asdict(rule), "class_names": ["a", "b", "c"]}
    network = open_onnx(write_onnx(tmp_path / "n.onnx", ["b", 3, "h", "w"], metadata=said), Told())
    assert (network.preprocessing, network.class_names, network.num_classes) == (rule, ("a", "b", "c"), 3)
    assert network.parameters == 9
    told = Told(size=64, mean="0.5", interpolation="nearest", std="0.5,0.25,1")
    changed = open_onnx(tmp_path / "n.onnx", told).preprocessing
    assert changed == Preprocessing(
        resize=80, crop=64, interpolation="nearest", mean=(0.5, 0.5, 0.5), std=(0.5, 0.25, 1.0)
    )
    plain = open_onnx(write_onnx(tmp_path / "m.onnx", ["b", 3, 28, 28]), Told()).preprocessing
    assert plain == Preprocessing(resize=28, crop=28)
    assert open_onnx(write_onnx(tmp_path / "m.onnx", ["b", 3, "h", "w"]), Told()).preprocessing == Preprocessing()


def test_probabilities_are_measured_by_their_logarithms(photos, expected, tmp_path):
    path = write_onnx(tmp_path / "network.onnx", ["b", 3, 32, 32], last="Softmax")
    found = report(photos, tmp_path, "--onnx", str(path), *SIZE)
    assert found["repeat"]["pretrained"]["ends_in"] == "probabilities"
    diagonals = [each["per_image"]["diagonal"]["probability"] for each in (found, expected)]
    np.testing.assert_allclose(*diagonals, atol=1e-5)


def test_functions_get_the_layout_that_was_told(photos, expected, tmp_path):
    options = ["--fn", "tests.test_measurable:pixel_first", "--layout", "nchw", *SIZE]
    assert report(photos, tmp_path, *options)["per_image"] == expected["per_image"]


def test_a_module_is_measured_in_eval_mode():
    network = open_function("tests.test_measurable:module", Told(size=32))
    images = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)
    np.testing.assert_array_equal(network.fn(images), images[:, 5, 5])


def test_a_fixed_number_of_images_is_filled_up():
    seen = []

    def run(images):
        seen.append(images.shape)
        return images.mean((2, 3))

    fn = HostFunction(run, Input(layout="nchw", batch=4), "net")
    images = np.random.default_rng(0).normal(size=(9, 6, 5, 3)).astype(np.float32)
    np.testing.assert_allclose(fn(jnp.asarray(images)), images.mean((1, 2)), atol=1e-6)
    assert seen == [(4, 3, 6, 5)] * 3


def test_an_exported_program_is_measured_as_the_network_it_was(photos, tmp_path):
    rule = Preprocessing(resize=40, crop=32)
    model = aa_flax.create_model("mobilenet_v2_lpf3", num_classes=3, width_mult=0.25, rngs=nnx.Rngs(0))
    aa_flax.save_pretrained(model, tmp_path / "weights", preprocessing=rule)
    aa_flax.export(model, tmp_path / "program", image_size=32, platforms=("cpu",))
    ours = report(photos, tmp_path, "--weights", str(tmp_path / "weights"))
    found = report(photos, tmp_path, "--exported", str(tmp_path / "program"), "--resize", "40")
    assert found["model"] == "mobilenet_v2_lpf3"
    assert found["per_image"]["crop"]["predictions"] == ours["per_image"]["crop"]["predictions"]
    assert found["consistency"] == ours["consistency"]


SHAPES = [
    ((None, 3, 224, 224), None, "nchw", 224, None),
    (("n", 224, 224, 3), None, "nhwc", 224, None),
    ((8, 1, 28, 28), None, "nchw", 28, 8),
    ((0, -1, "h", "w"), "nchw", "nchw", None, None),
    ((1, 3, 3, 3), "nhwc", "nhwc", 3, 1),
]


@pytest.mark.parametrize(("shape", "told", "layout", "size", "batch"), SHAPES)
def test_a_shape_says_layout_size_and_number(shape, told, layout, size, batch):
    found = input_of_shape(shape, Told(layout=told), "net")
    assert (found.layout, found.size, found.batch) == (layout, size, batch)


@pytest.mark.parametrize(
    ("shape", "told", "message"),
    [
        ((1, 3, 224), None, r"net takes arrays \(1, 3, 224\); images have four axes"),
        ((None, None, None, None), None, r"\(\?, \?, \?, \?\): channels may be second or last: give layout"),
        ((1, 3, 3, 3), None, "give layout"),
        ((1, 4, 224, 224), None, "neither has 1 or 3 channels"),
        ((1, 3, 224, 224), "nhwc", "in the layout nhwc they have 224 channels"),
        ((1, 3, 200, 224), None, "200x224 pixels; those cut from photos are square"),
    ],
)
def test_shapes_that_are_no_images(shape, told, message):
    with pytest.raises(CommandError, match=message):
        input_of_shape(shape, Told(layout=told), "net")


REFUSED = [
    (["--onnx", "/nowhere.onnx"], "/nowhere.onnx is no file"),
    (["--onnx", "JUNK"], "junk.onnx is no ONNX file that onnxruntime reads: .*PROTOBUF"),
    (["--onnx", "NET", "--size", "64"], "takes images of 32 pixels a side, and size=64 was asked for"),
    (["--onnx", "NET", "--layout", "nhwc"], "in the layout nhwc they have 32 channels"),
    (["--onnx", "NET", "--classes", "10"], "gives 3 numbers an image, and classes=10 was asked for"),
    (["--onnx", "NET", "--mean", "0.5,x"], "mean is '0.5,x'; it must be numbers such as 0.5,0.5,0.5"),
    (["--onnx", "NET", "--std", "0.5,0.5"], r"takes 3 channels, and std is \(0.5, 0.5\)"),
    (["--onnx", "NET", "--resize", "8"], "preprocessing.crop must be at most resize"),
    (["--onnx", "NET", "--size", "0"], "size is 0; it must be at least 1"),
    (["--onnx", "SAID"], "its metadata 'preprocessing': .*unexpected keyword argument 'shrink'"),
    (["--onnx", "TWO"], "3 class folders .* cannot be matched with the 2 classes of two"),
    (["--onnx", "NET", "--fn", "m:f"], "--onnx and --fn name a network each; give one"),
    (["--onnx", "NET", "--weights", "w"], "--weights is for networks of this package, and --onnx is none"),
    (["--onnx", "NET", "--dtype", "bfloat16"], "--dtype is for networks of this package"),
    (["--onnx", "NET", "--weights-file", "w"], "--weights-file is for --timm and --torchvision"),
    (["--model", "resnet18", "--size", "32"], "--size is for --onnx, --timm and so on"),
    (["--exported", "/nowhere"], "/nowhere/export.json: not found"),
    (["--fn", "nosuchmodule:f"], "nosuchmodule:f: No module named 'nosuchmodule'"),
    (["--fn", "tests.test_measurable:f"], "tests.test_measurable has no f"),
    (["--fn", "tests.test_measurable"], "is no package.module:function"),
    (["--fn", "tests.test_measurable:not_callable"], "is int, which cannot be called"),
    (["--fn", "tests.test_measurable:broken"], r"failed: KeyError: 'weights' \(test_measurable.py:\d+\)"),
    (["--fn", "tests.test_measurable:flat"], r"called with images \(2, 224, 224, 3\), gives float32 \(.*\), no logits"),
]


@pytest.mark.parametrize(
    ("options", "message"), REFUSED, ids=lambda each: " ".join(each) if isinstance(each, list) else None
)
def test_what_cannot_be_measured_is_one_line(photos, tmp_path, capsys, options, message):
    files = {"NET": tmp_path / "net.onnx", "SAID": tmp_path / "said.onnx", "TWO": tmp_path / "two.onnx"}
    files["JUNK"] = tmp_path / "junk.onnx"
    write_onnx(files["NET"], ["b", 3, 32, 32])
    write_onnx(files["SAID"], ["b", 3, 32, 32], metadata={"preprocessing": {"shrink": 3}})
    write_onnx(files["TWO"], ["b", 3, 32, 32], classes=2)
    files["JUNK"].write_text("junk")
    words = [str(files.get(word, word)) for word in options]
    assert main(["evaluate", "--data", str(photos), *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert re.search(message, error), error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("option", "package", "said"),
    [("--onnx", "onnxruntime", "needs onnxruntime: pip install"), ("--timm", "timm", "needs timm and PyTorch")],
)
def test_a_missing_package_is_named(photos, tmp_path, capsys, monkeypatch, option, package, said):
    monkeypatch.setitem(sys.modules, package, None)
    path = write_onnx(tmp_path / "net.onnx", ["b", 3, 32, 32])
    assert main(["evaluate", "--data", str(photos), option, str(path)]) == 2
    assert said in capsys.readouterr().err
