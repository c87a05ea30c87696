"""`explain.html` in a real browser: what it shows is what explain.json says, whoever moves the photo, and however."""

import io
import json
import re
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from examples.draw_bird import draw
from tests import browser as browsers
from train.explain.interactive import Explained, interactive_page
from train.explain.pictures import COLOURS, OTHER
from train.explain.record import describe
from train.explain.shift_views import Photo, View, choose_classes

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[1]
CLASSES = 1000
NAMES = [f"class {index}" for index in range(CLASSES)]
NAMES[7:10] = "</script><script>alert(1)</script>", "<img src=x onerror=alert(2)>", "$data & \u2028 {} «ß»"


def explained(name: str, *, crop: int, last: int, networks: int, seed: int) -> Explained:
    """A photo of noise, and networks that are torn between the oddly named classes and three of all others."""
    random = np.random.default_rng(seed)
    photo = Photo(random.integers(0, 256, (crop + last, crop + last, 3), dtype=np.uint8), crop)
    likely = [7, 8, 9, *random.choice(np.arange(10, CLASSES), 3, replace=False)]
    views = []
    for number in range(networks):
        logits = random.normal(size=(last * last + 1, CLASSES))
        logits[:, likely] += random.normal(8, 2, (last * last + 1, len(likely)))
        chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        views.append(View(f"network_{number}<b>", chances[:-1].reshape(last, last, -1), chances[-1]))
    return Explained(photo, describe(name, views, choose_classes(views, 4), NAMES))


@pytest.fixture(scope="module")
def large() -> Explained:
    return explained("photo <1>.jpg", crop=224, last=32, networks=4, seed=0)


@pytest.fixture(scope="module")
def small() -> list[Explained]:
    return [explained(f"digit {seed}", crop=32, last=8, networks=2, seed=seed) for seed in (1, 2, 3)]


