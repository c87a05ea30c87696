"""The directory of a run: what is in it, who may write to it, whether it may be continued."""

import fcntl
import fnmatch
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from aa_flax.buckets import AnyPath, BucketPath
from train.environment import environment
from train.errors import CommandError
from train.fit.agreement import prove_shared, together
from train.fit.config import TrainConfig
from train.fit.distributed import is_lead
from train.fit.inputs import data_changes, parent_of, under_the_same_paths, weights_digest
from train.fit.lease import Lease
from train.fit.record import FILE_NAME, Record, differences, read_record, write_record

CHECKPOINTS = "checkpoints"
LOCK = ".lock"


def default_run_dir(config: TrainConfig) -> Path:
    """Where a run lives unless told otherwise: the same command finds its run again."""
    return Path("runs") / f"{config.model}-{config.preset}"


class Claim(Protocol):
    """A run's hold of its directory."""

    def check(self) -> None:
        """Makes sure that it is still this run's; to be asked before anything is written to it.

        Raises:
            CommandError: it is another's now.
        """

    def release(self) -> None:
        """Lets go of it; may be called again."""


class _Unquestioned:
    """The hold of a process that the system, or another process, answers for."""

    def check(self) -> None: ...

    def release(self) -> None: ...


@contextmanager
def claimed(run_dir: AnyPath) -> Iterator[Claim]:
    """Makes a run's directory and keeps it from a second run while this one is alive.

    Several processes make sure that it is the same directory for all of them. Nothing is left of it where nothing
    came to be written.

    Raises:
        CommandError: it cannot be made or written to, another run trains in it, or it is not shared.
    """
    with ExitStack() as stack:

        def claim() -> Claim:
            _check_name(run_dir)
            if not is_lead():
                return _Unquestioned()
            return stack.enter_context(_leased(run_dir) if isinstance(run_dir, BucketPath) else _locked(run_dir))

        hold = together(claim)
        prove_shared(run_dir)
        yield hold


@contextmanager
def _leased(run_dir: BucketPath) -> Iterator[Claim]:
    try:
        run_dir.check_bucket()
        lease = Lease(run_dir, LOCK)
    except OSError as error:
        raise CommandError(f"--run-dir {run_dir} cannot be written to: {error.strerror}") from error
    try:
        yield lease
    finally:
        lease.release()


@contextmanager
def _locked(run_dir: Path) -> Iterator[Claim]:
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = (run_dir / LOCK).open("w")
    except OSError as error:
        raise CommandError(f"--run-dir {run_dir} cannot be written to: {error.strerror}") from error
    with lock:
        try:
            # The system lets go of the lock however the process ends.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CommandError(f"--run-dir {run_dir}: another process is training in it") from error
        try:
            yield _Unquestioned()
        finally:
            _remove_unused(run_dir)


def _check_name(run_dir: AnyPath) -> None:
    """Refuses names under which the library that saves checkpoints would lose them."""
    if not _is_utf8(str(run_dir.absolute())):
        raise CommandError(
            f"--run-dir {run_dir}: checkpoints are saved under names in UTF-8, which this is not under this locale; "
            "set PYTHONUTF8=1, or choose another name"
        )
    # Orbax looks for what it has just saved by a pattern: below `[a]` it finds nothing.
    for name in str(run_dir.absolute()).split(os.sep):
        if not fnmatch.fnmatchcase(name, name):
            raise CommandError(
                f"--run-dir {run_dir}: checkpoints below {name!r} would be lost, because the library that saves them "
                "reads brackets as a pattern; choose a directory without them"
            )


def _is_utf8(path: str) -> bool:
    """Whether the system knows a path by the bytes that UTF-8 has for it."""
    try:
        return path.encode() == os.fsencode(path)
    except UnicodeEncodeError:
        return False


def _remove_unused(run_dir: Path) -> None:
    """Removes a run's directory in which nothing was written."""
    names = {entry.name for entry in run_dir.iterdir()}
    if not names <= {LOCK, CHECKPOINTS}:
        return
    # What is not empty cannot be removed this way, and stays.
    with suppress(OSError):
        if CHECKPOINTS in names:
            (run_dir / CHECKPOINTS).rmdir()
        (run_dir / LOCK).unlink()
        run_dir.rmdir()


def has_checkpoints(run_dir: AnyPath) -> bool:
    """Whether the run has saved anything yet, be it sound or not."""
    directory = run_dir / CHECKPOINTS
    return directory.is_dir() and any(entry.name.isdigit() for entry in directory.iterdir())


def may_continue(run_dir: AnyPath, config: TrainConfig, dataset: dict[str, Any]) -> list[str]:
    """Checks that a configuration may continue the run found in a directory.

    Args:
        run_dir: the directory, which may hold no run yet.
        config: what is about to be trained.
        dataset: what the data turned out to be.

    Returns:
        Lines about accepted differences to the run that is continued.

    Raises:
        CommandError: the run found there differs in what decides its outcome, or must not be continued.
    """
    if not has_checkpoints(run_dir):
        return []
    if config.resume == "never":
        raise CommandError(f"--run-dir {run_dir} holds a run already: choose another or leave out --resume never")
    if not (run_dir / FILE_NAME).exists():
        raise CommandError(
            f"--run-dir {run_dir} holds checkpoints without the {FILE_NAME} of the run they belong to: "
            "choose another, or remove it"
        )
    old = read_record(run_dir / FILE_NAME)
    same_paths = under_the_same_paths(old, config, dataset)
    changes = differences(old.config, same_paths) + data_changes(old.dataset, dataset)
    if changes and not config.accept_changes:
        raise CommandError(
            f"--run-dir {run_dir} holds a run with other options: {'; '.join(changes)}. Choose another "
            "--run-dir, or continue it all the same with --accept-changes"
        )
    return changes


def leave_record(run_dir: AnyPath, config: TrainConfig, dataset: dict[str, Any]) -> Record | None:
    """Writes `config.json` of a run that is about to start or to go on.

    Returns:
        What was written; None in processes that write nothing.

    Raises:
        OSError: it cannot be written.
    """
    if not is_lead():
        return None
    path = run_dir / FILE_NAME
    # A run that goes on started from what it started from.
    old = read_record(path) if has_checkpoints(run_dir) and path.exists() else None
    began = config.init, config.model
    init, parent = (old.init, old.parent) if old else (weights_digest(*began), parent_of(*began))
    record = Record(config=config, dataset=dataset, environment=environment(), init=init, parent=parent)
    write_record(path, record)
    return record


def restore_record(run_dir: AnyPath, record: Record | None) -> bool:
    """Writes a run's `config.json` anew where somebody has removed it, so that what follows can be exported.

    Returns:
        Whether it was gone.

    Raises:
        OSError: it cannot be written.
    """
    if record is None or (run_dir / FILE_NAME).exists():
        return False
    write_record(run_dir / FILE_NAME, record)
    return True
