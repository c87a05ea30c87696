"""Scores and the evaluate command: every image once, exact figures, clear errors, whole reports."""

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.tree_util import Partial
from PIL import Image

import aa_flax
from aa_flax.consistency import Equivariance, Normalise
from aa_flax.models.abstract import abstract_model
from aa_flax.models.specs import resolve_spec
from aa_flax.weights.config import Preprocessing, PretrainedConfig, dump_config
from aa_flax.weights.store import save_pretrained
from tests.foreign_networks import with_values
from train.__main__ import main
from train.data import ImageFolder, evaluation_batches, open_photos
from train.errors import CommandError
from train.evaluate.scoring import local_mesh, protocols_for, read_offsets, score, whole_batch
from train.networks import as_function, open_network

RULE = Preprocessing(resize=40, crop=32)
ROOT = Path(__file__).parents[1]


def write_photos(root: Path, count: int, classes: int = 3) -> None:
    """Images whose brightest channel is their class, with a soft gradient to shift."""
    for i in range(count):
        pixels = np.zeros((44, 60, 3), np.uint8)
        pixels[..., i % classes] = 120 + np.arange(60, dtype=np.uint8) + i
        path = root / "abc"[i % classes] / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


def brightest(images: jax.Array) -> jax.Array:
    """Always right on `write_photos`, whatever the shift."""
    return images.mean(axis=(1, 2))


def corner(scale: jax.Array, images: jax.Array) -> jax.Array:
    """Logits from one pixel: right or wrong with the crop's position."""
    dark = jnp.sin(20 * images[:, 0, 0].sum(axis=-1, keepdims=True)) * scale
    return jnp.concatenate([dark, -dark, jnp.zeros_like(dark)], axis=1)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> ImageFolder:
    root = tmp_path_factory.mktemp("photos")
    write_photos(root, 13)
    return ImageFolder(root)


def measured(photos, fn, batch: int, names=("accuracy", "crop"), **options):
    protocols = protocols_for(names, RULE, seed=3, device_batch=batch)
    batches = evaluation_batches(photos, RULE, global_batch=batch, **options)
    return score(Partial(fn), batches, protocols, RULE)


def test_every_image_counts_once_whatever_the_batch(photos):
    assert jax.device_count() == 8
    reference = None
    for batch in (8, 16, 40):
        result = measured(photos, brightest, batch)
        assert result.index.tolist() == list(range(13))
        assert result.unreadable.tolist() == []
        accuracy, crop = result.results["accuracy"], result.results["crop"]
        assert (accuracy.images, accuracy.value, accuracy.stderr) == (13, 100.0, 0.0)
        assert accuracy.parts["top5"].value == 100.0
        assert crop.value == 100.0
        offsets = crop.arrays["offsets"]
        reference = offsets if reference is None else reference
        np.testing.assert_array_equal(offsets, reference)


def test_shifted_crops_are_cut_from_the_decoded_image_on_the_device(photos):
    fn = Partial(corner, jnp.float32(1))
    protocols = protocols_for(["accuracy", "crop"], RULE, seed=3, device_batch=8)
    result = score(fn, evaluation_batches(photos, RULE, global_batch=8), protocols, RULE)
    crop = result.results["crop"]
    assert 0 < crop.value < 100
    mean, std = np.float32(RULE.mean), np.float32(RULE.std)
    for i, (offsets, seen) in enumerate(zip(crop.arrays["offsets"], crop.arrays["predictions"], strict=True)):
        image = Image.open(photos.path(i)).convert("RGB").resize((54, 40), Image.Resampling.BILINEAR)
        big = (np.float32(np.asarray(image)[:, 7:47]) / 255 - mean) / std
        dark = np.sin(20 * big[offsets[..., 0], offsets[..., 1]].sum(axis=-1))
        np.testing.assert_array_equal(seen, np.argmax([dark, -dark, 0 * dark], axis=0))


def test_protocols_compile_once_for_all_batches_and_epochs(photos):
    traced = []

    def fn(arrays, images):
        traced.append(images.shape)
        return brightest(images)

    protocols = protocols_for(["accuracy", "crop"], RULE, device_batch=8)
    for scale in (1.0, 2.0):
        weights = Partial(fn, jnp.float32(scale))
        score(weights, evaluation_batches(photos, RULE, global_batch=8), protocols, RULE)
    assert len(traced) <= 2 * len(protocols)
    assert set(traced) == {(8, 32, 32, 3)}


