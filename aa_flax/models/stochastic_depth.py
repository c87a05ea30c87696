"""Stochastic depth: residual branches that are left out in training, image by image.

Huang et al. 2016 (arXiv 1603.09382): the last block most often, those before it less, in proportion to their number.
"""

from collections.abc import Iterator

import jax
import numpy as np
from flax import nnx


def drop_rates(last: float, blocks: int) -> Iterator[float]:
    """How often each of so many blocks goes without its branch.

    Args:
        last: the last one's probability.
        blocks: their number.

    Raises:
        ValueError: `last` is no probability below 1.
    """
    if not 0 <= last < 1:
        raise ValueError(f"stochastic_depth_prob is a probability below 1, got {last}")
    return iter(np.linspace(0, last, blocks).tolist())


def stochastic_depth(rate: float) -> nnx.Dropout | None:
    """What leaves the branch of a block out; None where it always stays."""
    # The same draw for all of an image's map: the whole branch is there or not.
    return nnx.Dropout(rate, broadcast_dims=(1, 2, 3)) if rate else None


def dropped(drop: nnx.Dropout | None, branch: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
    """The branch, or zeros for the images that go without."""
    return branch if drop is None else drop(branch, rngs=rngs)
