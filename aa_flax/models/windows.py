"""Where the windows of a two-dimensional convolution lie."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax import lax


class Windows(NamedTuple):
    """The windows of a convolution, for height and width.

    Attributes:
        taps: of the kernel.
        strides: between windows.
        padding: pixels of zeros before and after.
        dilation: between the taps of a window.
        sizes: windows.
    """

    taps: tuple[int, int]
    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    dilation: tuple[int, int]
    sizes: tuple[int, int]

    @classmethod
    def of(
        cls,
        x: jax.Array,
        kernel: jax.Array,
        window_strides: Sequence[int],
        padding: str | Sequence[tuple[int, int]],
        rhs_dilation: Sequence[int] | None,
    ) -> Self:
        """Of the arguments of `lax.conv_general_dilated`."""
        taps = kernel.shape[0], kernel.shape[1]
        strides = int(window_strides[0]), int(window_strides[1])
        dilation = (1, 1) if rhs_dilation is None else (int(rhs_dilation[0]), int(rhs_dilation[1]))
        reach = [(size - 1) * step + 1 for size, step in zip(taps, dilation, strict=True)]
        if isinstance(padding, str):
            padding = lax.padtype_to_pads(x.shape[1:3], reach, strides, padding)
        (top, bottom), (left, right) = padding
        rows = (x.shape[1] + top + bottom - reach[0]) // strides[0] + 1
        columns = (x.shape[2] + left + right - reach[1]) // strides[1] + 1
        return cls(taps, strides, ((top, bottom), (left, right)), dilation, (rows, columns))

    @property
    def known(self) -> bool:
        """Whether there are windows, and how many; of a program for maps of any size neither is known."""
        return all(isinstance(size, int) for size in self.sizes) and min(self.sizes) > 0

    @property
    def dense(self) -> bool:
        """Whether there is a window at every pixel, of taps that are neighbours."""
        return self.strides == self.dilation == (1, 1)

    @property
    def backward(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """The padding with which dense windows of the kernel turned around lead back from a result's gradient."""
        (top, bottom), (left, right) = self.padding
        rows, columns = self.taps[0] - 1, self.taps[1] - 1
        return (rows - top, rows - bottom), (columns - left, columns - right)

    def convolve(self, x: jax.Array, kernel: jax.Array, **types: Any) -> jax.Array:
        """XLA's own dense convolution."""
        layout = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, kernel, self.strides, self.padding, rhs_dilation=self.dilation, dimension_numbers=layout, **types
        )

    def padded(self, x: jax.Array) -> jax.Array:
        """The map with its padding; cut where that is negative."""
        none = (0, 0, 0)
        margins = [none, *((low, high, 0) for low, high in self.padding), none]
        return lax.pad(x, jnp.zeros((), x.dtype), margins)

    def samples(self, x: jax.Array) -> Iterator[jax.Array]:
        """For each tap in reading order, the pixel (N, H', W', C) that it meets in every window."""
        padded = self.padded(x)
        for i in range(0, self.taps[0] * self.dilation[0], self.dilation[0]):
            rows = lax.slice_in_dim(padded, i, i + (self.sizes[0] - 1) * self.strides[0] + 1, self.strides[0], axis=1)
            yield from self.along(rows)

    def along(self, rows: jax.Array) -> Iterator[jax.Array]:
        """For each tap of a kernel's row, the pixel that it meets in every window of padded rows (N, ..., W, C)."""
        span = (self.sizes[1] - 1) * self.strides[1] + 1
        for j in range(0, self.taps[1] * self.dilation[1], self.dilation[1]):
            yield lax.slice_in_dim(rows, j, j + span, self.strides[1], axis=-2)
