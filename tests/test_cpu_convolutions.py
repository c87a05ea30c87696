"""What convolutions become on CPUs, in value and in every kind of derivative, against XLA's own in float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax import lax
from jax.test_util import check_grads

import aa_flax
import aa_flax.models.winograd as tiling
from aa_flax.models.convolutions import WINOGRAD_CHANNELS, WINOGRAD_TILES, alike_conv, dense_conv, depthwise_conv
from aa_flax.models.windows import Windows
from aa_flax.models.winograd import TILE, winograd, winograd_tiles

NUMBERS: dict[str, Any] = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
SAME = [(1, 1), (1, 1)]
# A map that is just large enough for Winograd's way: tiles of two images.
SIDE = int((WINOGRAD_TILES / 2) ** 0.5 + 0.99) * TILE


def exact(x, kernel, strides, padding, **options) -> np.ndarray:
    with jax.enable_x64(True):
        x, kernel = (jnp.asarray(np.asarray(a), jnp.float64) for a in (x, kernel))
        return np.asarray(lax.conv_general_dilated(x, kernel, strides, padding, **NUMBERS, **options))


def exact_gradients(x, kernel, g, strides, padding, **options) -> list[np.ndarray]:
    with jax.enable_x64(True):
        x, kernel, g = (jnp.asarray(np.asarray(a), jnp.float64) for a in (x, kernel, g))

        def native(x, kernel):
            return lax.conv_general_dilated(x, kernel, strides, padding, **NUMBERS, **options)

        return [np.asarray(a) for a in jax.vjp(native, x, kernel)[1](g)]


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def relative(found, want) -> float:
    return float(np.abs(np.asarray(found, np.float64) - want).max() / np.abs(want).max())


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 11),
    width=st.integers(1, 11),
    pads=st.tuples(*[st.integers(-1, 3)] * 4),
    seed=st.integers(0, 99),
)
def test_winograd_equals_the_convolution(height, width, pads, seed):
    top, bottom, left, right = pads
    assume(min(height + top + bottom, width + left + right) >= 3)
    padding = ((top, bottom), (left, right))
    x, kernel = normal(seed, 2, height, width, 5), normal(seed + 1, 3, 3, 5, 4)
    found, want = winograd(x, kernel, padding), exact(x, kernel, (1, 1), padding)
    assert found.shape == want.shape
    np.testing.assert_allclose(found, want, rtol=0, atol=6e-6 * max(1, np.abs(want).max()))


def test_the_error_of_winograd_is_about_twice_that_of_a_sum(monkeypatch):
    x, kernel = normal(0, 2, 32, 32, 64), normal(1, 3, 3, 64, 64)
    want = exact(x, kernel, (1, 1), SAME)

    def error(y) -> float:
        return float(np.sqrt(np.mean((np.asarray(y) - want) ** 2)) / want.std())

    own = error(winograd(x, kernel, ((1, 1), (1, 1))))
    plain = error(lax.conv_general_dilated(x, kernel, (1, 1), SAME, **NUMBERS))
    matrices = dict(zip(("_PIXELS", "_KERNEL", "_RESULT"), tiling._matrices((0, 1, -1, 2, -2)), strict=True))
    for name, matrix in matrices.items():
        monkeypatch.setattr(tiling, name, matrix)
    papers = error(winograd(x, kernel, ((1, 1), (1, 1))))
    print(f"winograd {own:.1e}, with the paper's points {papers:.1e}, sum {plain:.1e}")
    assert own < 1.5e-6
    assert own < 3 * plain
    assert own < papers


def convolutions_in(function, *given) -> int:
    with aa_flax.traced_for("cpu"):
        return str(jax.make_jaxpr(function)(*given)).count("conv_general_dilated[")


@pytest.mark.parametrize(
    ("change", "wins"),
    [
        ({}, True),
        ({"side": SIDE - TILE}, False),
        ({"channels": WINOGRAD_CHANNELS - 1}, False),
        ({"dtype": jnp.bfloat16}, False),
        ({"strides": (1, 2)}, False),
        ({"rhs_dilation": (2, 2)}, False),
        ({"taps": 5}, False),
        ({"function": alike_conv}, False),
    ],
)
def test_winograd_is_for_large_maps_of_three_by_three_taps(change, wins):
    of = {"side": SIDE, "channels": WINOGRAD_CHANNELS, "dtype": jnp.float32, "strides": (1, 1), "taps": 3} | change
    function, dilation = of.get("function", dense_conv), of.get("rhs_dilation")
    x = jax.ShapeDtypeStruct((2, of["side"], of["side"], of["channels"]), of["dtype"])
    kernel = jax.ShapeDtypeStruct((of["taps"], of["taps"], of["channels"], 8), of["dtype"])

    def conv(x, kernel):
        return function(x, kernel, of["strides"], SAME, rhs_dilation=dilation, **NUMBERS)

    assert winograd_tiles((SIDE, SIDE)) * 2 >= WINOGRAD_TILES > winograd_tiles((SIDE - TILE,) * 2) * 2
    assert (convolutions_in(conv, x, kernel) == 0) == wins


def test_a_rolled_map_gives_the_rolled_result_bit_for_bit():
    """What networks stand on that choose by their maps. Winograd's way cannot promise it."""
    x, kernel = normal(0, 2, SIDE, SIDE, WINOGRAD_CHANNELS), normal(1, 3, 3, WINOGRAD_CHANNELS, 8)

    def rolled_back(function):
        def circular(x):
            x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="wrap")
            return function(x, kernel, (1, 1), "VALID", **NUMBERS)

        run = jax.jit(lambda x: (circular(x), jnp.roll(circular(jnp.roll(x, (1, 2), (1, 2))), (-1, -2), (1, 2))))
        with aa_flax.traced_for("cpu"):
            return [np.asarray(y) for y in run(x)]

    there, back = rolled_back(alike_conv)
    np.testing.assert_array_equal(there, back)
    assert (np.diff(rolled_back(dense_conv), axis=0) != 0).any()


