"""The python blocks of README.md and docs/*.md run, page by page, each page in one namespace."""

import re
from pathlib import Path

import pytest

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
    """Run the blocks one after another; a failure shows the line of the page."""
    namespace = {"__name__": f"page_{page.stem}"}
    for line, source in blocks(page):
        exec(compile("\n" * (line - 1) + source, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_blocks_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
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
