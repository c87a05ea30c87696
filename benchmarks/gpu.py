"""What needs an accelerator, as a queue: most valuable first, cut to fit a budget, and the next call goes on.

Each job is a process of its own, one at a time, so that programs are compiled on an idle device and a job that does not
end in time can be ended. What it has finished by then is on disk: a line of JSON for each run.
"""

import dataclasses
import functools
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tyro

from aa_flax.models.registry import MODELS, list_models
from benchmarks import peers
from benchmarks.options import NINE
from examples import cifar10_study, methods_comparison
from examples.cells import BudgetSpent, Deadline, Ledger, Line, Resumable, read
from train.environment import CHECKOUT, git_revision
from train.errors import CommandError

# What a job's process gets less than there is: it starts, and ends the run that it is at.
MARGIN = 15.0
# A network and its peers compiled and timed, as long as no line says how long that takes.
GUESS = 90.0

STUDY = ("--augment", "shift", "--filters", "0", "4")
# Without normalisation the first updates decide whether a network trains at all. Rates are multiples of the trainer's.
UNSTEADY = ("alexnet", "vgg16")
STEADY = ("--warmup-epochs", "5", "--clip-norm", "1.0")
RATES = (1.0, 2.0, 0.5)
# The rate is chosen by a seed that no table has.
CHOOSING_SEED = 99
TIMM = [name for name in list_models() if MODELS[name].filter_size is not None]
FORWARD = ("densenet121", "alexnet", *TIMM, *(name for name in NINE if name not in ("densenet121", "alexnet")))
TRAINED = ("resnet50", "densenet121", "alexnet", "vgg16_bn", "mobilenet_v2")
TIMED = "--batches 48 256 --dtypes bfloat16 --no-unfolded --rounds 5"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Make what is missing of all that needs a GPU, as far as a budget goes; the same command goes on."""

    data: Path = dataclasses.field(
        default_factory=lambda: Path(os.environ.get("AA_SHARED", "../shared"), "data/cifar10-images.tar.xz")
    )
    """The tar of JPEG files of CIFAR-10, or its extracted folder. Nothing is fetched from a network."""

    output: Path = Path("docs/results")
    """Folder of the results: lines of JSON, added to what is there."""

    budget: float = 540.0
    """Seconds after which everything has ended."""

    dry_run: bool = False
    """Only list what is missing, with the seconds it should take."""

    small: bool = False
    """Minutes of two CPU cores in place of each hour of a GPU: shows that the jobs run. Needs another --output."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """A benchmark of one network."""

    benchmark: str
    options: str

    @property
    def kind(self) -> tuple[str, str]:
        return self.benchmark, self.options

    def __str__(self) -> str:
        return f"{self.benchmark} {self.options}"


@dataclasses.dataclass(frozen=True)
class Job:
    """One entry of the queue.

    Attributes:
        title: what people call it.
        ledger: what of it is missing.
        run: takes it further until the deadline; the exit code.
        waits: for which other job's results; it cannot be run before.
    """

    title: str
    ledger: Ledger[Any]
    run: Callable[[Deadline], int]
    waits: str | None = None


def run(config: Config) -> int:
    """Takes the queue further; see `Config`."""
    deadline, code = Deadline(config.budget), 0
    if not config.dry_run:
        _check(config)
        code = work(jobs(config), deadline)
    show(jobs(config))
    return code


def _check(config: Config) -> None:
    """Refuses what would fail, or leave lines that are no results of a GPU, in a process that takes no device."""
    if not config.data.exists():
        raise CommandError(f"--data {config.data} does not exist: give the tar of CIFAR-10's JPEG files or its folder")
    if config.small:
        if config.output == Config().output:
            raise CommandError(f"--small would add to {config.output}, which holds results: give another --output")
        return
    if reason := peers.missing():
        raise CommandError(f"{reason}: there would be nothing to compare with")
    asked = [sys.executable, "-c", "import jax; print(jax.default_backend())"]
    backend = subprocess.run(asked, capture_output=True, text=True).stdout.split()[-1:]
    if backend != ["gpu"]:
        raise CommandError(
            f"JAX runs on {''.join(backend) or 'no device'} here, and the queue is for GPUs: try --small"
        )


def jobs(config: Config) -> Iterator[Job]:
    """The queue as the results stand, most valuable first."""
    study = functools.partial(_study, config)
    yield study("DenseNet-121 on CIFAR-10", "cifar10-nine", "densenet121")
    steady = [name for name in NINE if name not in (*UNSTEADY, "densenet121")]
    yield study("networks with normalisation on CIFAR-10", "cifar10-nine", *steady)
    for rate in RATES:
        options = (*STEADY, "--rate", str(rate), "--seeds", str(CHOOSING_SEED))
        yield study(f"do AlexNet and VGG16 train at rate x {rate:g}?", "cifar10-rates", *UNSTEADY, options=options)
    for name in UNSTEADY:
        rate = chosen_rate(config.output / "cifar10-rates.jsonl", name)
        options = (*STEADY, "--rate", str(RATES[0] if rate is None else rate))
        job = study(f"{name} on CIFAR-10", "cifar10-nine", name, options=options)
        yield dataclasses.replace(job, waits="its rate" if rate is None else None)
    compared = "methods-small" if config.small else "methods"
    words = ("--data", str(config.data), "--output", str(config.output / f"{compared}.jsonl"))
    yield _command("the methods' comparison", methods_comparison, methods_comparison.Comparison, words, config)
    forward = [f"--models {name} {TIMED}" for name in FORWARD]
    yield _measuring("forward times", "inference", forward, config)
    updates = [f"--models {name} --rounds 5" for name in TRAINED]
    yield _measuring("updates", "training", updates, config)
    yield _measuring("AlexNet's first convolution", "convolutions", ["--layers alexnet --rounds 5"], config)


def _study(config: Config, title: str, output: str, *models: str, options: Sequence[str] = ()) -> Job:
    known = [str(path) for path in sorted(CHECKOUT.glob("docs/results/cifar10*.jsonl"))]
    words = ("--data", str(config.data), "--output", str(config.output / f"{output}.jsonl"), *STUDY)
    words = (*words, "--models", *models, *options, "--like", *known)
    return _command(title, cifar10_study, cifar10_study.Study, words, config)


def _command(title: str, module: Any, options: type[Resumable], words: tuple[str, ...], config: Config) -> Job:
    """A script that makes the cells of its ledger itself, and knows `--budget`."""
    words = (*words, "--small") if config.small else words
    ledger = module.ledger_of(tyro.cli(options, args=words))

    def further(deadline: Deadline) -> int:
        command = [sys.executable, "-m", module.__name__, *words, "--budget", f"{deadline.left - MARGIN:.0f}"]
        return run_until(command, deadline)

    return Job(title, ledger, further)


def _measuring(title: str, benchmark: str, options: Sequence[str], config: Config) -> Job:
    cells = [Measurement(benchmark=benchmark, options=each) for each in options]
    ledger = Ledger(Measurement, config.output / "benchmarks.jsonl", cells, guess=GUESS)

    def further(deadline: Deadline) -> int:
        ledger.make_all(lambda cell: measure(cell, deadline, smoke=config.small), deadline)
        return 0

    return Job(title, ledger, further)


def measure(cell: Measurement, deadline: Deadline, *, smoke: bool) -> Line:
    """A benchmark's tables as a line; one that fails is a line too, so that the queue goes on."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks", cell.benchmark, *shlex.split(cell.options), "--output", folder]
        code = run_until([*command, "--smoke"] if smoke else command, deadline)
        report = {"failed": f"exit code {code}"}
        if code == 0:
            report = json.loads(Path(folder, f"{cell.benchmark}.json").read_text())
    kept = {name: report[name] for name in ("failed", "facts", "tables", "notes") if name in report}
    seconds = round(time.perf_counter() - began, 1)
    return {**dataclasses.asdict(cell), **kept, "commit": git_revision(), "measure_seconds": seconds}


