"""The training loop: updates, validation, checkpoints, and what is told about them."""

import collections
import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from train.errors import CommandError
from train.fit.checkpoint import Checkpoints
from train.fit.config import TrainConfig
from train.fit.display import Display
from train.fit.feed import Feed
from train.fit.interrupt import Interrupt
from train.fit.meter import Meter
from train.fit.runlog import RunLog
from train.fit.step import METRICS, TrainState
from train.fit.validation import Validator

# Updates in flight while the host reads the metrics of earlier ones: enough to keep the devices busy, few enough to
# bound the batches queued in their memory.
IN_FLIGHT = 2
PROFILE_AFTER = 10

Ending = Literal["finished", "interrupted"]


class _StoppedError(Exception):
    """Raised where the run is asked to stop."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a run works with.

    Attributes:
        config: the run's configuration.
        steps_per_epoch: updates in an epoch.
        feed: makes the updates.
        validator: measures weights.
        checkpoints: where states are saved.
        log: what is written.
        display: what a person sees.
        interrupt: requests to stop.
        restore_record: writes the run's record anew where it is gone, and says whether it was.
        profile_dir: where a profiler trace goes.
    """

    config: TrainConfig
    steps_per_epoch: int
    feed: Feed
    validator: Validator
    checkpoints: Checkpoints
    log: RunLog
    display: Display
    interrupt: Interrupt
    restore_record: Callable[[], bool]
    profile_dir: Path


