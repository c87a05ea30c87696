"""Many devices and many processes: how they start and end, and where arrays lie on them."""

import collections
import dataclasses
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from aa_flax.printable import printable
from train.errors import CommandError

Tree = Any

# Seconds without a sign of the others before a line says what is waited for; an update has to be compiled first.
PATIENCE, UPDATE_PATIENCE = 20.0, 60.0
# JAX's own time-outs abort with a native stack: ours must come first.
SLACK = 60
# Process 0 carries the service without which JAX aborts the others, in the middle of their last words.
LEAD_LINGERS = 3.0
# How errors of JAX's runtime begin, of whatever Python type: a collective operation that another process has left.
RUNTIME_ERRORS = ("UNKNOWN:", "UNAVAILABLE:", "INTERNAL:", "ABORTED:", "CANCELLED:", "DEADLINE_EXCEEDED:")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LaunchConfig:
    """Several processes training together."""

    distributed: bool = False
    """This is one of several processes; on TPU pods, SLURM, GKE and Open MPI they find each other."""

    coordinator: str | None = None
    """HOST:PORT of process 0, where they cannot find each other; needs the two options below."""

    num_processes: int | None = None
    """How many processes there are."""

    process_id: int | None = None
    """Which of them this is, from 0."""

    start_timeout: int = 300
    """Seconds to wait for the other processes at the start."""

    heartbeat_timeout: int = 100
    """Seconds without a sign of life after which a process counts as gone and the others end."""


def check_launch(config: LaunchConfig) -> None:
    """Refuses combinations that cannot be.

    Raises:
        CommandError: names the option.
    """
    explicit = (config.coordinator, config.num_processes, config.process_id)
    if not config.distributed:
        if any(value is not None for value in explicit):
            raise CommandError("--coordinator, --num-processes and --process-id need --distributed")
        return
    if any(value is None for value in explicit) and any(value is not None for value in explicit):
        raise CommandError("--coordinator, --num-processes and --process-id go together: give all or none")
    for name in ("start_timeout", "heartbeat_timeout"):
        if getattr(config, name) < 1:
            raise CommandError(f"--{name.replace('_', '-')} is {getattr(config, name)}, but must be at least 1")
    if config.num_processes is not None and config.process_id is not None:
        if config.num_processes < 1:
            raise CommandError(f"--num-processes is {config.num_processes}, but must be at least 1")
        if not 0 <= config.process_id < config.num_processes:
            raise CommandError(f"--process-id is {config.process_id}, but must be from 0 to {config.num_processes - 1}")


def start(config: LaunchConfig) -> None:
    """Joins the other processes; must come before anything touches a device.

    Raises:
        CommandError: they cannot be found.
    """
    if not config.distributed:
        return
    this, count = config.process_id, config.num_processes
    others = "the other processes" if count is None else f"all {count} processes (this is process {this})"
    where = "" if config.coordinator is None else f" and can reach {config.coordinator}"
    advice = f"see that each is started{where}, or wait longer with --start-timeout"
    try:
        with Watch(others, advice, limit=config.start_timeout):
            jax.distributed.initialize(
                config.coordinator,
                count,
                this,
                initialization_timeout=config.start_timeout + SLACK,
                heartbeat_timeout_seconds=config.heartbeat_timeout + SLACK,
            )
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise CommandError(
            f"--distributed: the processes did not find each other ({reason}); "
            "give --coordinator HOST:PORT --num-processes N --process-id I"
        ) from error
    _check_equal_shares()


def _check_equal_shares() -> None:
    """Refuses processes or slices with different numbers of devices: they could not share a batch evenly."""
    for part in ("process", "slice"):
        counts = collections.Counter(getattr(device, f"{part}_index", 0) for device in jax.devices())
        least, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
        if counts[least] != counts[most]:
            raise CommandError(
                f"{part} {most} has {counts[most]} devices and {part} {least} {counts[least]}: give each as many"
            )


