"""The HTML report in a real browser: no message on its console, readable in light and dark."""

import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser

from aa_flax.consistency import Estimate
from tests import browser as browsers
from tests.test_compare import three
from train.compare import report as comparison_report
from train.page.forms import to_html
from train.reproduce import report
from train.reproduce.report import Conditions
from train.reproduce.rows import Measured, Row, published_rows, timm_rows

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser(chromium) -> Iterator[Browser]:
    with browsers.launched(chromium) as browser:
        yield browser


def look_at(browser: Browser, path: Path, *, dark: bool = False) -> tuple[list[str], int, int]:
    """What a page says and asks for beside itself, the brightness of its background, its number of colours."""
    heard: list[str] = []
    with browsers.opened(browser, path, heard, color_scheme="dark" if dark else "light") as page:
        screenshot = page.screenshot()
    assert heard.pop(0) == path.as_uri()
    with Image.open(io.BytesIO(screenshot)) as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    return heard, int(pixels[0].mean()), len(np.unique(pixels, axis=0))


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


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_report_opens_without_a_message(browser, page, dark):
    heard, background, colours = look_at(browser, page, dark=dark)
    assert heard == []
    assert background < 60 if dark else background > 240
    assert colours > 50


def test_a_comparison_opens_without_a_message(browser, tmp_path):
    page = tmp_path / "compare.html"
    page.write_text(to_html(comparison_report.build(three())))
    heard, background, colours = look_at(browser, page, dark=True)
    assert heard == []
    assert background < 60
    assert colours > 50


def test_the_console_is_really_read(browser, page, tmp_path):
    """The policy in the page forbids scripts and pictures from elsewhere, which the console tells."""
    broken = tmp_path / "broken.html"
    inserted = '<img src="https://example.invalid/x.png"><script>1</script></main>'
    broken.write_text(page.read_text().replace("</main>", inserted))
    heard, *_ = look_at(browser, broken)
    assert "example.invalid" in " ".join(heard)
    assert "script" in " ".join(heard)


def test_a_narrow_window_needs_no_sideways_scrolling(browser, page):
    """Tables scroll in their boxes: right of a phone's edge the page itself has nothing."""
    with browsers.opened(browser, page, [], viewport={"width": 390, "height": 844}) as opened:
        assert opened.evaluate("document.documentElement.scrollWidth") <= 390
