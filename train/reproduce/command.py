"""`python -m train reproduce`: the published tables, measured again.

Every catalogued checkpoint that is found, or can be downloaded, is measured on ImageNet's
validation photos; what is missing is listed. Each network's numbers are kept in `results/` as soon
as they are there, so a run that was stopped continues where it was.
"""

import dataclasses
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jax
from rich.console import Console
from rich.progress import Progress

from aa_flax.printable import printable
from train.console import open_console, progress
from train.errors import CommandError
from train.page.content import Page
from train.page.forms import write_page
from train.reproduce import report
from train.reproduce.measuring import (
    Numbers,
    Photos,
    Settings,
    comparable,
    identity,
    measure,
    open_validation,
    read_numbers,
    timed_anew,
    timing_conditions,
    write_numbers,
)
from train.reproduce.published_weights import (
    Checkpoint,
    UnreachableError,
    Weights,
    checkpoints,
    choose,
    download,
    find,
    where_expected,
)
from train.reproduce.standings import Conditions, Entry, Measured, published_entries

RESULTS = "results"
STOPPED = 130
MOST_LISTED = 10


@dataclass(frozen=True, kw_only=True)
class Config:
    """Measure the published networks again and write a report, report.md and report.html."""

    output: Path
    """Directory of the report; results of single networks are kept in it, and used again."""
    weights_root: Path | None = None
    """Directory of checkpoints: files by their published names, or converted directories by the
    name of the file or of the network (resnet50_lpf4)."""
    data: Path | None = None
    """ImageNet: a directory with val/CLASS/*.JPEG, or the directory of the class folders."""
    models: tuple[str, ...] = ()
    """Which networks, e.g. resnet50 mobilenet_v2_lpf3 'vgg*'; all by default."""
    published_only: bool = False
    """Draw the published numbers alone; needs neither weights nor data."""
    download: bool = True
    """Fetch checkpoints that are not found into --weights-root."""
    batch_size: int = 32
    """Photos in a batch; changes speed and memory, never the percentages."""
    seed: int = 0
    """Of the random crops."""
    workers: int = 0
    """Loader processes; 0 decodes in threads of this one."""
    max_unreadable: float = 0.01
    """Stop once more than this share of the photos has turned out to be unreadable."""
    timing_batch: int = 16
    """Images in a timed forward pass."""
    timing_repeats: int = 10
    """Timed passes; the median counts."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "timing_batch", "timing_repeats"):
            if getattr(self, name) < 1:
                option = name.replace("_", "-")
                raise CommandError(f"--{option} is {getattr(self, name)}; it must be at least 1")
        for name in ("workers", "seed"):
            if getattr(self, name) < 0:
                raise CommandError(f"--{name} is {getattr(self, name)}; it must be 0 or more")
        if not 0 <= self.max_unreadable <= 1:
            raise CommandError(f"--max-unreadable is {self.max_unreadable}; it must be from 0 to 1")
        if not self.published_only:
            for name in ("weights_root", "data"):
                if getattr(self, name) is None:
                    option = name.replace("_", "-")
                    raise CommandError(f"--{option} is needed; --published-only does without")

    @property
    def settings(self) -> Settings:
        """The part that decides how networks are measured."""
        names = [field.name for field in dataclasses.fields(Settings)]
        return Settings(**{name: getattr(self, name) for name in names})


@dataclass
class Outcome:
    """What a run has come to: numbers by (spec, training), and what could not be measured."""

    numbers: dict[tuple[str, str], Numbers] = field(default_factory=dict)
    missing: list[tuple[str, str]] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)


def run(config: Config) -> int:
    """Measures what can be measured and writes the report.

    Returns:
        0; 1 where a checkpoint was found and could not be measured; 130 when stopped by Ctrl-C.

    Raises:
        CommandError: An option that cannot be used; photos that cannot.
    """
    console = open_console(stderr=True)
    if config.published_only:
        _make(config.output)
        _write(config.output, report.build(published_entries()), console)
        return 0
    assert config.data is not None
    chosen = choose(checkpoints(), config.models)
    photos = open_validation(config.data)
    _make(config.output)
    try:
        with progress(console) as bars:
            outcome = _measure_all(config, chosen, photos, bars)
    except KeyboardInterrupt:
        kept = config.output / RESULTS
        print(printable(f"stopped; finished networks are kept in {kept}, the same command goes on"), file=sys.stderr)
        return STOPPED
    entries = [_with_numbers(entry, outcome, config.settings) for entry in published_entries()]
    page = report.build(
        entries,
        conditions=_conditions(config, photos, outcome),
        missing=[*outcome.failed, *outcome.missing],
    )
    _write(config.output, page, console)
    _summarise(outcome, len(entries))
    return 1 if outcome.failed else 0


def _make(output: Path) -> None:
    """Makes the directory before anything is measured, and after all else was found to be good."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"--output {output} cannot be made: {error.strerror}") from error


def _measure_all(config: Config, chosen: Sequence[Checkpoint], photos: Photos, progress: Progress) -> Outcome:
    outcome = Outcome()
    assert config.weights_root is not None
    networks = progress.add_task("networks", total=len(chosen))
    online = config.download
    for checkpoint in chosen:
        try:
            weights = find(config.weights_root, checkpoint)
            if weights is None and online:
                weights = _downloaded(config.weights_root, checkpoint, progress)
            if weights is not None:
                outcome.numbers[checkpoint.key] = _numbers(config, checkpoint, weights, photos, progress)
            else:
                outcome.missing.append((checkpoint.name, where_expected(checkpoint)))
        except UnreachableError as error:
            # One failed attempt is enough: the others would each wait as long.
            online = False
            outcome.missing.append((checkpoint.name, f"{where_expected(checkpoint)}; {error}"))
        except CommandError as error:
            outcome.failed.append((checkpoint.name, str(error)))
        progress.advance(networks)
    _add_earlier(config, photos, outcome)
    return outcome


