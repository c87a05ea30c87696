"""What the networks of a comparison cost: the time of a forward pass, kept for the next run."""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.tree_util import Partial

from aa_flax.files import write_atomically
from aa_flax.weights.json_file import read_json
from train.compare.answers import Entrant
from train.compare.settings import Settings
from train.measurable.network import Measurable


def time_all(
    entrants: Sequence[Entrant],
    settings: Settings,
    kept: Path,
    *,
    progress: Callable[[], None] = lambda: None,
) -> list[float]:
    """Median time of each network's forward pass on this machine, in milliseconds per image.

    The networks take turns, so that a machine that is busy for a while slows all of them. Times of an earlier run with
    the same networks, on such a machine, are taken from it: there is no sense in comparing times of different runs.

    Args:
        entrants: what is timed.
        settings: how many images and passes. One device is timed, whatever their number.
        kept: file with the times.
        progress: called after each round.
    """
    conditions = {
        "networks": [entrant.directory.name for entrant in entrants],
        "device": jax.devices()[0].device_kind,
        "batch": settings.timing_batch,
        "repeats": settings.timing_repeats,
    }
    try:
        found = read_json(kept)
        if found["conditions"] == conditions:
            return [float(number) for number in found["milliseconds"]]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    seconds: list[list[float]] = [[] for _ in entrants]
    for number in range(settings.timing_repeats + 1):
        for entrant, taken in zip(entrants, seconds, strict=True):
            taken.append(_once(entrant.network, settings.timing_batch))
        if number:
            progress()
    # The first round compiles.
    milliseconds = [1000 * statistics.median(taken[1:]) / settings.timing_batch for taken in seconds]
    write_atomically(kept, json.dumps({"conditions": conditions, "milliseconds": milliseconds}, indent=1).encode())
    return milliseconds


def _once(network: Measurable, count: int) -> float:
    rule = network.preprocessing
    shape = (count, rule.crop, rule.crop, len(rule.mean))
    images = np.random.default_rng(0).standard_normal(shape, np.float32)
    start = time.perf_counter()
    if isinstance(network.fn, Partial):
        jax.block_until_ready(_forward(network.fn, images))
    else:
        np.asarray(network.fn(images))
    return time.perf_counter() - start


@jax.jit
def _forward(network: Partial, images: jax.Array) -> jax.Array:
    return network(images)
