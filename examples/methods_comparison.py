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
import itertools
import json
import math
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean

import jax
import tyro

from aa_flax.local_paths import check_local_paths
from examples.cifar10_study import append_line
from examples.methods_runs import METHODS, MODELS, SMALL, Cell, Line, Runner, Terms, config_of
from train.console import open_console, progress
from train.data import DataConfig
from train.errors import CommandError
from train.fit.config import validate

Kind = tuple[str, str]
"""Method and model: what runs have in common that share their programs."""

# Programs that an accelerator's host compiles at once: more would keep a short budget from its first run.
AT_ONCE = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Train networks with each method and measure them alike."""

    data: Path
    """The tar of JPEG files of CIFAR-10, or its extracted folder."""

    output: Path
    """One JSON line a run is added here; runs found there are not repeated."""

    methods: tuple[str, ...] = tuple(METHODS)
    """Which methods."""

    models: tuple[str, ...] = MODELS
    """Networks: ResNets and MobileNetV2, whose stems can do without a stride."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Each decides initial weights, order, augmentation and dropout of a run."""

    small: bool = False
    """For two CPU cores: a fortieth of the images, four epochs."""

    budget: float | None = None
    """Stop after so many seconds; the same command goes on."""

    dry_run: bool = False
    """Only list the runs that are missing, with the seconds they should take."""


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


def read(path: Path, terms: Terms) -> dict[Cell, Line]:
    """The runs that a file holds.

    Raises:
        CommandError: a line that is no run, or one made on other terms.
    """
    runs, wanted = {}, dataclasses.asdict(terms)
    for number, text in enumerate(path.read_text().splitlines() if path.exists() else [], 1):
        try:
            line = json.loads(text)
            cell = Cell(**{field.name: line[field.name] for field in dataclasses.fields(Cell)})
            found = {name: line[name] for name in wanted}
        except (ValueError, KeyError, TypeError) as error:
            raise CommandError(f"{path}, line {number}: not a run of examples.methods_comparison") from error
        for name, value in wanted.items():
            if found[name] != value:
                raise CommandError(
                    f"{path} holds runs with {name} {found[name]}, these would have {value}: give another --output"
                )
        runs[cell] = line
    return runs


def expected_seconds(cell: Cell, done: Mapping[Cell, Line]) -> float | None:
    """How long a run should take: as its like did, or as all have; None where nothing is known."""
    seconds = {each: line["train_seconds"] + line["measure_seconds"] for each, line in done.items()}
    like = [s for each, s in seconds.items() if (each.method, each.model) == (cell.method, cell.model)]
    # The first of its kind may have had to compile.
    return min(like) if like else mean(seconds.values()) if seconds else None


def compile_next(runner: Runner, cells: list[Cell], compiled: set[Kind], at_once: int) -> None:
    """Compiles what the next few kinds of runs need, in threads; the first of all alone, which sends the images."""
    kinds: dict[Kind, Cell] = {}
    for cell in cells:
        kinds.setdefault((cell.method, cell.model), cell)
    new = [kind for kind in kinds if kind not in compiled][: at_once if compiled else 1]
    with ThreadPoolExecutor(at_once) as pool:
        # Not while a run is on its way: its updates would wait for the threads, and their time is measured.
        for _ in pool.map(runner.compile, [kinds[kind] for kind in new]):
            pass
    compiled.update(new)


def make_all(
    runner: Runner,
    cells: list[Cell],
    comparison: Comparison,
    done: dict[Cell, Line],
    ends: float,
    at_once: int = 0,
) -> None:
    """Makes the runs and writes their lines.

    Args:
        runner: makes them.
        cells: which, in order.
        comparison: where the lines go.
        done: the runs that are there; takes the new ones.
        ends: the time by `time.monotonic` at which the budget is spent.
        at_once: programs compiled at once before the first run that needs one; 0 where runs compile their own.

    Raises:
        TimeoutError: the budget is spent, or the next run would not fit into it.
    """

    def check(made: int = 0) -> None:
        if time.monotonic() > ends:
            raise TimeoutError

    with progress(open_console(stderr=True), "runs") as bar:
        task, compiled = bar.add_task("", total=len(cells)), set[Kind]()
        for number, cell in enumerate(cells):
            check()
            if at_once and (cell.method, cell.model) not in compiled:
                bar.update(task, description=f"compiling {cell.method} {cell.model}, ...")
                compile_next(runner, cells[number:], compiled, at_once)
            bar.update(task, description=str(cell))
            if time.monotonic() + (expected_seconds(cell, done) or 0) > ends:
                raise TimeoutError
            line = runner.make(cell, check)
            append_line(comparison.output, line)
            done[cell] = line
            bar.advance(task)


def show(cells: list[Cell], done: Mapping[Cell, Line]) -> None:
    """Lists the runs that are missing, and how long they should take."""
    total = 0.0
    for cell in cells:
        seconds = expected_seconds(cell, done)
        total += seconds or 0
        print(f"{cell!s:32} {'?' if seconds is None else f'{seconds:.0f} s':>7}")
    print(f"{len(cells)} runs are missing, {len(done)} are there; {total:.0f} s are expected")


def main(comparison: Comparison) -> None:
    """Makes the runs that are missing."""
    check_local_paths(comparison)
    ends = time.monotonic() + (math.inf if comparison.budget is None else comparison.budget)
    terms = SMALL if comparison.small else Terms()
    done = read(comparison.output, terms)
    missing = [cell for cell in cells_of(comparison) if cell not in done]
    for cell in missing:
        validate(config_of(cell, terms, DataConfig(name="cifar10", dir=comparison.data)))
    if comparison.dry_run or not missing:
        show(missing, done)
        return
    runner = Runner(terms, DataConfig(name="cifar10", dir=comparison.data, augment="no_shift"))
    comparison.output.parent.mkdir(parents=True, exist_ok=True)
    try:
        make_all(runner, missing, comparison, done, ends, at_once=0 if jax.default_backend() == "cpu" else AT_ONCE)
    except TimeoutError:
        left = [cell for cell in missing if cell not in done]
        print(f"the budget of {comparison.budget:.0f} s is spent; the same command goes on with:", file=sys.stderr)
        show(left, done)


if __name__ == "__main__":
    try:
        main(tyro.cli(Comparison, description=__doc__))
    except (CommandError, ValueError, OSError) as error:
        print(f"methods_comparison: {error}", file=sys.stderr)
        sys.exit(2)
