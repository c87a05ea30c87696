"""Many devices and many processes: how they start, and where arrays lie on them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from train.errors import CommandError

Tree = Any


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
    try:
        jax.distributed.initialize(config.coordinator, config.num_processes, config.process_id)
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise CommandError(
            f"--distributed: the processes did not find each other ({reason}); "
            "give --coordinator HOST:PORT --num-processes N --process-id I"
        ) from error


@dataclasses.dataclass(frozen=True)
class Placement:
    """All devices in a row: the batch is cut along it, everything else is on each of them whole.

    Attributes:
        mesh: the devices of all processes, one axis ``data``.
    """

    mesh: jax.sharding.Mesh

    @classmethod
    def of_all_devices(cls) -> "Placement":
        """A mesh over every device of every process."""
        return cls(jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,)))

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


def agree(flag: bool) -> bool:
    """Whether the flag is up in any process; every process must call this at the same point."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def is_lead() -> bool:
    """Whether this is the process that writes files and talks to people."""
    return jax.process_index() == 0
