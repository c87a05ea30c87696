"""What a person sees of a run: one live line, a line for each epoch, a table at the end."""

import math
import time
from collections.abc import Sequence
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TimeRemainingColumn
from rich.table import Table

from train.console import Words

PLAIN_SECONDS = 30.0
# Terminals narrower than this have no bar.
BAR_COLUMNS = 104


class Display:
    """The live line of a run on stderr; off a terminal, a plain line every half a minute instead.

    In a narrow terminal the bar is left out, so that all the figures of a long run fit into 80 columns.

    Args:
        console: where to write; None writes nothing (all processes but one).
        epochs: length of the run.
        steps_per_epoch: updates in an epoch.

    Attributes:
        signs: how often there was something to show so far.
    """

    def __init__(self, console: Console | None, *, epochs: int, steps_per_epoch: int):
        self._console = console
        self._epochs, self._steps = epochs, steps_per_epoch
        self._printed = time.monotonic()
        self.signs = 0
        roomy = console is not None and console.width >= BAR_COLUMNS
        self._progress = Progress(
            Words("{task.description}"),
            *([BarColumn(bar_width=20)] if roomy else []),
            Words("step {task.completed:.0f}/{task.total:.0f}"),
            Words("{task.fields[facts]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=console is None or not console.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task("starting", total=epochs * steps_per_epoch, facts="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def compiling(self, step: int) -> None:
        """Says why nothing moves at first; also where the bar starts in a run that continues."""
        self._progress.update(self._task, description="compiling", completed=step)

    def step(self, step: int, *, loss: float, images_per_second: float, wait: float) -> None:
        """Shows the state after a step; `wait` is the share of time spent waiting for data."""
        self.signs += 1
        epoch = min(step // self._steps + 1, self._epochs)
        facts = f"loss {loss:.4f} · {images_per_second:,.0f} images/s · wait {wait:.0%}"
        description = f"epoch {epoch}/{self._epochs}"
        self._progress.update(self._task, completed=step, description=description, facts=facts)
        if self._progress.disable and time.monotonic() - self._printed > PLAIN_SECONDS:
            self.say(f"{description} · step {step}/{self._epochs * self._steps} · {facts}")

    def validating(self, done: float) -> None:
        """Shows how far (0 to 1) validation has come."""
        self.signs += 1
        self._progress.update(self._task, description=f"validating {done:.0%}")

    def say(self, text: str) -> None:
        """Prints a line above the live one."""
        self._printed = time.monotonic()
        if self._console is not None:
            self._console.print(text, soft_wrap=True)


def summary(rows: Sequence[tuple[str, Any]], title: str) -> Table:
    """A two-column table of facts."""
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, str(value))
    return table


def duration(seconds: float) -> str:
    """Seconds in words: `45 s`, `3 min 05 s`, `2 h 07 min`."""
    whole = math.floor(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
