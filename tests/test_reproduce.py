"""`python -m train reproduce`: finding weights, measuring once, going on, what is missing."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import aa_flax
from aa_flax.preprocessing.geometry import evaluation_crop
from aa_flax.weights import catalog, names
from aa_flax.weights.class_names import imagenet_wnids
from aa_flax.weights.download import DownloadError
from aa_flax.weights.store import Preprocessing
from tests.foreign_networks import with_values
from train.__main__ import main
from train.data.decode import read_rgb
from train.errors import CommandError
from train.networks import as_function
from train.reproduce import measuring, published_weights
from train.reproduce.rows import choose, published_rows, timm_rows

SMALL = Preprocessing(resize=40, crop=32)
PHOTOS = 6


def save(directory: Path, spec: str, *, seed: int = 0, source: dict | None = None) -> None:
    model = aa_flax.create_model(spec, depths=(1, 1, 1, 1), rngs=nnx.Rngs(seed))
    aa_flax.save_pretrained(model, directory, preprocessing=SMALL, source=source)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """ResNet-18 plain and with two taps, to be measured on 32 pixels."""
    root = tmp_path_factory.mktemp("weights")
    save(root / "resnet18_plain", "resnet18_plain", source={"file": "mine.pth", "sha256": "0" * 64})
    save(root / "resnet18_lpf2", "resnet18_lpf2", seed=1)
    return root


def write_photos(root: Path, seed: int = 0) -> Path:
    random = np.random.default_rng(seed)
    for number in range(PHOTOS):
        folder = root / "val" / imagenet_wnids()[100 * number]
        folder.mkdir(parents=True)
        pixels = random.integers(0, 256, (48, 52 + number, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 60)).save(folder / f"{number}.jpg")
    return root


@pytest.fixture
def photos(tmp_path) -> Path:
    return write_photos(tmp_path / "imagenet")


@pytest.fixture
def only_resnet18(monkeypatch):
    """The catalogue cut down to one network, so that reports are drawn in no time."""
    rows = tuple(row for row in catalog.published() if row.model == "resnet18")
    monkeypatch.setattr(catalog, "published", lambda: rows)


def command(weights: Path, photos: Path, output: Path, *options: str) -> list[str]:
    paths = ["--weights-root", str(weights), "--data", str(photos), "--output", str(output)]
    quick = ["--no-download", "--batch-size", "8", "--timing-batch", "2", "--timing-repeats", "1"]
    return ["reproduce", *paths, *quick, *options]


def forbid_measuring(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("measured again")

    monkeypatch.setattr("train.reproduce.command.measure", refuse)


# Choosing networks.


def test_choose():
    def specs(*patterns):
        return [row.title for row in choose(published_rows(), patterns)]

    assert len(specs()) == 82
    assert len(specs("mobilenet_v2")) == 6
    assert specs("mobilenet_v2_lpf4") == ["mobilenet_v2_lpf4 (scratch)", "mobilenet_v2_lpf4 (finetuned)"]
    assert specs("vgg11*", "alexnet_plain")[0] == "alexnet_plain (torchvision)"
    assert len(specs("vgg11*", "alexnet_plain")) == 5
    with pytest.raises(CommandError, match="--models 'resnet18x' is none of the published networks; try resnet18"):
        specs("resnet50", "resnet18x")


# The command.


@pytest.mark.usefixtures("only_resnet18")
def test_measures_lists_and_goes_on(weights, photos, tmp_path, capsys, monkeypatch):
    output = tmp_path / "out"
    assert main(command(weights, photos, output)) == 0
    printed, told = capsys.readouterr()
    assert "resnet18_plain (torchvision): top-1 " in told
    assert " ms an image\n" in told
    assert "measured 2 of 6 published rows" in printed
    assert "missing: 4" in printed
    assert "resnet18_lpf3 (scratch): no resnet18_lpf3-" in printed
    results = sorted(path.name for path in (output / "results").iterdir())
    assert results == ["resnet18_lpf2_scratch.json", "resnet18_plain_torchvision.json"]
    text = (output / "report.md").read_text()
    assert "Photos: 6 in" in text
    assert "resnet18\\_plain from mine.pth\u00a0\u2020" in text
    kept = json.loads((output / "results/resnet18_plain_torchvision.json").read_text())
    assert kept["identity"]["protocols"]["zhang2019"]["pairs"] == 5

    # The same command again: nothing is measured, the report is the same.
    forbid_measuring(monkeypatch)
    document = (output / "report.html").read_text()
    assert main(command(weights, photos, output)) == 0
    assert capsys.readouterr().err.count("from an earlier run") == 2
    assert (output / "report.md").read_text() == text
    assert (output / "report.html").read_text() == document

    # Other conditions of timing: only the time is taken anew.
    assert main(command(weights, photos, output, "--timing-repeats", "2")) == 0
    again = json.loads((output / "results/resnet18_plain_torchvision.json").read_text())
    assert again["timing"]["repeats"] == 2
    assert again["top1"] == kept["top1"]

    # Weights that are gone, or not asked for, leave their numbers in the report.
    assert main(command(tmp_path / "none", photos, output, "--models", "resnet18_lpf3")) == 0
    assert "2 of the 6 rows were measured" in (output / "report.md").read_text()

    # Other photos or another seed: the numbers are of no use.
    for options in ((write_photos(tmp_path / "other", seed=1),), (photos, "--seed", "1")):
        with pytest.raises(AssertionError, match="measured again"):
            main(command(weights, options[0], output, *options[1:]))


@pytest.mark.usefixtures("only_resnet18")
def test_numbers_equal_those_of_evaluate(weights, photos, tmp_path):
    assert main(command(weights, photos, tmp_path / "out", "--models", "resnet18_lpf2")) == 0
    kept = json.loads((tmp_path / "out/results/resnet18_lpf2_scratch.json").read_text())
    options = [
        "--data",
        str(photos / "val"),
        "--protocols",
        "accuracy,zhang2019",
        "--batch-size",
        "8",
        "--output",
        str(tmp_path / "e.json"),
    ]
    assert main(["evaluate", "--weights", str(weights / "resnet18_lpf2"), *options]) == 0
    expected = json.loads((tmp_path / "e.json").read_text())
    assert kept["top1"]["value"] == expected["top1"]
    assert kept["top5"]["value"] == expected["top5"]
    assert kept["consistency"] == expected["consistency"]["zhang2019"]


@pytest.mark.usefixtures("only_resnet18")
def test_broken_weights_do_not_stop_the_others(weights, photos, tmp_path, capsys):
    root = tmp_path / "weights"
    root.mkdir()
    (root / "resnet18_lpf2").symlink_to(weights / "resnet18_lpf2")
    save(root / "resnet18_plain", "resnet18_plain")
    file = root / "resnet18_plain/model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    assert main(command(root, photos, tmp_path / "out")) == 1
    printed = capsys.readouterr().out
    assert "measured 1 of 6 published rows" in printed
    assert "failed: 1" in printed
    assert "resnet18_plain (torchvision): " in printed
    assert "model.safetensors" in (tmp_path / "out/report.md").read_text()


@pytest.mark.usefixtures("only_resnet18")
def test_ctrl_c_keeps_what_is_done(weights, photos, tmp_path, capsys, monkeypatch):
    measure = measuring.measure

    def stop_at_the_second(found, *args, **kwargs):
        if found.spec == "resnet18_lpf2":
            raise KeyboardInterrupt
        return measure(found, *args, **kwargs)

    monkeypatch.setattr("train.reproduce.command.measure", stop_at_the_second)
    assert main(command(weights, photos, tmp_path / "out")) == 130
    assert "the same command goes on" in capsys.readouterr().err.replace("\n", " ")
    assert [path.name for path in (tmp_path / "out/results").iterdir()] == ["resnet18_plain_torchvision.json"]
    assert not (tmp_path / "out/report.html").exists()


@pytest.mark.usefixtures("only_resnet18")
@pytest.mark.parametrize("content", ["", "[]", '{"identity": 1}', "{"])
def test_broken_results_are_measured_anew(content, weights, photos, tmp_path, monkeypatch):
    path = tmp_path / "out/results/resnet18_plain_torchvision.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    forbid_measuring(monkeypatch)
    with pytest.raises(AssertionError, match="measured again"):
        main(command(weights, photos, tmp_path / "out"))


def refusing(monkeypatch, offline: bool) -> list[str]:
    """Lets every download fail; gives the list of attempts."""
    tried: list[str] = []

    def fail(entry, directory, progress=None):
        tried.append(entry.file_name)
        raise DownloadError(f"cannot download {entry.url}", offline=offline)

    monkeypatch.setattr(published_weights.names, "fetch", fail)
    return tried


@pytest.mark.usefixtures("only_resnet18")
def test_without_a_connection_one_attempt_is_enough(photos, tmp_path, capsys, monkeypatch):
    tried = refusing(monkeypatch, offline=True)
    options = [option for option in command(tmp_path, photos, tmp_path / "out") if option != "--no-download"]
    assert main(options) == 0
    assert len(tried) == 1
    printed = capsys.readouterr().out
    assert "measured 0 of 6 published rows" in printed
    assert "missing: 6" in printed
    assert "no connection to fetch it" in printed
    assert "No checkpoint was found, so nothing was measured." in (tmp_path / "out/report.md").read_text()


@pytest.mark.usefixtures("only_resnet18")
def test_a_refused_file_is_a_failure_and_the_next_is_tried(photos, tmp_path, capsys, monkeypatch):
    tried = refusing(monkeypatch, offline=False)
    options = [option for option in command(tmp_path, photos, tmp_path / "out") if option != "--no-download"]
    assert main(options) == 1
    assert len(tried) == 6
    assert "failed: 6" in capsys.readouterr().out


@pytest.mark.usefixtures("only_resnet18")
def test_a_download_is_measured(weights, photos, tmp_path, monkeypatch):
    """The file is a directory here: what counts is that it is looked for again."""
    root = tmp_path / "weights"
    root.mkdir()

    def fetch(entry, directory, progress=None):
        progress(5_000_000, None)
        progress(5_000_000, 10_000_000)
        (directory / entry.spec).symlink_to(weights / entry.spec)

    monkeypatch.setattr(published_weights.names, "fetch", fetch)
    options = command(root, photos, tmp_path / "out", "--models", "resnet18_plain")
    assert main([option for option in options if option != "--no-download"]) == 0
    assert (tmp_path / "out/results/resnet18_plain_torchvision.json").is_file()


def test_published_only_needs_nothing(tmp_path, capsys):
    assert main(["reproduce", "--published-only", "--output", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out/report.md").read_text()
    assert "23 networks in 82 rows" in text
    assert "nothing was measured" in text
    names = {path.name for path in (tmp_path / "out/figures").iterdir()}
    assert len(names) == 12
    assert all(f"(figures/{name})" in text for name in names)
    assert str(tmp_path / "out/report.html") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--weights-root is needed; --published-only does without"),
        (["--weights-root", "x"], "--data is needed; --published-only does without"),
        (["--published-only", "--batch-size", "0"], "--batch-size is 0; it must be at least 1"),
        (["--published-only", "--timing-repeats", "-1"], "--timing-repeats is -1; it must be at least 1"),
        (["--published-only", "--seed", "-1"], "--seed is -1; it must be 0 or more"),
        (["--published-only", "--max-unreadable", "2"], "--max-unreadable is 2.0; it must be from 0 to 1"),
        (["--weights-root", "x", "--data", "/absent"], "data directory /absent does not exist"),
        (["--weights-root", "x", "--data", "/absent", "--models", "vgg12"], "--models 'vgg12' is none of"),
    ],
)
def test_bad_options_are_one_line(options, message, tmp_path, capsys):
    assert main(["reproduce", "--output", str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    assert main(["reproduce", "--published-only", "--output", str(tmp_path / "out")]) == 2
    assert "cannot be made: File exists" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "mine"


# timm's networks.

SIZES = {"": Preprocessing.of_share(40, 0.95, interpolation="bicubic"), "test_": Preprocessing.of_share(48, 1.0)}


def timm_entry(num_classes: int) -> catalog.Published:
    """An entry as those of timm, at sizes that take no time."""
    figures = {} if num_classes != 1000 else {"top1": 50.0, "top5": 60.0, "test_top1": 55.0, "test_top5": 65.0}
    return catalog.Published(
        **{"model": "resnetblur18", "filter_size": None, "top1": None, "consistency": None, **figures},
        training=f"random_{num_classes}",
        num_classes=num_classes,
        preprocessing=SIZES[""],
        test_preprocessing=SIZES["test_"],
        sources=(catalog.Source(f"hf://timm/resnetblur18.random_{num_classes}"),),
    )


@pytest.fixture
def two_of_timm(monkeypatch) -> list[catalog.Published]:
    """The catalogue cut down to two networks of timm, and ResNet-18 for the other tables."""
    entries = [timm_entry(1000), timm_entry(1100)]
    others = [row for row in catalog.published() if row.model == "resnet18"]
    monkeypatch.setattr(catalog, "published", lambda: (*others, *entries))
    return entries


def logits(model, paths: list[Path], rule: Preprocessing) -> np.ndarray:
    return np.asarray(jax.jit(lambda fn, images: fn(images))(as_function(model), aa_flax.preprocess(paths, rule)))


def by_hand(model, root: Path, rule: Preprocessing) -> tuple[float, float]:
    """Accuracy and consistency from single parts of the library."""
    paths = sorted((root / "val").rglob("*.jpg"))
    labels = [imagenet_wnids().index(path.parent.name) for path in paths]
    right = logits(model, paths, rule).argmax(-1) == np.array(labels)
    frame = round(rule.crop * 256 / 224)
    frames = [
        evaluation_crop(read_rgb(path), resize=frame, big=frame, crop=rule.crop, interpolation=rule.interpolation)
        for path in paths
    ]
    protocol = aa_flax.consistency.Zhang2019(crop=rule.crop, shifts=frame - rule.crop)
    result = protocol.measure(as_function(model), np.stack(frames), preprocess=aa_flax.consistency.Normalise())
    return 100 * float(right.mean()), result.value


def tell_apart(model, root: Path, rule: Preprocessing) -> None:
    """Takes from the head what it says of every photo, and puts half of the photos where it sees them.

    Else a random network would answer all with one class, which is never right.
    """
    paths = sorted((root / "val").rglob("*.jpg"))
    model.fc.bias[...] -= logits(model, paths, rule).mean(0)
    for path, answer in zip(paths[::2], logits(model, paths[::2], rule).argmax(-1), strict=True):
        folder = root / "val" / imagenet_wnids()[answer]
        folder.mkdir(exist_ok=True)
        path.rename(folder / path.name)


@pytest.mark.slow
def test_a_network_of_timm_is_measured_at_both_sizes(two_of_timm, photos, tmp_path, capsys, monkeypatch):
    """With random weights, whose answers differ from photo to photo and from shift to shift."""
    root, output = tmp_path / "weights", tmp_path / "out"
    network, other = two_of_timm
    model = with_values(lambda: aa_flax.create_model("resnetblur18", rngs=nnx.Rngs(0)))
    model.eval()
    tell_apart(model, photos, SIZES[""])
    aa_flax.save_pretrained(model, root / network.name, source={"url": network.url})
    wider = with_values(lambda: aa_flax.create_model("resnetblur18", num_classes=1100, rngs=nnx.Rngs(0)))
    aa_flax.save_pretrained(wider, root / other.name)
    assert main(command(root, photos, output, "--models", "resnetblur18*")) == 0
    printed, told = capsys.readouterr()
    assert "measured 4 of 10 published rows" in printed
    assert f"{other.name} at 48: top-1 none, consistency " in told
    for name, rule in (("resnetblur18.random_1000_40", SIZES[""]), ("resnetblur18.random_1000_48", SIZES["test_"])):
        kept = json.loads((output / f"results/{name}.json").read_text())
        assert (kept["top1"]["value"], kept["consistency"]["value"]) == pytest.approx(by_hand(model, photos, rule))
        assert kept["identity"]["preparations"]["accuracy"]["resize"] == rule.resize
        assert kept["consistency"]["value"] < 100
        assert kept["top1"]["value"] >= 50 * (rule == SIZES[""])
    kept = json.loads((output / "results/resnetblur18.random_1100_48.json").read_text())
    assert (kept["top1"], list(kept["identity"]["preparations"])) == (None, ["zhang2019"])
    text = (output / "report.md").read_text()
    assert "| 48\u00a0of\u00a048 |" in text
    assert text.count("\u2020") == 1 + 2 * 2  # of the network whose source nobody knows, and what the mark means

    # The same command goes on where it was.
    forbid_measuring(monkeypatch)
    assert main(command(root, photos, output, "--models", "resnetblur18*")) == 0
    assert capsys.readouterr().err.count("from an earlier run") == 4
    assert (output / "report.md").read_text() == text


def test_weights_of_other_classes_are_no_network_of_timm(two_of_timm, photos, tmp_path, capsys):
    network, other = two_of_timm
    model = with_values(lambda: aa_flax.create_model("resnetblur18", num_classes=11, rngs=nnx.Rngs(0)))
    aa_flax.save_pretrained(model, tmp_path / "weights" / network.name)
    options = command(tmp_path / "weights", photos, tmp_path / "out", "--models", "resnetblur18*")
    assert main(options) == 1
    printed = capsys.readouterr().out
    assert f"{network.name} at 40: {tmp_path / 'weights' / network.name} has 11 classes, {network.name} has" in printed
    assert f"{other.name} at 40: no directory {other.name} and no {other.file_name}" in printed
    assert "missing: 2" in printed
    assert "failed: 2" in printed


def test_what_is_fetched_from_the_hub_is_the_published_network(two_of_timm, tmp_path, monkeypatch):
    network, _ = two_of_timm
    model = with_values(lambda: aa_flax.create_model("resnetblur18", rngs=nnx.Rngs(0)))
    hub = aa_flax.save_pretrained(model, tmp_path / "hub")
    obtain = names.obtain
    monkeypatch.setattr(names, "obtain_published", lambda name, progress: obtain(hub))
    row = next(row for row in timm_rows() if row.title == f"{network.name} at 48")
    fetched = published_weights.download(tmp_path / "root", row, lambda done, total: None)
    assert (fetched.published, fetched.label, fetched.path) == (True, f"timm/{network.name}", hub)
    assert fetched.preparations == {"accuracy": SIZES["test_"], "zhang2019": row.frame}
    # The same in a directory of that name, whose source it does not say.
    hub.rename(tmp_path / network.name)
    found = published_weights.find(tmp_path, row)
    assert found is not None
    assert (found.published, found.label, found.sha256) == (False, network.name, fetched.sha256)


@pytest.mark.parametrize(("offline", "kind"), [(True, published_weights.UnreachableError), (False, CommandError)])
def test_a_network_of_timm_that_cannot_be_fetched(two_of_timm, tmp_path, monkeypatch, offline, kind):
    def refuse(name, progress):
        raise DownloadError(f"cannot fetch {name}", offline=offline)

    monkeypatch.setattr(names, "obtain_published", refuse)
    row = next(row for row in timm_rows() if row.model == "resnetblur18")
    with pytest.raises(kind):
        published_weights.download(tmp_path, row, lambda done, total: None)
