"""Numbers as a report writes them, and which of them no other beats."""

import math
from collections.abc import Sequence

from aa_flax.consistency import Estimate


def front(places: Sequence[tuple[float, float]]) -> list[bool]:
    """Which places no other one beats: at least as good in both numbers and better in one."""
    return [not any(a >= x and b >= y and (a, b) != (x, y) for a, b in places) for x, y in places]


def signed(difference: float) -> str:
    """Two decimals with a sign, the minus as long as the plus is wide."""
    # Adding zero turns a rounded -0.0 into 0.0.
    return f"{round(difference, 2) + 0.0:+.2f}".replace("-", "\u2212")


def spread(estimate: Estimate) -> str:
    """A percentage and, where it has one, its standard error."""
    return f"{estimate.value:.2f}{_error(estimate)}"


def change(estimate: Estimate) -> str:
    """A difference with its sign and, where it has one, its standard error."""
    return f"{signed(estimate.value)}{_error(estimate)}"


def _error(estimate: Estimate) -> str:
    """Of a single photo there is none."""
    return "" if math.isnan(estimate.stderr) else f" \u00b1 {estimate.stderr:.2f}"
