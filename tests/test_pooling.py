"""Pooling against plain loops in numpy; PyTorch's values are compared in tests/parity."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import aa_flax
from aa_flax import plain_pooling
from aa_flax.deprecated import FUNCTIONS, max_blur_pool


def windows(x: np.ndarray, window: int, stride: int):
    h, w = ((n - window) // stride + 1 for n in x.shape[1:3])
    for i in range(h):
        for j in range(w):
            yield i, j, x[:, i * stride : i * stride + window, j * stride : j * stride + window]


@given(
    h=st.integers(3, 9),
    w=st.integers(3, 9),
    window=st.integers(1, 3),
    stride=st.integers(1, 3),
    seed=st.integers(0, 99),
)
@settings(max_examples=8)
def test_max_and_average_by_loops(h, w, window, stride, seed):
    x = np.random.default_rng(seed).normal(size=(2, h, w, 2)).astype(np.float32)
    largest, mean = plain_pooling.max_pool(x, window, stride), plain_pooling.avg_pool(x, window, stride)
    for i, j, patch in windows(x, window, stride):
        np.testing.assert_array_equal(largest[:, i, j], patch.max((1, 2)))
        np.testing.assert_allclose(mean[:, i, j], patch.mean((1, 2)), rtol=1e-5, atol=1e-6)


def test_of_equal_maxima_the_first_takes_the_gradient():
    x = np.random.default_rng(0).integers(0, 3, size=(2, 7, 6, 3)).astype(np.float32)
    weight = np.random.default_rng(1).normal(size=(2, 3, 2, 3)).astype(np.float32)
    grad = jax.grad(lambda v: jnp.sum(weight * plain_pooling.max_pool(v, 3, 2)))(x)
    want = np.zeros_like(x)
    for i, j, patch in windows(x, 3, 2):
        for n in range(2):
            for c in range(3):
                row, column = np.unravel_index(np.argmax(patch[n, :, :, c]), (3, 3))
                want[n, 2 * i + row, 2 * j + column, c] += weight[n, i, j, c]
    np.testing.assert_allclose(grad, want, atol=1e-6)


def test_max_pool_pads_with_minus_infinity_and_keeps_nan():
    x = jnp.full((1, 4, 4, 1), -5.0).at[0, 2, 2].set(jnp.nan)
    y = np.asarray(plain_pooling.max_pool(x, 3, 2, padding=1))[0, :, :, 0]
    np.testing.assert_array_equal(np.isnan(y), [[False, False], [False, True]])
    assert y[0, 0] == -5
    assert plain_pooling.max_pool(jnp.full((1, 4, 4, 1), -5, jnp.int32), 3, 2, padding=1)[0, 0, 0, 0] == -5


def test_earlier_names_say_what_to_write():
    for name, (function, now) in FUNCTIONS.items():
        with pytest.warns(DeprecationWarning, match=rf"^aa_flax\.{name} is deprecated: write {re.escape(now)}$"):
            assert getattr(aa_flax, name) is function
    with pytest.raises(AttributeError, match="module 'aa_flax' has no attribute 'min_pool'"):
        aa_flax.min_pool  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_max_blur_pool_is_both_in_turn():
    x = np.random.default_rng(2).normal(size=(1, 9, 8, 2)).astype(np.float32)
    want = aa_flax.blur_pool(plain_pooling.max_pool(x, 3, 1, padding=1), 5, 2, "zero")
    np.testing.assert_array_equal(max_blur_pool(x, 3, 5, 2, padding=1, pad_type="zero"), want)
    now = aa_flax.nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)), filter_size=5, pad_type="zero")
    np.testing.assert_array_equal(now, want)


@pytest.mark.parametrize("window", [1, 2, 3])
def test_a_circular_map_goes_on_at_its_opposite_side(window):
    x = np.random.default_rng(3).normal(size=(2, 5, 6, 1)).astype(np.float32)
    rolls = [(i - (window - 1) // 2, j - (window - 1) // 2) for i in range(window) for j in range(window)]
    want = np.max([np.roll(x, (-i, -j), (1, 2)) for i, j in rolls], axis=0)
    np.testing.assert_array_equal(plain_pooling.max_pool(x, window, 1, circular=True), want)


@given(h=st.integers(1, 16), w=st.integers(1, 16), out=st.integers(1, 9))
@settings(max_examples=8)
def test_adaptive_average_covers_its_cells(h, w, out):
    x = np.random.default_rng(h * w).normal(size=(1, h, w, 2)).astype(np.float32)
    y = np.asarray(plain_pooling.adaptive_avg_pool(x, out))
    assert y.shape == (1, out, out, 2)
    i, j = out // 2, out - 1
    rows = slice(int(np.floor(i * h / out)), int(np.ceil((i + 1) * h / out)))
    columns = slice(int(np.floor(j * w / out)), int(np.ceil((j + 1) * w / out)))
    np.testing.assert_allclose(y[:, i, j], x[:, rows, columns].mean((1, 2)), rtol=1e-5, atol=1e-6)


def test_means_of_half_precision_run_in_float32():
    x = jnp.full((1, 16, 16, 1), 1.0, jnp.bfloat16).at[0, 0, 0, 0].set(4.0)
    exact = np.asarray(x, np.float64).mean()
    assert float(plain_pooling.adaptive_avg_pool(x, 1)[0, 0, 0, 0]) == pytest.approx(exact, rel=2**-8)
    assert float(plain_pooling.avg_pool(x, 16, 16)[0, 0, 0, 0]) == pytest.approx(exact, rel=2**-8)


def test_a_window_larger_than_the_map_is_refused():
    with pytest.raises(ValueError, match="window of 3"):
        plain_pooling.max_pool(jnp.ones((1, 2, 2, 1)), 3, 1)
