"""Stability on videos: the definition, its standard error on frames that depend on each other, and the command."""

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from aa_flax import consistency
from aa_flax.consistency.video import by_blocks
from aa_flax.weights.store import Preprocessing
from train.__main__ import main
from train.errors import CommandError
from train.video.frames import read_frames


def corner(crops):
    """A network whose class is the value of a crop's first pixel."""
    return np.eye(256)[np.asarray(crops)[:, 0, 0, 0]]


def frames_of(random, count=7, side=12):
    return random.integers(0, 3, (count, side, side, 1), dtype=np.uint8)


def test_the_definition_pixel_by_pixel():
    frames = frames_of(np.random.default_rng(0))
    told = []
    protocol = consistency.Video(crop=6, jitter=2, pairs=4, seed=3, device_batch=5)
    result = protocol.measure(corner, frames, progress=lambda done, total: told.append((done, total)))
    middle = frames[:, 3, 3, 0]
    assert result.value == pytest.approx(100 * np.mean(middle[1:] != middle[:-1]))
    offsets = result.arrays["offsets"] - 2
    assert (offsets[:, 0] == 0).all()
    assert set(offsets[:, 1:].ravel().tolist()) == {-2, -1, 0, 1, 2}
    at = frames[np.arange(7)[:, None], 3 + offsets[..., 0], 3 + offsets[..., 1], 0]
    np.testing.assert_array_equal(result.arrays["predictions"], at)
    differ = [np.mean([crops[i] != crops[i + 1] for i in (1, 3, 5, 7)]) for crops in at]
    neighbours = [(one + next) / 2 for one, next in itertools.pairwise(differ)]
    assert result.parts["jitter"].value == pytest.approx(100 * np.mean(neighbours))
    assert result.parts["beyond"].value == pytest.approx(result.value - result.parts["jitter"].value)
    assert told[-1] == (7, 7)
    again = consistency.Video(**result.settings).measure(corner, frames)
    assert json.dumps(again.as_dict()) == json.dumps(result.as_dict())


def test_batches_may_come_in_any_order():
    frames = frames_of(np.random.default_rng(5), count=8)
    protocol = consistency.Video(crop=6)
    batches = [protocol.per_image(corner, frames[part], index=part) for part in (np.arange(4, 8), np.arange(4))]
    whole = protocol.measure(corner, frames)
    assert json.dumps(protocol.summarise(consistency.gather(batches)).as_dict()) == json.dumps(whole.as_dict())
    with pytest.raises(ValueError, match="the frame after number 3 is missing"):
        protocol.summarise(
            consistency.gather([batches[1], protocol.per_image(corner, frames[5:], index=np.arange(5, 8))])
        )


def test_a_video_that_stands_still_has_jitter_alone():
    frames = np.repeat(frames_of(np.random.default_rng(1), count=1), 30, axis=0)
    result = consistency.Video(crop=6).measure(corner, frames)
    assert result.value == 0
    assert result.parts["jitter"].value > 30
    assert result.parts["beyond"].value == -result.parts["jitter"].value


def test_what_is_of_one_colour_cannot_jitter():
    frames = np.broadcast_to(np.array([5, 5, 9, 9, 5], np.uint8).reshape(5, 1, 1, 1), (5, 10, 10, 1))
    result = consistency.Video(crop=6).measure(corner, frames)
    assert result.value == 50
    assert result.parts["jitter"].value == 0


def test_the_error_is_right_where_frames_depend_on_each_other():
    """A chain that keeps its state nine times of ten, 900 steps: against the spread of 400 such videos' means."""
    random = np.random.default_rng(2)
    videos = np.logical_xor.accumulate(random.random((400, 900)) < 0.1, axis=1) * 100.0
    true = videos.mean(axis=1).std(ddof=1)
    found = np.mean([by_blocks(video).stderr for video in videos])
    naive = np.mean(videos.std(axis=1, ddof=1)) / math.sqrt(900)
    assert found == pytest.approx(true, rel=0.2)
    assert naive < 0.5 * true


@given(st.lists(st.integers(0, 2), min_size=2, max_size=40), st.integers(1, 4), st.integers(0, 2**31))
def test_summaries_add_up(still, pairs, seed):
    crops = np.random.default_rng(seed).integers(0, 3, (len(still), 2 * pairs))
    arrays = {"index": np.arange(len(still)), "predictions": np.column_stack([still, crops])}
    result = consistency.Video(pairs=pairs).summarise(arrays)
    assert 0 <= result.value <= 100
    assert 0 <= result.parts["jitter"].value <= 100
    assert result.parts["beyond"].value == pytest.approx(result.value - result.parts["jitter"].value)
    assert math.isnan(result.stderr) == (len(still) < 5)


def test_several_videos_count_the_same():
    random = np.random.default_rng(3)
    results = [consistency.Video(crop=6).measure(corner, frames_of(random, count)) for count in (3, 9, 20)]
    values = [each.value for each in results]
    mean = consistency.over_videos(results)["changes"]
    assert mean.value == pytest.approx(np.mean(values))
    assert mean.stderr == pytest.approx(np.std(values, ddof=1) / math.sqrt(3))