@pytest.fixture(scope="module")
def files(large, small, tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pages")
    paths = {"large": root / "large.html", "small": root / "small.html"}
    paths["large"].write_text(interactive_page("a <title>", [large], milliseconds=20), encoding="utf-8")
    paths["small"].write_text(interactive_page("digits", small, milliseconds=20), encoding="utf-8")
    return paths


@pytest.fixture(scope="module")
def browser(chromium) -> Iterator[Browser]:
    with browsers.launched(chromium) as browser:
        yield browser


@contextmanager
def opened(browser: Browser, path: Path, **options) -> Iterator[Page]:
    """A page that is open; in the end there was no message, no error and no request but that for the page itself."""
    heard: list[str] = []
    with browsers.opened(browser, path, heard, **options) as page:
        expect(page.locator("#down + output")).to_have_text(re.compile("px"))
        yield page
        assert heard == [path.as_uri()]


def expect_place(page: Page, down: int, right: int) -> None:
    """What a hand has done arrives when the browser comes to it."""
    expect(page.locator("#down")).to_have_value(str(down))
    expect(page.locator("#right")).to_have_value(str(right))


def go(page: Page, down: int, right: int) -> None:
    page.locator("#down").fill(str(down))
    page.locator("#right").fill(str(right))


def answers(page: Page) -> list[list[tuple[str, str]]]:
    """Names and shares of the bars of every network."""
    script = """networks => networks.map(network => [...network.querySelectorAll("li")].map(
        row => [row.querySelector(".name").textContent, row.querySelector(".chance").textContent]))"""
    return page.locator(".network").evaluate_all(script)


def canvas_pixels(page: Page, selector: str) -> np.ndarray:
    content = page.locator(selector).first.evaluate("canvas => canvas.toDataURL('image/png')")
    with Image.open(io.BytesIO(b64decode(content.split(",")[1]))) as image:
        return np.asarray(image.convert("RGBA"))


def test_the_committed_page_is_what_the_command_writes():
    """All but its numbers, which tests/test_claims.py has: `make pictures` writes it anew."""
    content = (ROOT / "docs/pictures/bird.html").read_text(encoding="utf-8")
    before, rest = content.split('id="data">')
    photo = json.loads(rest.split("</script>")[0])["photos"][0]
    with Image.open(io.BytesIO(b64decode(photo["source"].split(",")[1]))) as image:
        pixels = np.asarray(image)
    resized = np.asarray(draw().resize((64, 64), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(pixels[8:-8, 8:-8].astype(float), resized, atol=1)
    record = {key: photo[key] for key in ("image", "classes", "names", "networks")}
    page = interactive_page(
        "bird.png, moved pixel by pixel", [Explained(Photo(pixels, photo["crop"]), record)], milliseconds=120
    )
    assert page.split('id="data">')[0] == before
    # Pillow may have compressed the pixels otherwise.
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])["photos"][0]
    assert {**data, "source": ""} == {**photo, "source": ""}


def test_it_shows_what_the_json_says(browser, files, large):
    record = json.loads(json.dumps(large.record))
    random = np.random.default_rng(4)
    with opened(browser, files["large"]) as page:
        expect_place(page, 16, 16)
        for down, right in random.integers(0, 32, (10, 2)).tolist():
            go(page, down, right)
            seen = answers(page)
            assert len(seen) == 4
            for network, rows in zip(record["networks"], seen, strict=True):
                classes = network["top"]["classes"][down][right]
                chances = network["top"]["probabilities"][down][right]
                assert classes[0] == network["predictions"][down][right]
                assert [name for name, _ in rows] == [record["names"][str(index)] for index in classes]
                shares = [float(share.removesuffix(" %")) for _, share in rows]
                np.testing.assert_allclose(shares, 100 * np.array(chances), atol=0.05 + 1e-9)
            crop = large.photo.pixels[down : down + 224, right : right + 224]
            np.testing.assert_array_equal(canvas_pixels(page, "#crop")[..., :3], crop)
            mark = page.locator(".mark").first.evaluate("mark => [mark.style.top, mark.style.left]")
            shown = [float(side.removesuffix("%")) for side in mark]
            np.testing.assert_allclose(shown, [(down + 0.5) / 0.32, (right + 0.5) / 0.32], atol=1e-3)


def test_the_json_says_what_the_networks_do(large):
    """Against the probabilities themselves, which the record holds rounded."""
    random = np.random.default_rng(0)
    view = View("x", random.dirichlet(np.ones(9), (5, 5)), random.dirichlet(np.ones(9)))
    network = describe("y", [view], [3, 1], NAMES)["networks"][0]
    np.testing.assert_array_equal(np.array(network["top"]["classes"])[..., 0], view.predictions)
    assert np.shape(network["top"]["classes"]) == (5, 5, 5)
    np.testing.assert_allclose(network["top"]["probabilities"], np.sort(view.grid)[..., :-6:-1], atol=5e-5)
    np.testing.assert_allclose(network["probabilities"]["1"], view.grid[..., 1], atol=5e-5)
    assert len(large.record["names"]) < CLASSES + 1


def test_a_photo_of_1024_shifts_takes_less_than_three_megabytes(files):
    size = files["large"].stat().st_size
    print(f"explain.html of a 256x256 photo of noise, four networks, 1,000 classes: {size / 1e6:.2f} MB")
    assert size < 3e6


def test_the_mouse_drags_the_photo(browser, files):
    with opened(browser, files["large"]) as page:
        stage = page.locator("#stage").bounding_box()
        pixel = stage["width"] / (224 + 2 * 32)
        x, y = stage["x"] + stage["width"] / 2, stage["y"] + stage["height"] / 2
        page.mouse.move(x, y)
        page.mouse.down()
        for step in range(1, 6):  # one pixel of the photo after the other
            page.mouse.move(x + step * pixel, y - step * pixel)
            expect_place(page, 16 + step, 16 - step)
        page.mouse.move(x + 1000, y + 1000)
        expect_place(page, 0, 0)
        page.mouse.up()
        page.mouse.move(x, y)
        expect_place(page, 0, 0)


def test_a_finger_drags_the_photo(browser, files):
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    with opened(browser, files["small"], **phone) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        stage = page.locator("#stage").bounding_box()
        pixel = stage["width"] / (32 + 2 * 8)
        x, y = stage["x"] + stage["width"] / 2, stage["y"] + stage["height"] / 2
        touch = page.context.new_cdp_session(page)

        def finger(kind: str, *points: tuple[float, float]) -> None:
            touch.send(
                "Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": px, "y": py} for px, py in points]}
            )

        finger("touchStart", (x, y))
        finger("touchMove", (x - 1 * pixel, y))
        finger("touchMove", (x - 2 * pixel, y - 3 * pixel))
        finger("touchEnd")
        expect_place(page, 7, 6)
        assert page.evaluate("scrollY") == 0


def test_the_arrow_keys_move_the_photo(browser, files):
    with opened(browser, files["large"]) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "stage"
        for key, expected in (
            ("ArrowRight", (16, 15)),
            ("ArrowDown", (15, 15)),
            ("ArrowLeft", (15, 16)),
            ("ArrowUp", (16, 16)),
            ("Shift+ArrowUp", (24, 16)),
            ("Shift+ArrowUp", (31, 16)),
        ):
            page.keyboard.press(key)
            expect_place(page, *expected)
        page.keyboard.press("Tab")
        page.keyboard.press("ArrowLeft")
        expect_place(page, 30, 16)
        assert page.evaluate("scrollY") == 0


