"""Convolutions of three by three taps with a quarter of the multiplications.

Winograd's minimal filtering, as in Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (2016,
arXiv:1509.09308), section 4.1: tiles of 6x6 pixels and the kernel are evaluated at six points along each axis,
multiplied there, and what comes out is read back as 4x4 pixels of the result. In float32 the error is about twice that
of adding up nine products, with the points that are used here; those of the paper make it four times.

A result depends, in its last digits, on where it lies in its tile: a rolled map does not give the rolled result bit for
bit. Its error is that of the largest numbers in its tile, and one that is not finite takes the tile with it.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Pads = tuple[tuple[int, int], tuple[int, int]]

TAPS = 3
# Pixels of the result, and of the map that they see, along each axis of a tile.
TILE = 4
_SEEN = TILE + TAPS - 1
# Where polynomials are evaluated, besides infinity. Powers of numbers near one stay small and large alike; these are
# exact in binary and among the best of all symmetrical ones.
_POINTS = (0.0, 5 / 8, -5 / 8, 3 / 2, -3 / 2)


def _matrices(points: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What takes pixels, taps and products from where they are to where they are needed (Toom and Cook)."""
    places, count = np.array(points), len(points)
    powers = places[:, None] ** np.arange(max(TILE, TAPS))
    last = np.eye(_SEEN)[-1:]
    others = [np.delete(places, i) for i in range(count)]
    pixels = np.zeros((_SEEN, _SEEN))
    for i, roots in enumerate(others):
        pixels[i, :count] = np.poly(roots)[::-1]
    pixels[-1] = np.poly(places)[::-1]
    scale = np.array([np.prod(place - roots) for place, roots in zip(places, others, strict=True)])
    taps = np.concatenate([powers[:, :TAPS] / scale[:, None], last[:, -TAPS:]])
    result = np.concatenate([powers[:, :TILE], last[:, -TILE:]]).T
    # What is multiplied by a power of two here and divided by it there keeps its digits.
    even = 2.0 ** np.round(np.log2(np.abs(pixels).sum(1, keepdims=True)))
    return pixels / even, taps * even, result


_PIXELS, _KERNEL, _RESULT = _matrices(_POINTS)


def winograd_tiles(sizes: Sequence[int]) -> int:
    """Tiles that cover a result of this height and width."""
    return -(-sizes[0] // TILE) * -(-sizes[1] // TILE)


def winograd(x: jax.Array, kernel: jax.Array, padding: Pads, precision: lax.PrecisionLike = None) -> jax.Array:
    """A dense convolution of stride one.

    Args:
        x: (N, H, W, C), float32.
        kernel: (3, 3, C, features), float32.
        padding: pixels of zeros before and after, for height and width; negative where the map is cut.
        precision: of the products, as in `jax.lax.dot`.

    Returns:
        (N, H', W', features).
    """
    margins, sizes, tiles = [], [], []
    for size, (low, high) in zip(x.shape[1:3], padding, strict=True):
        sizes.append(size + low + high - TAPS + 1)
        tiles.append(-(-sizes[-1] // TILE))
        margins.append((low, tiles[-1] * TILE + TAPS - 1 - size - low, 0))
    x = lax.pad(x, np.zeros((), x.dtype), [(0, 0, 0), *margins, (0, 0, 0)])
    # One axis after the other, each of its six points a part of a new first axis.
    rows = jnp.stack(_combined(_PIXELS, _starts(x, 1, tiles[0])))
    points = jnp.stack(_combined(_PIXELS, _starts(rows, 3, tiles[1])), 1)
    products = jnp.einsum("ijnhwc,ijcf->ijnhwf", points, _at_points(kernel), precision=precision)
    columns = _joined(_combined(_RESULT, [products[:, j] for j in range(_SEEN)]), 3)
    result = _joined(_combined(_RESULT, list(columns)), 1)
    return result[:, : sizes[0], : sizes[1]]


def _at_points(kernel: jax.Array) -> jax.Array:
    matrix = _KERNEL.astype(kernel.dtype)
    return jnp.einsum("ia,jb,abcf->ijcf", matrix, matrix, kernel, precision="highest")


def _starts(x: jax.Array, axis: int, tiles: int) -> list[jax.Array]:
    """The first pixels of all tiles along an axis, the second ones, and so on."""
    span = (tiles - 1) * TILE + 1
    return [lax.slice_in_dim(x, i, i + span, TILE, axis) for i in range(_SEEN)]


def _joined(parts: Sequence[jax.Array], axis: int) -> jax.Array:
    """The pixels of all tiles along an axis, given the first ones, the second ones, and so on."""
    x = jnp.stack(parts, axis + 1)
    return x.reshape(*x.shape[:axis], x.shape[axis] * TILE, *x.shape[axis + 2 :])


def _combined(matrix: np.ndarray, parts: Sequence[jax.Array]) -> list[jax.Array]:
    """The product of a matrix with a column of arrays."""
    kind = parts[0].dtype
    return [
        functools.reduce(
            jnp.add, (part * np.asarray(w, kind) if w != 1 else part for w, part in zip(row, parts, strict=True) if w)
        )
        for row in matrix
    ]
