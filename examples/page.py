"""Pages whose tables a command writes: everything between two marks is its own, everything else stays."""

from pathlib import Path

from aa_flax.files import write_atomically
from train.errors import CommandError

END = "<!-- end -->"


def begin(command: str) -> str:
    """The mark before what a command has written."""
    return f"<!-- written by {command}: begin -->"


def put_into(page: Path, text: str, command: str) -> None:
    """Writes text between the marks of a command.

    Raises:
        CommandError: the page has no such place.
    """
    mark = begin(command)
    before, found, rest = page.read_text().partition(mark)
    _, end, after = rest.partition(END)
    if not (found and end):
        raise CommandError(f"{page} has no place for the tables: it needs the lines {mark} and {END}")
    write_atomically(page, f"{before}{mark}\n\n{text}\n\n{END}{after}".encode())
