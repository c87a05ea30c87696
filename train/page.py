"""A written report as data, and its two forms: Markdown, and one HTML file that needs nothing else.

A :class:`Page` holds sections of prose, tables and figures. ``to_markdown`` names its pictures by
relative path; ``to_html`` carries everything inside itself: no script, no font, no request. Both
forms come from the same cells, so they cannot disagree.
"""

import html
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from train.files import write_atomically
from train.page_style import CONTENT_POLICY, STYLE

FIGURE_DIRECTORY = "figures"

# A kept character, code, bold, italic, or a run of anything else.
_PROSE = re.compile(
    r"\\([\\`*_\[\]<>|])|`([^`]+)`|\*\*((?:\\.|[^*\\])+)\*\*|\*((?:\\.|[^*\\])+)\*|[^\\`*]+|.",
    re.DOTALL,
)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: What is read; plain text, escaped by both forms.
        bold: Set in bold type.
        italic: Set in italic type.
        spoken: Words for readers who do not see the type, e.g. "on the Pareto front". They are
            hidden in the HTML form and left out of the Markdown form.
    """

    text: str
    bold: bool = False
    italic: bool = False
    spoken: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table whose first column names its rows.

    Attributes:
        caption: One line above the table.
        columns: The heading of every column, the first one included.
        rows: The cells of every row, as many as there are columns.
        words: Numbers of the columns that hold words and stand to the left; others to the right.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    words: frozenset[int] = frozenset({0})

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table {self.caption!r}: row {number} has {len(row)} cells, the heading has {len(self.columns)}"
                )


class Picture(Protocol):
    """Something that can be drawn in both forms, when it is asked for."""

    def svg(self) -> str:
        """An `<svg>` element whose colours are the page's CSS variables and whose ids are its own."""
        ...

    def png(self) -> bytes:
        """The same picture on white paper."""
        ...


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A picture in a page.

    Attributes:
        name: Id, and file stem in ``figures/``.
        caption: One line below the picture.
        alt: What the picture shows, in words, for readers who do not see it.
        picture: Draws it.
    """

    name: str
    caption: str
    alt: str
    picture: Picture


Block = str | Table | Figure


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading and what stands below it.

    Attributes:
        title: The heading.
        blocks: Paragraphs, tables and figures in reading order. A paragraph may use `` `code` ``,
            ``**bold**`` and ``*italic*``.
        level: 2 for a chapter, 3 for a part of one.
    """

    title: str
    blocks: tuple[Block, ...]
    level: int = 2


@dataclass(frozen=True, kw_only=True)
class Page:
    """A whole report.

    Attributes:
        title: Heading and window title.
        lead: Paragraphs before the first section.
        sections: The sections in order.
    """

    title: str
    lead: tuple[str, ...]
    sections: tuple[Section, ...]

    def figures(self) -> list[Figure]:
        """Every figure in reading order."""
        return [b for section in self.sections for b in section.blocks if isinstance(b, Figure)]


def without_figures(page: Page) -> Page:
    """The page's text and tables alone."""
    sections = []
    for section in page.sections:
        blocks = tuple(block for block in section.blocks if not isinstance(block, Figure))
        sections.append(replace(section, blocks=blocks))
    return replace(page, sections=tuple(sections))


def plain(text: str) -> str:
    """Text that means itself in a paragraph, whatever characters a file name brings along."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", text)


def code(text: str) -> str:
    """Text set as code in a paragraph."""
    return plain(text) if "`" in text or not text else f"`{text}`"


def to_markdown(page: Page) -> str:
    """The page in GitHub's Markdown; pictures are ``figures/NAME.png``."""
    parts = [f"# {plain(page.title)}", *page.lead]
    for section in page.sections:
        parts.append(f"{'#' * section.level} {plain(section.title)}")
        parts.extend(_markdown_block(block) for block in section.blocks)
    return "\n\n".join(parts) + "\n"


def to_html(page: Page, *, progress: Callable[[], None] = lambda: None) -> str:
    """The page as one HTML document: styles and pictures inside, nothing fetched, no script.

    Args:
        page: What to write.
        progress: Called after each figure.
    """
    anchors = _anchors(section.title for section in page.sections)
    body = [f"<h1>{html.escape(page.title)}</h1>"]
    body += [f"<p>{_html_prose(paragraph)}</p>" for paragraph in page.lead]
    body.append(_contents(page, anchors))
    body.append("<main>")
    for section, anchor in zip(page.sections, anchors, strict=True):
        tag = f"h{section.level}"
        body.append(f'<section class="level{section.level}" aria-labelledby="{anchor}">')
        body.append(f'<{tag} id="{anchor}">{html.escape(section.title)}</{tag}>')
        for block in section.blocks:
            body.append(_html_block(block))
            if isinstance(block, Figure):
                progress()
        body.append("</section>")
    body.append("</main>")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{CONTENT_POLICY}">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{html.escape(page.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def write_page(
    page: Page, directory: Path, *, stem: str = "report", progress: Callable[[], None] = lambda: None
) -> tuple[Path, Path]:
    """Write both forms; a reader of the directory never sees half a file.

    Args:
        page: What to write.
        directory: Made where it does not exist.
        stem: File name without its ending.
        progress: Called after each of the page's figures is drawn, once for each form.

    Returns:
        The paths of the Markdown file and of the HTML file.

    Raises:
        OSError: A file cannot be written.
    """
    for figure in page.figures():
        path = directory / FIGURE_DIRECTORY / f"{figure.name}.png"
        write_atomically(path, figure.picture.png())
        progress()
    markdown, document = directory / f"{stem}.md", directory / f"{stem}.html"
    write_atomically(markdown, to_markdown(page).encode())
    write_atomically(document, to_html(page, progress=progress).encode())
    return markdown, document


