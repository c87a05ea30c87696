"""The python blocks of README.md and docs/*.md run, page by page, each page in one namespace; links lead somewhere."""

import re
import sys
import types
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from markdown_it import MarkdownIt
from PIL import Image

from aa_flax.consistency import PROTOCOLS
from aa_flax.downsample import METHODS
from aa_flax.models.registry import MODELS
from train.__main__ import COMMANDS
from train.data.datasets import OPENERS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCED = re.compile(r"^```python[ ]*\n(.*?)^```[ ]*$", re.DOTALL | re.MULTILINE)


def blocks(page):
    """Every python block with the number of its first line."""
    text = page.read_text(encoding="utf-8")
    found = [(text.count("\n", 0, match.start(1)) + 1, match.group(1)) for match in FENCED.finditer(text)]
    mentioned = len(re.findall(r"^\s*(?:```|~~~)\s*(?:python|py)\b", text, re.MULTILINE))
    assert len(found) == mentioned, f"{page.name}: a python block is indented or not closed, so it would not run"
    return found


def run(page):
    """Run the blocks one after another as a module; a failure shows the line of the page."""
    module = types.ModuleType(f"page_{page.stem}")
    sys.modules[module.__name__] = module
    try:
        for line, source in blocks(page):
            exec(compile("\n" * (line - 1) + source, str(page), "exec"), module.__dict__)
    finally:
        # This one alone: parts of NumPy that a page was the first to import cannot be loaded twice.
        del sys.modules[module.__name__]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
@patch.dict(MODELS)
@patch.dict(PROTOCOLS)
@patch.dict(METHODS)
@patch.dict(OPENERS)
@patch.dict(COMMANDS)
def test_the_blocks_of_a_page_run(page, tmp_path, monkeypatch):
    """In a folder with the trained networks and a photo; rows that a page adds to tables are gone after it."""
    monkeypatch.chdir(tmp_path)
    # A directory of its own: pages write beside what they read.
    Path("weights").mkdir()
    for saved in (ROOT / "weights").iterdir():
        Path("weights", saved.name).symlink_to(saved)
    colours = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    Image.fromarray(colours).resize((64, 48)).save("photo.jpg")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    run(page)


def test_a_failing_block_is_found_with_its_line(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# Page\n\n```python\nnumber = 1\n```\n\n```text\nnot run(\n```\n\n```python\nassert number == 2\n```\n"
    )
    assert [line for line, _ in blocks(page)] == [4, 12]
    with pytest.raises(AssertionError) as caught:
        run(page)
    assert caught.traceback[-1].lineno + 1 == 12


@pytest.mark.parametrize("text", ["- item\n\n  ```python\n  x\n  ```\n", "```python\nx = 1\n"])
def test_a_block_that_would_not_run_is_refused(text, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(AssertionError, match="would not run"):
        blocks(page)


def anchors(page):
    """What `#...` may name on a page: its headings, as GitHub and the site write them."""
    tokens = MarkdownIt("commonmark").parse(page.read_text(encoding="utf-8"))
    titles = [tokens[at + 1].children for at, token in enumerate(tokens) if token.type == "heading_open"]
    texts = ["".join(part.content for part in title if part.type in ("text", "code_inline")) for title in titles]
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in texts}


def dead_links(page):
    """Links of a page within the checkout that lead nowhere."""
    inline = [token for token in MarkdownIt("commonmark").parse(page.read_text(encoding="utf-8")) if token.children]
    parts = [part for token in inline for part in token.children]
    links = [part.attrs.get("href") or part.attrs.get("src") for part in parts if part.type in ("link_open", "image")]
    dead = []
    for link in links:
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not re.match("[a-z]+:", link) and not (target.exists() and (not anchor or anchor in anchors(target))):
            dead.append(link)
    return dead


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_the_links_of_a_page_lead_somewhere(page):
    assert not dead_links(page)


def test_a_dead_link_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# One `two`: three\n\n[a](page.md#one-two-three) [b](#one-two) [c](none.md) ![d](none.png) [e](https://x.org/)\n"
        "\n```text\n[f](g)\n```\n"
    )
    assert dead_links(page) == ["#one-two", "none.md", "none.png"]
