"""Where in the picture the samples of a strided network are centred, plain and anti-aliased.

    python -m examples.where_the_grid_moves

A picture whose value is its coordinate goes through four levels of one kind, all weights equal. What comes out is then
the coordinate that each sample is about; printed is how far that is from the sample's own place, stride times index.
A maximum takes the far end of its window: it is measured on the ramp and on its mirror image, whose mean is its centre.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console
from rich.table import Table

import aa_flax

LEVELS, SIZE = 4, 512
FILTERS = (2, 3, 4, 5)
Network = Callable[[jax.Array], jax.Array]


def conv(size: int, stride: int, padding: str | int) -> nnx.Conv:
    """A mean as a convolution."""
    mean = nnx.initializers.constant(1 / size)
    return nnx.Conv(1, 1, (size,), stride, padding=padding, kernel_init=mean, rngs=nnx.Rngs(0))


def pool(function: Callable[..., jax.Array], size: int, padding: int = 0) -> Network:
    return functools.partial(function, window_shape=(size,), strides=(2,), padding=((padding, padding),))


LAYERS: dict[str, Callable[[], Network]] = {
    "3x3 convolution, padding 1": lambda: conv(3, 2, 1),
    '3x3 convolution, "SAME"': lambda: conv(3, 2, "SAME"),
    "2x2 convolution": lambda: conv(2, 2, "VALID"),
    "3x3 maximum, padding 1": lambda: pool(nnx.max_pool, 3, 1),
    "2x2 maximum": lambda: pool(nnx.max_pool, 2),
    "2x2 average": lambda: pool(nnx.avg_pool, 2),
}


def offset(network: Network) -> float:
    """Pixels from where the samples of a network's map lie by their index to where they are centred.

    Taken in the middle of the map, away from its borders.
    """
    ramp = jnp.arange(SIZE, dtype=jnp.float32)[None, :, None]
    places = np.asarray(network(ramp) - network(-ramp))[0, :, 0] / 2
    stride = SIZE // len(places)
    moved = places - stride * np.arange(len(places))
    quarter = len(moved) // 4
    return float(moved[quarter:-quarter].mean()) + 0.0


def downward(layer: str, filter_size: int | None, levels: int = LEVELS) -> nnx.Sequential:
    """Levels of one kind of layer, anti-aliased by the surgery unless `filter_size` is None."""
    plain = nnx.Sequential(*(LAYERS[layer]() for _ in range(levels)))
    if filter_size is None:
        return plain
    return aa_flax.antialias(plain, filter_size, first=True, spatial_dims=1)[0]


def up_and_down(layer: str, filter_size: int | None, blurred: bool) -> Network:
    """One level down and back up, as the deepest path of a U-Net: by a 2x2 transposed convolution or by a blur."""
    down = downward(layer, filter_size, 1)
    ones = nnx.initializers.ones_init()
    deconv = nnx.ConvTranspose(1, 1, (2,), 2, padding="VALID", kernel_init=ones, rngs=nnx.Rngs(0))
    up = aa_flax.BlurUpsample(filter_size or 2, spatial_dims=1) if blurred else deconv
    return lambda x: up(down(x))


def main() -> None:
    """Prints both tables."""
    console = Console(width=100)
    heads = ["plain", *(f"{k} taps" for k in FILTERS)]
    table = Table(f"pixels after {LEVELS} levels down", *heads, box=None, pad_edge=False)
    for layer in LAYERS:
        table.add_row(layer, *(f"{offset(downward(layer, k)):+.1f}" for k in (None, *FILTERS)))
    console.print(table)
    console.print()
    table = Table("pixels after one level down and up", *heads, box=None, pad_edge=False)
    for layer in ("2x2 maximum", "3x3 convolution, padding 1"):
        for name, blurred in (("2x2 transposed convolution", False), ("BlurUpsample", True)):
            row = [offset(up_and_down(layer, k, blurred)) for k in (None, *FILTERS)]
            table.add_row(f"{layer}; {name}", *(f"{moved:+.1f}" for moved in row))
    console.print(table)


if __name__ == "__main__":
    main()
