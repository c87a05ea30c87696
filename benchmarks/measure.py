"""How everything here is timed and checked.

Peers are timed in turn within one process: a round calls every case for one window, and the order turns from round
to round, so that a drifting clock or a busy neighbour meets all of them alike. The figure of a case is the median
of its rounds. Nothing is timed before its result was compared with a reference.
"""

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Case(NamedTuple):
    """Something to be timed.

    Attributes:
        call: starts one piece of work; may return before it is done.
        wait: returns when the work behind the given result, and all before it, is done.
    """

    call: Callable[[], Any]
    wait: Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds per call over the rounds of a case.

    Attributes:
        median: the figure.
        low: the fastest round.
        high: the slowest round.
        rounds: how many.
    """

    median: float
    low: float
    high: float
    rounds: int

    @property
    def spread(self) -> float:
        """Slowest minus fastest round, as a share of the median."""
        return (self.high - self.low) / self.median


def jax_case(function: Callable[..., Any], inputs: Iterable[tuple[Any, ...]]) -> Case:
    """A compiled JAX function called with each of the inputs in turn."""
    turns = itertools.cycle(list(inputs))
    return Case(lambda: function(*next(turns)), jax.block_until_ready)


def alternate(cases: Mapping[str, Case], *, rounds: int, window: float) -> dict[str, Timing]:
    """Times cases against each other.

    Args:
        cases: what to time, by name.
        rounds: windows for each case.
        window: seconds in a window; a call that takes longer is a window of its own.

    Returns:
        A `Timing` for each name.
    """
    calls = {name: _calls_in(case, window) for name, case in cases.items()}
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    names = list(cases)
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(_window(cases[name], calls[name]))
    return {n: Timing(statistics.median(s), min(s), max(s), rounds) for n, s in seconds.items()}


def _calls_in(case: Case, window: float) -> int:
    """How many calls fill a window; the calls made here are the warm-up."""
    once = min(_window(case, 1) for _ in range(2))
    if once > window / 4:
        return max(1, round(window / once))
    return max(1, min(100_000, round(window / _window(case, max(2, round(window / 8 / once))))))


def _window(case: Case, calls: int) -> float:
    start = time.perf_counter()
    result = None
    for _ in range(calls):
        result = case.call()
    case.wait(result)
    return (time.perf_counter() - start) / calls


def relative_error(got: Any, want: Any) -> float:
    """The norm of the difference over the norm of the reference, in float64; NaN where anything is not finite."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    if got.shape != want.shape:
        raise ValueError(f"a result has shape {got.shape}, its reference {want.shape}")
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def check(name: str, got: Any, want: Any, tolerance: float) -> float:
    """Compares a result with its reference before it is timed.

    Returns:
        The relative error.

    Raises:
        ValueError: if it is not below `tolerance`; a result that is not finite never is.
    """
    error = relative_error(got, want)
    if not error < tolerance:
        raise ValueError(f"{name} is wrong: relative error {error:.2e}, allowed {tolerance:.0e}")
    return error


def poison(like: Any) -> None:
    """Fills the memory that the next result of this size is likely to get with NaN, so that gaps show."""
    for leaf in jax.tree.leaves(like):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            jnp.full(leaf.shape, jnp.nan, leaf.dtype).block_until_ready().delete()


def copy_bandwidth(nbytes: int = 1 << 30, *, rounds: int = 7, window: float = 0.1) -> float:
    """Bytes read plus bytes written per second by a plain copy of `nbytes` on the default device."""
    x = jax.random.normal(jax.random.key(0), (nbytes // 4,), jnp.float32)
    # A change of sign: XLA would answer a mere identity with the input's own buffer.
    negate = jax.jit(jnp.negative)
    check("copy", negate(x[:1024]), -np.asarray(x[:1024]), 1e-9)
    times = alternate({"copy": jax_case(negate, [(x,)])}, rounds=rounds, window=window)
    return 2 * nbytes / times["copy"].median