def _downloaded(root: Path, checkpoint: Checkpoint, progress: Progress) -> Weights:
    megabyte = 1_000_000
    task = progress.add_task(f"{checkpoint.published.file_name} (MB)", total=None)

    def show(done: int, total: int | None) -> None:
        progress.update(task, completed=done // megabyte, total=total and total // megabyte)

    try:
        return download(root, checkpoint, show)
    finally:
        progress.remove_task(task)


def _add_earlier(config: Config, photos: Photos, outcome: Outcome) -> None:
    """Adds what earlier runs into this directory measured of networks that are not there, or not chosen, now."""
    failed = {name for name, _ in outcome.failed}
    for checkpoint in checkpoints():
        if checkpoint.key in outcome.numbers or checkpoint.name in failed:
            continue
        known = read_numbers(config.output / RESULTS / f"{checkpoint.stem}.json")
        if known is not None and comparable(known, photos, config.settings):
            outcome.numbers[checkpoint.key] = known
    outcome.missing = [(name, reason) for name, reason in outcome.missing if name not in _names(outcome)]


def _names(outcome: Outcome) -> set[str]:
    return {checkpoint.name for checkpoint in checkpoints() if checkpoint.key in outcome.numbers}


def _numbers(config: Config, checkpoint: Checkpoint, weights: Weights, photos: Photos, progress: Progress) -> Numbers:
    """A network's numbers, from an earlier run where they are of the same weights, photos and protocol."""
    path = config.output / RESULTS / f"{checkpoint.stem}.json"
    known = read_numbers(path)
    if known is not None and known.identity == identity(weights, photos, config.settings):
        if known.timing == timing_conditions(config.settings):
            _say(progress, checkpoint, known, "from an earlier run")
            return known
        numbers = timed_anew(known, weights, config.settings)
    else:
        task = progress.add_task(checkpoint.name, total=len(photos.source))
        numbers = measure(weights, photos, config.settings, progress=lambda count: progress.advance(task, count))
        progress.remove_task(task)
    write_numbers(path, numbers)
    _say(progress, checkpoint, numbers, f"{numbers.milliseconds:.2f} ms an image")
    # A program for each network would fill the memory in the long run.
    jax.clear_caches()
    return numbers


def _say(progress: Progress, checkpoint: Checkpoint, numbers: Numbers, note: str) -> None:
    """A line for each network, for people who wait and for logs, where bars are not drawn."""
    text = f"{checkpoint.name}: top-1 {numbers.top1}, consistency {numbers.consistency}, {note}"
    progress.console.print(text, soft_wrap=True)


def _with_numbers(entry: Entry, outcome: Outcome, settings: Settings) -> Entry:
    numbers = outcome.numbers.get((entry.spec, entry.training))
    if numbers is None:
        return entry
    found = Measured(
        top1=numbers.top1,
        top5=numbers.top5,
        consistency=numbers.consistency,
        # Times of an earlier run on another machine say nothing beside those of this one.
        milliseconds=numbers.milliseconds if numbers.timing == timing_conditions(settings) else None,
        weights=numbers.weights,
        published_file=numbers.published,
    )
    return dataclasses.replace(entry, measured=found)


def _conditions(config: Config, photos: Photos, outcome: Outcome) -> Conditions:
    images = {numbers.images for numbers in outcome.numbers.values()} or {len(photos.source)}
    return Conditions(
        data=str(photos.source.root),
        images=min(images),
        fingerprint=photos.fingerprint,
        protocol=(
            "the reference's (zhang2019): five pairs of crops a photo, offsets 0 to 31 on both axes, "
            f"shared by eight neighbours; seed {config.seed}"
        ),
        device=_device(),
        timing=(
            f"Times are the median of {config.timing_repeats} compiled forward passes over "
            f"{config.timing_batch} images in float32."
        ),
    )


def _device() -> str:
    device = jax.devices()[0]
    if device.platform == "cpu":
        return f"{os.cpu_count()} CPU cores ({platform.machine()})"
    return f"{len(jax.devices())} x {device.device_kind}"


def _write(output: Path, page: Page, console: Console) -> None:
    with progress(console) as bars:
        task = bars.add_task("drawing", total=2 * len(page.figures()))
        try:
            paths = write_page(page, output, progress=lambda: bars.advance(task))
        except OSError as error:
            raise CommandError(f"--output {output} cannot be written: {error.strerror}") from error
    print(printable(f"wrote {paths[0]} and {paths[1]}"))


def _summarise(outcome: Outcome, rows: int) -> None:
    print(f"measured {len(outcome.numbers)} of {rows} published rows")
    for heading, listed in (("missing", outcome.missing), ("failed", outcome.failed)):
        if listed:
            print(f"{heading}: {len(listed)}")
        for name, reason in listed[:MOST_LISTED]:
            print(printable(f"  {name}: {reason}"))
        if len(listed) > MOST_LISTED:
            print(f"  and {len(listed) - MOST_LISTED} more, see the report")
