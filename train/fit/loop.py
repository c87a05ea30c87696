"""The training loop: updates, validation, checkpoints, and what is told about them."""

import math
from collections.abc import Mapping
from typing import Literal

import jax
import numpy as np

from train.errors import CommandError
from train.fit.optim import lps_temperature
from train.fit.run import Run
from train.fit.rundir import restore_record
from train.fit.step import METRICS

# Updates in flight while the host reads the metrics of earlier ones: enough to keep the devices busy, few enough to
# bound the batches queued in their memory.
IN_FLIGHT = 2

Ending = Literal["finished", "interrupted"]


class _StoppedError(Exception):
    """Raised where the run is asked to stop."""


def train(run: Run) -> Ending:
    """Trains to the end, or until asked to stop; either way everything is saved when this returns.

    Raises:
        CommandError: a loss that is not finite, a checkpoint that cannot be written, too many unreadable images.
    """
    ending: Ending = "finished"
    try:
        run.display.compiling(run.step)
        # The run may have been cut between an epoch's last update and its validation.
        if _validation_due(run) and run.step not in run.log.scores:
            _validate(run)
        _train(run)
    except _StoppedError:
        _save(run)
        ending = "interrupted"
    finally:
        run.tracer.stop(run.state)
    run.checkpoints.wait()
    return ending


def _train(run: Run) -> None:
    checkpoint_every = run.config.checkpoint_every
    while run.step < run.last_step:
        if run.interrupt.requested(run.step):
            raise _StoppedError
        _advance(run)
        if run.step % run.steps_per_epoch == 0:
            _save(run)
            if _validation_due(run):
                _validate(run)
        elif checkpoint_every and run.step % checkpoint_every == 0:
            _save(run)


def _validation_due(run: Run) -> bool:
    epoch, rest = divmod(run.step, run.steps_per_epoch)
    return epoch > 0 and rest == 0 and (epoch % run.config.validate_every == 0 or epoch == run.config.epochs)


def _advance(run: Run) -> None:
    """One update, or with the data on the devices all up to the next after which something is to be done."""
    marks = (run.steps_per_epoch, run.config.log.every, run.config.checkpoint_every or run.steps_per_epoch)
    ahead = [mark - run.step % mark for mark in marks]
    ahead += [edge - run.step for edge in run.tracer.edges if edge > run.step]
    run.tracer.begin(run.step)
    run.state, metrics, count = run.feed.advance(run.state, run.step, min(ahead))
    run.unread.append((run.step, count, metrics))
    run.step += count
    _settle(run, IN_FLIGHT)
    run.tracer.end(run.step, run.state)


def _settle(run: Run, leave: int) -> None:
    """Reads the metrics of all updates but the newest `leave`, which may still be running."""
    while len(run.unread) > leave:
        before, count, metrics = run.unread.popleft()
        values = {name: np.atleast_1d(value) for name, value in jax.device_get(metrics).items()}
        run.meter.tick(count * run.config.batch, run.feed.wait_seconds)
        for i in range(count):
            _take(run, before + i + 1, {name: float(values[name][i]) for name in METRICS})


def _take(run: Run, step: int, values: Mapping[str, float]) -> None:
    """Checks, shows and logs the metrics of one update."""
    if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
        raise _not_finite(run, step, values)
    run.window.append(values)
    lap = run.meter.lap
    run.display.step(step, loss=values["loss"], images_per_second=lap.images_per_second, wait=lap.wait)
    if step % run.config.log.every == 0 or step % run.steps_per_epoch == 0:
        _log_window(run, step)


def _log_window(run: Run, step: int) -> None:
    run.claim.check()
    means = {name: float(np.mean([values[name] for values in run.window])) for name in METRICS}
    if run.config.net.has_temperature:
        temperature = lps_temperature(run.config.optim, steps_per_epoch=run.steps_per_epoch)
        means["temperature"] = float(temperature(step - 1))
    lap = run.meter.new_lap()
    run.loss = means["loss"]
    run.log.training(
        step,
        {
            "epoch": step / run.steps_per_epoch,
            **means,
            "lr": run.window[-1]["lr"],
            "images_per_second": lap.images_per_second,
            "data_wait": lap.wait,
        },
    )
    run.window.clear()


def _not_finite(run: Run, step: int, values: Mapping[str, float]) -> CommandError:
    run.checkpoints.wait()
    saved = run.checkpoints.steps()
    last = f"the last good checkpoint is of step {saved[-1]}" if saved else "no checkpoint was saved before"
    what = "loss" if not math.isfinite(values["loss"]) else "gradient"
    value = values["loss"] if what == "loss" else values["grad_norm"]
    return CommandError(
        f"the {what} is {value} at step {step} (learning rate {values['lr']:.3g}); {last} in "
        f"{run.checkpoints.directory}. Lower --optim.lr, warm up longer or set --optim.clip-norm"
    )


def _save(run: Run) -> None:
    _settle(run, 0)
    run.claim.check()
    if restore_record(run.directory, run.record):
        run.log.reopen()
        run.display.say(
            f"{run.checkpoints.directory.parent} was removed while training: what comes from now on is "
            "written there anew, earlier checkpoints and logs are lost"
        )
    run.log.flush()
    if run.step not in run.checkpoints.steps():
        run.checkpoints.save(run.step, run.state)
    run.meter.pause()


def _validate(run: Run) -> None:
    weights = run.state.ema or {"params": run.state.params, "stats": run.state.stats}

    def progress(done: float) -> None:
        run.display.validating(done)
        # With several processes all must stop at the same point, which only updates have.
        if run.interrupt.reason and jax.process_count() == 1:
            raise _StoppedError

    result = run.validator(weights["params"], weights["stats"], progress)
    run.log.validation(run.step, result)
    run.checkpoints.scores[run.step] = result["accuracy"]
    run.display.say(
        f"epoch {run.step // run.steps_per_epoch}/{run.config.epochs} · loss {run.loss:.4f} · "
        f"accuracy {result['accuracy']:.2f} · consistency {result['consistency']:.2f} · "
        f"{run.meter.total.images_per_second:,.0f} images/s"
    )
    for line in run.validator.symptoms(run.loss, result):
        run.display.say(line)
    run.meter.pause()
