"""The operator and the pooling against PyTorch's, in value and gradient."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from antialiased_cnns import BlurPool, BlurPool1D

from aa_flax.blurpool import blur_pool
from aa_flax.plain_pooling import adaptive_avg_pool, avg_pool, max_pool
from tests.parity import compare, oracles

F = oracles.torch.nn.functional
SIZES = ((9, 9), (12, 7), (16, 11), (8, 21))


def value_and_pullback(ours, x: np.ndarray, cotangent_seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Our output, the cotangent drawn for it, and the gradient of the input."""
    cotangent = np.random.default_rng(cotangent_seed).normal(size=jax.eval_shape(ours, x).shape).astype(x.dtype)

    @partial(jax.jit, compiler_options=compare.QUICK_COMPILE)
    def run(x: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
        y, pullback = jax.vjp(ours, x)
        return y, pullback(cotangent)[0]

    y, gradient = run(jnp.asarray(x), jnp.asarray(cotangent))
    return np.asarray(y), cotangent, np.asarray(gradient)


def assert_equal_operators(ours, theirs, x: np.ndarray, tolerance: float) -> None:
    """Compares values and gradients of two maps of an NHWC batch; a tolerance of 0 means to the bit."""
    y, cotangent, gradient = value_and_pullback(ours, x)
    leaf = oracles.nchw(x).requires_grad_()
    out = theirs(leaf)
    out.backward(oracles.nchw(cotangent))
    for name, a, b in (("value", y, oracles.nhwc(out)), ("gradient", gradient, oracles.nhwc(leaf.grad))):
        assert a.shape == b.shape, name
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max(), err_msg=name)


# Height and width, stride, pad_off.
GEOMETRIES = (((9, 9), 2, 0), ((12, 7), 2, 1), ((16, 11), 1, 0), ((8, 21), 3, 0), ((9, 14), 3, 1))


@pytest.mark.parametrize("pad_type", ["reflect", "replicate", "zero"])
@pytest.mark.parametrize("filter_size", range(1, 8))
def test_blur_pool(filter_size: int, pad_type: str):
    for size, stride, pad_off in GEOMETRIES:
        x = np.random.default_rng(filter_size).normal(size=(2, *size, 3)).astype(np.float32)
        theirs = BlurPool(3, pad_type=pad_type, filt_size=filter_size, stride=stride, pad_off=pad_off)
        ours = partial(blur_pool, filter_size=filter_size, stride=stride, pad_type=pad_type, pad_off=pad_off)
        assert_equal_operators(ours, theirs, x, 1e-6)


def test_blur_pool_crops_with_a_negative_pad():
    x = np.random.default_rng(0).normal(size=(2, 12, 15, 3)).astype(np.float32)
    for pad_off in (-1, -2):
        theirs = BlurPool(3, filt_size=3, stride=2, pad_off=pad_off)
        assert_equal_operators(lambda x, off=pad_off: blur_pool(x, 3, 2, "reflect", off), theirs, x, 1e-6)


@pytest.mark.parametrize("filter_size", range(1, 8))
def test_blur_pool_1d(filter_size: int):
    for length in (9, 16, 31):
        x = np.random.default_rng(length).normal(size=(2, length, 5)).astype(np.float32)
        theirs = BlurPool1D(5, filt_size=filter_size, stride=2)(oracles.torch.from_numpy(x.transpose(0, 2, 1).copy()))
        ours = blur_pool(jnp.asarray(x), filter_size, 2)
        np.testing.assert_allclose(ours, theirs.numpy().transpose(0, 2, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("filter_size", [2, 3, 4, 5])
def test_blur_pool_in_float64(filter_size: int):
    with jax.enable_x64(True):
        x = np.random.default_rng(0).normal(size=(2, 13, 16, 3))
        theirs = BlurPool(3, filt_size=filter_size, stride=2).double()
        assert_equal_operators(lambda x: blur_pool(x, filter_size, 2), theirs, x, 1e-14)


@pytest.mark.parametrize(
    ("window", "stride", "padding"), [(2, 2, 0), (2, 1, 0), (3, 2, 0), (3, 2, 1), (3, 1, 0), (3, 1, 1)]
)
def test_max_pool_with_ties(window: int, stride: int, padding: int):
    """Small whole numbers tie in most windows; after a ReLU, zeros do."""
    for size in SIZES:
        rng = np.random.default_rng(sum(size))
        whole = rng.integers(-2, 3, (2, *size, 3)).astype(np.float32)
        for x in (whole, np.maximum(whole, 0), np.zeros_like(whole)):
            assert_equal_operators(
                lambda x: max_pool(x, window, stride, padding),
                lambda x: F.max_pool2d(x, window, stride, padding),
                x,
                # Gradients of overlapping windows add up in another order.
                0 if window == stride else 1e-6,
            )


def test_max_pool_passes_nan_on():
    x = np.random.default_rng(0).normal(size=(1, 8, 8, 2)).astype(np.float32)
    x[0, 3, 4, 1] = np.nan
    theirs = oracles.nhwc(F.max_pool2d(oracles.nchw(x), 3, 2, 1))
    np.testing.assert_array_equal(max_pool(jnp.asarray(x), 3, 2, 1), theirs)


@pytest.mark.parametrize("cells", [1, 3, 6, 7, (2, 5)])
def test_adaptive_avg_pool(cells):
    for size in (*SIZES, (1, 1), (3, 2), (7, 7), (6, 6), (14, 13)):
        x = np.random.default_rng(sum(size)).normal(size=(2, *size, 3)).astype(np.float32)
        assert_equal_operators(
            lambda x: adaptive_avg_pool(x, cells), lambda x: F.adaptive_avg_pool2d(x, cells), x, 1e-6
        )


def test_avg_pool():
    for size in SIZES:
        x = np.random.default_rng(sum(size)).normal(size=(2, *size, 3)).astype(np.float32)
        assert_equal_operators(lambda x: avg_pool(x, 2, 2), lambda x: F.avg_pool2d(x, 2, 2), x, 1e-6)
