"""The dtype that sums run in."""

import jax
import numpy as np


def at_least_float32(dtype: jax.typing.DTypeLike) -> np.dtype:
    """float64 for float64, float32 for all narrower and for whole numbers.

    `jnp.promote_types` would do but for `jax_numpy_dtype_promotion="strict"`, under which it raises.
    """
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)
