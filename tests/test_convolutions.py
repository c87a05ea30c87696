"""The convolutions in other words against XLA's own, in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import aa_flax
from aa_flax.models.convolutions import depthwise_conv, image_conv

NUMBERS = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
OPTIONS = {**NUMBERS, "feature_group_count": 5}


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

    np.testing.assert_allclose(ours(x, kernel), native(x, kernel), rtol=1e-5, atol=1e-5)
    for argument in (0, 1):
        a, b = (jax.grad(lambda *v, f=f: jnp.sum(jnp.sin(f(*v))), argument)(x, kernel) for f in (ours, native))
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
        return image_conv(x, kernel, (stride, stride), padding, **NUMBERS)

    def native(x, kernel):
        return lax.conv_general_dilated(x, kernel, (stride, stride), padding, **NUMBERS)

    with aa_flax.traced_for("cuda"):
        assert "transpose" in str(jax.make_jaxpr(ours)(x, kernel)), "the strided convolution was kept"
        np.testing.assert_allclose(ours(x, kernel), native(x, kernel), rtol=1e-5, atol=5e-5)
        for argument in (0, 1):
            a, b = (jax.grad(lambda *v, f=f: jnp.sum(jnp.sin(f(*v))), argument)(x, kernel) for f in (ours, native))
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize(
    ("channels", "strides", "dilation"),
    [(5, (2, 2), (1, 1)), (3, (1, 1), (1, 1)), (3, (2, 1), (1, 1)), (3, (2, 2), (2, 2))],
)
def test_other_convolutions_of_images_stay_as_they_are(channels, strides, dilation):
    x, kernel = jnp.ones((1, 9, 9, channels)), jnp.ones((3, 3, channels, 2))
    with aa_flax.traced_for("tpu"):
        jaxpr = jax.make_jaxpr(
            lambda x, k: image_conv(x, k, strides, [(1, 1), (1, 1)], rhs_dilation=dilation, **NUMBERS)
        )(x, kernel)
    assert [str(equation.primitive) for equation in jaxpr.eqns] == ["conv_general_dilated"]
