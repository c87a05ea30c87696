"""Checkpoints that survive kill -9, full disks, flipped bits and another number of devices."""

import dataclasses
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    LatestN,
    PolicyCheckpointInfo,
)

from aa_flax.buckets import AnyPath, BucketPath
from train.errors import CommandError
from train.fit.storage import (
    WHOLE,
    as_the_library_names,
    collect_abandoned_reads,
    move,
    reason,
    remove_half_a_save,
    watched,
)

Tree = Any


class DamagedCheckpointError(Exception):
    """A checkpoint cannot be used; the message says what is wrong with it."""


class ForeignCheckpointError(DamagedCheckpointError):
    """A checkpoint holds another network's or optimiser's arrays; the message names the first."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restored:
    """What `Checkpoints.restore` found.

    Attributes:
        step: updates made when it was saved.
        state: the tree that was asked for, filled.
        damaged: a line for each newer checkpoint that had to be passed over, newest first.
    """

    step: int
    state: Tree
    damaged: tuple[str, ...] = ()


class Checkpoints:
    """The checkpoints of one run: its last two and its best, saved in the background.

    Arrays are stored under their dotted path in the state, whole and independent of the devices they were on, each
    with a CRC-32 over its bytes. The storage format has no checksum of its own over array data: without it a flipped
    bit is loaded without a word.

    Args:
        directory: where they lie, one directory a step. It is made; leavings of interrupted saves are removed.
        scores: validation accuracy by step, which decides what is best. The caller adds to it as results come in.
        read_only: only look: nothing is made, removed or set aside.

    Raises:
        CommandError: the directory cannot be made or written to.
    """

    def __init__(self, directory: AnyPath, *, scores: dict[int, float] | None = None, read_only: bool = False):
        self.directory = directory.absolute()
        self.scores = {} if scores is None else scores
        self._read_only = read_only
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy([LatestN(2), _Best(self.scores)]),
            create=not read_only,
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
        )
        try:
            self._manager = ocp.CheckpointManager(as_the_library_names(self.directory), options=options)
        except OSError as error:
            raise CommandError(f"checkpoint directory {directory}: {error.strerror or error}") from error

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, oldest first; whether each is sound shows when it is restored."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """The step with the best validation accuracy among those that have a checkpoint; None without any."""
        return _best([step for step in self.steps() if step in self.scores], self.scores)

    def save(self, step: int, state: Tree) -> None:
        """Starts to save a state; the arrays may be donated as soon as this returns.

        Args:
            step: updates made so far.
            state: a tree of arrays, replicated over all devices.

        Raises:
            CommandError: this save or the one before it could not be written.
        """
        arrays = named_leaves(state)
        meta = {
            "step": step,
            "leaves": {name: describe(x) for name, x in arrays.items()},
        }
        self._guarded(
            lambda: self._manager.save(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardSave(arrays), meta=ocp.args.JsonSave(meta)),
                force=True,
            )
        )

    def wait(self) -> None:
        """Blocks until everything is on disk.

        Raises:
            CommandError: a save could not be written.
        """
        self._guarded(self._manager.wait_until_finished)

    def close(self) -> None:
        """Waits for saves and ends the background threads."""
        self.wait()
        self._manager.close()

    def restore(self, like: Tree, *, steps: Sequence[int] | None = None) -> Restored | None:
        """The newest sound checkpoint, placed as asked.

        Every leaf's CRC is compared with the one stored when it was saved. Damaged checkpoints are passed over for
        the next older one and set aside in `damaged/` beside the checkpoints.

        Args:
            like: the state's tree with arrays or `jax.ShapeDtypeStruct` leaves, each with its sharding.
            steps: candidates, best first; by default all, newest first.

        Returns:
            The state and where it came from; None where there is no checkpoint at all.

        Raises:
            CommandError: there are checkpoints, and none of them is sound, or they are another network's.
        """
        candidates = sorted(self.steps(), reverse=True) if steps is None else list(steps)
        damaged: list[str] = []
        foreign = ""
        for step in candidates:
            try:
                state = self._restore_step(step, like)
            except DamagedCheckpointError as error:
                damaged.append(f"checkpoint of step {step} is damaged ({error})")
                if isinstance(error, ForeignCheckpointError) and not foreign:
                    foreign = f"of step {step}: {error}"
                continue
            self._set_aside([s for s in candidates[: candidates.index(step)] if s in self.steps()])
            return Restored(step=step, state=state, damaged=tuple(damaged))
        if foreign:
            raise CommandError(
                f"{self.directory} belongs to another network or optimiser than this one ({foreign}). "
                "Give the options it was saved with, or start again with another --run-dir"
            )
        if damaged:
            raise CommandError(
                f"{self.directory}: no sound checkpoint: {'; '.join(damaged)}. "
                "Restore the directory from a copy, or start again with another --run-dir"
            )
        return None

    def _restore_step(self, step: int, like: Tree) -> Tree:
        wanted = named_leaves(like)
        problem, foreign, arrays, meta = "", False, {}, {}
        try:
            meta = self._read_meta(step)
            _compare_leaves(meta["leaves"], wanted)
            abstract = {n: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for n, x in wanted.items()}
            arguments = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            arrays = self._manager.restore(step, args=arguments)["state"]
            for name, array in arrays.items():
                if describe(array) != meta["leaves"][name]:
                    raise DamagedCheckpointError(f"{name} does not match its checksum")
        except DamagedCheckpointError as error:
            problem, foreign = str(error), isinstance(error, ForeignCheckpointError)
        # Orbax raises bare Exception for an unreadable array, so nothing narrower covers every kind of damage.
        except Exception as error:
            problem = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
        if problem:
            collect_abandoned_reads()
        if not _everyone(not problem):
            kind = ForeignCheckpointError if foreign else DamagedCheckpointError
            raise kind(problem or "another process could not read it")
        tree = jax.tree.structure(like)
        return jax.tree.unflatten(tree, [arrays[name] for name in wanted])

    def _read_meta(self, step: int) -> dict[str, Any]:
        meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
        if meta.get("step") != step:
            raise DamagedCheckpointError(f"it claims to be of step {meta.get('step')}")
        return meta

    def _set_aside(self, steps: Sequence[int]) -> None:
        """Moves damaged checkpoints out of the way, so that their steps can be saved again."""
        if not steps or self._read_only:
            return
        if jax.process_index() == 0:
            shelf = self.directory.parent / "damaged"
            shelf.mkdir(exist_ok=True)
            for step in steps:
                place = next(p for i in range(10**6) if not (p := shelf / f"{step}.{i}").exists())
                move(self.directory / str(step), place)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints set aside")
        self._manager.reload()

    def _guarded(self, action: Callable[[], Any]) -> None:
        """Runs an action of the storage library, turning what it raises into one line and removing half a save."""
        try:
            with watched(self.directory):
                action()
        except (OSError, ValueError, RuntimeError) as error:
            sound = self._sound_steps()
            last = f"the last good checkpoint is of step {sound[-1]}" if sound else "there is no earlier one"
            why = reason(error)
            raise CommandError(f"checkpoint could not be written to {self.directory}: {why}; {last}") from error

    def _sound_steps(self) -> list[int]:
        """Steps whose checkpoint is whole after a save has failed; what there is of that is removed from a disk."""
        if isinstance(self.directory, BucketPath):
            # What is not whole there is removed when the run goes on. Now the bucket may be out of reach.
            with suppress(OSError):
                return [step for step in self.steps() if (self.directory / str(step) / WHOLE).exists()]
            return []
        remove_half_a_save(self.directory)
        return [step for step in self.steps() if (self.directory / str(step)).is_dir()]


@dataclasses.dataclass
class _Best:
    """Preserves the checkpoint with the highest score. The scores are the run's: the library forgets metrics on
    restart, unless its other retention rule is on as well, which deletes the newest checkpoint."""

    scores: dict[int, float]

    def should_preserve(self, checkpoints: Sequence[PolicyCheckpointInfo], *, context: Any) -> Sequence[bool]:
        del context
        best = _best([info.step for info in checkpoints if info.step in self.scores], self.scores)
        return [info.step == best for info in checkpoints]


def _best(steps: Sequence[int], scores: Mapping[int, float]) -> int | None:
    """The newest of the steps with the highest score."""
    return max(steps, key=lambda step: (scores[step], step), default=None)


def named_leaves(tree: Tree) -> dict[str, Any]:
    """Leaves by their dotted path, such as `params.conv1.kernel`, in the tree's order."""
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in paths}


def describe(array: jax.Array) -> dict[str, Any]:
    """Shape, dtype and CRC-32 of an array that every process holds whole."""
    values = np.ascontiguousarray(jax.device_get(array))
    crc = zlib.crc32(values.reshape(-1).view(np.uint8).data)
    return {"shape": list(array.shape), "dtype": str(array.dtype), "crc32": crc}


def _compare_leaves(saved: dict[str, dict[str, Any]], wanted: dict[str, Any]) -> None:
    for name in sorted(saved.keys() ^ wanted.keys()):
        raise ForeignCheckpointError(f"{name} is {'unknown here' if name in saved else 'missing there'}")
    for name, leaf in wanted.items():
        form = {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}
        found = {key: saved[name][key] for key in form}
        if form != found:
            raise ForeignCheckpointError(f"{name} is {json.dumps(found)} there and {json.dumps(form)} here")


def _everyone(fine: bool) -> bool:
    """Whether all processes are fine; each must call this."""
    if jax.process_count() == 1:
        return fine
    return bool(np.all(multihost_utils.process_allgather(np.array(fine))))