def chosen_rate(path: Path, model: str) -> float | None:
    """The rate at which a network, plain and anti-aliased, has come to the lower loss of training images.

    The loss is that of whichever of the two has the higher. None as long as a rate has not been tried.
    """
    losses: dict[float, list[float]] = {rate: [] for rate in RATES}
    for run, line in read(path, cifar10_study.Run).items():
        if run.model == model and run.rate in losses:
            losses[run.rate].append(float("inf") if line["loss"] is None else line["loss"])
    complete = all(len(tried) == 2 for tried in losses.values())
    return min(losses, key=lambda rate: max(losses[rate])) if complete else None


def work(queue: Iterator[Job], deadline: Deadline) -> int:
    """Runs the jobs in which something fits into the time that is left, in order.

    Args:
        queue: the jobs, each as it stands when it is reached.
        deadline: when everything has ended.

    Returns:
        The first exit code that is not 0.
    """
    codes = []
    for job in queue:
        if job.waits or not job.ledger.fitting(deadline.left - MARGIN):
            continue
        print(f"== {job.title}: {deadline.left:.0f} s are left", flush=True)
        try:
            codes.append(job.run(deadline))
        except BudgetSpent:
            break
        if codes[-1]:
            print(f"{job.title}: ended with exit code {codes[-1]}, the queue goes on", file=sys.stderr, flush=True)
    return next((code for code in codes if code), 0)


def run_until(command: Sequence[str], deadline: Deadline) -> int:
    """Runs a command, and ends it with all its processes at the deadline.

    Returns:
        Its exit code.

    Raises:
        BudgetSpent: it was ended.
    """
    # Programs outlive a process here, so that a job that goes on need not compile again.
    cache = {"JAX_COMPILATION_CACHE_DIR": str(CHECKOUT / "out/programs")}
    process = subprocess.Popen(command, env=cache | os.environ, start_new_session=True)
    try:
        return process.wait(max(deadline.left, 0))
    except subprocess.TimeoutExpired as error:
        raise BudgetSpent from error
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def show(queue: Iterator[Job]) -> None:
    """Lists what is missing of each job, and how long it should take."""
    total = 0.0
    for job in queue:
        rows = job.ledger.rows()
        seconds = sum(seconds or 0 for _, seconds in rows)
        total += seconds
        waits = f", wait for {job.waits}" if job.waits and rows else ""
        print(f"\n{job.title}: {len(rows)} missing{waits}, {len(job.ledger.done)} there, {seconds:.0f} s expected")
        for cell, expected in rows:
            print(f"  {cell!s:100} {'?' if expected is None else f'{expected:.0f} s':>7}")
    print(f"\nin all {total:.0f} s expected")
