"""Paths in the options of commands: of this machine, and where an option says so, in a bucket."""

from pathlib import Path
from typing import Annotated, Any

from tyro.constructors import PrimitiveConstructorSpec

from aa_flax.buckets import AnyPath, BucketPath, is_in_bucket
from aa_flax.local_paths import check_local_paths
from train.errors import CommandError


def as_place(text: str) -> AnyPath:
    """A path of this machine or in a bucket. Other addresses stay paths here: `require_local_paths`, which knows the
    option, refuses them."""
    return BucketPath(text) if is_in_bucket(text) else Path(text)


Place = Annotated[
    AnyPath,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=lambda words: as_place(words[0]),
        is_instance=lambda value: isinstance(value, AnyPath),
        str_from_instance=lambda place: [str(place)],
    ),
]
"""What an option takes that may lie in a bucket: gs://bucket/name."""


def require_local_paths(options: Any, prefix: str = "--") -> None:
    """`aa_flax.local_paths.check_local_paths` for a command's options.

    Raises:
        CommandError: names the option that is an address such as s3://bucket/run, or gs://bucket/run where that
            cannot be.
    """
    try:
        check_local_paths(options, prefix)
    except ValueError as error:
        raise CommandError(str(error)) from None