def test_small_images_shift_over_a_reflected_margin(photos):
    rule = Preprocessing(resize=32, crop=32)
    protocols = protocols_for(["accuracy", "crop", "diagonal"], rule, margin=4, device_batch=8)
    assert protocols["crop"].settings()["shifts"] == 9
    batches = evaluation_batches(photos, rule, global_batch=8)
    result = score(Partial(brightest), batches, protocols, rule, margin=4)
    assert result.results["accuracy"].value == 100.0
    assert result.results["crop"].arrays["offsets"].max() == 8


def test_the_standard_has_the_reference_s_thirty_two_offsets():
    protocols = protocols_for(["crop", "zhang2019", "diagonal"], Preprocessing(), seed=5)
    assert [protocols[name].settings()["shifts"] for name in ("crop", "zhang2019")] == [32, 32]
    assert protocols["crop"].settings()["seed"] == 5
    assert protocols["diagonal"].settings()["steps"] == 32


def test_a_network_that_returns_nan_is_an_error(photos):
    with pytest.raises(CommandError, match="NaN"):
        measured(photos, lambda images: brightest(images) * jnp.nan, 8)


def test_labels_beyond_the_network_s_classes_are_an_error(photos):
    with pytest.raises(CommandError, match="label"):
        measured(photos, lambda images: brightest(images)[:, :2], 8)


def test_batches_fill_all_devices():
    assert [whole_batch(n) for n in (1, 8, 9)] == [8, 8, 16]
    assert local_mesh().size == 8


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        ([], {}, "--protocols is empty; there are accuracy"),
        (["crops"], {}, "close to it: crop"),
        (["accuracy"], {"offsets": np.zeros((1, 2, 2), int)}, "--offsets are for crop"),
        (["crop"], {"offsets": np.full((1, 2, 2), 8)}, "--protocols crop: given lies in"),
        (["worst"], {}, "too small"),
    ],
)
def test_protocols_that_cannot_be(names, options, message):
    rule = Preprocessing(resize=34, crop=32) if names == ["worst"] else RULE
    with pytest.raises(CommandError, match=message):
        protocols_for(names, rule, **options)


