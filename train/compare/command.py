"""`python -m train compare`: many networks on the same photos, as a table, pictures and tests."""

import dataclasses
import json
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import tyro
from rich.console import Console
from rich.table import Table

from aa_flax.files import write_atomically
from aa_flax.printable import printable
from train.compare.answers import Entrant, enter, results
from train.compare.comparison import Comparison, Row
from train.compare.entrants import open_all
from train.compare.measuring import measure_all
from train.compare.record import as_json
from train.compare.report import build
from train.compare.settings import Settings
from train.compare.tables import MARK
from train.compare.timing import time_all
from train.console import open_console, progress
from train.errors import CommandError
from train.page.forms import write_page
from train.page.numbers import change, spread

RESULTS, TIMES, FIGURES = "results", "times.json", "compare.json"
STOPPED = 130


@dataclass(frozen=True, kw_only=True)
class Config:
    """Measures two or more networks on the same photos and writes a report: report.html, report.md, compare.json.

    A network is one word: weights as evaluate takes them (a directory, resnet50_lpf4, hf://owner/name); a PyTorch file
    with +model=SPEC; FILE.onnx; timm:NAME; torchvision:NAME; fn:MODULE:FUNCTION; exported:DIRECTORY. Behind it may be
    +name=..., what to call it, and for networks of other make +weights=FILE, +layout=, +size=, +resize=,
    +interpolation=, +mean=R,G,B, +std=R,G,B and +classes=.

    Each photo is decoded once and shown to all. What was measured is kept below --output: the same command goes on
    where it was stopped, and with another network measures only that.
    """

    networks: tyro.conf.Positional[tuple[str, ...]]
    """The networks; differences are shown from the first."""
    data: Path
    """Directory of class folders, for instance /data/imagenet/val."""
    output: Path
    """Directory of the report."""
    protocols: str = "accuracy,crop"
    """What to measure, separated by commas; docs/measuring.md explains each. The first consistency is drawn."""
    batch_size: int = 32
    """Photos in a batch; changes speed and memory, never the percentages."""
    seed: int = 0
    """Of the random shifts."""
    max_unreadable: float = 0.1
    """Stop once more than this share of the photos has turned out to be unreadable."""
    timing_batch: int = 16
    """Images in a timed forward pass."""
    timing_repeats: int = 10
    """Timed passes of each network; the median counts."""

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("timing_batch", 1), ("timing_repeats", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise CommandError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least {least}")
        if not 0 <= self.max_unreadable <= 1:
            raise CommandError(f"--max-unreadable is {self.max_unreadable}; it must be from 0 to 1")

    @property
    def settings(self) -> Settings:
        """The part that decides how networks are measured."""
        names = [name.strip() for name in self.protocols.split(",") if name.strip()]
        shared = {field.name: getattr(self, field.name) for field in dataclasses.fields(Settings)}
        return Settings(**{**shared, "protocols": tuple(dict.fromkeys(("accuracy", *names)))})


def run(config: Config) -> int:
    """Measures, prints a table and writes the report.

    Returns:
        0; 130 when stopped by Ctrl-C.

    Raises:
        CommandError: an option, a network or photos that cannot be used.
    """
    if jax.process_count() > 1:
        raise CommandError("compare runs as one process")
    networks = open_all(config.networks)
    entrants = [enter(network, config.data, config.settings, config.output / RESULTS) for network in networks]
    try:
        config.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"--output {config.output} cannot be made: {error.strerror}") from error
    try:
        found = _measured(config, entrants)
    except KeyboardInterrupt:
        kept = config.output / RESULTS
        print(printable(f"stopped; what was measured is kept in {kept}, the same command goes on"), file=sys.stderr)
        return STOPPED
    console = open_console()
    _print(found, console)
    _write(config, found)
    return 0


def _measured(config: Config, entrants: list[Entrant]) -> Comparison:
    with progress(open_console(stderr=True)) as bars, jax.default_matmul_precision("highest"):
        photos = bars.add_task("photos", total=len(entrants[0].photos))
        unreadable = measure_all(entrants, config.settings, progress=lambda count: bars.advance(photos, count))
        rounds = bars.add_task("timing", total=config.timing_repeats)
        times = time_all(
            entrants, config.settings, config.output / RESULTS / TIMES, progress=lambda: bars.advance(rounds)
        )
        bars.update(rounds, completed=config.timing_repeats)
    options = {name: str(value) if isinstance(value, Path) else value for name, value in vars(config).items()}
    return Comparison(
        rows=[
            Row(entrant.network, results(entrant), milliseconds)
            for entrant, milliseconds in zip(entrants, times, strict=True)
        ],
        data=str(config.data),
        options=options,
        device=_device(),
        unreadable=unreadable,
    )


def _device() -> str:
    device = jax.devices()[0]
    if device.platform == "cpu":
        return f"{os.cpu_count()} CPU cores ({platform.machine()})"
    return f"{len(jax.devices())} x {device.device_kind}"


def _print(found: Comparison, console: Console) -> None:
    table = Table(title=f"{len(found.rows)} networks on {found.images:,} photos", title_justify="left")
    table.add_column("network", overflow="fold")
    shown = ["accuracy", *([found.consistency] if found.consistency else [])]
    for name in shown:
        title = found.title(name).lower()
        table.add_column(f"{title}\nminus the first", justify="right", no_wrap=True)
    for number, (row, ahead) in enumerate(zip(found.rows, found.ahead, strict=True)):
        cells = [f"{row.name}{' ^' if ahead else ''}"]
        for name in shown:
            text = spread(row.results[name])
            if number:
                pair = found.minus(name, number, 0)
                beyond = MARK if found.beyond(name, number, 0) else " "
                text += f" \n{change(pair)}{beyond}"
            cells.append(text)
        table.add_row(*cells)
    console.print(table)
    console.print(f"{MARK} more than chance; ^ no other network is better in both", soft_wrap=True)


def _write(config: Config, found: Comparison) -> None:
    page = build(found)
    with progress(open_console(stderr=True)) as bars:
        task = bars.add_task("drawing", total=2 * len(page.figures()))
        try:
            paths = write_page(page, config.output, progress=lambda: bars.advance(task))
            write_atomically(config.output / FIGURES, json.dumps(as_json(found), indent=1).encode())
        except OSError as error:
            raise CommandError(f"--output {config.output} cannot be written: {error.strerror}") from error
    print(printable(f"wrote {paths[1]}, {paths[0]} and {config.output / FIGURES}"))
