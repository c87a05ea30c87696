"""A written report as data: prose, tables and figures. `train/page/forms.py` writes its two forms."""

import re
from dataclasses import dataclass
from typing import Protocol


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
        name: Id, and file stem in `figures/`.
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
            `**bold**` and `*italic*`.
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


def plain(text: str) -> str:
    """Text that means itself in a paragraph, whatever characters a file name brings along."""
    return re.sub(r"([\\`*_\[\]<>|&~])", r"\\\1", text)


def code(text: str) -> str:
    """Text set as code in a paragraph."""
    return plain(text) if "`" in text or not text else f"`{text}`"
