"""Paths in the options of commands lie on this machine."""

from typing import Any

from aa_flax.local_paths import check_local_paths
from train.errors import CommandError


def require_local_paths(options: Any, prefix: str = "--") -> None:
    """`aa_flax.local_paths.check_local_paths` for a command's options.

    Raises:
        CommandError: names the option that is an address such as gs://bucket/run.
    """
    try:
        check_local_paths(options, prefix)
    except ValueError as error:
        raise CommandError(str(error)) from None
