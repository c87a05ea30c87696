"""Other ways to compute a BlurPool, kept to be measured beside the one that the library uses.

Each takes what `aa_flax.blur_pool` takes on images, (N, H, W, C), with reflect padding, and gives the same numbers.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from aa_flax.axis_maps import Band, gather_each
from aa_flax.blurpool import BlurAxis, binomial_filter, blur_band


def depthwise(x: jax.Array, filter_size: int, stride: int = 2) -> jax.Array:
    """The obvious way: pad, then a depthwise convolution."""
    taps = binomial_filter(filter_size)
    low, high = (filter_size - 1) // 2, filter_size // 2
    channels = x.shape[-1]
    kernel = jnp.asarray(np.outer(taps, taps)[..., None, None], x.dtype)
    return lax.conv_general_dilated(
        jnp.pad(x, ((0, 0), (low, high), (low, high), (0, 0)), mode="reflect"),
        jnp.tile(kernel, (1, 1, 1, channels)),
        (stride, stride),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=channels,
    )


def _bands(x: jax.Array, filter_size: int, stride: int) -> tuple[Band, Band]:
    rows, columns = (blur_band(size, filter_size, stride, "reflect", 0)[0] for size in x.shape[1:3])
    return rows, columns


def slices(x: jax.Array, filter_size: int, stride: int = 2) -> jax.Array:
    """A padded copy, and a weighted sum of its strided slices."""
    taps = binomial_filter(filter_size)
    low, high = (filter_size - 1) // 2, filter_size // 2
    total = jnp.pad(x, ((0, 0), (low, high), (low, high), (0, 0)), mode="reflect").astype(jnp.float32)
    for axis in (1, 2):
        span = (x.shape[axis] - 1) // stride * stride + 1
        parts = [lax.slice_in_dim(total, j, j + span, stride, axis) * np.float32(t) for j, t in enumerate(taps)]
        total = functools.reduce(jnp.add, parts)
    return total.astype(x.dtype)


def banded_matmul(x: jax.Array, filter_size: int, stride: int = 2) -> jax.Array:
    """Two products with the dense banded matrices."""
    rows, columns = (
        jnp.asarray(band.dense(n), x.dtype)
        for band, n in zip(_bands(x, filter_size, stride), x.shape[1:3], strict=True)
    )
    y = jnp.einsum("oh,nhwc->nowc", rows, x, preferred_element_type=jnp.float32).astype(x.dtype)
    return jnp.einsum("pw,nowc->nopc", columns, y, preferred_element_type=jnp.float32).astype(x.dtype)


def kron_matmul(x: jax.Array, filter_size: int, stride: int = 2) -> jax.Array:
    """One product with the Kronecker product of the two banded matrices; for small maps."""
    rows, columns = (band.dense(n) for band, n in zip(_bands(x, filter_size, stride), x.shape[1:3], strict=True))
    matrix = jnp.asarray(np.kron(rows, columns), x.dtype)
    n, h, w, c = x.shape
    precision = None if x.dtype == jnp.bfloat16 else lax.DotAlgorithmPreset.BF16_BF16_F32_X6
    y = jnp.einsum(
        "pq,nqc->npc", matrix, x.reshape(n, h * w, c), precision=precision, preferred_element_type=jnp.float32
    )
    return y.astype(x.dtype).reshape(n, len(rows), len(columns), c)


def separate_gathers(x: jax.Array, filter_size: int, stride: int = 2) -> jax.Array:
    """One axis after the other, the library's form on CPUs; GPUs gather over both at once."""
    maps = tuple(BlurAxis(axis, x.shape[axis], filter_size, stride, "reflect", 0) for axis in (1, 2))
    return gather_each(x, maps).astype(x.dtype)


def computed_gathers(x: jax.Array, filter_size: int, stride: int = 2) -> jax.Array:
    """Gathers, one axis after the other, with indices computed in the kernel instead of read from a table."""
    taps = binomial_filter(filter_size)
    total = x
    for axis in (1, 2):
        size = x.shape[axis]
        total = _computed_axis(total, axis, size, taps, stride)
    return total.astype(x.dtype)