@pytest.mark.parametrize(
    ("settings", "shape", "message"),
    [
        ({}, (1, 12, 12, 1), "two frames or more"),
        ({}, (5, 12, 12), "images must have the shape"),
        ({"jitter": 4}, (5, 12, 12, 1), "jitter=4 need at least 14x14"),
        ({"jitter": 0}, (5, 12, 12, 1), "jitter=0: must be a whole number of at least 1"),
        ({"pairs": 0}, (5, 12, 12, 1), "pairs=0: must be a whole number of at least 1"),
        ({"crop": 0}, (5, 12, 12, 1), "crop=0"),
    ],
)
def test_what_cannot_be_measured_is_refused(settings, shape, message):
    with pytest.raises(ValueError, match=message):
        consistency.Video(**{"crop": 6, **settings}).measure(corner, np.zeros(shape, np.uint8))


RULE = Preprocessing(resize=12, crop=8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


@pytest.fixture
def pictures():
    noise = np.random.default_rng(4).integers(0, 256, (11, 12, 12, 3), dtype=np.uint8)
    return [Image.fromarray(each) for each in noise]


def test_frames_are_in_the_order_of_their_numbers(pictures, tmp_path):
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"frame {number}.png")
    (tmp_path / "notes.txt").write_text("no frame")
    frames = read_frames(tmp_path, RULE, 100)
    np.testing.assert_array_equal(frames, [np.asarray(picture) for picture in pictures])
    assert len(read_frames(tmp_path, RULE, 4)) == 4


@pytest.mark.parametrize("kind", ["gif", "png", "webp"])
def test_animated_pictures_are_read_as_they_are_seen(pictures, tmp_path, kind):
    path = tmp_path / f"film.{kind}"
    options = {"lossless": True} if kind == "webp" else {}
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=40, **options)
    frames = read_frames(path, RULE, 100)
    with Image.open(path) as film:
        for number, frame in enumerate(frames):
            film.seek(number)
            np.testing.assert_array_equal(frame, np.asarray(film.convert("RGB")))
    assert len(frames) == 11
    if kind != "gif":
        np.testing.assert_array_equal(frames, [np.asarray(picture) for picture in pictures])


def test_frames_without_room_are_reflected(pictures, tmp_path):
    pictures[0].save(tmp_path / "film.png", save_all=True, append_images=pictures[1:])
    frames = read_frames(tmp_path / "film.png", Preprocessing(resize=12, crop=12), 3)
    assert frames.shape == (3, 14, 14, 3)
    np.testing.assert_array_equal(frames[:, 0], frames[:, 2])


def test_what_is_no_video_is_told(pictures, tmp_path):
    pictures[0].save(tmp_path / "still.png")
    (tmp_path / "broken.gif").write_bytes(b"GIF89a and nothing else")
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("still.png", "1 frame; a video has two or more"),
        ("broken.gif", "Pillow"),
        ("empty", "0 frames"),
        ("none", "there is no such file or folder"),
    ):
        with pytest.raises(CommandError, match=message):
            read_frames(tmp_path / name, RULE, 10)


@pytest.fixture
def words(pictures, tmp_path, monkeypatch):
    """The command with a network of which a module has the function, and two videos."""
    (tmp_path / "toy_video_network.py").write_text(
        "import numpy as np\n"
        "def predict(images):\n    return np.asarray(images)[:, :2, :2].reshape(len(images), -1)[:, :10]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    pictures[0].save(tmp_path / "film.png", save_all=True, append_images=pictures[1:])
    (tmp_path / "frames").mkdir()
    for number, picture in enumerate(pictures[:6]):
        picture.save(tmp_path / "frames" / f"{number}.png")
    network = ["--fn", "toy_video_network:predict", "--size", "8", "--resize", "12"]
    return ["video", *network, "--video", str(tmp_path / "film.png"), str(tmp_path / "frames")]


def test_the_command(words, pictures, tmp_path, capsys):
    assert main([*words, "--output", str(tmp_path / "video.json")]) == 0
    record = json.loads((tmp_path / "video.json").read_text())
    film, frames = record["videos"]
    assert (film["frames"], frames["frames"]) == (11, 6)
    rule = Preprocessing(resize=12, crop=8)
    normalised = (np.stack([np.asarray(each) for each in pictures]) / 255 - rule.mean) / rule.std
    expected = normalised[:, 2:4, 2:4].reshape(11, -1)[:, :10].argmax(axis=1)
    assert film["predictions"] == expected.tolist()
    assert frames["predictions"] == expected[:6].tolist()
    assert film["changes"]["value"] == pytest.approx(100 * np.mean(expected[1:] != expected[:-1]))
    assert record["mean"]["changes"]["value"] == pytest.approx(
        (film["changes"]["value"] + frames["changes"]["value"]) / 2
    )
    printed = capsys.readouterr().out
    assert "mean over videos" in printed
    assert f"{film['changes']['value']:.2f} +- " in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--jitter", "3"], "--jitter is 3; frames of this network leave room for at most 2"),
        (["--jitter", "0"], "--jitter=0: must be a whole number of at least 1"),
        (["--batch-size", "0"], "--batch-size=0: must be a whole number of at least 1"),
        (["--frames", "1"], "--frames is 1; it must be at least 2"),
        (["--weights", "x"], "--weights and --fn name a network each; give one"),
        (["--output", "/dev/null/x"], "--output /dev/null/x cannot be written"),
    ],
)
def test_bad_options_are_one_line(options, message, words, capsys):
    assert main([*words, *options]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