DEPTHWISE: dict[str, Any] = {"feature_group_count": 5}
CASES = {
    "winograd": (dense_conv, (2, SIDE, SIDE, 32), (3, 3, 32, 4), (1, 1), SAME, {}),
    "winograd, odd": (dense_conv, (3, 43, 38, 32), (3, 3, 32, 4), (1, 1), [(2, 0), (0, 1)], {}),
    "by taps": (dense_conv, (2, 9, 8, 5), (3, 3, 5, 4), (1, 1), SAME, {}),
    "by taps, strided": (dense_conv, (2, 11, 9, 3), (7, 5, 3, 4), (2, 3), [(3, 3), (2, 2)], {}),
    "by taps, dilated": (dense_conv, (2, 11, 9, 3), (3, 3, 3, 4), (1, 2), "VALID", {"rhs_dilation": (2, 3)}),
    "depthwise": (depthwise_conv, (2, 9, 8, 5), (3, 3, 1, 5), (1, 1), SAME, DEPTHWISE),
    "depthwise, 7x7": (depthwise_conv, (2, 9, 8, 5), (7, 7, 1, 5), (1, 1), "SAME", DEPTHWISE),
    "depthwise, even": (depthwise_conv, (2, 9, 8, 5), (2, 4, 1, 5), (1, 1), "SAME", DEPTHWISE),
    "depthwise, low": (depthwise_conv, (2, 2, 8, 5), (3, 3, 1, 5), (1, 1), SAME, DEPTHWISE),
    "depthwise, wide rims": (depthwise_conv, (2, 4, 5, 5), (3, 3, 1, 5), (1, 1), [(3, 4), (2, 3)], DEPTHWISE),
}


