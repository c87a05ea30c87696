"""What the committed weights claim, measured again by the command that a user would call."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from aa_flax.weights.config import read_config
from examples.draw_bird import draw
from train.__main__ import main

# Far more is computed than compiled.
pytestmark = [pytest.mark.claims, pytest.mark.usefixtures("optimised")]
WEIGHTS = Path(__file__).parents[1] / "weights"
# Rounding of another processor may turn single answers: of 10,000 images, and of 50,000 pairs of crops.
IMAGES = PAIRS = 0.03


@pytest.fixture(scope="module")
def held_out(shared, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("cifar10")
    with tarfile.open(shared / "data" / "cifar10-images.tar.xz") as tar:
        tar.extractall(root, filter="data")
    return root / "test"


@pytest.mark.parametrize("name", ["mobilenet_v2_plain-cifar10", "mobilenet_v2_lpf4-cifar10"])
def test_committed_weights_do_what_they_claim(name, held_out, tmp_path):
    output = tmp_path / "report.json"
    words = ["evaluate", "--weights", WEIGHTS / name, "--data", held_out, "--output", output, "--batch-size", "500"]
    assert main([str(word) for word in words]) == 0
    report = json.loads(output.read_text())
    claimed = read_config(WEIGHTS / name).metrics
    assert report["top1"] == pytest.approx(claimed["accuracy"], abs=IMAGES)
    assert report["consistency"]["crop"]["value"] == pytest.approx(claimed["consistency"], abs=PAIRS)


def test_the_page_of_the_bird_shows_what_the_committed_weights_say(tmp_path):
    picture = tmp_path / "bird.png"
    draw().save(picture)
    plain, blurred = (WEIGHTS / f"mobilenet_v2_{kind}-cifar10" for kind in ("plain", "lpf4"))
    words = ["explain", "--weights", plain, "--image", picture, "--output", tmp_path]
    assert main([*map(str, words), "--compare", "mobilenet_v2_lpf4", str(blurred)]) == 0
    record = json.loads((tmp_path / "explain.json").read_text())
    page = (WEIGHTS.parent / "docs/pictures/bird.html").read_text(encoding="utf-8")
    shown = json.loads(page.split('id="data">')[1].split("</script>")[0])["photos"][0]
    for now, then in zip(record["networks"], shown["networks"], strict=True):
        assert np.mean(np.array(now["predictions"]) == then["predictions"]) > 0.98
