"""`python -m train explain`: the numbers behind the pictures, and the pictures themselves."""

import io
import itertools
import json
from collections import Counter
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.tree_util import Partial
from PIL import Image
from safetensors.numpy import save_file

import aa_flax
from aa_flax.weights.class_names import imagenet_names, imagenet_wnids, readable_names
from aa_flax.weights.store import Preprocessing
from tests.state_files import file_of
from train.__main__ import main
from train.errors import CommandError
from train.explain import pictures
from train.explain.shift_views import Photo, View, choose_classes, look, read_photo

pytestmark = pytest.mark.usefixtures("optimised")
SMALL = Preprocessing(resize=36, crop=32)
# The third is no formula that matplotlib could set.
NAMES = ("cat & dog", "a<b>[/red]", r"$\frac$ | y", "fish", "bird", "cow", "bee")


def save(directory: Path, spec: str, *, seed: int = 0, **changes) -> Path:
    options = {"preprocessing": SMALL, "class_names": NAMES, **changes}
    names = options["class_names"]
    model = aa_flax.create_model(spec, num_classes=len(names) if names else 1000, rngs=nnx.Rngs(seed))
    # A larger last layer lets random networks change their minds from shift to shift.
    model.fc.kernel[...] *= 30
    return aa_flax.save_pretrained(model, directory, **options)


