"""The two forms of a `Page`: Markdown, and one HTML file that needs nothing else.

`to_markdown` names its pictures by relative path; `to_html` carries everything inside itself: no
script, no font, no request. Both forms come from the same cells, so they cannot disagree.
"""

import html
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from markdown_it import MarkdownIt

from aa_flax.files import write_atomically
from train.page.content import Block, Cell, Figure, Page, Table, plain
from train.page.style import CONTENT_POLICY, STYLE

FIGURE_DIRECTORY = "figures"

# What a paragraph may hold: a kept character, code, bold and italic; all else stands for itself.
_PROSE = MarkdownIt("zero").enable(["escape", "backticks", "emphasis"])


def to_markdown(page: Page) -> str:
    """The page in GitHub's Markdown; pictures are `figures/NAME.png`."""
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
    body += [f"<p>{_PROSE.renderInline(paragraph)}</p>" for paragraph in page.lead]
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
            f'<figure id="{block.name}" tabindex="0">{_named_svg(block)}'
            f"<figcaption>{_PROSE.renderInline(block.caption)}</figcaption></figure>"
        )
    return f"<p>{_PROSE.renderInline(block)}</p>"


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
        f"<caption>{_PROSE.renderInline(table.caption)}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _html_cell(cell: Cell) -> str:
    # A long name may be broken behind a point, and stays whole where it is copied.
    text = re.sub(r"\.(?=[a-z])", ".<wbr>", html.escape(cell.text))
    if cell.italic:
        text = f"<em>{text}</em>"
    if cell.bold:
        text = f"<strong>{text}</strong>"
    if cell.spoken:
        text += f'<span class="spoken">, {html.escape(cell.spoken)}</span>'
    return text


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
