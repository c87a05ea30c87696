"""Many networks on the same photos: the figures of `evaluate`, what is kept, what is more than chance, the report."""

import dataclasses
import io
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from rich.console import Console

import aa_flax
from aa_flax import consistency
from aa_flax.consistency import Result
from aa_flax.models.abstract import abstract_model
from aa_flax.weights.config import Preprocessing
from tests.foreign_networks import with_values
from tests.test_report import Reader
from train.__main__ import main
from train.compare import answers, command, measuring
from train.compare.comparison import Comparison, Row
from train.compare.entrants import open_entrant
from train.compare.report import build
from train.compare.tables import MARK
from train.data import ImageFolder
from train.errors import CommandError
from train.measurable.network import Measurable
from train.page.content import Table
from train.page.forms import to_html, to_markdown
from train.page.numbers import signed

TOLD = "+size=32+resize=40"


def pixel(images) -> np.ndarray:
    """A network that looks at one pixel."""
    return np.asarray(images)[:, 5, 5]


def other_pixel(images) -> np.ndarray:
    return np.asarray(images)[:, 9, 2, ::-1]


def first(images) -> np.ndarray:
    """Always the same answer."""
    return np.tile(np.array([3, 2, 1], np.float32), (len(images), 1))


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Noise of 70 pictures, more than are kept in one file, one of them unreadable."""
    root, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(70):
        path = root / "abc"[number % 3] / f"{number:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (44, 60, 3), np.uint8)).save(path)
    (root / "b" / "04.png").write_text("hello")
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("weights") / "net"
    model = aa_flax.create_model("mobilenet_v2_lpf3", num_classes=3, width_mult=0.25, rngs=nnx.Rngs(0))
    aa_flax.save_pretrained(model, directory, preprocessing=Preprocessing(resize=36, crop=32))
    return directory


def compare(photos: Path, output: Path, *networks: str, batch: int = 16) -> dict:
    options = ["--batch-size", str(batch), "--timing-batch", "1", "--timing-repeats", "2"]
    command = ["compare", *networks, "--data", str(photos), "--output", str(output), *options]
    assert main(command) == 0
    return json.loads((output / "compare.json").read_text())


def fn(name: str, more: str = "") -> str:
    return f"fn:tests.test_compare:{name}{TOLD}+name={name}{more}"


def assert_as_evaluate(found: dict, name: str, photos: Path, report: Path, *words: str) -> None:
    """The figures and answers of one network are those that `evaluate` writes of it alone."""
    assert main(["evaluate", "--data", str(photos), "--output", str(report), *words]) == 0
    alone = json.loads(report.read_text())
    network = next(each for each in found["networks"] if each["model"] == name)
    for protocol in ("accuracy", "crop"):
        assert network["protocols"][protocol] == alone["protocols"][protocol]
        assert network["per_image"][protocol]["predictions"] == alone["per_image"][protocol]["predictions"]


def test_figures_are_those_of_evaluate_and_photos_are_decoded_once(photos, tmp_path, monkeypatch, capsys):
    read: list[int] = []
    decode = ImageFolder.__getitem__

    def counted(self, index):
        read.append(index)
        return decode(self, index)

    monkeypatch.setattr(ImageFolder, "__getitem__", counted)
    resized = fn("first").replace("+resize=40", "+resize=36")
    found = compare(photos, tmp_path / "out", fn("pixel"), fn("other_pixel"), resized)
    readable = set(range(70)) - {ImageFolder(photos).labels.tolist().index(1) + 1}
    assert {index: read.count(index) for index in readable} == dict.fromkeys(readable, 1)
    monkeypatch.undo()
    assert "3 networks on 69 photos" in capsys.readouterr().out
    assert found["unreadable"] == {"b/04.png": "not an image that Pillow knows"}
    words = ("--fn", "tests.test_compare:pixel", "--size", "32", "--resize", "40", "--batch-size", "8")
    assert_as_evaluate(found, "pixel", photos, tmp_path / "report.json", *words)


@pytest.mark.slow
def test_a_network_of_this_package_has_the_figures_of_evaluate(photos, weights, tmp_path):
    found = compare(photos, tmp_path / "out", fn("pixel"), str(weights))
    words = ("--weights", str(weights), "--batch-size", "16")
    assert_as_evaluate(found, "mobilenet_v2_lpf3", photos, tmp_path / "report.json", *words)
    model = aa_flax.load_pretrained(weights)
    parameters = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert next(each for each in found["networks"] if each["model"] != "pixel")["parameters"] == parameters


def test_what_is_kept_is_not_measured_again(photos, tmp_path, monkeypatch):
    monkeypatch.setattr("train.compare.command.write_page", lambda page, directory, **more: (directory, directory))
    whole = compare(photos, tmp_path / "whole", fn("pixel"), fn("other_pixel"))
    stopped, looked, interrupted = tmp_path / "stopped", [], []
    look = measuring.look

    def counted(fn, batch, *rest, **more):
        looked.append(int(batch["index"][0]))
        if not interrupted and len(looked) == 9:
            interrupted.append(True)
            raise KeyboardInterrupt
        return look(fn, batch, *rest, **more)

    monkeypatch.setattr(measuring, "look", counted)
    command = ["compare", fn("pixel"), fn("other_pixel"), "--data", str(photos), "--output", str(stopped)]
    command += ["--batch-size", "16", "--timing-batch", "1", "--timing-repeats", "2"]
    assert main(command) == 130
    assert not (stopped / "compare.json").exists()
    looked.clear()
    again = compare(photos, stopped, fn("pixel"), fn("other_pixel"))
    assert looked == [64, 64]
    for key in ("networks", "differences"):
        assert strip(again[key]) == strip(whole[key])
    looked.clear()
    compare(photos, stopped, fn("pixel"), fn("other_pixel"), fn("first"))
    assert len(looked) == 5
    # A damaged file is measured again, another batch size measures nothing, other shifts measure all.
    next(stopped.glob("results/first-*/0000064.npz")).write_bytes(b"PK\x03\x04 broken")
    looked.clear()
    compare(photos, stopped, fn("pixel"), fn("first"), batch=8)
    assert looked == [64]
    looked.clear()
    assert main([*command, "--seed", "1"]) == 0
    assert len(looked) == 2 * 5


def strip(found: list[dict]) -> list[dict]:
    return [{key: value for key, value in each.items() if key != "milliseconds"} for each in found]


def made(name: str, right: np.ndarray, agree: np.ndarray, milliseconds: float = 1.0, **described) -> Row:
    """A network with such figures."""
    labels = np.arange(len(right)) % 3
    arrays = {"labels": labels, "predictions": labels}

    def result(protocol: str, quantity: str, percent: np.ndarray) -> Result:
        parts = {"top5": percent} if protocol == "accuracy" else {}
        return Result.of(percent, parts, arrays, protocol=protocol, quantity=quantity, settings={})

    network = Measurable(
        model=name,
        fn=lambda images: images,
        preprocessing=Preprocessing(),
        num_classes=3,
        described={"kind": "aa_flax", "spec": "resnet18_plain", **described},
    )
    return Row(
        network,
        {"accuracy": result("accuracy", "accuracy", right), "crop": result("crop", "consistency", agree)},
        milliseconds,
    )


def comparison(*rows: Row) -> Comparison:
    options = {"timing_batch": 1, "timing_repeats": 3, "seed": 0}
    return Comparison(rows=rows, data="photos", options=options, device="a CPU", unreadable={"x_y": "broken"})


def three() -> Comparison:
    random = np.random.default_rng(0)
    right = 100.0 * (random.random(300) < 0.7)
    agree = random.choice([60.0, 80, 100], 300)
    better = np.minimum(agree + 20 * (random.random(300) < 0.3), 100)
    return comparison(
        made("plain", right, agree),
        made("blurred", right, better, spec="resnet18_lpf3"),
        made("<b>*odd*</b>|", np.roll(right, 1), agree, kind="onnx"),
    )


def test_only_what_is_more_than_chance_is_marked():
    found = three()
    marked = {key for key, p in found.adjusted.items() if p < 0.05}
    assert ("crop", 0, 1) in marked
    assert ("accuracy", 0, 1) not in marked
    assert ("accuracy", 0, 2) not in marked
    tests = [pair.p for pairs in found.differences.values() for pair in pairs.values()]
    np.testing.assert_allclose(list(found.adjusted.values()), consistency.holm(tests))
    tables = [block for section in build(found).sections for block in section.blocks if isinstance(block, Table)]
    matrix = next(table for table in tables if table.caption == "Consistency, crop: row minus column")
    difference = found.differences["crop"][0, 1]
    assert difference.value < 0
    assert matrix.rows[0][2].text == f"{signed(difference.value)} ± {difference.stderr:.2f}\u00a0{MARK}"
    assert matrix.rows[1][1].text == f"+{-difference.value:.2f} ± {difference.stderr:.2f}\u00a0{MARK}"
    assert (matrix.rows[0][2].spoken, matrix.rows[0][1].text) == ("more than chance", "")
    accuracy = next(table for table in tables if table.caption == "Accuracy: row minus column")
    assert MARK not in "".join(cell.text for row in accuracy.rows for cell in row)
    assert found.ahead == [False, True, False]


def test_the_report_shows_names_as_they_are_and_no_markup():
    page = build(three())
    document, text = to_html(page), to_markdown(page)
    read = Reader(document)
    assert "b" not in read.tags
    assert "script" not in read.tags
    assert "".join(read.words).count("<b>*odd*</b>|") >= 5
    for figure in page.figures():
        assert "blurred" in figure.alt
        assert figure.picture.png()[:4] == b"\x89PNG"
    assert re.search(r"\| ms an image \|", text)
    assert "300 photos are few" in text
    assert r"x\_y \(broken\)" in text or r"x\_y (broken)" in text


def test_the_report_says_what_readers_of_a_network_have_to_know(tmp_path):
    network = with_values(lambda: abstract_model("resnet18_lpf4", num_classes=2))
    aa_flax.save_pretrained(network, tmp_path, source={"layout": "torchvision", "filter_size": None})
    told = open_entrant(f"{tmp_path}+name=tuned")
    assert "made for no blur, resnet18_lpf4 has blurs of 4 taps" in told.as_dict()["notice"]
    row, other = (made(name, np.array([100.0, 0.0]), np.array([100.0, 50.0])) for name in ("a", "b"))
    found = comparison(dataclasses.replace(row, network=told), other)
    assert "tuned: these weights were made for no blur" in to_markdown(build(found))
    assert "these weights" not in to_markdown(build(comparison(row, other)))
    assert "notice" not in other.network.as_dict()


def test_one_photo_and_no_consistency_are_a_report_too():
    rows = [made(name, np.array([100.0]), np.array([100.0])) for name in "ab"]
    assert "nan" not in to_markdown(build(comparison(*rows)))
    printed = io.StringIO()
    command._print(comparison(*rows), Console(file=printed))
    assert "nan" not in printed.getvalue()
    assert "+0.00" in printed.getvalue()
    rows = [dataclasses.replace(row, results={"accuracy": row.results["accuracy"]}) for row in rows]
    assert [figure.name for figure in build(comparison(*rows)).figures()] == []


@pytest.mark.parametrize(
    ("networks", "message"),
    [
        (["fn:tests.test_compare:pixel"], "1 network to compare; name two or more"),
        ([fn("pixel"), fn("pixel")], r"two networks are called pixel; name one with \+name="),
        ([fn("pixel"), "/nowhere"], "/nowhere"),
        ([fn("pixel"), "resnt18"], "networks: .*unknown network 'resnt18'"),
        ([fn("pixel"), "net.onnx"], "net.onnx is no file"),
        ([fn("pixel"), "fn:tests.test_compare:pixel+size=big"], r"\+size=big is no whole number"),
        ([fn("pixel"), "fn:tests.test_compare:pixel+layout=chwn"], r"\+layout=chwn is none of nhwc, nchw"),
        ([fn("pixel"), "WEIGHTS+size=64"], r"\+size is for networks of other make"),
        ([fn("pixel"), "fn:tests.test_compare:pixel+model=resnet18"], r"\+model is for PyTorch files"),
        ([fn("pixel"), "s3://bucket/net"], "s3://bucket/net"),
    ],
)
def test_networks_that_cannot_be_compared_are_one_line(photos, weights, tmp_path, capsys, networks, message):
    words = [word.replace("WEIGHTS", str(weights)) for word in networks]
    assert main(["compare", *words, "--data", str(photos), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert re.search(message, error), error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_too_many_unreadable_photos_end_it(photos, tmp_path, capsys):
    command = ["compare", fn("pixel"), fn("first"), "--data", str(photos), "--output", str(tmp_path)]
    assert main([*command, "--max-unreadable", "0.01", "--batch-size", "16"]) == 2
    said = "1 of 70 photos are unreadable, more than the share of --max-unreadable (0.01); the first is b/04.png"
    assert said in capsys.readouterr().err


def test_results_of_no_readable_photo_are_an_error(photos, tmp_path):
    entrant = answers.Entrant(three().rows[0].network, ImageFolder(photos), {}, tmp_path)
    with pytest.raises(CommandError, match="no photo could be read"):
        answers.results(entrant)