def _markdown_block(block: Block) -> str:
    if isinstance(block, Table):
        return _markdown_table(block)
    if isinstance(block, Figure):
        path = f"{FIGURE_DIRECTORY}/{block.name}.png"
        return f"![{plain(block.alt)}]({path})\n\n{block.caption}"
    return block


def _markdown_table(table: Table) -> str:
    lines = [f"**{table.caption}**", ""]
    lines.append("| " + " | ".join(plain(column) for column in table.columns) + " |")
    rules = [":---" if i in table.words else "---:" for i in range(len(table.columns))]
    lines.append("| " + " | ".join(rules) + " |")
    for row in table.rows:
        lines.append("| " + " | ".join(_markdown_cell(cell) for cell in row) + " |")
    return "\n".join(lines)


def _markdown_cell(cell: Cell) -> str:
    if not cell.text:
        return ""
    mark = "**" * cell.bold + "*" * cell.italic
    return f"{mark}{plain(cell.text)}{mark[::-1]}"


def _html_block(block: Block) -> str:
    if isinstance(block, Table):
        return _html_table(block)
    if isinstance(block, Figure):
        return (
            f'<figure id="{block.name}">{_named_svg(block)}'
            f"<figcaption>{_html_prose(block.caption)}</figcaption></figure>"
        )
    return f"<p>{_html_prose(block)}</p>"


def _html_table(table: Table) -> str:
    sides = [' class="words"' if i in table.words else "" for i in range(len(table.columns))]
    head = "".join(
        f'<th scope="col"{side}>{html.escape(column)}</th>' for side, column in zip(sides, table.columns, strict=True)
    )
    rows = []
    for first, *rest in table.rows:
        cells = [f'<th scope="row"{sides[0]}>{_html_cell(first)}</th>']
        cells += [f"<td{side}>{_html_cell(cell)}</td>" for side, cell in zip(sides[1:], rest, strict=True)]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    label = html.escape(table.caption, quote=True)
    # A wide table scrolls inside its own box; the box takes the keyboard so that it can.
    return (
        f'<div class="table" role="region" tabindex="0" aria-label="{label}"><table>'
        f"<caption>{_html_prose(table.caption)}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _html_cell(cell: Cell) -> str:
    text = html.escape(cell.text)
    if cell.italic:
        text = f"<em>{text}</em>"
    if cell.bold:
        text = f"<strong>{text}</strong>"
    if cell.spoken:
        text += f'<span class="spoken">, {html.escape(cell.spoken)}</span>'
    return text


def _html_prose(text: str) -> str:
    """Escape a paragraph and set its code, bold and italic; a backslash keeps a character."""

    def token(match: re.Match[str]) -> str:
        kept, code, bold, italic = match.groups()
        if code:
            return f"<code>{html.escape(code, quote=False)}</code>"
        if bold:
            return f"<strong>{_html_prose(bold)}</strong>"
        if italic:
            return f"<em>{_html_prose(italic)}</em>"
        return html.escape(kept or match[0], quote=False)

    return _PROSE.sub(token, text)


def _named_svg(figure: Figure) -> str:
    """The SVG with a role and a description that screen readers announce."""
    label = html.escape(figure.alt, quote=True)
    return figure.picture.svg().replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def _contents(page: Page, anchors: list[str]) -> str:
    """Links to the chapters, each with links to its parts in one line below it."""
    items: list[str] = []
    for section, anchor in zip(page.sections, anchors, strict=True):
        link = f'<a href="#{anchor}">{html.escape(section.title)}</a>'
        if section.level > 2 and items:
            items[-1] += f' <span class="part">{link}</span>'
        else:
            items.append(link)
    chapters = "".join(f"<li>{item}</li>" for item in items)
    return f'<nav aria-label="Contents"><ul>{chapters}</ul></nav>'


def _anchors(titles: Iterable[str]) -> list[str]:
    """One id per heading; equal headings get a number."""
    anchors: list[str] = []
    for title in titles:
        base = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"
        anchor, number = base, 2
        while anchor in anchors:
            anchor, number = f"{base}-{number}", number + 1
        anchors.append(anchor)
    return anchors
