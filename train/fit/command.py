"""`python -m train fit`: trains a network, from the first step or from where it stopped."""

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack

import jax
import tyro
from rich.console import Console

from aa_flax.buckets import AnyPath
from train.console import log_to, open_console
from train.data import DataConfig, Dataset, open_dataset, steps_per_epoch
from train.data.channels import for_channels
from train.environment import code
from train.errors import CommandError
from train.fit.agreement import AgreedError, require_same, together
from train.fit.config import TrainConfig, validate
from train.fit.display import Display, duration, summary
from train.fit.distributed import UPDATE_PATIENCE, LaunchConfig, Placement, Watch, check_batch, is_lead, leave, start
from train.fit.heartbeat import watch_over
from train.fit.inputs import dataset_facts
from train.fit.interrupt import Interrupt
from train.fit.loop import Ending, train
from train.fit.presets import preset, recipe_for
from train.fit.record import read_record, shared_options
from train.fit.run import Run, open_run
from train.fit.rundir import Claim, claimed, default_run_dir
from train.fit.runlog import check_log
from train.fit.storage import quiet_storage_library
from train.local_paths import require_local_paths

Config = TrainConfig

DESCRIPTION = """Train a network of the zoo. A run that finds its directory goes on where it stopped.

  python -m train fit                                              digits, nothing to download
  python -m train fit resnet50_lpf4 --data.dir /data/imagenet      as Zhang 2019
  python -m train fit resnet50_lpf4 --preset finetune --init plain/resnet50 --data.dir /data/imagenet
  python -m train fit --config runs/resnet50_lpf4-zhang2019/config.json --run-dir runs/again
"""


def parse(options: Sequence[str], prog: str) -> TrainConfig:
    """Reads a command line: options win over the preset or the configuration they start from.

    The command line is read twice, because the defaults depend on the preset and the network named in it.

    Raises:
        CommandError: an unknown network or an unreadable configuration file.
    """
    words = list(options)
    first = [word for word in words if word not in ("-h", "--help")]
    blank = TrainConfig(model="", data=DataConfig())
    seen = _cli(first, prog, blank)
    named = any(word.split("=")[0] == "--preset" for word in first)
    if seen.config is not None:
        require_local_paths(seen)
        if named:
            raise CommandError(f"--config {seen.config} holds a whole configuration already: leave --preset out")
        # What concerned that process alone is not repeated.
        base = dataclasses.replace(
            read_record(seen.config).config,
            run_dir=None,
            resume="auto",
            accept_changes=False,
            profile=0,
            launch=LaunchConfig(),
        )
        if seen.model and seen.model != base.model:
            raise CommandError(f"--config {seen.config} is a run of {base.model}: leave {seen.model} out")
    else:
        base = preset(seen.preset if named else recipe_for(seen.data), seen.model or None)
    return _cli(words, prog, base)


