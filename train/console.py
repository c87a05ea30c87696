"""Where commands write: words from outside are shown as they are.

The names of photos, classes and folders may hold what rich reads as markup (`[/red]`) or as a picture (`:cat:`), and
what a terminal reads as a command. Whatever goes through a console of this module is shown, and never obeyed.
"""

import logging
import os
import sys
from contextlib import suppress
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from aa_flax.printable import printable


class _Literal(Console):
    def render_str(self, text: str, **style: Any) -> Text:
        return super().render_str(printable(text), **style)


class _Enduring:
    """A stream whose reader may go away (`| head -1`, a closed terminal): what is then written is lost, nothing else.

    Args:
        stream: a text stream; everything but writing is its own.
    """

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._give_up()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._give_up()

    def _give_up(self) -> None:
        # Also for whoever else writes to the stream, and for what lies in its buffer when the interpreter ends.
        with suppress(OSError), open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Words(TextColumn):
    """A column of a progress bar; arguments as rich's, but the words are no markup."""

    def __init__(self, text_format: str):
        super().__init__(text_format, markup=False)

    def render(self, task: Task) -> Text:
        words = super().render(task)
        words.plain = printable(words.plain)
        return words


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def open_console(*, stderr: bool = False) -> Console:
    """A console on the standard output, or on the standard error, which holds no result: a command outlives it."""
    file: Any = _Enduring(sys.stderr) if stderr else None
    return _Literal(file=file, stderr=stderr, markup=False, emoji=False, highlight=False)


def progress(console: Console, unit: str = "") -> Progress:
    """Progress bars of things that are counted.

    Args:
        console: where to draw them.
        unit: what is counted.
    """
    words = [Words(unit)] if unit else []
    return Progress(
        Words("{task.description}"), BarColumn(), MofNCompleteColumn(), *words, TimeRemainingColumn(), console=console
    )


def log_to(console: Console) -> None:
    """Sends warnings to a console, in place of whatever a library has set up by being imported."""
    handler = RichHandler(console=console, show_time=False, show_path=False)
    handler.setFormatter(_Formatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
