"""How far a command is, on stderr: a bar where there is a terminal and rich, else lines."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from aa_flax.files import Progress
from aa_flax.printable import printable

PLAIN_SECONDS = 2.0


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str], Progress]]:
    """A function that begins a step by its name and returns what reports the bytes that are done."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars
    except ImportError:
        yield plain_step
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield plain_step
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[amount]}"),
        TimeElapsedColumn(),
    )
    with Bars(*columns, console=console, transient=True) as bars:

        def step(name: str) -> Progress:
            for task in bars.tasks:
                bars.remove_task(task.id)
            task = bars.add_task(printable(name), total=None, amount="")
            return lambda done, total: bars.update(task, completed=done, total=total, amount=amount(done, total))

        yield step


def amount(done: int, total: int | None) -> str:
    """Bytes that are done, for people."""
    return f"{done / 2**20:.1f} MiB" + (f" of {total / 2**20:.1f}" if total else "")


def plain_step(name: str) -> Progress:
    """Progress as lines: the step's name at once, and how far it is every few seconds."""
    print(printable(f"{name} …"), file=sys.stderr)
    printed = time.monotonic()

    def advance(done: int, total: int | None) -> None:
        nonlocal printed
        if time.monotonic() - printed > PLAIN_SECONDS:
            print(printable(f"{name}: {amount(done, total)}"), file=sys.stderr)
            printed = time.monotonic()

    return advance
