"""Requests to stop: SIGTERM, Ctrl-C, a terminal that is closed, and a cluster's preemption notice."""

import signal
from types import FrameType
from typing import Self

import jax
from jax.experimental import multihost_utils


class Interrupt:
    """While entered, SIGTERM, SIGHUP and Ctrl-C only leave a note, and training stops itself at the next step.

    SIGHUP stays ignored where it is, under `nohup`. A second Ctrl-C acts at once. With several processes the note is
    JAX's: its coordination service hears SIGTERM in any of them and names one step at which all stop.

    Attributes:
        reason: name of the signal that came, empty before.
    """

    def __init__(self) -> None:
        self.reason = ""
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        if jax.process_count() == 1:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                    continue
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.reason = signal.Signals(number).name
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def requested(self, step: int) -> bool:
        """Whether to stop before this step; with several processes each must ask at every step."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.reason = "SIGTERM"
        return bool(self.reason)
