"""Every way to be shift-stable, on equal terms: one recipe, one set of measures, a line of JSON for each run.

    python -m examples.methods_comparison --data cifar10-images.tar.xz --output docs/results/methods.jsonl
    python -m examples.methods_comparison --data cifar10-images.tar.xz --output docs/results/methods-small.jsonl --small

Each method subsamples in the same networks, on CIFAR-10 as it is, 32x32, with a stem without stride, so that every
stride there is belongs to the method. All maps go on at their other side (circular padding), which is what methods
that promise an exact answer ask for, and training flips but never shifts: what stability there is, the network has.
Runs that the output already holds are not repeated, so the same command goes on where it was stopped.
`python -m examples.methods_tables` makes tables and a picture of the lines.
"""

import dataclasses
import functools
import itertools
import sys
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import tyro

from aa_flax.local_paths import check_local_paths
from examples.cells import Deadline, Ledger, Resumable
from examples.methods_runs import METHODS, MODELS, SMALL, Cell, Runner, Terms, config_of
from train.errors import CommandError
from train.fit.config import validate

# Programs that an accelerator's host compiles at once: more would keep a short budget from its first run.
AT_ONCE = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison(Resumable):
    """Train networks with each method and measure them alike."""

    data: Path
    """The tar of JPEG files of CIFAR-10, or its extracted folder."""

    methods: tuple[str, ...] = tuple(METHODS)
    """Which methods."""

    models: tuple[str, ...] = MODELS
    """Networks: ResNets and MobileNetV2, whose stems can do without a stride."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Each decides initial weights, order, augmentation and dropout of a run."""

    small: bool = False
    """For two CPU cores: a fortieth of the images at half their side, five epochs."""


def cells_of(comparison: Comparison) -> list[Cell]:
    """The runs in the order they are made: all methods before the next seed, so that half a table compares too.

    Raises:
        CommandError: a method that there is not.
    """
    for method in comparison.methods:
        if method not in METHODS:
            raise CommandError(f"--methods {method}: there are {', '.join(METHODS)}")
    every = itertools.product(comparison.seeds, comparison.models, comparison.methods)
    cells = [Cell(method=method, model=model, seed=seed) for seed, model, method in every]
    return [cell for cell in cells if cell.model in (METHODS[cell.method].models or [cell.model])]


def ledger_of(comparison: Comparison) -> Ledger[Cell]:
    """What is missing, and what is there."""
    terms = SMALL if comparison.small else Terms()
    return Ledger(Cell, comparison.output, cells_of(comparison), terms=dataclasses.asdict(terms))


def compile_next(runner: Runner, cells: Sequence[Cell], compiled: set[Hashable], at_once: int) -> None:
    """Compiles what the next few kinds of runs need, in threads; the first of all alone, which sends the images."""
    kinds: dict[Hashable, Cell] = {}
    for cell in cells:
        kinds.setdefault(cell.kind, cell)
    new = [kind for kind in kinds if kind not in compiled][: at_once if compiled else 1]
    with ThreadPoolExecutor(at_once) as pool:
        # Not while a run is on its way: its updates would wait for the threads, and their time is measured.
        for _ in pool.map(runner.compile, [kinds[kind] for kind in new]):
            pass
    compiled.update(new)


def main(comparison: Comparison) -> None:
    """Makes the runs that are missing."""
    check_local_paths(comparison)
    deadline, terms = Deadline(comparison.budget), SMALL if comparison.small else Terms()
    ledger, data = ledger_of(comparison), terms.cifar10(comparison.data)
    for cell in ledger.missing:
        validate(config_of(cell, terms, data))
    if comparison.dry_run or not ledger.missing:
        ledger.show()
        return
    runner = Runner(terms, data)
    on_cpu = jax.default_backend() == "cpu"
    compile_ahead = None if on_cpu else functools.partial(compile_next, runner, at_once=AT_ONCE)
    ledger.make_all(lambda cell: runner.make(cell, deadline.check), deadline, compile_ahead)


if __name__ == "__main__":
    try:
        main(tyro.cli(Comparison, description=__doc__))
    except (CommandError, ValueError, OSError) as error:
        print(f"methods_comparison: {error}", file=sys.stderr)
        sys.exit(2)
