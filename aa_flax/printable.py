"""Text from outside, such as the name of a file or of a class, made fit to be printed."""

import io
import sys
import unicodedata

# Controls of a terminal, halves of characters that no encoding has, and separators that break a line unseen.
_HIDDEN = frozenset({"Cc", "Cs", "Zl", "Zp"})
# What turns the direction of reading, and can make a name read as another one.
_TURNING = frozenset("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: str) -> str:
    r"""The text with everything that a terminal would obey, or could not show, written as an escape.

    Line breaks and tabs stay.

    >>> printable("\x1b[2Jcat.jpg")
    '\\x1b[2Jcat.jpg'
    """
    if text.isprintable():
        return text
    return "".join(map(_shown, text))


def _shown(character: str) -> str:
    seen = character in "\n\t" or (unicodedata.category(character) not in _HIDDEN and character not in _TURNING)
    return character if seen else character.encode("unicode_escape").decode("ascii")


def accept_any_text() -> None:
    """Characters that the encoding of a terminal lacks are written as escapes, rather than ending a command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
