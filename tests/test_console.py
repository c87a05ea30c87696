"""What is printed is what was meant: words from outside are neither markup nor orders to the terminal."""

import io
import logging
import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from aa_flax.printable import accept_any_text, printable
from train.console import log_to, open_console, progress

PIECES = (
    "[/red]",
    "[bold]",
    ":cat:",
    "\x1b[2J",
    "\x07",
    "\r",
    "\x9b",
    "\u202e",
    "\udce9",
    "é",
    "日",
    "]",
    "\\[",
    "a b",
)
NAMES = st.one_of(st.text(min_size=1), st.lists(st.sampled_from(PIECES), min_size=1).map("".join))


@given(NAMES)
def test_printable_text_can_be_printed_and_is_left_alone(name):
    shown = printable(name)
    shown.encode()
    assert printable(shown) == shown
    assert all(character in "\n\t" or ord(character) >= 32 for character in shown)
    assert "\x1b" not in shown
    if name.isascii() and name.isprintable():
        assert shown == name


@given(NAMES.filter(lambda name: not set(name) & set("\n\t")))
def test_a_console_prints_the_name_itself(name):
    console = open_console()
    with console.capture() as captured:
        console.print(name, soft_wrap=True)
    assert captured.get() == f"{printable(name)}\n"


@pytest.mark.parametrize("name", [piece for piece in PIECES if piece not in "\r\x07"])
def test_tables_bars_and_warnings_show_the_name_itself(name, capsys):
    console = open_console(stderr=True)
    table = Table(title=name)
    table.add_column(name)
    table.add_row(name)
    console.print(table)
    assert capsys.readouterr().err.count(printable(name)) == 3
    with progress(console, "photos") as bars:
        bars.add_task(name, total=2)
    assert printable(name) in capsys.readouterr().err
    root = logging.getLogger()
    before = root.handlers[:]
    try:
        log_to(console)
        logging.getLogger("somebody").warning("%s is unreadable", name)
    finally:
        root.handlers = before
    assert f"{printable(name)} is unreadable" in capsys.readouterr().err


def test_an_encoding_without_the_character_ends_nothing(monkeypatch):
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding="latin-1"))
    accept_any_text()
    open_console().print("é 日", soft_wrap=True)
    sys.stdout.flush()
    assert buffer.getvalue() == b"\xe9 \\u65e5\n"


def test_a_reader_that_goes_away_takes_nothing_with_it(monkeypatch):
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        console = open_console(stderr=True)
        console.print("first")
        assert os.read(reading, 100) == b"first\n"
        os.close(reading)
        for _ in range(3):
            console.print("lost")
        # Nor does what others write there.
        print("lost", file=stream, flush=True)


def test_a_terminal_that_is_closed_takes_nothing_with_it(monkeypatch):
    terminal, ours = os.openpty()
    with os.fdopen(ours, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        console = open_console(stderr=True)
        os.close(terminal)
        with progress(console) as bars:
            bars.update(bars.add_task("lost", total=2), advance=1)
            console.print("lost")
        print("lost", file=stream, flush=True)