def test_a_screen_reader_hears_it(browser, files, large):
    with opened(browser, files["large"]) as page:
        page.locator("#stage").press("ArrowUp")
        expect(page.locator("#said")).to_have_text(re.compile("^crop 17 pixels down, 16 right"))
        first = large.record["networks"][0]
        name = NAMES[first["predictions"][17][16]]
        assert f"network_0<b>: {name}, " in page.locator("#said").text_content()
        tree = page.locator("body").aria_snapshot()
    for part in ('application "photo <1>.jpg"', 'slider "crop down"', 'slider "crop right"', "status"):
        assert part in tree
    assert tree.count('img "map of network_') == 4


def test_a_place_on_the_map_is_where_the_crop_goes(browser, files):
    with opened(browser, files["large"]) as page:
        box = page.locator(".map").nth(2).bounding_box()
        page.mouse.click(box["x"] + box["width"] * 3.5 / 32, box["y"] + box["height"] * 30.5 / 32)
        expect_place(page, 30, 3)


def test_the_diagonal_is_played_there_and_back(browser, files):
    with opened(browser, files["small"]) as page:
        page.evaluate(
            """() => { window.played = new Promise(done => { const places = []; new MutationObserver((_, observer) => {
                places.push([down.value, right.value].map(Number));
                if (places.length < 15) return;
                observer.disconnect();  // the page plays on until it is stopped
                done(places);
            }).observe(document.querySelector("#right + output"), {childList: true}); }); }"""
        )
        page.get_by_role("button", name="Play the diagonal").click()
        steps = page.evaluate("played")
        page.get_by_role("button", name="Stop").click()
        assert [down for down, _ in steps] == [0, 1, 2, 3, 4, 5, 6, 7, 6, 5, 4, 3, 2, 1, 0]
        assert all(down == right for down, right in steps)
        assert page.locator("#play").get_attribute("aria-pressed") == "false"


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


def test_maps_of_predictions_and_of_probabilities(browser, files, large):
    network = large.record["networks"][0]
    shown = [int(index) for index in large.record["classes"]]
    with opened(browser, files["large"]) as page:
        pixels = canvas_pixels(page, ".map canvas")
        colours = dict(zip(shown, COLOURS, strict=False))
        expected = [[rgb(colours.get(index, OTHER)) for index in row] for row in network["predictions"]]
        np.testing.assert_array_equal(pixels[..., :3], expected)

        page.locator("#class").select_option(index=1)
        assert page.get_by_label("the probability there of").is_checked()
        pixels = canvas_pixels(page, ".map canvas")
        strength = np.array(network["probabilities"][str(shown[1])])
        np.testing.assert_allclose(pixels[..., 3] / 255, strength, atol=0.003)
        # What is nearly transparent has lost its colour.
        strong = pixels[strength > 0.5]
        assert len(strong)
        np.testing.assert_allclose(strong[:, :3], np.broadcast_to(rgb(COLOURS[1]), strong[:, :3].shape), atol=2)
        page.get_by_label("the class predicted at each place").check()
        np.testing.assert_array_equal(canvas_pixels(page, ".map canvas")[..., :3], expected)


def test_another_photo_is_chosen(browser, files, small):
    with opened(browser, files["small"]) as page:
        page.get_by_role("radio", name="digit 3").check()
        expect(page.locator("#stage")).to_have_attribute("aria-label", "digit 3")
        go(page, 2, 5)
        np.testing.assert_array_equal(canvas_pixels(page, "#crop")[..., :3], small[2].photo.pixels[2:34, 5:37])
        index = small[2].record["networks"][1]["predictions"][2][5]
        assert answers(page)[1][0][0] == NAMES[index]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_of_the_page_are_the_readers(browser, files, scheme):
    with opened(browser, files["large"], color_scheme=scheme) as page:
        colours = page.locator("body").evaluate(
            "body => { const style = getComputedStyle(body); return [style.backgroundColor, style.color]; }"
        )
    paper, ink = (sum(map(int, re.findall(r"\d+", colour))) for colour in colours)
    assert paper > 700 > 150 > ink if scheme == "light" else paper < 150 < 600 < ink


def test_the_console_and_requests_are_really_watched(browser, files, tmp_path):
    """The policy in the page forbids scripts and pictures of others, which the console tells."""
    broken = tmp_path / "broken.html"
    content = files["small"].read_text(encoding="utf-8")
    broken.write_text(content.replace("</main>", "<script>document.title = 'ran'</script></main>"), encoding="utf-8")
    with pytest.raises(AssertionError, match="script"), opened(browser, broken) as page:
        assert page.title() == "digits"