class Training:
    """A run in progress.

    Args:
        around: what it works with.
        state: where to start; it is donated.
        step: updates made so far.

    Attributes:
        state, step: as far as it has come.
        meter: how fast it was.
        loss: mean training loss of the last logged stretch.
    """

    def __init__(self, around: Surroundings, state: TrainState, step: int):
        self.state, self.step = state, step
        self.meter, self.loss = Meter(), math.nan
        self._around, self._config = around, around.config
        self._per_epoch = around.steps_per_epoch
        self._pending: collections.deque[tuple[int, int, Any]] = collections.deque()
        self._window: list[Mapping[str, float]] = []
        # A short run, or what is left of one, is traced at its end.
        first = max(step, min(step + PROFILE_AFTER, self._per_epoch * self._config.epochs - self._config.profile))
        self._traced = (first, first + self._config.profile)
        self._tracing = False

    def run(self) -> Ending:
        """Trains to the end, or until asked to stop; either way everything is saved when this returns.

        Raises:
            CommandError: a loss that is not finite, a checkpoint that cannot be written, too many unreadable images.
        """
        ending: Ending = "finished"
        try:
            self._around.display.compiling(self.step)
            # The run may have been cut between an epoch's last update and its validation.
            if self._validation_due() and self.step not in self._around.log.scores:
                self._validate()
            self._train()
        except _StoppedError:
            self._save()
            ending = "interrupted"
        finally:
            self._stop_trace()
        self._around.checkpoints.wait()
        return ending

    def _train(self) -> None:
        while self.step < self._per_epoch * self._config.epochs:
            if self._around.interrupt.requested(self.step):
                raise _StoppedError
            self._advance()
            if self.step % self._per_epoch == 0:
                self._save()
                if self._validation_due():
                    self._validate()
            elif self._config.checkpoint_every and self.step % self._config.checkpoint_every == 0:
                self._save()

    def _validation_due(self) -> bool:
        epoch, rest = divmod(self.step, self._per_epoch)
        return epoch > 0 and rest == 0 and (epoch % self._config.validate_every == 0 or epoch == self._config.epochs)

    def _advance(self) -> None:
        """One update, or with the data on the devices all up to the next after which something is to be done."""
        marks = (self._per_epoch, self._config.log.every, self._config.checkpoint_every or self._per_epoch)
        ahead = [mark - self.step % mark for mark in marks]
        if self._config.profile:
            ahead += [edge - self.step for edge in self._traced if edge > self.step]
        if self._config.profile and self.step == self._traced[0]:
            jax.profiler.start_trace(str(self._around.profile_dir))
            self._tracing = True
        self.state, metrics, count = self._around.feed.advance(self.state, self.step, min(ahead))
        self._pending.append((self.step, count, metrics))
        self.step += count
        self._settle(IN_FLIGHT)
        if self._tracing and self.step == self._traced[1]:
            self._stop_trace()

    def _stop_trace(self) -> None:
        if self._tracing:
            jax.block_until_ready(self.state)
            jax.profiler.stop_trace()
            self._tracing = False
            self._around.display.say(f"profiler trace written to {self._around.profile_dir}")

    def _settle(self, leave: int) -> None:
        """Reads the metrics of all updates but the newest ``leave``, which may still be running."""
        while len(self._pending) > leave:
            before, count, metrics = self._pending.popleft()
            values = {name: np.atleast_1d(value) for name, value in jax.device_get(metrics).items()}
            self.meter.tick(count * self._config.batch, self._around.feed.wait_seconds)
            for i in range(count):
                self._take(before + i + 1, {name: float(values[name][i]) for name in METRICS})

    def _take(self, step: int, values: Mapping[str, float]) -> None:
        """Checks, shows and logs the metrics of one update."""
        if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
            raise self._not_finite(step, values)
        self._window.append(values)
        lap = self.meter.lap
        self._around.display.step(step, loss=values["loss"], images_per_second=lap.images_per_second, wait=lap.wait)
        if step % self._config.log.every == 0 or step % self._per_epoch == 0:
            self._log_window(step)

    def _log_window(self, step: int) -> None:
        means = {name: float(np.mean([values[name] for values in self._window])) for name in METRICS}
        lap = self.meter.new_lap()
        self.loss = means["loss"]
        self._around.log.training(
            step,
            {
                "epoch": step / self._per_epoch,
                **means,
                "lr": self._window[-1]["lr"],
                "images_per_second": lap.images_per_second,
                "data_wait": lap.wait,
            },
        )
        self._window.clear()

    def _not_finite(self, step: int, values: Mapping[str, float]) -> CommandError:
        self._around.checkpoints.wait()
        saved = self._around.checkpoints.steps()
        last = f"the last good checkpoint is of step {saved[-1]}" if saved else "no checkpoint was saved before"
        what = "loss" if not math.isfinite(values["loss"]) else "gradient"
        value = values["loss"] if what == "loss" else values["grad_norm"]
        return CommandError(
            f"the {what} is {value} at step {step} (learning rate {values['lr']:.3g}); {last} in "
            f"{self._around.checkpoints.directory}. Lower --optim.lr, warm up longer or set --optim.clip-norm"
        )

    def _save(self) -> None:
        self._settle(0)
        if self._around.restore_record():
            self._around.log.reopen()
            self._around.display.say(
                f"{self._around.checkpoints.directory.parent} was removed while training: what comes from now on is "
                "written there anew, earlier checkpoints and logs are lost"
            )
        if self.step not in self._around.checkpoints.steps():
            self._around.checkpoints.save(self.step, self.state)
        self.meter.pause()

    def _validate(self) -> None:
        around, weights = self._around, self.state.ema or {"params": self.state.params, "stats": self.state.stats}

        def progress(done: float) -> None:
            around.display.validating(done)
            # With several processes all must stop at the same point, which only updates have.
            if around.interrupt.reason and jax.process_count() == 1:
                raise _StoppedError

        result = around.validator(weights["params"], weights["stats"], progress)
        around.log.validation(self.step, result)
        around.checkpoints.scores[self.step] = result["accuracy"]
        around.display.say(
            f"epoch {self.step // self._per_epoch}/{self._config.epochs} · loss {self.loss:.4f} · "
            f"accuracy {result['accuracy']:.2f} · consistency {result['consistency']:.2f} · "
            f"{self.meter.total.images_per_second:,.0f} images/s"
        )
        for line in around.validator.symptoms(self.loss, result):
            around.display.say(line)
        self.meter.pause()
