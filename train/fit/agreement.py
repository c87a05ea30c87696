"""What several processes must have in common before they train as one; each function is called by all of them.

Processes that differ in an option, in their data or in their code compile other programs or feed them with other
arrays. Nothing in a collective operation notices: they train to garbage together.
"""

import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from aa_flax.buckets import AnyPath
from train.errors import CommandError
from train.fit.distributed import Watch, is_lead

T = TypeVar("T")

# Network file systems may show a new file only after a while.
APPEARS_SECONDS = 10.0
MOST_DIFFERENCES = 8


class AgreedError(CommandError):
    """Raised by all processes alike, so that they end together and in order."""


def gather(text: str) -> list[str]:
    """The texts of all processes, in the order of the processes."""
    if jax.process_count() == 1:
        return [text]
    content = np.frombuffer(text.encode(), np.uint8)
    with Watch("the other processes to say what they train", "see that all of them are running"):
        lengths = multihost_utils.process_allgather(np.array(len(content), np.int32))
        padded = np.zeros(max(1, int(np.max(lengths))), np.uint8)
        padded[: len(content)] = content
        rows = np.asarray(multihost_utils.process_allgather(padded))
    return [row[:length].tobytes().decode() for row, length in zip(rows, lengths, strict=True)]


def together(action: Callable[[], T]) -> T:
    """Does something in each process by itself; where one of them is refused, all are, in the same words.

    Raises:
        AgreedError: the action has raised it, or an `OSError`, in some process.
    """
    if jax.process_count() == 1:
        return action()
    result, problem = [], ""
    try:
        result.append(action())
    except CommandError as error:
        problem = str(error)
    except OSError as error:
        problem = f"{error.filename}: {error.strerror or error}" if error.filename else str(error)
    problems = gather(problem)
    refused = [process for process, text in enumerate(problems) if text]
    if refused:
        raise AgreedError(f"{_named(refused, len(problems))}: {problems[refused[0]]}")
    return result[0]


def require_same(facts: Mapping[str, Any], remedy: str) -> None:
    """Compares facts over all processes.

    Args:
        facts: by name; each is something that JSON can hold.
        remedy: what to do where they differ.

    Raises:
        AgreedError: some differ; says which, and who has what.
    """
    differing = disagreements([json.loads(text) for text in gather(json.dumps(facts))])
    if not differing:
        return
    shown = "; ".join(differing[:MOST_DIFFERENCES])
    more = f"; and {len(differing) - MOST_DIFFERENCES} more" if len(differing) > MOST_DIFFERENCES else ""
    raise AgreedError(f"the processes of this run differ: {shown}{more}. {remedy}")


def disagreements(told: Sequence[Mapping[str, Any]]) -> list[str]:
    """What differs between the facts of processes, such as `--optim.lr is 0.1 in process 0 and 0.2 in process 1`."""
    lines = []
    for name in dict.fromkeys(name for facts in told for name in facts):
        holders: dict[str, list[int]] = {}
        for process, facts in enumerate(told):
            value = facts.get(name)
            text = "not given" if value is None else value if isinstance(value, str) else json.dumps(value)
            holders.setdefault(text, []).append(process)
        if len(holders) > 1:
            parts = [f"{text} in {_named(processes, len(told))}" for text, processes in holders.items()]
            lines.append(f"{name} is {', '.join(parts[:-1])} and {parts[-1]}")
    return lines


def _named(processes: Sequence[int], count: int) -> str:
    """`process 3`, `processes 0, 2-255` or `every process`."""
    if len(processes) == count:
        return "every process"
    ranges: list[list[int]] = []
    for process in processes:
        if ranges and process == ranges[-1][1] + 1:
            ranges[-1][1] = process
        else:
            ranges.append([process, process])
    parts = [str(first) if first == last else f"{first}-{last}" for first, last in ranges]
    return f"process{'es' if len(processes) > 1 else ''} {', '.join(parts)}"


def prove_shared(directory: AnyPath) -> None:
    """Checks with a file of process 0 that a directory is the same one in all processes.

    Raises:
        AgreedError: it is not, or it cannot be written to.
    """
    if jax.process_count() == 1:
        return
    marker = directory / f".shared-{gather(secrets.token_hex(8))[0]}"
    together(lambda: marker.touch() if is_lead() else None)
    try:
        seen = gather("yes" if _appears(marker) else "")
    finally:
        if is_lead():
            marker.unlink(missing_ok=True)
    blind = [process for process, answer in enumerate(seen) if not answer]
    if blind:
        raise AgreedError(
            f"--run-dir {directory} is not the directory of process 0 in {_named(blind, len(seen))}: "
            "put it on a file system that all of them see, and give its absolute path"
        )


def _appears(path: AnyPath) -> bool:
    deadline = time.monotonic() + APPEARS_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True
