"""Linear maps along the axes of an array, each a banded matrix that is known when the program is traced.

A matrix is kept by rows, each a short list of (index, weight): applying it is then a weighted sum of a few gathers,
which runs near the copy bandwidth of a GPU. Its transpose is the same thing with the lists of its columns, which
keeps the backward pass free of scatters. On TPU, where gathers are slow, the matrix is applied as a product.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from aa_flax.dtypes import at_least_float32
from aa_flax.meshes import require_whole
from aa_flax.platforms import platform_dependent


class Band(NamedTuple):
    """A banded matrix by rows: row i is the sum of `weights[i, j]` at column `indices[i, j]`."""

    indices: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, matrix: np.ndarray) -> "Band":
        """The non-zero entries of each row, short rows filled up with their own last index and weight 0."""
        nonzero = [np.flatnonzero(row) for row in matrix]
        width = max(1, *(len(columns) for columns in nonzero)) if nonzero else 1
        indices = np.zeros((len(matrix), width), np.int64)
        weights = np.zeros((len(matrix), width))
        nearest = 0
        for i, columns in enumerate(nonzero):
            # Index 0 would let a NaN there leak everywhere, since 0 * NaN is NaN.
            nearest = columns[-1] if len(columns) else nearest
            indices[i] = nearest
            indices[i, : len(columns)] = columns
            weights[i, : len(columns)] = matrix[i, columns]
        return cls(indices, weights)

    def dense(self, columns: int) -> np.ndarray:
        """The same matrix as a float64 array of shape (rows, columns)."""
        matrix = np.zeros((len(self.indices), columns))
        np.add.at(matrix, (np.arange(len(self.indices))[:, None], self.indices), self.weights)
        return matrix


class AxisMap(Protocol):
    """The linear map of one axis. It has to be hashable: programs are compiled for it, as for a static argument."""

    @property
    def axis(self) -> int:
        """The axis that it maps, counted from the front."""
        ...

    @property
    def bands(self) -> tuple[Band, Band]:
        """The (out, size) matrix and its transpose."""
        ...

    def __hash__(self) -> int: ...


Maps = tuple[AxisMap, ...]


def apply(x: jax.Array, maps: Maps) -> jax.Array:
    """Applies maps of different axes, in the form that suits the platform which the program runs on.

    Args:
        x: floating point array.
        maps: at most one for each axis, in the order of the axes.

    Returns:
        Array of the input's dtype, rounded to it once: sums run in float32, or in float64 for float64 inputs.
    """
    if not maps:
        return x
    require_whole(x, (one.axis for one in maps))

    def rounded(form: Callable[[jax.Array, Maps], jax.Array]) -> Callable[[jax.Array], jax.Array]:
        return lambda x: form(x, maps).astype(x.dtype)

    return platform_dependent(x, cpu=rounded(gather_each), tpu=rounded(matmul_each), default=rounded(gather_pairs))


def gather_each(x: jax.Array, maps: Maps) -> jax.Array:
    """One axis after the other: the fewest operations, for CPUs."""
    return functools.reduce(lambda y, one: gather_along(y, (one,)), maps, x)


def gather_pairs(x: jax.Array, maps: Maps) -> jax.Array:
    """Two neighbouring axes at a time: more operations, but nothing in between is stored, for GPUs."""
    while maps:
        pair = len(maps) > 1 and maps[1].axis == maps[0].axis + 1
        x, maps = gather_along(x, maps[: 1 + pair]), maps[1 + pair :]
    return x


def matmul_each(x: jax.Array, maps: Maps) -> jax.Array:
    """One axis after the other as a product with the dense matrix, for TPU's matrix unit."""
    return functools.reduce(lambda y, one: matmul_along(y, one.bands[0].dense(y.shape[one.axis]), one.axis), maps, x)


def matmul_along(x: jax.Array, matrix: np.ndarray, axis: int) -> jax.Array:
    """`matrix @ x` along one axis, in float32 or wider."""
    dtype = at_least_float32(x.dtype)
    # Entries that the input's dtype holds exactly, as it does the taps of all usual filters, need no wider products.
    exact = jnp.finfo(x.dtype).bits < 32 and (np.asarray(matrix, x.dtype).astype(matrix.dtype) == matrix).all()
    y = jnp.tensordot(
        x if exact else x.astype(dtype),
        jnp.asarray(matrix, x.dtype if exact else dtype),
        (axis, 1),
        precision=None if exact else lax.Precision.HIGHEST,
        preferred_element_type=dtype,
    )
    return jnp.moveaxis(y, -1, axis)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def gather_along(x: jax.Array, maps: Maps) -> jax.Array:
    """The maps of neighbouring axes as one weighted sum of gathers, in float32 or wider."""
    return _gather(x, [one.bands[0] for one in maps], [one.axis for one in maps])


@gather_along.defjvp
def _gather_along_jvp(maps: Maps, primals, tangents):
    # The tangent map is the same matrix, written by columns. JAX transposes each scatter-add into a
    # gather, so reverse mode runs gathers only; forward mode pays for one scatter.
    axes = [one.axis for one in maps]
    forward, backward = zip(*(one.bands for one in maps), strict=True)
    rows = [len(band.indices) for band in forward]
    return _gather(primals[0], forward, axes), _scatter(tangents[0], backward, axes, rows)


def _gather(x: jax.Array, bands: Sequence[Band], axes: Sequence[int]) -> jax.Array:
    dtype = at_least_float32(x.dtype)
    total = None
    for index, weight in _terms(bands, axes, x.ndim):
        term = x.at[index].get(mode="promise_in_bounds").astype(dtype) * jnp.asarray(weight, dtype)
        total = term if total is None else total + term
    assert total is not None
    return total


def _scatter(x: jax.Array, bands: Sequence[Band], axes: Sequence[int], sizes: Sequence[int]) -> jax.Array:
    """The transpose of `_gather`, term by term, as a sum of scatter-adds into axes of the given sizes."""
    x = x.astype(at_least_float32(x.dtype))
    # Zeros made from an empty slice of x are linear in it; constant ones would be kept as residuals.
    total = lax.slice_in_dim(x, 0, 0, axis=axes[0])
    for axis in axes[1:]:
        total = lax.slice_in_dim(total, 0, 0, axis=axis)
    grown = dict(zip(axes, sizes, strict=True))
    total = lax.pad(total, np.zeros((), x.dtype), [(0, grown.get(i, 0), 0) for i in range(x.ndim)])
    for index, weight in _terms(bands, axes, x.ndim):
        total = total.at[index].add(x * jnp.asarray(weight, x.dtype), mode="promise_in_bounds")
    return total


def _terms(
    bands: Sequence[Band], axes: Sequence[int], ndim: int
) -> Iterator[tuple[tuple[Any, ...], np.ndarray | np.float64]]:
    """What the maps of neighbouring axes are sums of: an index into an array, and its weights, which broadcast."""
    for columns in itertools.product(*(range(band.indices.shape[1]) for band in bands)):
        index: list[Any] = [slice(None)] * ndim
        weight = np.ones((1,) * ndim)
        for place, (band, axis, j) in enumerate(zip(bands, axes, columns, strict=True)):
            rows = [1] * len(axes)
            rows[place] = -1
            index[axis] = band.indices[:, j].reshape(rows)
            weight = weight * band.weights[:, j].reshape([-1 if i == axis else 1 for i in range(ndim)])
        # A weight that is the same everywhere needs no table.
        yield tuple(index), weight.flat[0] if (weight == weight.flat[0]).all() else weight
