"""The convolutions in other words against XLA's own, in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import aa_flax
from aa_flax.models.convolutions import dense_conv, depthwise_conv

pytestmark = pytest.mark.every_platform

NUMBERS = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
OPTIONS = {**NUMBERS, "feature_group_count": 5}


def answer_and_gradients(function, loss, x, kernel) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A convolution's map, and the loss's gradients of images and kernel, from one program."""

    @jax.jit
    def program(x, kernel):
        return function(x, kernel), *jax.grad(lambda *given: loss(function(*given)), (0, 1))(x, kernel)

    return program(x, kernel)


@pytest.mark.parametrize(
    ("size", "strides", "padding", "dilation"),
    [
        (3, (1, 1), [(1, 1), (1, 1)], (1, 1)),
        (3, (2, 2), [(1, 1), (1, 1)], (1, 1)),
        (2, (2, 1), "VALID", (1, 1)),
        (3, (1, 2), "SAME", (2, 2)),
    ],
)
def test_equals_the_native_convolution(size, strides, padding, dilation):
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=(2, 9, 8, 5)), jnp.float32)
    kernel = jnp.asarray(random.normal(size=(size, size, 1, 5)), jnp.float32)

    def ours(x, kernel):
        return depthwise_conv(x, kernel, strides, padding, rhs_dilation=dilation, **OPTIONS)

    def native(x, kernel):
        return lax.conv_general_dilated(x, kernel, strides, padding, rhs_dilation=dilation, **OPTIONS)

    found, want = (answer_and_gradients(f, lambda y: jnp.sum(jnp.sin(y)), x, kernel) for f in (ours, native))
    np.testing.assert_allclose(found[0], want[0], rtol=1e-5, atol=1e-5)
    for a, b in zip(found[1:], want[1:], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_other_platforms_keep_the_convolution():
    def conv(x, kernel):
        return depthwise_conv(x, kernel, (1, 1), [(1, 1), (1, 1)], **OPTIONS)

    shapes = jax.ShapeDtypeStruct((1, 8, 8, 5), jnp.float32), jax.ShapeDtypeStruct((3, 3, 1, 5), jnp.float32)
    for platform, is_native in (("cuda", True), ("tpu", True), ("cpu", False)):
        text = jax.export.export(jax.jit(conv), platforms=[platform])(*shapes).mlir_module()
        assert ("stablehlo.convolution" in text) == is_native, platform


def test_half_precision_sums_in_float32():
    x = jnp.ones((1, 3, 3, 5), jnp.bfloat16) * 1.0078125
    kernel = jnp.ones((3, 3, 1, 5), jnp.bfloat16)
    y = depthwise_conv(x, kernel, (1, 1), [(0, 0), (0, 0)], **OPTIONS)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, jnp.full((1, 1, 1, 5), 9 * 1.0078125, jnp.bfloat16))


@pytest.mark.parametrize(
    ("shape", "size", "stride", "padding"),
    [
        ((32, 32, 3), 7, 2, [(3, 3), (3, 3)]),
        ((33, 26, 3), 7, 2, [(3, 3), (3, 3)]),
        ((17, 20, 1), 3, 2, [(1, 1), (1, 1)]),
        ((63, 65, 3), 11, 4, [(2, 2), (2, 2)]),
        ((15, 13, 4), 5, 3, "SAME"),
        ((16, 18, 3), 3, 2, "VALID"),
        ((1, 2, 3), 7, 2, [(3, 3), (3, 3)]),
    ],
)
def test_blocks_as_channels_equal_the_strided_convolution(shape, size, stride, padding):
    random = np.random.default_rng(1)
    x = jnp.asarray(random.normal(size=(2, *shape)), jnp.float32)
    kernel = jnp.asarray(random.normal(size=(size, size, shape[-1], 6)), jnp.float32)

    def ours(x, kernel):
        return dense_conv(x, kernel, (stride, stride), padding, **NUMBERS)

    def native(x, kernel):
        return lax.conv_general_dilated(x, kernel, (stride, stride), padding, **NUMBERS)

    with aa_flax.traced_for("cuda"):
        assert "transpose" in str(jax.make_jaxpr(ours)(x, kernel)), "the strided convolution was kept"
        found, want = (answer_and_gradients(f, lambda y: jnp.sum(jnp.sin(y)), x, kernel) for f in (ours, native))
    np.testing.assert_allclose(found[0], want[0], rtol=1e-5, atol=5e-5)
    for a, b in zip(found[1:], want[1:], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize(
    ("channels", "strides", "dilation"),
    [(5, (2, 2), (1, 1)), (3, (1, 1), (1, 1)), (3, (2, 1), (1, 1)), (3, (2, 2), (2, 2))],
)
def test_other_convolutions_of_images_stay_as_they_are(channels, strides, dilation):
    x, kernel = jnp.ones((1, 9, 9, channels)), jnp.ones((3, 3, channels, 2))
    with aa_flax.traced_for("tpu"):
        jaxpr = jax.make_jaxpr(
            lambda x, k: dense_conv(x, k, strides, [(1, 1), (1, 1)], rhs_dilation=dilation, **NUMBERS)
        )(x, kernel)
    assert [str(equation.primitive) for equation in jaxpr.eqns] == ["conv_general_dilated"]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float64])