@pytest.fixture(scope="module")
def networks(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("networks")
    return {spec: save(root / spec, spec, seed=seed) for seed, spec in enumerate(("resnet18_plain", "resnet18_lpf3"))}


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (11, 15, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    Image.fromarray(pixels).resize((90, 70), Image.Resampling.BICUBIC).save(path, quality=95)
    return path


def means(images):
    """A network whose classes are the mean colours of three regions: easy to compute by hand."""
    return 12 * jnp.stack(
        [images[:, :8].mean((1, 2, 3)), images[:, 8:, :8, 1].mean((1, 2)), images[..., 2].mean((1, 2))], 1
    )


def test_every_shift_is_looked_at():
    random = np.random.default_rng(1)
    photo = Photo(random.integers(0, 256, (21, 21, 3), dtype=np.uint8), crop=16)
    rule = Preprocessing(resize=21, crop=16)
    counted = []
    view = look("toy", Partial(means), photo, rule, batch=7, progress=counted.append)
    assert sum(counted) == 26
    normalised = (photo.pixels / 255 - np.array(rule.mean)) / np.array(rule.std)

    def expected(top: int, left: int) -> np.ndarray:
        logits = np.asarray(means(jnp.asarray(normalised[None, top : top + 16, left : left + 16], jnp.float32)))[0]
        chances = np.exp(logits - logits.max())
        return chances / chances.sum()

    for top in range(5):
        for left in range(5):
            np.testing.assert_allclose(view.grid[top, left], expected(top, left), atol=1e-5)
    np.testing.assert_allclose(view.diagonal[5], expected(5, 5), atol=1e-5)
    np.testing.assert_array_equal(view.diagonal[3], view.grid[3, 3])
    assert np.ptp(view.grid, axis=(0, 1)).max() > 0.1


@pytest.mark.parametrize("batch", [1, 25, 26, 100])
def test_the_batch_size_does_not_matter(batch):
    photo = Photo(np.random.default_rng(2).integers(0, 256, (21, 21, 3), dtype=np.uint8), crop=16)
    rule = Preprocessing(resize=21, crop=16)
    views = [look("toy", Partial(means), photo, rule, batch=size, progress=lambda n: None) for size in (8, batch)]
    np.testing.assert_allclose(views[0].grid, views[1].grid, atol=1e-6)
    np.testing.assert_allclose(views[0].end, views[1].end, atol=1e-6)


def test_a_network_that_returns_nan_is_refused():
    photo = Photo(np.zeros((20, 20, 3), np.uint8), crop=16)
    with pytest.raises(CommandError, match="toy returns NaN"):
        look("toy", Partial(lambda x: x[:, 0, :, 0] / 0 - jnp.inf), photo, SMALL, batch=8, progress=lambda n: None)


def view_of(predictions: list[list[int]], end: int, classes: int = 4) -> View:
    eye = np.eye(classes)
    return View("toy", 0.9 * eye[np.array(predictions)] + 0.1 / classes, 0.9 * eye[end] + 0.1 / classes)


def test_consistency_is_that_of_all_pairs():
    view = view_of([[0, 1, 1], [0, 0, 2], [1, 1, 1]], 2)
    flat = view.predictions.ravel()
    assert view.consistency == pytest.approx(100 * np.mean(flat[:, None] == flat[None, :]))
    # Along the diagonal: 0, 0, 1, and 2 at the end.
    assert view.flips == 2
    assert view_of([[3, 3], [3, 3]], 3).consistency == 100
    assert view_of([[3, 3], [3, 3]], 3).flips == 0


def test_the_classes_that_are_predicted_come_first():
    first, second = view_of([[0, 1], [1, 1]], 1), view_of([[1, 3], [3, 3]], 3)
    assert choose_classes([first, second], 3) == [1, 3, 0]
    assert choose_classes([first], 2) == [1, 0]
    assert choose_classes([first], 9) == [1, 0, 2, 3]


def test_a_photo_is_prepared_as_for_an_evaluation(picture):
    photo = read_photo(picture, SMALL)
    assert photo.pixels.shape == (36, 36, 3)
    assert photo.last == 4
    with Image.open(picture) as image:
        resized = np.asarray(image.resize((int(36 * 90 / 70), 36), Image.Resampling.BILINEAR))
    left = round((resized.shape[1] - 36) / 2)
    np.testing.assert_array_equal(photo.pixels, resized[:, left : left + 36])
    np.testing.assert_array_equal(photo.at(3), photo.pixels[3:35, 3:35])


def test_a_photo_without_room_is_reflected_at_its_border(picture):
    photo = read_photo(picture, Preprocessing(resize=32, crop=32))
    assert photo.pixels.shape == (40, 40, 3)
    np.testing.assert_array_equal(photo.pixels[3, 4:-4], photo.pixels[5, 4:-4])


def test_names():
    assert imagenet_names()[0] == "tench"
    assert len(set(imagenet_names())) == 1000
    assert readable_names(None, 1000) == imagenet_names()
    assert readable_names(None, 3) == ("class 0", "class 1", "class 2")
    assert readable_names(("n01440764", "mine"), 2) == ("tench", "mine")
    assert readable_names(imagenet_wnids(), 1000) == imagenet_names()


def run(networks, picture, output, *options) -> int:
    given = ["--weights", str(networks["resnet18_plain"])]
    return main(["explain", *given, "--image", str(picture), "--output", str(output), *options])


def test_writes_the_pictures(networks, picture, tmp_path, capsys):
    compare = ["--compare", "resnet18_lpf3", str(networks["resnet18_lpf3"])]
    assert run(networks, picture, tmp_path / "new/out[/y]", *compare, "--milliseconds", "60", "--classes", "3") == 0
    output = tmp_path / "new/out[/y]"
    pictures = {"probabilities.png", "shifts.png", "shift.gif"}
    assert {path.name for path in output.iterdir()} == pictures | {"explain.json", "explain.html"}
    for name in ("probabilities.png", "shifts.png"):
        with Image.open(output / name) as image:
            image.load()
            assert image.width > image.height
    with Image.open(output / "shift.gif") as film:
        # Five shifts there, three back.
        assert film.n_frames == 8
        assert film.info["duration"] == 60
        assert film.info["loop"] == 0
        frames = [np.asarray(frame(film, number)) for number in range(8)]
    assert all((a != b).any() for a, b in itertools.pairwise(frames))
    np.testing.assert_array_equal(frames[1], frames[7])

    record = json.loads((output / "explain.json").read_text())
    assert [network["model"] for network in record["networks"]] == ["resnet18_plain", "resnet18_lpf3"]
    counts = Counter(np.ravel(record["networks"][0]["predictions"]).tolist())
    assert sum(counts.values()) == 16
    assert set(record["classes"].values()) <= set(NAMES)
    page = (output / "explain.html").read_text(encoding="utf-8")
    data = json.loads(page.split('<script type="application/json" id="data">')[1].split("</script>")[0])
    assert data["milliseconds"] == 60
    assert record.items() <= data["photos"][0].items()
    printed = capsys.readouterr().out
    top = counts.most_common(1)[0]
    assert f"{NAMES[top[0]]} {100 * top[1] / 16:.1f} %" in printed
    assert f"{record['networks'][0]['consistency']:.1f} %" in printed


def frame(film: Image.Image, number: int) -> Image.Image:
    film.seek(number)
    return film.convert("RGB")


def test_no_more_than_four_networks(networks, picture, tmp_path, capsys):
    other = ["--compare", "resnet18_lpf3", str(networks["resnet18_lpf3"])]
    assert run(networks, picture, tmp_path / "out", *other, *other, *other) == 0
    record = json.loads((tmp_path / "out/explain.json").read_text())
    assert [network["model"] for network in record["networks"]] == ["resnet18_plain", *3 * ["resnet18_lpf3"]]
    assert run(networks, picture, tmp_path / "none", *4 * other) == 2
    assert "error: --compare is given 4 times; at most 3 fit beside" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_one_network_alone(networks, picture, tmp_path):
    assert run(networks, picture, tmp_path / "out", "--batch", "5") == 0
    record = json.loads((tmp_path / "out/explain.json").read_text())
    assert len(record["networks"]) == 1
    assert len(record["classes"]) == 4


def test_more_colours_than_classes(picture, tmp_path):
    path = save(tmp_path / "two", "resnet18_plain", class_names=("yes", "no"))
    arguments = ["--model", "resnet18_plain", "--weights", str(path), "--image", str(picture), "--classes", "6"]
    assert main(["explain", *arguments, "--output", str(tmp_path / "out")]) == 0
    assert len(json.loads((tmp_path / "out/explain.json").read_text())["classes"]) == 2


def test_the_map_has_the_colour_of_each_prediction():
    view = view_of([[0, 1], [2, 1]], 1)
    content = pictures.shift_maps([view], {1: "one", 0: "nought"})
    with Image.open(io.BytesIO(content)) as image:
        pixels = np.asarray(image.convert("RGB"))
    shares = {
        colour: float((pixels == tuple(bytes.fromhex(colour[1:]))).all(-1).mean())
        for colour in (*pictures.COLOURS, pictures.OTHER)
    }
    first, second, *unused, other = shares.values()
    # Two cells of class 1, one of class 0, one of a class without a colour; keys are small.
    assert first == pytest.approx(2 * second, rel=0.1)
    assert second == pytest.approx(other, rel=0.1)
    assert max(unused) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--classes", "7"], "--classes is 7; it must be from 1 to 6"),
        (["--batch", "0"], "--batch is 0; it must be from 1 to 4096"),
        (["--milliseconds", "1"], "--milliseconds is 1; it must be from 20 to 10000"),
        (["--image", "/absent.jpg"], "--image /absent.jpg: there is no such file"),
        (["--weights", "/absent"], "/absent"),
        (["--model", "resnet18_lpf2"], "which holds resnet18_plain: leave --model out"),
        (["--model", "resnet17"], "unknown network 'resnet17'"),
        (["--output", "/dev/null/x"], "--output /dev/null/x cannot be made: Not a directory"),
    ],
)
def test_bad_options_are_one_line(options, message, networks, picture, tmp_path, capsys):
    assert run(networks, picture, tmp_path / "out", *options) == 2
    error = capsys.readouterr().err
    last = error.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert not (tmp_path / "out").exists()


def test_a_file_of_tensors_needs_the_networks_name(networks, picture, tmp_path, capsys):
    file = tmp_path / "tensors.safetensors"
    save_file(file_of("resnet18_plain"), file)
    assert run(networks, picture, tmp_path / "out", "--weights", str(file)) == 2
    assert f"error: --weights: {file}: it does not say which network it is of: give" in capsys.readouterr().err


def test_a_file_that_is_no_photo(networks, tmp_path, capsys):
    (tmp_path / "photo.jpg").write_text("hello")
    assert run(networks, tmp_path / "photo.jpg", tmp_path / "out") == 2
    assert f"error: --image {tmp_path / 'photo.jpg'}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": ("a",) * 7}, "have different classes"),
        ({"preprocessing": Preprocessing(resize=40, crop=32)}, "prepare photos differently"),
    ],
)
def test_networks_that_do_not_compare(changes, message, networks, picture, tmp_path, capsys):
    other = save(tmp_path / "other", "resnet18_lpf3", **changes)
    assert run(networks, picture, tmp_path / "out", "--compare", "resnet18_lpf3", str(other)) == 2
    assert message in capsys.readouterr().err