def folders(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(root / name / "a.png")
    return root


def test_folders_are_matched_with_the_network_s_classes(tmp_path):
    named = PretrainedConfig(spec=resolve_spec("resnet18", num_classes=3), class_names=("z", "n01443537", "a"))
    assert open_photos(folders(tmp_path / "1", "n01443537", "z"), named).labels.tolist() == [1, 0]
    standard = PretrainedConfig(spec=resolve_spec("resnet18"))
    assert open_photos(folders(tmp_path / "2", "n01443537"), standard).labels.tolist() == [1]
    two = PretrainedConfig(spec=resolve_spec("resnet18", num_classes=2))
    assert open_photos(folders(tmp_path / "3", "n01443537", "n15075141"), two).labels.tolist() == [0, 1]
    with pytest.raises(CommandError, match=r"1 class folders .* cannot be matched with the 1000 classes"):
        open_photos(folders(tmp_path / "4", "cat"), standard)


def test_offsets_are_read_from_a_list_or_an_object(tmp_path):
    pairs = [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]
    for content in (pairs, {"offsets": pairs}, {"shift_offsets": pairs, "models": {}}):
        (tmp_path / "offsets.json").write_text(json.dumps(content))
        np.testing.assert_array_equal(read_offsets(tmp_path / "offsets.json"), pairs)


@pytest.mark.parametrize("content", ["", "{", "{}", "3", "[[1, 2], [3, 4]]", "[[[0.5, 1], [2, 3]]]", "[[[0], [1, 2]]]"])
def test_offsets_that_are_none(tmp_path, content):
    (tmp_path / "offsets.json").write_text(content)
    with pytest.raises(CommandError, match="--offsets"):
        read_offsets(tmp_path / "offsets.json")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A small network with the photos' three classes."""
    directory = tmp_path_factory.mktemp("weights") / "resnet18"
    model = aa_flax.create_model("resnet18_lpf3", num_classes=3, rngs=nnx.Rngs(0))
    save_pretrained(model, directory, preprocessing=RULE, class_names=("a", "b", "c"))
    return directory


def test_the_command_measures_and_reports(photos, weights, tmp_path, capsys):
    report_file = tmp_path / "report.json"
    command = ["evaluate", "--data", str(photos.root), "--weights", str(weights), "--output", str(report_file)]
    assert main([*command, "--batch-size", "8", "--protocols", "accuracy, crop"]) == 0
    printed = capsys.readouterr().out
    assert "resnet18_lpf3 on 13 photos" in printed
    assert "top-1 accuracy" in printed
    assert "consistency, crop" in printed
    report = json.loads(report_file.read_text())
    images = np.stack(
        [np.asarray(Image.open(photos.path(i)).resize((54, 40), Image.Resampling.BILINEAR)) for i in range(13)]
    )[:, 4:36, 11:43]
    inputs = (np.float32(images) / 255 - np.float32(RULE.mean)) / np.float32(RULE.std)
    logits = jax.jit(lambda fn, images: fn(images))(as_function(aa_flax.load_pretrained(weights)), inputs)
    predictions = np.argmax(logits, axis=1)
    assert report["per_image"]["accuracy"]["predictions"] == predictions.tolist()
    assert report["per_image"]["file"] == [photos.name(i) for i in range(13)]
    assert report["top1"] == pytest.approx(100 * (predictions == photos.labels).mean())
    assert report["top5"] == 100.0
    assert report["consistency"].keys() == {"crop"}
    pairs = np.array(report["per_image"]["crop"]["predictions"])
    assert report["consistency"]["crop"]["value"] == pytest.approx(100 * (pairs[..., 0] == pairs[..., 1]).mean())
    assert report["repeat"]["options"]["seed"] == 0
    assert len(report["repeat"]["weights_sha256"]) == 64
    assert report["repeat"]["packages"]["jax"] == jax.__version__
    assert report["repeat"]["pretrained"]["preprocessing"]["resize"] == 40
    assert report["repeat"]["pretrained"]["pad_type"] == "reflect"
    assert main([*command, "--protocols", "accuracy", "--pad-type", "zero"]) == 0
    assert json.loads(report_file.read_text())["repeat"]["pretrained"]["pad_type"] == "zero"


def test_more_views_than_two_have_to_agree(photos, weights, tmp_path, capsys):
    values = []
    for views in (2, 4):
        output = tmp_path / f"{views}.json"
        command = ["evaluate", "--data", str(photos.root), "--weights", str(weights), "--output", str(output)]
        assert main([*command, "--protocols", "crop", "--views", str(views)]) == 0
        crop = json.loads(output.read_text())["protocols"]["crop"]
        assert crop["settings"]["views"] == views
        values.append(crop["value"])
    assert values[1] < values[0]


def test_the_table_says_what_each_number_is(photos, weights, tmp_path, capsys):
    names = "accuracy,crop,diagonal,worst,fractional_worst,unshifted,crop"
    output = tmp_path / "report.json"
    command = ["evaluate", "--data", str(photos.root), "--weights", str(weights), "--output", str(output)]
    assert main([*command, "--protocols", names, "--batch-size", "16"]) == 0
    rows = [line.split("│")[1].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    parts = ["crop, consistent and correct", "crop, consistent and wrong", "crop, consistent if one is correct"]
    assert rows == [
        "top-1 accuracy",
        "top-5 accuracy",
        "consistency, crop",
        *parts,
        "mean flip rate, diagonal",
        "accuracy, worst",
        "accuracy, fractional_worst",
        "fractional_worst, unshifted",
        "consistency, unshifted",
        "unshifted, change of the probability",
    ]
    report = json.loads(output.read_text())
    assert report["consistency"].keys() == {"crop", "unshifted"}
    assert report["protocols"].keys() == {*names.split(",")}


def test_how_the_last_map_moves_is_what_the_library_measures(photos, weights, tmp_path, capsys):
    output = tmp_path / "report.json"
    command = ["evaluate", "--data", str(photos.root), "--weights", str(weights), "--output", str(output)]
    options = ["--protocols", "accuracy", "--equivariance", "circular", "--seed", "3"]
    assert main([*command, *options, "--batch-size", "16"]) == 0
    rows = [line.split("│")[1].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    error = "equivariance error, circular"
    parts = ["equivariance, circular, were the map to stay", "equivariance, circular, signal to noise, dB"]
    assert rows == ["top-1 accuracy", "top-5 accuracy", error, *parts]
    report = json.loads(output.read_text())
    assert report["consistency"] == {}
    images = np.stack(
        [np.asarray(Image.open(photos.path(i)).resize((54, 40), Image.Resampling.BILINEAR)) for i in range(13)]
    )
    maps = as_function(aa_flax.load_pretrained(weights), "features")
    protocol = Equivariance(crop=32, seed=3)
    want = protocol.measure(maps, images[:, :, 7:47], preprocess=Normalise(RULE.mean, RULE.std))
    found = report["protocols"]["equivariance_circular"]
    assert found["settings"] == {**protocol.settings(), "crop": 32}
    assert found["value"] == pytest.approx(want.value, rel=1e-4)
    assert report["per_image"]["equivariance_circular"]["noise"] == pytest.approx(want.arrays["noise"], rel=1e-3)
    assert found["parts"].keys() == {"unmoved", "argmax_agreement", "snr_db"}


def test_unbalanced_photos_have_their_accuracy_by_class(weights, tmp_path, capsys):
    root, output = tmp_path / "photos", tmp_path / "report.json"
    write_photos(root, 12)
    for path in sorted((root / "b").iterdir())[1:]:
        path.rename(root / "a" / path.name)
    for path in sorted((root / "c").iterdir())[2:]:
        path.rename(root / "a" / path.name)
    command = ["evaluate", "--data", str(root), "--weights", str(weights), "--output", str(output)]
    assert main([*command, "--protocols", "accuracy", "--batch-size", "16"]) == 0
    report, printed = json.loads(output.read_text()), capsys.readouterr().out
    right = np.array(report["per_image"]["accuracy"]["percent"])
    labels = np.array(report["per_image"]["label"])
    each = {name: float(right[labels == i].mean()) for i, name in enumerate("abc")}
    assert report["classes"]["each"] == {
        name: {"images": count, "top1": each[name]} for name, count in (("a", 9), ("b", 1), ("c", 2))
    }
    assert report["classes"]["majority"] == 75.0
    assert report["classes"]["mean_top1"] == pytest.approx(np.mean(list(each.values())))
    assert f"{np.mean(list(each.values())):.2f}" in printed.split("mean over classes")[1].split("\n")[0]
    assert "75.00" in printed.split("always the most frequent class")[1].split("\n")[0]


def test_crops_and_the_diagonal_are_kept(photos, weights, tmp_path):
    kept, story, output = tmp_path / "crops", tmp_path / "diagonal", tmp_path / "report.json"
    command = ["evaluate", "--data", str(photos.root), "--weights", str(weights), "--output", str(output)]
    options = ["--protocols", "accuracy", "--save-images", str(kept), "--save-diagonal", str(story)]
    assert main([*command, *options, "--batch-size", "8"]) == 0
    assert {path.relative_to(kept).as_posix() for path in kept.rglob("*.*")} == {
        f"{photos.name(i)}.png" for i in range(13)
    }
    for i in range(13):
        whole = np.asarray(Image.open(photos.path(i)).resize((54, 40), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(np.asarray(Image.open(kept / f"{photos.name(i)}.png")), whole[4:36, 11:43])
    arrays = {path.stem: np.load(path) for path in story.iterdir()}
    assert {name: array.shape for name, array in arrays.items()} == dict.fromkeys(
        ("probability", "best_other", "correct", "predictions"), (13, 9)
    )
    np.testing.assert_array_equal(arrays["correct"], arrays["predictions"] == photos.labels[:, None])
    report = json.loads(output.read_text())
    assert report["per_image"]["diagonal"]["predictions"] == arrays["predictions"].tolist()
    # The middle of the diagonal is the centre crop.
    assert report["per_image"]["accuracy"]["predictions"] == arrays["predictions"][:, 4].tolist()


def test_a_report_that_cannot_be_written_does_not_cost_the_figures(photos, weights, tmp_path, monkeypatch, capsys):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("train.evaluate.command.write_atomically", full)
    command = ["evaluate", "--data", str(photos.root), "--weights", str(weights), "--batch-size", "16"]
    assert main([*command, "--protocols", "accuracy", "--output", str(tmp_path / "report.json")]) == 2
    printed = capsys.readouterr()
    assert "top-1 accuracy" in printed.out
    assert "cannot be written: No space left on device" in printed.err


def test_hostile_photos_are_counted_not_dropped(weights, tmp_path, capsys):
    root = tmp_path / "photos"
    write_photos(root, 9)
    (root / "a/text.jpg").write_text("hello")
    Image.new("RGB", (1, 1), (9, 9, 9)).save(root / "b/dot.png")
    Image.new("L", (30, 50), 9).save(root / "b/grey.jpg")
    Image.new("CMYK", (30, 50)).save(root / "c/print.jpg")
    command = ["evaluate", "--data", str(root), "--weights", str(weights), "--batch-size", "8"]
    report_file = tmp_path / "report.json"
    assert main([*command, "--protocols", "accuracy", "--output", str(report_file)]) == 0
    assert "unreadable, not counted (1): a/text.jpg (not an image" in capsys.readouterr().out
    report = json.loads(report_file.read_text())
    assert report["images"] == 12
    assert report["unreadable"] == [{"file": "a/text.jpg", "reason": "not an image that Pillow knows"}]
    assert "a/text.jpg" not in report["per_image"]["file"]
    assert main([*command, "--max-unreadable", "0.05", "--output", str(tmp_path / "second.json")]) == 2
    error = capsys.readouterr().err
    assert "1 of 13 images are unreadable, more than the share allowed by --max-unreadable (0.05)" in error
    assert "Traceback" not in error
    assert not (tmp_path / "second.json").exists()


def test_names_are_shown_as_they_are_and_never_end_a_measurement(weights, tmp_path, capsys):
    root, kept, report_file = tmp_path / "photos", tmp_path / "[crops]", tmp_path / "[x] report.json"
    write_photos(root, 3)
    longest = f"{'n' * 250}.png"
    (root / "a/000.png").rename(root / "a" / longest)
    (root / "b/001.png").rename(root / "b/[bold]:cat:.png")
    unreadable = {"a/x[red].png": "a/x[red].png", "c/\x1b[2J.png": r"c/\x1b[2J.png"}
    for name in unreadable:
        (root / name).write_text("no picture")
    command = ["evaluate", "--data", str(root), "--weights", str(weights), "--protocols", "accuracy"]
    options = ["--save-images", str(kept), "--output", str(report_file), "--max-unreadable", "1"]
    assert main([*command, *options]) == 0
    printed = capsys.readouterr().out
    assert "top-1 accuracy" in printed
    for shown in unreadable.values():
        assert f"{shown} (not an image" in printed
    assert "\x1b" not in printed
    report = json.loads(report_file.read_text())
    assert {each["file"] for each in report["unreadable"]} == set(unreadable)
    assert set(report["per_image"]["file"]) == {f"a/{longest}", "b/[bold]:cat:.png", "c/002.png"}
    assert len(list(kept.rglob("*.png"))) == 3
    assert (kept / "b/[bold]:cat:.png.png").exists()


def test_pictures_that_cannot_be_kept_cost_no_figures(photos, weights, tmp_path, capsys):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/b").write_text("in the way")
    command = ["evaluate", "--data", str(photos.root), "--weights", str(weights), "--protocols", "accuracy"]
    options = ["--save-images", str(tmp_path / "kept"), "--output", str(tmp_path / "report.json")]
    assert main([*command, *options]) == 2
    printed = capsys.readouterr()
    assert "top-1 accuracy" in printed.out
    assert json.loads((tmp_path / "report.json").read_text())["images"] == 13
    assert re.search(r"--save-images .*kept: 4 of 13 pictures could not be written, b/001.png first: ", printed.err)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "/nowhere", "--weights", "WEIGHTS"], "/nowhere does not exist"),
        (["--data", "PHOTOS"], "give --weights DIRECTORY, --model NAME"),
        (["--data", "PHOTOS", "--weights", "/nowhere"], "/nowhere"),
        (
            ["--data", "PHOTOS", "--weights", "WEIGHTS", "--model", "resnet18"],
            "--model resnet18 contradicts .* resnet18_lpf3",
        ),
        (["--data", "PHOTOS", "--weights", "WEIGHTS", "--model", "resnt18"], "unknown network 'resnt18'"),
        (["--data", "PHOTOS", "--weights", "WEIGHTS", "--protocols", "acuracy"], "acuracy"),
        (["--data", "PHOTOS", "--weights", "WEIGHTS", "--batch-size", "0"], "--batch-size is 0"),
        (
            ["--data", "PHOTOS", "--weights", "WEIGHTS", "--output", "/nowhere/report.json"],
            "--output /nowhere/report.json",
        ),
        (["--data", "PHOTOS", "--weights", "WEIGHTS", "--offsets", "/nowhere"], "--offsets /nowhere"),
        (
            ["--data", "PHOTOS", "--weights", "WEIGHTS", "--save-images", str(ROOT / "pyproject.toml")],
            "--save-images .*pyproject.toml is a file",
        ),
        (["--data", "PHOTOS", "--weights", "WEIGHTS", "--seed", "-1"], "--seed is -1"),
        (
            ["--data", "PHOTOS", "--weights", "WEIGHTS", "--equivariance", "odd"],
            "--equivariance odd: shift='odd': must",
        ),
        (["--data", "PHOTOS", "--weights", "WEIGHTS", "--equivariance", ","], "--equivariance is empty; there are"),
        (["--data", "PHOTOS", "--weights", "WEIGHTS", "--equivariance", "crop"], "maps of 1x1 for crops of 32x32"),
        (
            ["--data", "PHOTOS", "--fn", "tests.test_evaluate:brightest", "--equivariance", "circular"],
            "--equivariance is for networks of this package, and --fn is none",
        ),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_two(photos, weights, capsys, options, message):
    places = {"PHOTOS": str(photos.root), "WEIGHTS": str(weights)}
    assert main(["evaluate", *(places.get(word, word) for word in options)]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert error.startswith("error: ")
    assert len(error.strip().splitlines()) == 1


def test_the_directory_of_a_run_is_refused_with_the_command_that_exports_it(photos, tmp_path, capsys):
    (tmp_path / "my run" / "checkpoints").mkdir(parents=True)
    assert main(["evaluate", "--data", str(photos.root), "--weights", str(tmp_path / "my run")]) == 2
    said = f"export its weights first: python -m train export '{tmp_path}/my run' --output DIR"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("layout", "taps", "model", "said"),
    [
        ("torchvision", None, "resnet18_lpf4", "made for no blur, resnet18_lpf4 has blurs of 4 taps"),
        ("reference", 1, "resnet18_lpf3", "made for blurs of 1 tap, resnet18_lpf3 has blurs of 3 taps"),
        ("reference", 3, "resnet18_plain", "made for blurs of 3 taps, resnet18_plain has no blur"),
        ("reference", 3, "resnet18_lpf3", None),
        ("torchvision", None, "resnet18_plain", None),
        ("timm", None, "resnet18_lpf3", None),
    ],
)
def test_weights_made_for_another_filter_are_told(layout, taps, model, said, tmp_path, caplog):
    network = with_values(lambda: abstract_model(model, num_classes=2))
    source = {"layout": layout, "filter_size": taps}
    save_pretrained(network, tmp_path, source=source)
    assert open_network(tmp_path).config.source == source
    assert not caplog.text if said is None else said in caplog.text and "fine-tune" in caplog.text


def test_weights_of_no_photos_are_refused(photos, tmp_path, capsys, caplog):
    five = Preprocessing(mean=(0.5,) * 5, std=(0.2,) * 5)
    source = {"trained_by": "python -m train fit"}
    spec = resolve_spec("resnet18_lpf3", in_channels=5)
    config = PretrainedConfig(spec=spec, source=source, preprocessing=five)
    (tmp_path / "config.json").write_text(dump_config(config))
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert main(["evaluate", "--data", str(photos.root), "--weights", str(tmp_path)]) == 2
    assert f"{tmp_path} takes images of 5 channels; photos have 3, or 1 in grey" in capsys.readouterr().err
    assert not caplog.text


def test_memory_that_does_not_suffice_is_named(photos, weights, monkeypatch, capsys):
    def full(*arguments, **options):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")

    monkeypatch.setattr("train.evaluate.command.score", full)
    assert main(["evaluate", "--data", str(photos.root), "--weights", str(weights), "--batch-size", "9"]) == 2
    assert "does not hold --batch-size 9; lower it" in capsys.readouterr().err


PROCESS = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize("127.0.0.1:" + sys.argv[1], 2, int(sys.argv[2]))
from train.__main__ import main
sys.exit(main(sys.argv[3:]))
"""


@pytest.mark.slow
def test_two_processes_count_every_image_once(photos, weights, tmp_path, unused_port):
    command = ["evaluate", "--data", str(photos.root), "--weights", str(weights), "--batch-size", "4"]
    assert main([*command, "--output", str(tmp_path / "one.json")]) == 0
    words = [*command, "--output", str(tmp_path / "two.json")]
    running = [
        subprocess.Popen([sys.executable, "-c", PROCESS, str(unused_port), str(i), *words], cwd=ROOT) for i in range(2)
    ]
    assert [each.wait(timeout=300) for each in running] == [0, 0]
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    for key in ("top1", "top5", "images", "consistency", "per_image"):
        assert one[key] == two[key]


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
