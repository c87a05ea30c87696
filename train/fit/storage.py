"""The manners of the library that stores checkpoints: how it names things, what it says, where it waits silently."""

import gc
import logging
import os
import re
import shutil
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import fsspec.config
from etils import epath

from aa_flax.buckets import AnyPath, BucketPath
from train.fit.distributed import Watch

# What a save in progress is called on a disk, and what is there when one in a bucket is whole.
TEMPORARY, WHOLE = ".orbax-checkpoint-tmp", "commit_success.txt"
# The library tries again and again, without a word, to reach a bucket.
BUCKET_SECONDS = 600


def as_the_library_names(directory: AnyPath) -> Any:
    """A directory as the storage library takes it."""
    if not isinstance(directory, BucketPath):
        return directory
    # An emulator has one name for Google's own client and another for the library's; under one alone it waits forever.
    if address := os.environ.get("STORAGE_EMULATOR_HOST"):
        os.environ.setdefault("TENSORSTORE_GCS_HTTP_URL", address)
    # It would believe in checkpoints that another client has moved, and wait five minutes for an answer.
    settings = {"use_listings_cache": False, "requests_timeout": 60}
    fsspec.config.conf["gcs"] = settings | fsspec.config.conf.get("gcs", {})
    return epath.Path(str(directory))


def move(step: AnyPath, place: AnyPath) -> None:
    if isinstance(step, BucketPath) and isinstance(place, BucketPath):
        # Without this object what is left of the others counts as nothing.
        step.move_tree(place, first=[WHOLE])
    elif isinstance(step, Path) and isinstance(place, Path):
        step.rename(place)


def remove_half_a_save(directory: Path) -> None:
    """Removes what a failed save has left on a disk, as far as its writers let it.

    The library gives up at the first array that it cannot write, while threads of its own still write others: they
    put files into what is being emptied, and make it anew. What comes later still is removed when the run goes on.
    """
    for pause in (0, 0.1, 0.2, 0.4, 0.8):
        time.sleep(pause)
        rests = list(directory.glob(f"*{TEMPORARY}"))
        if pause and not rests:
            return
        for rest in rests:
            shutil.rmtree(rest, ignore_errors=True)


def watched(directory: AnyPath) -> AbstractContextManager[object]:
    """Says what is waited for where a bucket does not answer, and ends the process where it has not for too long."""
    if not isinstance(directory, BucketPath):
        return nullcontext()
    advice = "the storage service is slow or out of reach; the same command goes on from the last whole checkpoint"
    return Watch(f"a checkpoint to be written to {directory}", advice, limit=BUCKET_SECONDS)


def quiet_storage_library() -> None:
    """Keeps the storage library's own reports off stderr, for commands: what matters of them, `Checkpoints` raises.

    It logs every failure with its traceback, as Python does for the writes that it leaves unfinished after one, and
    calls back into event loops that it has closed.
    """
    for name in ("absl", "asyncio", "gcsfs", "google"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    hook = sys.unraisablehook

    def filtered(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    sys.unraisablehook = filtered


def collect_abandoned_reads() -> None:
    """When one array cannot be read, the library drops its other reads unfinished; Python would complain about each
    of them on stderr, at whatever moment it comes to collect them."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        gc.collect()
    finally:
        sys.unraisablehook = hook


def reason(error: Exception) -> str:
    """The system's own words where the storage library has wrapped them in a paragraph."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(code[1])) if code else " ".join(str(error).split())
