"""`python -m train COMMAND ...`: picks the command's module and turns its errors into one line.

Each command is a module with a frozen dataclass `Config`, which tyro reads from the command line,
and `run(config) -> int`, the exit code. One whose options need more than a dataclass (presets) has
`parse(options, prog) -> config` as well. Modules are imported only when they are called for, so
that `--help` and the data loader's worker processes (which import this file too) stay quick.
"""

import importlib
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from train.errors import CommandError


@dataclass(frozen=True)
class Command:
    """A row of the command table: the module that holds `Config` and `run`, and a help line."""

    module: str
    summary: str


COMMANDS = {
    "fit": Command("train.fit.command", "train a network, or go on where training stopped"),
    "export": Command("train.fit.export", "write the weights of a run for `aa_flax.load_pretrained`"),
    "evaluate": Command("train.evaluate.command", "measure accuracy and shift consistency on photos"),
    "compare": Command("train.compare.command", "measure many networks on the same photos, as a report"),
    "reproduce": Command("train.reproduce.command", "measure the published networks again, as a report"),
    "explain": Command("train.explain.command", "show what a network says of one photo as it shifts"),
    "video": Command("train.video.command", "measure how often a prediction changes from frame to frame"),
    "prepare": Command("train.data.prepare", "write a TFDS data set as array_record, once"),
}

USAGE_ERROR = 2
# What a shell reports of a program that SIGINT ended.
INTERRUPTED = 130


def _overview() -> str:
    width = max(map(len, COMMANDS))
    rows = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    last = "`python -m train COMMAND --help` lists a command's options."
    return "\n".join(["usage: python -m train COMMAND [OPTIONS]", "", "commands:", *rows, "", last])


def announce(words: Sequence[str]) -> None:
    """Says on stderr what is being started, before the seconds in which nothing could be said."""
    if "jax" in sys.modules or {"-h", "--help"} & set(words):
        return
    # The command's object, such as the network: unless that is an option, or nothing that can be shown.
    named = [word for word in words[:2] if word.isprintable() and not word.startswith("-")]
    with suppress(OSError):
        print(f"{' '.join(named)}: starting; JAX takes a few seconds to load", file=sys.stderr, flush=True)


def _parse(module: ModuleType, options: list[str], prog: str) -> Any:
    import tyro

    if hasattr(module, "parse"):
        return module.parse(options, prog)
    return tyro.cli(module.Config, prog=prog, args=options)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: the words after `python -m train`; those of this process by default.

    Returns:
        the command's exit code; 2 when it ended in a `CommandError`, whose message is then the
        one line on stderr; 130 when it was interrupted.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(_overview(), file=sys.stdout if words else sys.stderr)
        return 0 if words else USAGE_ERROR
    name, *options = words
    if name not in COMMANDS:
        known = ", ".join(COMMANDS)
        print(f"error: unknown command {name!r}; commands are: {known}", file=sys.stderr)
        return USAGE_ERROR
    announce(words)
    # Not before: these bring JAX with them.
    from aa_flax.buckets import is_in_bucket
    from aa_flax.printable import accept_any_text, printable
    from train.local_paths import require_local_paths

    accept_any_text()
    module = importlib.import_module(COMMANDS[name].module)
    try:
        config = _parse(module, options, f"python -m train {name}")
        require_local_paths(config)
        return module.run(config)
    except CommandError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return USAGE_ERROR
    except OSError as error:
        # A bucket can be out of reach at any moment; on a disk that is not expected.
        if not is_in_bucket(str(error.filename)):
            raise
        print(f"error: {printable(f'{error.filename}: {error.strerror}')}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
