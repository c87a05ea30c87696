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
from typing import Annotated

import jax
import tyro
from rich.console import Console
from rich.progress import Progress

from aa_flax.printable import printable
from train.console import open_console, progress
from train.errors import CommandError
from train.page.content import Page
from train.page.forms import write_page
from train.reproduce import report
from train.reproduce.measuring import (
    Photos,
    Settings,
    comparable,
    identity,
    measure,
    open_validation,
    passes,
    read_measured,
    timed_anew,
    timing_conditions,
    write_measured,
)
from train.reproduce.published_weights import UnreachableError, Weights, download, find, where_expected
from train.reproduce.report import Conditions
from train.reproduce.rows import AnyRow, Measured, all_rows, choose, published_rows, timm_rows

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
    name of the file or of the network (resnet50_lpf4, resnetaa50.a1h_in1k)."""
    data: Path | None = None
    """ImageNet: a directory with val/CLASS/*.JPEG, or the directory of the class folders."""
    models: tuple[str, ...] = ()
    """Which networks, e.g. resnet50 mobilenet_v2_lpf3 'vgg*' 'resnetaa*'; all by default."""
    published_only: bool = False
    """Draw the published numbers alone; needs neither weights nor data."""
    download: bool = True
    """Fetch checkpoints that are not found: into --weights-root, timm's into the cache."""
    settings: Annotated[Settings, tyro.conf.arg(name="")] = field(default_factory=Settings)

    def __post_init__(self) -> None:
        if not self.published_only:
            for name in ("weights_root", "data"):
                if getattr(self, name) is None:
                    option = name.replace("_", "-")
                    raise CommandError(f"--{option} is needed; --published-only does without")


@dataclass
class Outcome:
    """What a run has come to: what was measured, by the stem of its row, and what could not be."""

    measured: dict[str, Measured] = field(default_factory=dict)
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
        _write(config.output, report.build(published_rows(), timm_rows()), console)
        return 0
    assert config.data is not None
    chosen = choose(all_rows(), config.models)
    photos = open_validation(config.data)
    _make(config.output)
    try:
        with progress(console) as bars:
            outcome = _measure_all(config, chosen, photos, bars)
    except KeyboardInterrupt:
        kept = config.output / RESULTS
        print(printable(f"stopped; finished networks are kept in {kept}, the same command goes on"), file=sys.stderr)
        return STOPPED
    page = report.build(
        [dataclasses.replace(row, measured=outcome.measured.get(row.stem)) for row in published_rows()],
        [dataclasses.replace(row, measured=outcome.measured.get(row.stem)) for row in timm_rows()],
        conditions=_conditions(config, photos, outcome),
        missing=[*outcome.failed, *outcome.missing],
    )
    _write(config.output, page, console)
    _summarise(outcome, len(all_rows()))
    return 1 if outcome.failed else 0


def _make(output: Path) -> None:
    """Makes the directory before anything is measured, and after all else was found to be good."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"--output {output} cannot be made: {error.strerror}") from error


def _measure_all(config: Config, chosen: Sequence[AnyRow], photos: Photos, progress: Progress) -> Outcome:
    outcome = Outcome()
    assert config.weights_root is not None
    networks = progress.add_task("networks", total=len(chosen))
    online = config.download
    for row in chosen:
        try:
            weights = find(config.weights_root, row)
            if weights is None and online:
                weights = _downloaded(config.weights_root, row, progress)
            if weights is not None:
                outcome.measured[row.stem] = _measured(config, row, weights, photos, progress)
            else:
                outcome.missing.append((row.title, where_expected(row)))
        except UnreachableError as error:
            # One failed attempt is enough: the others would each wait as long.
            online = False
            outcome.missing.append((row.title, f"{where_expected(row)}; {error}"))
        except CommandError as error:
            outcome.failed.append((row.title, str(error)))
        progress.advance(networks)
    _add_earlier(config, photos, outcome)
    return outcome


def _downloaded(root: Path, row: AnyRow, progress: Progress) -> Weights:
    megabyte = 1_000_000
    task = progress.add_task(f"{row.file_name} (MB)", total=None)

    def show(done: int, total: int | None) -> None:
        progress.update(task, completed=done // megabyte, total=total and total // megabyte)

    try:
        return download(root, row, show)
    finally:
        progress.remove_task(task)


def _add_earlier(config: Config, photos: Photos, outcome: Outcome) -> None:
    """Adds what earlier runs into this directory measured of networks that are not there, or not chosen, now."""
    failed = {name for name, _ in outcome.failed}
    for row in all_rows():
        if row.stem in outcome.measured or row.title in failed:
            continue
        known = read_measured(_results(config, row))
        if known is None or not comparable(known, photos, config.settings):
            continue
        if known.timing != timing_conditions(config.settings):
            # Times of an earlier run on another machine say nothing beside those of this one.
            known = dataclasses.replace(known, milliseconds=None)
        outcome.measured[row.stem] = known
        outcome.missing = [(name, reason) for name, reason in outcome.missing if name != row.title]


def _results(config: Config, row: AnyRow) -> Path:
    return config.output / RESULTS / f"{row.stem}.json"


def _measured(config: Config, row: AnyRow, weights: Weights, photos: Photos, progress: Progress) -> Measured:
    """What there is to say of a network, from an earlier run where that had the same weights, photos and protocol."""
    known = read_measured(_results(config, row))
    if known is not None and known.identity == identity(weights, photos, config.settings):
        if known.timing == timing_conditions(config.settings):
            _say(progress, row, known, "from an earlier run")
            return known
        found = timed_anew(known, weights, config.settings)
    else:
        task = progress.add_task(row.title, total=len(passes(weights)) * len(photos.source))
        found = measure(weights, photos, config.settings, progress=lambda count: progress.advance(task, count))
        progress.remove_task(task)
    write_measured(_results(config, row), found)
    _say(progress, row, found, f"{found.milliseconds:.2f} ms an image")
    # A program for each network would fill the memory in the long run.
    jax.clear_caches()
    return found


def _say(progress: Progress, row: AnyRow, found: Measured, note: str) -> None:
    """A line for each network, for people who wait and for logs, where bars are not drawn."""
    text = f"{row.title}: top-1 {found.top1 or 'none'}, consistency {found.consistency}, {note}"
    progress.console.print(text, soft_wrap=True)


def _conditions(config: Config, photos: Photos, outcome: Outcome) -> Conditions:
    images = {found.images for found in outcome.measured.values()} or {len(photos.source)}
    return Conditions(
        data=str(photos.source.root),
        images=min(images),
        fingerprint=photos.fingerprint,
        protocol=(
            "the reference's (zhang2019): five pairs of crops a photo, offsets 0 to 31 on both axes, "
            f"shared by eight neighbours; seed {config.settings.seed}"
        ),
        device=_device(),
        timing=(
            f"Times are the median of {config.settings.timing_repeats} compiled forward passes over "
            f"{config.settings.timing_batch} images in float32."
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
    print(f"measured {len(outcome.measured)} of {rows} published rows")
    for heading, listed in (("missing", outcome.missing), ("failed", outcome.failed)):
        if listed:
            print(f"{heading}: {len(listed)}")
        for name, reason in listed[:MOST_LISTED]:
            print(printable(f"  {name}: {reason}"))
        if len(listed) > MOST_LISTED:
            print(f"  and {len(listed) - MOST_LISTED} more, see the report")