class Watch:
    """While entered, a thread says on stderr what is waited for, as long as nothing moves.

    Waiting inside of JAX cannot be interrupted, and where it gives up it takes the process with it.

    Args:
        what: what is waited for.
        advice: what to do about it.
        sign: whatever changes as long as things move; by default nothing is expected to.
        patience: seconds before the first line.
        limit: seconds after which the process ends with code 2; None to wait on.
    """

    def __init__(
        self,
        what: str,
        advice: str,
        *,
        sign: Callable[[], Any] = lambda: None,
        patience: float = PATIENCE,
        limit: float | None = None,
    ):
        self._what, self._advice, self._sign, self._patience, self._limit = what, advice, sign, patience, limit
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()

    def _look(self) -> None:
        since, last, patience = time.monotonic(), self._sign(), self._patience
        while not self._done.wait(min(1.0, patience, self._limit or patience)):
            now, sign = time.monotonic(), self._sign()
            if sign != last:
                since, last, patience = now, sign, self._patience
            elif self._limit is not None and now - since >= self._limit:
                last_words(f"error: waited {self._limit:g} s for {self._what}: {self._advice}")
            elif now - since >= patience:
                print(
                    f"waiting for {self._what} since {now - since:.0f} s: {self._advice}", file=sys.stderr, flush=True
                )
                patience *= 2


def last_words(message: str, *, linger: float = 0.0) -> NoReturn:
    """Ends this process at once, with code 2.

    The orderly end of JAX and of the storage library waits for the processes that are gone.
    """
    print(printable(message), file=sys.stderr, flush=True)
    time.sleep(linger)
    os._exit(2)


def leave(error: BaseException) -> NoReturn:
    """Ends this one of several processes after an error that the others do not have.

    Args:
        error: what happened here; where another process has died, an operation with it has failed.
    """
    reason = " ".join(str(error).split())
    if isinstance(error, KeyboardInterrupt):
        reason = "interrupted"
    elif reason.startswith(RUNTIME_ERRORS):
        reason = f"another process of this run is gone ({reason[:200]})"
    elif not isinstance(error, CommandError | OSError):
        traceback.print_exception(error)
    last_words(
        f"error: process {jax.process_index()}: {reason}; all processes end. Start them all again: "
        "the run goes on from its last checkpoint",
        linger=LEAD_LINGERS if is_lead() else 0.0,
    )


@dataclasses.dataclass(frozen=True)
class Placement:
    """All devices in a row: the batch is cut along it, everything else is on each of them whole.

    Attributes:
        mesh: the devices of all processes, one axis `data`.
    """

    mesh: jax.sharding.Mesh

    @classmethod
    def of_all_devices(cls) -> "Placement":
        """A mesh over every device of every process."""
        return cls(jax.sharding.Mesh(in_a_row(jax.devices()), ("data",), axis_types=(AxisType.Auto,)))

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def sharded(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec("data"))

    def batch(self, local: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """This process's rows of a batch, put on its devices as part of the global arrays."""
        return {name: jax.make_array_from_process_local_data(self.sharded, rows) for name, rows in local.items()}

    def put(self, values: np.ndarray) -> jax.Array:
        """An array, the same in every process, whole on every device."""
        return jax.make_array_from_callback(values.shape, self.replicated, lambda index: values[index])

    def everywhere(self, tree: Tree) -> Tree:
        """Puts a tree of arrays, the same in every process, whole on every device.

        The result is always new memory, so that it may be donated while the originals stay usable.
        """
        placed = jax.tree.map(lambda x: self.put(np.asarray(jax.device_get(x))), tree)
        return jax.jit(lambda t: jax.tree.map(jnp.copy, t))(placed)


def in_a_row(devices: Sequence[Any]) -> np.ndarray:
    """Devices in an order in which neighbours reach each other fast.

    Those of one slice of a TPU lie together: between slices is a network that is slower by far, and XLA then sums
    within each slice before it sums over them.
    """
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh((len(devices),), devices)
    return mesh_utils.create_hybrid_device_mesh((len(devices) // slices,), (slices,), devices)


def check_batch(batch: int, accumulate: int, devices: int) -> None:
    """Refuses a batch that the devices cannot share evenly.

    Raises:
        CommandError: names the option and close values that would do.
    """
    unit = devices * accumulate
    if batch % unit:
        lower, upper = batch // unit * unit, -(-batch // unit) * unit
        close = f"{upper}" if lower == 0 else f"{lower} or {upper}"
        micro = f" in {accumulate} micro-batches" if accumulate > 1 else ""
        raise CommandError(f"--batch is {batch}, which {devices} devices cannot share evenly{micro}; {close} would do")


def is_lead() -> bool:
    """Whether this is the process that writes files and talks to people."""
    return jax.process_index() == 0
