"""What was compiled, kept as a line of JSON for each program, so that a run which ended goes on."""

import json
from pathlib import Path
from typing import Any

from aa_flax.files import write_atomically
from benchmarks.tpu.programs import Program


class Results:
    """Lines of a file by their program; a program that is compiled again replaces its line.

    A line is `program`, `versions`, `revision` and what `Compiler.compile` gives: `error` alone, or

    - `digest`: of the traced program, by which one that has changed is known;
    - `seconds`, `processor_seconds`: what compiling took, on a clock and of all cores;
    - `memory`: bytes a chip; `fixed` are those of the arguments that do not grow with the batch;
    - `flops`, `bytes`: a chip's, a product with a blur's matrix counted as the product that it is;
    - `gigaoperations`: of an image's forward pass, a blur counted by its taps;
    - `kernels`, `cycles`, `without_estimate`, `slowest`, `collectives`: see `benchmarks.tpu.compiled`.

    Args:
        path: the file; None keeps nothing.

    Attributes:
        lines: by program.

    Raises:
        ValueError: the file is not one of this command.
    """

    def __init__(self, path: Path | None):
        self._path = path
        self.lines: dict[Program, dict[str, Any]] = {}
        if path is None or not path.exists():
            return
        for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                line = json.loads(text)
                self.lines[Program(**line["program"])] = line
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{path}: line {number} is no result of this benchmark: {error}") from error

    def add(self, program: Program, line: dict[str, Any]) -> None:
        """Keeps a program's line."""
        self.lines[program] = line
        if self._path is not None:
            lines = (json.dumps(one) + "\n" for one in self.lines.values())
            write_atomically(self._path, "".join(lines).encode())
