"""The command table: help, unknown words, exit codes."""

import subprocess
import sys
from pathlib import Path

import pytest

from train.__main__ import COMMANDS, announce, main
from train.errors import CommandError

ROOT = Path(__file__).parents[1]


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert f"  {name} " in printed
        assert command.summary in printed


def test_no_command_shows_the_same_on_stderr(capsys):
    assert main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "usage: python -m train COMMAND" in captured.err


def test_an_unknown_command_lists_those_that_exist(capsys):
    assert main(["evalute"]) == 2
    assert capsys.readouterr().err == f"error: unknown command 'evalute'; commands are: {', '.join(COMMANDS)}\n"


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_explains_its_options(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    assert f"usage: python -m train {name}" in capsys.readouterr().out


def test_an_unknown_option_is_exit_code_two(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", "--data", ".", "--wieghts", "x"])
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert "--wieghts" in captured.out + captured.err


def test_a_command_error_is_one_line(monkeypatch, capsys):
    def refuse(config):
        raise CommandError("the thing is broken: mend it")

    monkeypatch.setattr("train.evaluate.command.run", refuse)
    assert main(["evaluate", "--data", "."]) == 2
    assert capsys.readouterr().err == "error: the thing is broken: mend it\n"


def test_an_interrupt_has_no_traceback(monkeypatch, capsys):
    def interrupt(config):
        raise KeyboardInterrupt

    monkeypatch.setattr("train.evaluate.command.run", interrupt)
    assert main(["evaluate", "--data", "."]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_other_errors_keep_their_traceback(monkeypatch):
    def fail(config):
        raise ZeroDivisionError

    monkeypatch.setattr("train.evaluate.command.run", fail)
    with pytest.raises(ZeroDivisionError):
        main(["evaluate", "--data", "."])


def test_the_overview_imports_neither_jax_nor_a_command():
    program = (
        "import sys, train.__main__ as m; m.main(['--help']);"
        "sys.exit(any(name in sys.modules for name in ('jax', 'train.evaluate.command', 'grain')))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_what_is_being_started_is_told_while_jax_is_loaded():
    command = [sys.executable, "-m", "train", "fit", "resnet18"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        process.kill()
    assert line == "fit resnet18: starting; JAX takes a few seconds to load\n"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["evaluate", "--data", "x"], "evaluate"),
        (["export", "a b/é"], "export a b/é"),
        (["explain", "\x1b[2J"], "explain"),
        (["explain", "\udce9"], "explain"),
        (["fit", "resnet18", "--help"], None),
        (["fit", "-h"], None),
    ],
)
def test_what_is_only_explained_or_cannot_be_shown_is_not_announced(words, named, monkeypatch, capsys):
    announce(words)
    assert capsys.readouterr().err == ""
    monkeypatch.delitem(sys.modules, "jax")
    announce(words)
    expected = "" if named is None else f"{named}: starting; JAX takes a few seconds to load\n"
    assert capsys.readouterr() == ("", expected)