def _cli(words: Sequence[str], prog: str, default: TrainConfig) -> TrainConfig:
    return tyro.cli(
        TrainConfig,
        prog=prog,
        description=DESCRIPTION,
        args=list(words),
        default=default,
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def run(config: TrainConfig, *, report: bool = True) -> int:
    """Trains, and tells about it on stderr.

    Args:
        config: what to train.
        report: print the table at the end.

    Returns:
        0 when the run is finished, and also when it was asked to stop and has saved everything.

    Raises:
        CommandError: what a person can put right; one line that names it.
    """
    validate(config)
    check_log(config.log)
    quiet_storage_library()
    if config.compilation_cache is not None:
        jax.config.update("jax_compilation_cache_dir", str(config.compilation_cache.absolute()))
    start(config.launch)
    watch_over(config.launch)
    if jax.process_count() > 1:
        require_same({**shared_options(config), **code()}, "Start all of them with the same options and the same code")
    placement = Placement.of_all_devices()
    check_batch(config.batch, config.accumulate, jax.device_count())
    console = open_console(stderr=True) if is_lead() else None
    log_to(console or open_console(stderr=True))
    run_dir = config.run_dir or default_run_dir(config)
    try:
        with claimed(run_dir) as claim:
            dataset = together(lambda: for_channels(open_dataset(config.data), config.net.in_channels))
            if jax.process_count() > 1:
                require_same(dataset_facts(dataset), "Give all of them the same data")
            return _train(config, run_dir, claim, dataset, placement, console, report)
    except AgreedError:
        raise
    except (CommandError, OSError, jax.errors.JaxRuntimeError) as error:
        explained = _explained(error, config, run_dir)
        if jax.process_count() > 1:
            leave(explained)
        if explained is error:
            raise
        raise explained from error
    except KeyboardInterrupt:
        print("stopped at once; the run goes on from its last checkpoint", file=sys.stderr)
        return 130


def _train(
    config: TrainConfig,
    run_dir: AnyPath,
    claim: Claim,
    dataset: Dataset,
    placement: Placement,
    console: Console | None,
    report: bool,
) -> int:
    with ExitStack() as stack:
        display = Display(console, epochs=config.epochs, steps_per_epoch=steps_per_epoch(dataset, config.batch))
        interrupt = stack.enter_context(Interrupt())
        opened = open_run(config, run_dir, claim, dataset, placement, display, interrupt)
        stack.callback(opened.close)
        with display:
            ending = _to_the_end(opened)
        if console is not None and (report or ending == "interrupted"):
            _report(opened, ending, console)
    return 0


def _to_the_end(opened: Run) -> Ending:
    """Trains. Where one of several processes fails, it ends here: the others do not know, and nothing can be closed
    without them."""
    try:
        if jax.process_count() == 1:
            return train(opened)
        advice = (
            "compiling or slow storage, or one of them has stopped or is gone; all end after "
            f"--heartbeat-timeout {opened.config.launch.heartbeat_timeout} s without it, and the same command, given "
            "to all of them, continues"
        )
        what = "an update in all processes"
        with Watch(what, advice, sign=lambda: (opened.step, opened.display.signs), patience=UPDATE_PATIENCE):
            return train(opened)
    except (Exception, KeyboardInterrupt) as error:
        if jax.process_count() == 1:
            raise
        opened.log.close()
        opened.claim.release()
        leave(_explained(error, opened.config, opened.directory) if isinstance(error, Exception) else error)


def _explained(error: Exception, config: TrainConfig, run_dir: AnyPath) -> Exception:
    """What the system or JAX raises as a line that names the file or the options; all else as it is."""
    if isinstance(error, OSError):
        return CommandError(f"{error.filename or run_dir}: {error.strerror or error}")
    if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error):
        return CommandError(
            f"the devices have too little memory for --batch {config.batch}: lower it, "
            "raise --accumulate, or set --remat keep_convs"
        )
    return error


def _report(opened: Run, ending: Ending, console: Console) -> None:
    """The last words of a run: where it stands and what comes next."""
    if ending == "interrupted":
        console.print(
            f"stopped by {opened.interrupt.reason} at step {opened.step:,} of {opened.last_step:,}; everything is "
            f"saved in {opened.directory}. The same command continues.",
            soft_wrap=True,
        )
        return
    config, speed, scores = opened.config, opened.meter.total, opened.log.scores
    rows = [("model", config.model), ("steps", f"{opened.step:,} ({config.epochs} epochs)")]
    if opened.step in scores:
        last = scores[opened.step]
        rows.append(("accuracy", f"{last['accuracy']:.2f} % (± {last['accuracy_stderr']:.2f})"))
        rows.append(("crop consistency", f"{last['consistency']:.2f} % (± {last['consistency_stderr']:.2f})"))
    best = opened.checkpoints.best_step()
    if best is not None and best != opened.step:
        rows.append(("best accuracy kept", f"{scores[best]['accuracy']:.2f} % at step {best:,}"))
    if speed.seconds:
        rows.append(("training time", f"{duration(speed.seconds)} in this process"))
        rows.append(("throughput", f"{speed.images_per_second:,.0f} images/s, {speed.wait:.1%} of it waiting for data"))
    if opened.feed.unreadable():
        rows.append(("unreadable images", f"{opened.feed.unreadable()}, named above"))
    rows.append(("run", str(opened.directory)))
    console.print(summary(rows, "finished"))
    # Outside the table, whose lines are broken: it is there to be copied.
    console.print(f"next: python -m train export {shlex.quote(str(opened.directory))} --output DIR", soft_wrap=True)
