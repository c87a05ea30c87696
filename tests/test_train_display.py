"""What a person sees of a run."""

import io
import os
import signal

import pytest
from rich.console import Console

from train.fit.display import Display
from train.fit.interrupt import Interrupt


def drawn(width: int) -> str:
    """The live line of ImageNet's ninety epochs, in a terminal of so many columns."""
    display = Display(Console(width=width, force_terminal=True, file=io.StringIO()), epochs=90, steps_per_epoch=5004)
    display.step(123_456, loss=1.2345, images_per_second=12_345, wait=0.03)
    page = Console(width=width, file=io.StringIO(), color_system=None)
    page.print(display._progress.get_renderable())
    return page.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [80, 120])
def test_a_long_run_fits_into_one_line(width):
    line = drawn(width)
    assert line.count("\n") == 1
    for part in ("epoch 25/90", "step 123456/450360", "loss 1.2345", "12,345 images/s", "wait 3%", "--:--"):
        assert part in line


def test_off_a_terminal_it_speaks_every_half_minute(monkeypatch):
    now = 0.0
    monkeypatch.setattr("train.fit.display.time.monotonic", lambda: now)
    page = io.StringIO()
    with Display(Console(width=80, file=page), epochs=2, steps_per_epoch=100) as display:
        for step in range(200):
            now = step
            display.step(step + 1, loss=1.0, images_per_second=5, wait=0)
    told = page.getvalue().splitlines()
    assert len(told) == 199 // 31
    assert told[0] == "epoch 1/2 · step 32/200 · loss 1.0000 · 5 images/s · wait 0%"


def test_a_closed_terminal_stops_the_run_in_order_unless_that_is_ignored():
    before = signal.getsignal(signal.SIGHUP)
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with Interrupt() as interrupt:
            os.kill(os.getpid(), signal.SIGHUP)
            assert interrupt.requested(0)
        assert interrupt.reason == "SIGHUP"
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with Interrupt() as interrupt:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not interrupt.requested(0)
    finally:
        signal.signal(signal.SIGHUP, before)
