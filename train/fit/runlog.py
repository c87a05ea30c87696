"""The written trace of a run: metrics.jsonl, validation.json, TensorBoard files and optionally wandb."""

import json
import logging
import math
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aa_flax.buckets import AnyPath, BucketPath
from aa_flax.files import write_atomically
from aa_flax.weights.json_file import parse_json, read_json
from train.errors import CommandError
from train.fit.appending import GrowingObject, open_growing
from train.fit.config import LogConfig

log = logging.getLogger(__name__)

Scores = dict[int, dict[str, float]]
SCORES = ("accuracy", "accuracy_stderr", "consistency", "consistency_stderr")


def check_log(config: LogConfig) -> None:
    """Imports what logging needs, so that a missing package is known before anything starts.

    Raises:
        CommandError: the package is not installed.
    """
    try:
        if config.wandb is not None:
            import wandb  # noqa: F401  # type: ignore[import-not-found]
    except ImportError as error:
        raise CommandError("--log.wandb needs the package wandb: pip install wandb") from error


class RunLog:
    """Writes what happens in a run; what was written after the step it continues from is cut off first.

    Args:
        run_dir: the run's directory.
        config: what to write.
        step: updates made so far; 0 for a new run.
        settings: the run's configuration, shown by wandb.
        lead: whether this process writes; the others only keep count.

    Attributes:
        scores: validation results by step.

    Raises:
        CommandError: validation.json is damaged.
        OSError: the directory cannot be written to.
    """

    def __init__(
        self, run_dir: AnyPath, config: LogConfig, *, step: int, settings: Mapping[str, Any], lead: bool = True
    ):
        self._run_dir, self._config = run_dir, config
        self.scores = {s: v for s, v in read_scores(run_dir).items() if s <= step}
        self._stream = self._tensorboard = self._wandb = None
        if not lead:
            return
        path = run_dir / "metrics.jsonl"
        if path.exists():
            kept = [line for line in _lines(path) if self._holds(line, step)]
            write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._open(step)
        self._wandb = _wandb(run_dir, config.wandb, settings) if config.wandb else None

    def _open(self, step: int) -> None:
        self._stream = open_growing(self._run_dir / "metrics.jsonl")
        self._tensorboard = TensorBoard(self._run_dir / "tensorboard", step) if self._config.tensorboard else None

    def reopen(self) -> None:
        """Goes on in new files, after the directory was removed; the scores known so far are written again."""
        self._close_files()
        self._open(0)
        write_scores(self._run_dir / "validation.json", self.scores)

    def _close_files(self) -> None:
        for file in (self._stream, self._tensorboard):
            if file is not None:
                file.close()

    def _holds(self, line: dict[str, Any], step: int) -> bool:
        if line["kind"] == "validation":
            return line["step"] in self.scores
        return line["step"] <= step

    def training(self, step: int, values: Mapping[str, float]) -> None:
        """A line about the steps up to this one.

        Raises:
            OSError: a file cannot be written.
        """
        self._write("train", step, values)

    def validation(self, step: int, values: Mapping[str, float]) -> None:
        """The result of validating after this many steps; also kept in validation.json.

        Raises:
            OSError: a file cannot be written.
        """
        self._write("validation", step, values)
        self.scores[step] = dict(values)
        if self._stream is not None:
            write_scores(self._run_dir / "validation.json", self.scores)
        if self._tensorboard is not None:
            self._tensorboard.flush()

    def _write(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        if self._stream is None:
            return
        self._stream.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        named = {f"{kind}/{name}": value for name, value in values.items()}
        if self._tensorboard is not None:
            self._tensorboard.add(named, step)
        if self._wandb is not None:
            self._wandb.log(named, step=step)

    def flush(self) -> None:
        """Brings everything to where it is kept: no checkpoint may know of more than the log.

        Raises:
            OSError: a file cannot be written.
        """
        for file in (self._stream, self._tensorboard):
            if file is not None:
                file.flush()

    def close(self) -> None:
        """Writes out and closes everything."""
        self._close_files()
        if self._wandb is not None:
            self._wandb.finish()


def read_scores(run_dir: AnyPath) -> Scores:
    """Validation results by step; empty where there are none yet.

    Raises:
        CommandError: validation.json is damaged, or cannot be read.
    """
    path = run_dir / "validation.json"
    if not path.exists():
        return {}
    try:
        return {int(step): _scores(values) for step, values in read_json(path).items()}
    except OSError as error:
        raise CommandError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise CommandError(
            f"{path} is damaged ({error}); delete it to go on without the scores of past epochs"
        ) from error


def _scores(values: Any) -> dict[str, float]:
    for name in SCORES:
        value = values.get(name)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise ValueError(f"{name} is {value!r}, but must be a number")
    return dict(values)


def write_scores(path: AnyPath, scores: Scores) -> None:
    """Writes validation results by step, whole or not at all."""
    write_atomically(path, (json.dumps({str(s): v for s, v in scores.items()}, indent=1) + "\n").encode())


def _lines(path: AnyPath) -> list[dict[str, Any]]:
    """The sound lines of a log; the last may have been cut off when the process was killed."""
    found, damaged = [], 0
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            line = parse_json(text)
        except ValueError:
            line = None
        if isinstance(line, dict) and type(line.get("step")) is int and isinstance(line.get("kind"), str):
            found.append(line)
        elif text.endswith("\n"):
            damaged += 1
    if damaged:
        log.warning("%s: %d damaged lines left out", path, damaged)
    return found


class TensorBoard:
    """Scalars in TensorBoard's file format, written by the caller's thread.

    tensorboardX's `SummaryWriter` hands them to a thread of its own, which a full disk ends; a run would then wait
    without end for room in that thread's queue.

    Args:
        directory: where the file goes; made when missing.
        step: updates made so far; TensorBoard forgets what earlier files say of later ones.

    Raises:
        OSError: here as in every method, the file cannot be written.
    """

    def __init__(self, directory: AnyPath, step: int):
        from tensorboardX import record_writer
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # type: ignore[attr-defined]

        # Its own writer for buckets sends all of a file again with each part.
        record_writer.register_writer_factory("gs", _GrowingObjects())
        directory.mkdir(parents=True, exist_ok=True)
        self._event = Event
        self._file = EventsWriter(str(directory / "events"))
        if step:
            restart = SessionLog(status=SessionLog.START)
            self._file.write_event(Event(wall_time=time.time(), step=step + 1, session_log=restart))

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Scalars by name; they reach the file in blocks."""
        summary = {"value": [{"tag": name, "simple_value": value} for name, value in values.items()]}
        self._file.write_event(self._event(wall_time=time.time(), step=step, summary=summary))

    def flush(self) -> None:
        """Brings everything onto the disk."""
        self._file.flush()

    def close(self) -> None:
        """Writes out and closes the file."""
        self._file.close()


class _GrowingObjects:
    """What tensorboardX asks for a file in a bucket."""

    def open(self, path: str) -> GrowingObject:
        return GrowingObject(BucketPath(path))

    def directory_check(self, path: str) -> None:
        """Does nothing: there are no directories."""


def _wandb(run_dir: AnyPath, project: str | None, settings: Mapping[str, Any]) -> Any:
    import wandb  # type: ignore[import-not-found]

    # A run of this name may exist there already, made elsewhere: only what is drawn by chance is ours alone.
    known = run_dir / "wandb-id"
    if not known.exists():
        write_atomically(known, secrets.token_hex(8).encode())
    identity, name = known.read_text(encoding="utf-8").strip(), run_dir.absolute().name
    # It keeps files of its own, on a disk.
    directory = str(run_dir) if isinstance(run_dir, Path) else None
    try:
        return wandb.init(project=project, name=name, id=identity, resume="allow", config=dict(settings), dir=directory)
    except wandb.Error as error:
        reason = " ".join(str(error).split())
        raise CommandError(
            f"--log.wandb {project}: {reason}; log in with `wandb login`, or set WANDB_MODE=offline"
        ) from error
