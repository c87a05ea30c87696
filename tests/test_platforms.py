"""traced_for: the form for one platform alone, whatever was traced before."""

import re
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import aa_flax
from aa_flax.models.convolutions import depthwise_conv
from aa_flax.platforms import platform_of

pytestmark = pytest.mark.every_platform

X = jax.random.normal(jax.random.key(0), (2, 9, 12, 3))


def down_and_up(x: jax.Array) -> jax.Array:
    return aa_flax.blur_upsample(aa_flax.blur_pool(x))


def depthwise(x: jax.Array) -> jax.Array:
    kernel = np.random.default_rng(0).normal(size=(3, 3, 1, 3)).astype(np.float32)
    numbers = ("NHWC", "HWIO", "NHWC")
    options = {"dimension_numbers": numbers, "feature_group_count": 3}
    return depthwise_conv(x, kernel, (1, 1), [(1, 1), (1, 1)], **options)


def operations(function, x: jax.Array = X) -> set[str]:
    """Names of everything in the trace, in inner programs too."""
    return set(re.findall(r"= ([a-z_]+)", str(jax.make_jaxpr(function)(x))))


@pytest.mark.parametrize("function", [down_and_up, depthwise])
def test_no_choice_is_left_and_the_values_are_the_same(function):
    want = jax.jit(function)(X)
    # Traced and compiled outside first: JAX must not take that for what is asked inside.
    assert "platform_index" in operations(function)
    for platform in ("cpu", "cuda", "rocm", "tpu"):
        with aa_flax.traced_for(platform):
            assert not {"platform_index", "cond"} & operations(function)
            np.testing.assert_allclose(jax.jit(function)(X), want, rtol=1e-5, atol=1e-6)
    assert "platform_index" in operations(function)


def test_each_platform_has_its_form():
    for platform, has, lacks in (("tpu", "dot_general", "gather"), ("cuda", "gather", "dot_general")):
        with aa_flax.traced_for(platform):
            found = operations(down_and_up)
        assert has in found
        assert lacks not in found


def test_a_network_and_its_gradient():
    model = nnx.Sequential(nnx.Conv(3, 4, (3, 3), 2, rngs=nnx.Rngs(0)), nnx.relu)
    blurred, _ = aa_flax.antialias(model, first=True)

    def loss(x):
        return (blurred(x) ** 2).sum()

    want = jax.jit(jax.grad(loss))(X)
    with aa_flax.traced_for("tpu"):
        assert "platform_index" not in operations(jax.grad(loss))
        np.testing.assert_allclose(jax.jit(jax.grad(loss))(X), want, rtol=1e-4, atol=1e-5)


def test_the_platform_of_a_device():
    def graphics(version: str) -> Any:
        return SimpleNamespace(platform="gpu", client=SimpleNamespace(platform_version=version))

    assert platform_of(jax.devices("cpu")[0]) == "cpu"
    assert platform_of(graphics("PJRT C API\nrocm 70000")) == "rocm"
    assert platform_of(graphics("PJRT C API\ncuda 12090")) == "cuda"


def test_unknown_platforms():
    with (
        pytest.raises(ValueError, match="platform must be one of cpu, cuda, rocm, tpu, got 'gpu'"),
        aa_flax.traced_for("gpu"),
    ):
        pass