@pytest.mark.parametrize(
    ("shape", "size", "strides", "padding", "dilation"),
    [
        ((7, 8), (1, 1), (1, 1), [(0, 0), (0, 0)], None),
        ((7, 8), (1, 1), (3, 2), [(1, 0), (0, 2)], None),
        ((7, 8), (1, 1), (2, 1), "SAME", None),
        ((2, 2), (3, 3), (1, 1), [(1, 1), (1, 1)], None),
        ((1, 1), (3, 3), (1, 1), [(1, 1), (1, 1)], None),
        ((4, 3), (3, 3), (2, 2), [(1, 1), (1, 1)], None),
        ((2, 4), (3, 3), (1, 1), "SAME", (2, 3)),
        ((5, 6), (5, 3), (1, 2), "VALID", None),
    ],
)
def test_a_product_of_matrices_equals_the_convolution(shape, size, strides, padding, dilation, dtype):
    with jax.enable_x64(dtype == jnp.float64):
        random = np.random.default_rng(2)
        x = jnp.asarray(random.normal(size=(2, *shape, 5)), dtype)
        kernel = jnp.asarray(random.normal(size=(*size, 5, 6)), dtype)

        def ours(x, kernel):
            return dense_conv(x, kernel, strides, padding, rhs_dilation=dilation, **NUMBERS)

        def native(x, kernel):
            return lax.conv_general_dilated(x, kernel, strides, padding, rhs_dilation=dilation, **NUMBERS)

        with aa_flax.traced_for("cpu"):
            assert "conv_general_dilated" not in str(jax.make_jaxpr(ours)(x, kernel)), "the convolution was kept"
        exponent = {jnp.bfloat16: -5, jnp.float32: -16, jnp.float64: -40}[dtype]
        close = {"rtol": 2.0**exponent, "atol": 2.0**exponent * (size[0] * size[1]) ** 0.5}
        found, want = (
            [np.asarray(a) for a in answer_and_gradients(f, lambda y: jnp.sum(y**2), x, kernel)] for f in (ours, native)
        )
        assert found[0].dtype == dtype
        np.testing.assert_allclose(found[0], want[0], **close)
        for a, b in zip(found[1:], want[1:], strict=True):
            scale = np.abs(b).max()
            np.testing.assert_allclose(a / scale, b / scale, **close)


@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        ((3, 3, 4, 6), {}),
        ((3, 3, 2, 6), {"feature_group_count": 2}),
        ((1, 1, 2, 6), {"feature_group_count": 2}),
        ((1, 1, 4, 6), {"lhs_dilation": (2, 2)}),
    ],
)
def test_other_convolutions_stay_as_they_are(kernel, options):
    x, kernel = jnp.ones((1, 3, 3, 4)), jnp.ones(kernel)
    with aa_flax.traced_for("cpu"):
        jaxpr = jax.make_jaxpr(lambda x, k: dense_conv(x, k, (1, 1), [(1, 1), (1, 1)], **NUMBERS, **options))(x, kernel)
    assert "conv_general_dilated" in str(jaxpr)


def test_a_map_smaller_than_the_kernel_gives_an_empty_one():
    def conv(function):
        return function(jnp.ones((1, 2, 2, 4)), jnp.ones((5, 5, 4, 6)), (1, 1), "VALID", **NUMBERS)

    assert conv(dense_conv).shape == conv(lax.conv_general_dilated).shape == (1, 0, 0, 6)


def test_products_of_half_precision_sum_in_float32():
    x = jnp.full((1, 2, 2, 500), 1.0078125, jnp.bfloat16)
    y = dense_conv(x, jnp.ones((3, 3, 500, 1), jnp.bfloat16), (1, 1), [(1, 1), (1, 1)], **NUMBERS)
    np.testing.assert_array_equal(y, jnp.full((1, 2, 2, 1), 2000 * 1.0078125, jnp.bfloat16))


def test_pointwise_convolutions_of_the_networks_are_products_on_cpus_alone():
    model = nnx.eval_shape(lambda: aa_flax.create_model("mobilenet_v2_lpf4", rngs=nnx.Rngs(0)))
    model.eval()
    graphdef, state = nnx.split(model)

    def predict(state, x):
        return nnx.merge(graphdef, state)(x)

    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    counts = {}
    for platform in ("cpu", "cuda"):
        with aa_flax.traced_for(platform):
            jaxpr = str(jax.make_jaxpr(predict)(state, images))
        counts[platform] = jaxpr.count("dot_general["), jaxpr.count("conv_general_dilated[")
    # 34 pointwise convolutions and the classifier; the first convolution is no product, the 17 depthwise ones are
    # shifted products.
    assert counts["cpu"][0] == 35
    assert counts["cpu"][1] == 1
    assert counts["cuda"][1] == 1 + 17 + 34
