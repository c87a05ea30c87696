"""Work in cells: each that is done is a line of JSON, a budget says how many are begun, and the same command goes on.

A cell is a frozen dataclass. Its fields are part of its line, by which it is known again.
"""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import mean
from typing import Any, Generic, Protocol, TypeVar

from train.console import open_console, progress
from train.errors import CommandError

Line = dict[str, Any]


class Cell(Protocol):
    """A piece of work; one that is made of epochs has them as `epochs`."""

    @property
    def kind(self) -> Hashable:
        """What cells have in common that share their programs."""
        ...


C = TypeVar("C", bound=Cell)

# No program of the study took longer on a device that had nothing else to do.
LONGEST_COMPILE = 160.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resumable:
    """Options of a command that goes on where it was stopped."""

    output: Path
    """One JSON line a run is added here; runs found there are not repeated."""

    budget: float | None = None
    """Stop after so many seconds; the same command goes on."""

    dry_run: bool = False
    """Only list the runs that are missing, with the seconds they should take."""


class BudgetSpent(Exception):
    """There is no time left."""


class Deadline:
    """The end of a budget.

    Args:
        seconds: from now; None for no end.
        clock: tells the time in seconds.
    """

    def __init__(self, seconds: float | None, clock: Callable[[], float] = time.monotonic):
        self._clock, self._ends = clock, math.inf if seconds is None else clock() + seconds

    @property
    def left(self) -> float:
        """Seconds until then."""
        return self._ends - self._clock()

    def check(self, made: int = 0) -> None:
        """Gives up once the budget is spent; as the `progress` of a run, whatever it has made.

        Raises:
            BudgetSpent: it is.
        """
        if self.left < 0:
            raise BudgetSpent


def _whole(content: bytes) -> bytes:
    """The lines of a file without what a process left that was killed while it wrote the last."""
    lines, end, last = content.rpartition(b"\n")
    try:
        json.loads(last)  # no part of an object is one
    except ValueError:
        return lines + end
    return content + b"\n"


def append_line(path: Path, line: Line) -> None:
    """Adds a line of JSON in one write, in place of a part that a killed process may have left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        before = path.read_bytes()
        whole = _whole(before)
        file.truncate(min(len(whole), len(before)))
        file.write(whole[len(before) :] + json.dumps(line).encode() + b"\n")


def read(path: Path, cell: type[C], terms: Mapping[str, Any] | None = None) -> dict[C, Line]:
    """The cells that a file holds; none where there is no file.

    Args:
        path: lines of JSON.
        cell: what each is.
        terms: further fields that all lines have, with their values.

    Raises:
        CommandError: a line that is no such cell, or one made on other terms.
    """
    cells, terms = {}, terms or {}
    fields = dataclasses.fields(cell)  # type: ignore[arg-type]
    content = _whole(path.read_bytes()) if path.exists() else b""
    for number, text in enumerate(content.splitlines(), 1):
        try:
            line = json.loads(text)
            needed = [f.name for f in fields if f.name in line or f.default is dataclasses.MISSING]
            found = cell(**{name: line[name] for name in needed})
            other = {name: line[name] for name in terms if line[name] != terms[name]}
        except (ValueError, KeyError, TypeError) as error:
            raise CommandError(f"{path}, line {number}: not a run of {cell.__module__}") from error
        for name, value in other.items():
            raise CommandError(
                f"{path} holds runs with {name} {value}, these would have {terms[name]}: give another --output"
            )
        cells[found] = line
    return cells


class Ledger(Generic[C]):
    """What is to be made, and what is.

    Args:
        cell: what each line is.
        output: the lines of what is made.
        wanted: cells in the order in which they are made.
        terms: see `read`.
        like: other outputs, to guess from how long the first of a kind takes.
        guess: seconds of a cell of which nothing is known.

    Attributes:
        done: the cells that are made, with their lines.
        ready: the kinds whose programs this process has compiled.
    """

    def __init__(
        self,
        cell: type[C],
        output: Path,
        wanted: Iterable[C],
        *,
        terms: Mapping[str, Any] | None = None,
        like: Iterable[Path] = (),
        guess: float | None = None,
    ):
        self._output, self._wanted, self._guess = output, list(wanted), guess
        self._like = {each: line for path in like for each, line in read(path, cell).items()}
        self.done = read(output, cell, terms)
        self.ready: set[Hashable] = set()

    @property
    def missing(self) -> list[C]:
        """What is still to be made."""
        return [cell for cell in self._wanted if cell not in self.done]

    def expected(self, cell: C, ready: Collection[Hashable]) -> float | None:
        """Seconds that a cell should take: as its like did, or as all have; the guess, or None, before.

        Args:
            cell: which.
            ready: the kinds that need not be compiled.
        """
        for lines in (self.done, self._like):
            like = [(_seconds(line), _length(each)) for each, line in lines.items() if each.kind == cell.kind]
            if like:
                pace = min(seconds / length for seconds, length in like)
                compiling = max(seconds - pace * length for seconds, length in like)
                return pace * _length(cell) + (cell.kind not in ready) * min(compiling, LONGEST_COMPILE)
        known = self.done or self._like
        return mean(map(_seconds, known.values())) if known else self._guess

    def fitting(self, seconds: float) -> list[C]:
        """The missing cells, each of which should fit into so many seconds."""
        if seconds < 0:
            return []
        return [cell for cell in self.missing if (self.expected(cell, self.ready) or 0) <= seconds]

    def make_all(
        self,
        make: Callable[[C], Line],
        deadline: Deadline,
        compile_ahead: Callable[[Sequence[C], set[Hashable]], None] | None = None,
    ) -> None:
        """Makes what fits, in order, and writes the lines; says in the end what is missing.

        Args:
            make: makes a cell: its line. May raise `BudgetSpent`.
            deadline: when to stop.
            compile_ahead: called before the first of a kind with the cells from there on and the kinds that are
                compiled, to which it adds.
        """
        with progress(open_console(stderr=True), "runs") as bar:
            task = bar.add_task("", total=len(self.missing))
            with suppress(BudgetSpent):
                while fitting := self.fitting(deadline.left):
                    cell = fitting[0]
                    if compile_ahead and cell.kind not in self.ready:
                        bar.update(task, description=f"compiling for {cell}, ...")
                        compile_ahead(fitting, self.ready)
                        continue
                    bar.update(task, description=str(cell))
                    self.add(cell, make(cell))
                    bar.advance(task)
        if self.missing:
            print("the budget is spent; the same command goes on with:")
            self.show()

    def add(self, cell: C, line: Line) -> None:
        """Keeps what a cell gave."""
        append_line(self._output, line)
        self.done[cell] = line
        self.ready.add(cell.kind)

    def rows(self) -> list[tuple[C, float | None]]:
        """What is missing, with the seconds that it should take one after the other."""
        rows, ready = [], set(self.ready)
        for cell in self.missing:
            rows.append((cell, self.expected(cell, ready)))
            ready.add(cell.kind)
        return rows

    def show(self) -> None:
        """Lists what is missing."""
        rows = self.rows()
        for cell, seconds in rows:
            print(f"{cell!s:44} {'?' if seconds is None else f'{seconds:.0f} s':>7}")
        total = sum(seconds or 0 for _, seconds in rows)
        print(f"{len(rows)} runs are missing, {len(self.done)} are there; {total:.0f} s are expected")


def _seconds(line: Line) -> float:
    return line.get("train_seconds", 0.0) + line["measure_seconds"]


def _length(cell: Any) -> int:
    return getattr(cell, "epochs", 1)
