"""The one exception that a command turns into a line on stderr and exit code 2."""


class CommandError(Exception):
    """Something the person at the keyboard can put right.

    The message is one line that names the thing, its value and what to do about it.
    """
