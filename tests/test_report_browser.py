"""The HTML report in a real browser: no message on its console, readable in light and dark."""

import dataclasses
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aa_flax.consistency import Estimate
from tests.test_compare import three
from train.compare import report as comparison_report
from train.page.forms import to_html
from train.reproduce import report
from train.reproduce.report import Conditions
from train.reproduce.rows import Measured, Row, published_rows, timm_rows

pytestmark = pytest.mark.browser


def open_page(chromium: str, page: Path, screenshot: Path, *, dark: bool = False, width: int = 1100) -> str:
    """Draws a page into a picture; returns what the browser put on its console."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr"]
    # Chromium numbers colour schemes: 0 is dark, 1 is light.
    options += [f"--window-size={width},3000", f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    options += [f"--user-data-dir={screenshot.parent / 'profile'}", f"--screenshot={screenshot}"]
    done = subprocess.run([chromium, *options, page.as_uri()], capture_output=True, text=True, timeout=300, check=True)
    return "\n".join(line for line in done.stderr.splitlines() if ":CONSOLE" in line)


def measured_rows() -> list[Row]:
    """The published rows of a few networks, one of them measured."""
    found = Measured(
        identity={},
        images=250,
        unreadable=0,
        timing={},
        top1=Estimate(70.0, 0.4),
        top5=Estimate(90.0, 0.3),
        consistency=Estimate(86.0, 0.2),
        milliseconds=3.5,
        weights="resnet18_plain from <strange> & file.pth",
        published=False,
    )
    rows = [row for row in published_rows() if row.model in ("resnet18", "vgg11", "densenet161")]
    rows[0] = dataclasses.replace(rows[0], measured=found)
    return rows


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    conditions = Conditions(
        data="val", images=250, fingerprint="ab" * 32, protocol="five pairs", device="a CPU", timing="Median."
    )
    text = to_html(report.build(measured_rows(), timm_rows(), conditions=conditions, missing=[("vgg11", "absent")]))
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(text)
    return path


def colours(screenshot: Path) -> tuple[int, int]:
    """Brightness of the background, and the number of different colours."""
    with Image.open(screenshot) as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    return int(pixels[0].mean()), len(np.unique(pixels, axis=0))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_report_opens_without_a_message(chromium, page, tmp_path, dark):
    assert open_page(chromium, page, tmp_path / "page.png", dark=dark) == ""
    background, different = colours(tmp_path / "page.png")
    assert background < 60 if dark else background > 240
    assert different > 50


def test_a_comparison_opens_without_a_message(chromium, tmp_path):
    page = tmp_path / "compare.html"
    page.write_text(to_html(comparison_report.build(three())))
    assert open_page(chromium, page, tmp_path / "page.png", dark=True) == ""
    background, different = colours(tmp_path / "page.png")
    assert background < 60
    assert different > 50


def test_the_console_is_really_read(chromium, page, tmp_path):
    """The policy in the page forbids scripts and pictures from elsewhere, which the console tells."""
    broken = tmp_path / "broken.html"
    inserted = '<img src="https://example.invalid/x.png"><script>1</script></main>'
    broken.write_text(page.read_text().replace("</main>", inserted))
    console = open_page(chromium, broken, tmp_path / "page.png")
    assert "example.invalid" in console
    assert "script" in console


def test_a_narrow_window_needs_no_sideways_scrolling(chromium, page, tmp_path):
    """Tables scroll in their boxes: right of a phone's edge the page itself has nothing."""
    probe = tmp_path / "probe.html"
    page_text = page.read_text()
    script = "<script>document.title = document.documentElement.scrollWidth</script></body>"
    policy = page_text.split('http-equiv="Content-Security-Policy" content="')[1].split('"')[0]
    probe.write_text(page_text.replace(policy, "").replace("</body>", script))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=500,900", "--dump-dom"]
    options.append(f"--user-data-dir={tmp_path / 'profile'}")
    done = subprocess.run([chromium, *options, probe.as_uri()], capture_output=True, text=True, timeout=300, check=True)
    width = int(done.stdout.split("<title>")[1].split("</title>")[0])
    assert width <= 500