@pytest.mark.parametrize("name", CASES)
def test_value_and_derivatives(name):
    function, shape, taps, strides, padding, options = CASES[name]
    x, kernel = normal(0, *shape), normal(1, *taps)

    def ours(x, kernel):
        return function(x, kernel, strides, padding, **options, **NUMBERS)

    want = exact(x, kernel, strides, padding, **options)
    g = normal(2, *want.shape)
    moved = normal(3, *shape), normal(4, *taps)

    @jax.jit
    def program(x, kernel, g, moved):
        y, pull = jax.vjp(ours, x, kernel)
        return y, pull(g), jax.jvp(ours, (x, kernel), moved)[1]

    with aa_flax.traced_for("cpu"):
        y, gradients, forward = program(x, kernel, g, moved)
        # One at a time: the other's form must not be needed for it.
        alone = jax.jit(jax.grad(lambda kernel: jnp.vdot(ours(x, kernel), g)))(kernel)
    assert relative(y, want) < 5e-6
    of_map, of_kernel = exact_gradients(x, kernel, g, strides, padding, **options)
    assert relative(gradients[0], of_map) < 5e-6
    assert relative(gradients[1], of_kernel) < 5e-6
    assert relative(alone, of_kernel) < 5e-6
    along = exact(moved[0], kernel, strides, padding, **options) + exact(x, moved[1], strides, padding, **options)
    assert relative(forward, along) < 5e-6


@pytest.mark.parametrize("name", ["by taps, strided", "depthwise"])
def test_derivatives_of_derivatives_and_batches_of_kernels(name):
    function, shape, taps, strides, padding, options = CASES[name]
    x, kernel = normal(0, *shape), normal(1, *taps)

    def ours(x, kernel):
        return function(x, kernel, strides, padding, **options, **NUMBERS)

    with aa_flax.traced_for("cpu"):
        check_grads(lambda x, kernel: jnp.sin(ours(x, kernel)).mean(), (x, kernel), order=2, rtol=2e-2, atol=2e-2)
        many = normal(5, 3, *taps)
        batched = jax.jit(jax.vmap(jax.grad(lambda kernel: jnp.sin(ours(x, kernel)).sum())))(many)
        single = jax.jit(jax.grad(lambda kernel: jnp.sin(ours(x, kernel)).sum()))
        np.testing.assert_allclose(batched, jnp.stack([single(kernel) for kernel in many]), rtol=1e-4, atol=1e-4)


def test_dense_windows_lead_back():
    x, kernel = jnp.zeros((1, 7, 6, 1)), jnp.zeros((3, 4, 1, 1))
    windows = Windows.of(x, kernel, (1, 1), [(2, 0), (1, 5)], None)
    back = Windows.of(jnp.zeros((1, *windows.sizes, 1)), kernel, (1, 1), windows.backward, None)
    assert back.sizes == (7, 6)
    assert back.backward == windows.padding


def test_images_cost_no_gradient_of_their_own():
    """The first convolution of a network is differentiated by its kernel alone."""
    x, kernel = jnp.ones((1, 9, 9, 3)), jnp.ones((3, 3, 3, 4))

    def loss(kernel):
        return dense_conv(x, kernel, (1, 1), SAME, **NUMBERS).sum()

    assert convolutions_in(jax.grad(loss), kernel) == 1


@pytest.mark.parametrize("name", ["by taps", "depthwise"])
def test_what_is_not_differentiated_has_no_part_in_the_derivative(name):
    function, shape, taps, strides, padding, options = CASES[name]
    x, kernel = normal(0, *shape), normal(1, *taps)

    def constant(scale):
        return scale * function(x, lax.stop_gradient(kernel * scale), strides, padding, **options, **NUMBERS).sum()

    with aa_flax.traced_for("cpu"):
        found = jax.jit(jax.grad(constant))(2.0)
    assert found == pytest.approx(2 * exact(x, kernel, strides, padding, **options).sum(), rel=1e-3)
