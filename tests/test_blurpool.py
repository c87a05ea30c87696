"""The operator against a formula in float64, and every transform that JAX has."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import aa_flax
from aa_flax import axis_maps, blurpool

pytestmark = pytest.mark.every_platform

NUMPY_MODE = {"reflect": "reflect", "replicate": "edge", "zero": "constant", "circular": "wrap"}
PAD_TYPES = sorted(NUMPY_MODE)


def blur_by_definition(x: np.ndarray, axis: int, k: int, stride: int, pad_type: str, pad_off: int) -> np.ndarray:
    """SPEC section 1 in float64: pad with numpy, slide the taps, keep every stride-th sample."""
    taps = np.array([math.comb(k - 1, i) for i in range(k)]) / 2 ** (k - 1)
    low, high = (k - 1) // 2 + pad_off, k // 2 + pad_off
    x = np.moveaxis(x.astype(np.float64), axis, -1)
    x = x[..., max(-low, 0) : x.shape[-1] - max(-high, 0)]
    x = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(max(low, 0), max(high, 0))], mode=NUMPY_MODE[pad_type])
    y = np.lib.stride_tricks.sliding_window_view(x, k, axis=-1) @ taps
    return np.moveaxis(y[..., ::stride], -1, axis)


def relative_error(a, b) -> float:
    return float(np.abs(np.asarray(a, np.float64) - b).max() / max(np.abs(b).max(), 1e-30))


@given(
    size=st.integers(1, 19),
    k=st.integers(1, 11),
    stride=st.integers(1, 4),
    pad_type=st.sampled_from(PAD_TYPES),
    pad_off=st.integers(-2, 3),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=150)
def test_matrix_is_the_definition(size, k, stride, pad_type, pad_off, seed):
    padded = size + k - 1 + 2 * pad_off
    x = np.random.default_rng(seed).normal(size=size)
    cropped_away = size - max(-((k - 1) // 2 + pad_off), 0) - max(-(k // 2 + pad_off), 0) < 1
    if padded < k or cropped_away:
        with pytest.raises(ValueError, match="pad_off"):
            blurpool.blur_band(size, k, stride, pad_type, pad_off)
        return
    forward, backward = blurpool.blur_band(size, k, stride, pad_type, pad_off)
    matrix = forward.dense(size)
    assert matrix.shape[0] == (padded - k) // stride + 1
    np.testing.assert_allclose(matrix @ x, blur_by_definition(x, 0, k, stride, pad_type, pad_off), atol=1e-12)
    np.testing.assert_allclose(backward.dense(len(matrix)), matrix.T, atol=1e-15)
    if pad_type != "zero":
        np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-12)


@pytest.mark.parametrize("pad_type", PAD_TYPES)
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 7, 12])
def test_two_dimensions(k, pad_type):
    x = np.random.default_rng(k).normal(size=(2, 7, 10, 3)).astype(np.float32)
    want = blur_by_definition(x, 1, k, 2, pad_type, 0)
    want = blur_by_definition(want, 2, k, 2, pad_type, 0)
    y = jax.jit(lambda x: aa_flax.blur_pool(x, k, 2, pad_type))(x)
    assert y.shape == (2, 4, 5, 3)
    assert relative_error(y, want) < 1e-6


def test_per_axis_sizes_strides_and_offsets():
    x = np.random.default_rng(0).normal(size=(1, 9, 8, 6, 2)).astype(np.float32)
    want = x
    for axis, (k, stride, off) in enumerate([(3, 2, 0), (1, 1, 0), (5, 3, 1)], start=1):
        want = blur_by_definition(want, axis, k, stride, "reflect", off)
    y = aa_flax.blur_pool(x, (3, 1, 5), (2, 1, 3), "reflect", (0, 0, 1))
    assert y.shape == want.shape
    assert relative_error(y, want) < 1e-6


@pytest.mark.parametrize(("layer", "shape"), [(aa_flax.BlurPool1D, (9,)), (aa_flax.BlurPool3D, (5, 6, 7))])
def test_layers_take_any_leading_axes(layer, shape):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, *shape, 4)), jnp.float32)
    module = layer()
    y = module(x)
    assert y.shape == (2, 3, *(math.ceil(n / 2) for n in shape), 4)
    np.testing.assert_allclose(y[1, 2], module(x[1, 2]), atol=1e-6)
    assert not jax.tree.leaves(nnx.state(module))


def test_defaults_are_the_reference_ones():
    assert aa_flax.BlurPool1D().filter_size == (3,)
    assert aa_flax.BlurPool2D().filter_size == (4, 4)
    assert aa_flax.BlurPool2D(pad_type="refl").pad_type == "reflect"
    assert aa_flax.BlurPool2D(pad_type="repl").pad_type == "replicate"


@pytest.mark.parametrize(
    ("dtype", "half_ulp"), [("float64", 0), ("float32", 0), ("bfloat16", 2**-9), ("float16", 2**-12)]
)
def test_dtypes_round_once(dtype, half_ulp):
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(1).normal(size=(1, 21, 17, 2)), dtype)
        exact = blur_by_definition(
            blur_by_definition(np.asarray(x, np.float64), 1, 6, 2, "reflect", 0), 2, 6, 2, "reflect", 0
        )
        y = aa_flax.blur_pool(x, 6)
        assert y.dtype == x.dtype
        # Sums run wider than the input: the only error left is the last rounding, element by element.
        slack = 1e-14 if dtype == "float64" else 1e-6
        assert np.all(np.abs(np.asarray(y, np.float64) - exact) <= 2 * half_ulp * np.abs(exact) + slack)


def test_what_autodiff_sees():
    """jvp, vjp, second order and vmap agree with the dense matrix."""
    x, t = np.random.default_rng(2).normal(size=(2, 1, 9, 8, 2)).astype(np.float32)
    f = functools.partial(aa_flax.blur_pool, filter_size=4)
    y, vjp = jax.vjp(f, x)
    _, tangent = jax.jvp(f, (x,), (t,))
    assert relative_error(tangent, np.asarray(f(t), np.float64)) < 1e-6
    g = np.random.default_rng(3).normal(size=y.shape).astype(np.float32)
    assert np.vdot(vjp(g)[0], t) == pytest.approx(float(np.vdot(g, tangent)), rel=1e-5)

    def energy(v):
        return jnp.sum(f(v) ** 3)

    grad = jax.grad(energy)
    np.testing.assert_allclose(grad(x), vjp(3 * y**2)[0], rtol=1e-5, atol=1e-6)
    hvp = jax.jvp(grad, (x,), (t,))[1]
    np.testing.assert_allclose(hvp, vjp(6 * y * tangent)[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(jax.grad(lambda v: jnp.vdot(grad(v), t))(x), hvp, rtol=1e-4, atol=1e-5)
    batch = np.stack([x, 2 * x])
    np.testing.assert_allclose(jax.vmap(grad)(batch)[1], grad(2 * x), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(jax.jit(jax.grad(jax.checkpoint(energy)))(x), grad(x), rtol=1e-5, atol=1e-5)
    linear = jax.linearize(f, x)[1]
    np.testing.assert_allclose(linear(t), tangent, rtol=1e-5, atol=1e-6)


def test_reverse_mode_runs_no_scatter():
    text = jax.jit(jax.grad(lambda v: jnp.sum(aa_flax.blur_pool(v, 4) ** 2))).lower(jnp.ones((1, 9, 8, 2)))
    assert "scatter" not in text.as_text()
    assert "stablehlo.gather" in text.as_text()


@pytest.mark.parametrize("pad_type", PAD_TYPES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_matrix_product_form_equals_gathers(pad_type, dtype):
    """The form that TPU runs, on this machine."""
    x = jnp.asarray(np.random.default_rng(4).normal(size=(2, 11, 8, 3)), dtype)
    maps = tuple(blurpool.BlurAxis(axis, x.shape[axis], 4, 2, pad_type, 0) for axis in (1, 2))
    gathers, product = axis_maps.gather_each(x, maps), axis_maps.matmul_each(x, maps)
    assert product.dtype == gathers.dtype == jnp.float32
    np.testing.assert_allclose(product, gathers, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("axes", [(1, 2), (2, 3), (1, 3), (1, 2, 3)])
@pytest.mark.parametrize("pad_type", PAD_TYPES)
def test_pairs_of_axes_equal_one_axis_after_the_other(axes, pad_type):
    """The form that GPUs run against that of CPUs: values, both modes of differentiation."""
    rng = np.random.default_rng(6)
    x, t = (jnp.asarray(rng.normal(size=(2, 7, 6, 5, 3)), jnp.float32) for _ in range(2))
    maps = tuple(blurpool.BlurAxis(axis, x.shape[axis], 4 if axis < 3 else 3, 2, pad_type, 0) for axis in axes)
    results = []
    for form in (axis_maps.gather_each, axis_maps.gather_pairs):

        def f(x, form=form):
            return jnp.sin(form(x, maps))

        value, tangent = jax.jvp(f, (x,), (t,))
        results.append((value, tangent, jax.vjp(f, x)[1](jnp.cos(value))[0]))
    for each, pair in zip(*results, strict=True):
        np.testing.assert_allclose(pair, each, rtol=1e-5, atol=1e-6)


def test_gpus_run_no_scatter_in_reverse_mode():
    with aa_flax.traced_for("cuda"):
        text = jax.jit(jax.grad(lambda v: jnp.sum(aa_flax.blur_pool(v, 4) ** 2))).lower(jnp.ones((1, 9, 8, 2)))
    assert "scatter" not in text.as_text()
    assert "stablehlo.gather" in text.as_text()


def test_tpu_is_lowered_to_matrix_products():
    exported = jax.export.export(jax.jit(aa_flax.blur_pool), platforms=["tpu"])(jnp.ones((1, 8, 8, 2)))
    text = exported.mlir_module()
    assert "dot_general" in text
    assert "stablehlo.gather" not in text


def test_a_nan_reaches_only_the_windows_that_see_it():
    x = jnp.ones((1, 12, 1)).at[0, 6].set(jnp.nan)
    for pad_type in PAD_TYPES:
        matrix = blurpool.blur_band(12, 4, 2, pad_type, 0)[0].dense(12)
        bad = np.isnan(np.asarray(aa_flax.blur_pool(x, 4, 2, pad_type))[0, :, 0])
        assert set(np.flatnonzero(bad)) == set(np.flatnonzero(matrix[:, 6])), pad_type
        g = jnp.ones((1, 6, 1)).at[0, 3].set(jnp.nan)
        back = jax.vjp(lambda v, p=pad_type: aa_flax.blur_pool(v, 4, 2, p), jnp.ones((1, 12, 1)))[1](g)[0]
        assert set(np.flatnonzero(np.isnan(np.asarray(back)[0, :, 0]))) == set(np.flatnonzero(matrix[3])), pad_type


def test_a_sharded_batch_needs_no_communication():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, P("data"))
    x = np.random.default_rng(5).normal(size=(16, 9, 8, 4)).astype(np.float32)
    grad = jax.jit(
        jax.grad(lambda v: jnp.sum(aa_flax.blur_pool(v, 4) ** 2)), in_shardings=sharding, out_shardings=sharding
    )
    compiled = grad.lower(x).compile().as_text()
    assert not any(word in compiled for word in ("all-reduce", "all-gather", "all-to-all", "collective-permute"))
    np.testing.assert_allclose(
        grad(jax.device_put(x, sharding)),
        jax.grad(lambda v: jnp.sum(aa_flax.blur_pool(v, 4) ** 2))(x),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"filter_size": 0}, ValueError, "filter_size.*0"),
        ({"filter_size": True}, ValueError, "filter_size.*True"),
        ({"filter_size": (3, 3, 3)}, ValueError, "filter_size.*2"),
        ({"stride": 0}, ValueError, "stride.*0"),
        ({"stride": 1.5}, ValueError, "stride.*1.5"),
        ({"pad_type": "mirror"}, ValueError, "pad_type.*mirror"),
        ({"pad_off": -9}, ValueError, "pad_off=-9"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, words):
    with pytest.raises(error, match=words):
        aa_flax.blur_pool(jnp.ones((1, 8, 8, 1)), **arguments)


def test_wrong_inputs_are_named():
    with pytest.raises(TypeError, match="int32"):
        aa_flax.blur_pool(jnp.ones((1, 8, 8, 1), jnp.int32))
    with pytest.raises(ValueError, match=r"\(8, 8\)"):
        aa_flax.blur_pool(jnp.ones((8, 8)))
    with pytest.raises(ValueError, match="BlurPool2D"):
        aa_flax.BlurPool2D()(jnp.ones((8, 8)))
    with pytest.raises(ValueError, match="at least one sample"):
        aa_flax.blur_pool(jnp.ones((1, 0, 8, 1)))