def _computed_axis(x: jax.Array, axis: int, size: int, taps: np.ndarray, stride: int) -> jax.Array:
    first = lax.iota(jnp.int32, -(-size // stride)) * stride - (len(taps) - 1) // 2
    total = None
    for j, tap in enumerate(taps):
        position = jnp.abs(first + j)
        position = jnp.minimum(position, 2 * (size - 1) - position)
        term = x.at[(slice(None),) * axis + (position,)].get(mode="promise_in_bounds").astype(jnp.float32)
        total = term * np.float32(tap) if total is None else total + term * np.float32(tap)
    assert total is not None
    return total


@dataclasses.dataclass(frozen=True)
class Tile:
    """The work of one program of the Pallas kernel: output rows, columns and channels, and its warps."""

    rows: int = 4
    columns: int = 4
    channels: int = 64
    warps: int = 4


@functools.partial(jax.jit, static_argnames=("bands", "window", "tile", "interpret"))
def _pallas_bands(x, *, bands: "_Hashed", window: int, tile: Tile, interpret: bool) -> jax.Array:
    rows, columns = bands.value
    n, _, _, c = x.shape
    out = (len(rows.indices), len(columns.indices))
    block = min(tile.channels, 1 << (c - 1).bit_length())
    tiles = (math.ceil(c / block), math.ceil(out[1] / tile.columns), math.ceil(out[0] / tile.rows))
    tables = [
        jnp.asarray(t.T, d) for b in (rows, columns) for t, d in ((b.indices, jnp.int32), (b.weights, jnp.float32))
    ]
    kernel = functools.partial(_kernel, out=(*out, c), tiles=tiles, block=block, tile=tile, window=window)
    return pl.pallas_call(
        kernel,
        grid=(math.prod(tiles) * n,),
        out_shape=jax.ShapeDtypeStruct((n, *out, c), x.dtype),
        compiler_params=plgpu.CompilerParams(num_warps=tile.warps, num_stages=1),
        interpret=interpret,
    )(*tables, x)


def _kernel(row_index, row_weight, column_index, column_weight, x, y, *, out, tiles, block, tile, window):
    """One tile of outputs: every tap is a load of (pixels, channels), neighbours meet in the first-level cache."""
    program = pl.program_id(0)
    channel = program % tiles[0] * block + jnp.arange(block)
    left = program // tiles[0] % tiles[1] * tile.columns
    top = program // (tiles[0] * tiles[1]) % tiles[2] * tile.rows
    image = program // math.prod(tiles)
    pixel = jnp.arange(tile.rows * tile.columns)
    row, column = top + pixel // tile.columns, left + pixel % tile.columns
    inside = ((row < out[0]) & (column < out[1]))[:, None] & (channel < out[2])[None, :]
    row_in, column_in = jnp.minimum(row, out[0] - 1), jnp.minimum(column, out[1] - 1)
    total = jnp.zeros((len(pixel), block), jnp.float32)
    for i in range(row_index.shape[0]):
        source_row, weight = row_index[i, row_in][:, None], row_weight[i, row_in][:, None]
        for j in range(column_index.shape[0]):
            source_column = column_index[j, column_in][:, None]
            values = [
                plgpu.load(x.at[image, source_row + a, source_column + b, channel[None, :]], mask=inside, other=0)
                for a in range(window)
                for b in range(window)
            ]
            value = functools.reduce(jnp.maximum, values).astype(jnp.float32)
            total += value * (weight * column_weight[j, column_in][:, None])
    plgpu.store(y.at[image, row[:, None], column[:, None], channel[None, :]], total.astype(y.dtype), mask=inside)


class _Hashed:
    """Bands as a static argument: equal where their numbers are."""

    def __init__(self, value: tuple[Band, Band]):
        self.value = value
        self._key = tuple((b.indices.tobytes(), b.weights.tobytes()) for b in value)

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hashed) and self._key == other._key


def pallas_forward(
    x: jax.Array, filter_size: int, stride: int = 2, *, window: int = 1, tile: Tile = Tile(), interpret: bool = False
) -> jax.Array:
    """A Pallas kernel; with `window` the dense maximum before the blur is taken in the same kernel."""
    bands = _Hashed(
        tuple(blur_band(size - window + 1, filter_size, stride, "reflect", 0)[0] for size in x.shape[1:3])  # type: ignore[arg-type]
    )
    return _pallas_bands(x, bands=bands, window=window, tile=tile, interpret=interpret)


def pallas_backward(
    g: jax.Array,
    size: tuple[int, int],
    filter_size: int,
    stride: int = 2,
    *,
    tile: Tile = Tile(),
    interpret: bool = False,
) -> jax.Array:
    """The transposed operator with the same kernel: from the gradient of the output to that of the input."""
    bands = _Hashed(tuple(blur_band(n, filter_size, stride, "reflect", 0)[1] for n in size))  # type: ignore[arg-type]
    return _pallas_bands(g, bands=bands, window=1, tile=tile, interpret=interpret)


PORTABLE: dict[str, Callable[..., jax.Array]] = {
    "slices": slices,
    "banded matmul": banded_matmul,
    "one matmul (kron)": kron_matmul,
    "separate gathers": separate_gathers,
    "computed gathers": computed_gathers,
}
