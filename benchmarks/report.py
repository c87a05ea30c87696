"""What a benchmark puts out: the machine it ran on, a Markdown table and JSON."""

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from aa_flax.files import write_atomically

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "torch", "torchvision", "antialiased-cnns")


def machine() -> dict[str, Any]:
    """Device, processor, how busy it is, and the versions of everything that was measured."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "device": jax.devices()[0].device_kind,
        "platform": jax.default_backend(),
        "cores": cores,
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "versions": versions,
    }


def machine_line(facts: dict[str, Any]) -> str:
    """The same as one line of Markdown."""
    versions = ", ".join(f"{name} {version or 'absent'}" for name, version in facts["versions"].items())
    return f"{facts['device']} ({facts['cores']} cores, load {facts['load']}), Python {facts['python']}, {versions}"


def table(rows: Sequence[dict[str, Any]], columns: Sequence[str] | None = None) -> str:
    """A Markdown table of the given columns of rows, by default all but nested ones; a missing value is a dash."""
    if columns is None:
        columns = list(
            dict.fromkeys(name for row in rows for name, value in row.items() if not isinstance(value, dict))
        )
    lines = [list(columns), ["---"] * len(columns)]
    lines += [[_cell(row.get(column)) for column in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return str(value)


@dataclasses.dataclass
class Report:
    """Collects the rows of a benchmark and writes them after each one, so that a long run loses nothing.

    Attributes:
        name: the benchmark.
        folder: where `NAME.json` and `NAME.md` go.
        command: what the user called, for the page.
        facts: the machine.
        tables: rows by the table's title.
        notes: sentences under the tables.
    """

    name: str
    folder: Path
    command: str = dataclasses.field(default_factory=lambda: "python -m benchmarks " + " ".join(sys.argv[1:]))
    facts: dict[str, Any] = dataclasses.field(default_factory=machine)
    tables: dict[str, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)

    def add(self, title: str, row: dict[str, Any]) -> None:
        """Adds a row to a table, shows it as it comes and saves everything so far."""
        self.tables.setdefault(title, []).append(row)
        shown = [f"{key} {_cell(value)}" for key, value in row.items() if not isinstance(value, dict)]
        print("  " + "  ".join(shown), file=sys.stderr, flush=True)
        self.write()

    def note(self, sentence: str) -> None:
        """Adds a sentence under the tables, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)
            self.write()

    def markdown(self) -> str:
        """The page."""
        parts = [f"# {self.name}", machine_line(self.facts), f"`{self.command}`"]
        parts += [part for title, rows in self.tables.items() for part in (f"## {title}", table(rows))]
        return "\n\n".join(parts + self.notes) + "\n"

    def write(self) -> None:
        """Saves both files; a reader never sees half of one."""
        data = json.dumps(dataclasses.asdict(self), default=str, indent=1)
        for suffix, text in ((".json", data), (".md", self.markdown())):
            write_atomically(self.folder / (self.name + suffix), text.encode())
