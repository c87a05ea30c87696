"""Gradients of networks in bfloat16: float32 for kernels, so that sums over devices lose nothing."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from aa_flax.models.convolutions import dense_conv, depthwise_conv
from train.fit.gradients import widen_gradients
from train.fit.step import StepOptions, make_loss, split_model

DEVICES = 8


class Kinds(nnx.Module):
    """A layer of each kind that has a kernel: strided over colours, depthwise, pointwise, linear."""

    def __init__(self, *, wide: bool):
        conv = functools.partial(nnx.Conv, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
        self.stem = conv(3, 8, (3, 3), 2, padding=1, conv_general_dilated=dense_conv)
        self.depthwise = conv(8, 8, (3, 3), feature_group_count=8, conv_general_dilated=depthwise_conv)
        self.pointwise = conv(8, 6, (1, 1), use_bias=False, conv_general_dilated=dense_conv)
        self.head = nnx.Linear(6, 5, dtype=jnp.bfloat16, rngs=nnx.Rngs(1))
        if wide:
            widen_gradients(self)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = jax.nn.relu(self.pointwise(self.depthwise(jax.nn.relu(self.stem(x)))))
        return self.head(x.mean((1, 2)))


def summed_over_devices(model: nnx.Module, directory: Path) -> list[str]:
    """The dtypes of what XLA sums over devices in the gradient of a network.

    Read as XLA parts the program: what it makes of that for CPUs holds no bfloat16, and TPUs would sum it.
    """
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Auto,))
    whole, cut = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    graphdef, params, stats = split_model(model)
    gradient = jax.grad(make_loss(graphdef, StepOptions()), has_aux=True)
    jitted = jax.jit(gradient, in_shardings=(whole, whole, cut, cut, whole), out_shardings=whole)
    images, labels = jnp.zeros((2 * DEVICES, 8, 8, 3)), jnp.zeros(2 * DEVICES, jnp.int32)
    lowered = jitted.lower(params, stats, images, labels, jax.random.key(0))
    # What comes from the cache of programs is not parted again; so it must not get there.
    kept = jax.config.values["jax_persistent_cache_min_compile_time_secs"]
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)
    try:
        lowered.compile(compiler_options={"xla_dump_to": str(directory), "xla_dump_hlo_pass_re": "spmd-partitioning"})
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", kept)
    (parted,) = directory.glob("*jit_loss*after_spmd-partitioning*")
    return re.findall(r"= (\w+)\[[\d,]*\]\S* all-reduce\(", parted.read_text())


def test_all_that_is_summed_over_devices_is_float32(tmp_path):
    found = {wide: summed_over_devices(Kinds(wide=wide), tmp_path / str(wide)) for wide in (False, True)}
    assert "bf16" in found[False]
    assert set(found[True]) == {"f32"}


def test_a_sum_over_devices_keeps_what_bfloat16_would_lose():
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Auto,))
    cut = NamedSharding(mesh, PartitionSpec("data"))
    images = np.ones((DEVICES, 2, 2, 1), np.float32)
    images[0] = 256
    sums = {}
    for wide in (False, True):
        layer = nnx.Conv(1, 1, (1, 1), use_bias=False, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
        if wide:
            widen_gradients(layer)
        total = nnx.jit(nnx.grad(lambda layer, x: layer(x).astype(jnp.float32).sum()))
        sums[wide] = float(total(layer, jax.device_put(images, cut)).kernel[...].item())
    exact = 4 * 256 + 4 * (DEVICES - 1)
    assert sums[True] == exact != sums[False]


@pytest.mark.parametrize(
    ("product", "kernel", "options"),
    [
        (dense_conv, (3, 3, 3, 8), {"window_strides": (2, 2), "padding": ((1, 1), (1, 1))}),
        (dense_conv, (7, 7, 3, 4), {"window_strides": (4, 4), "padding": ((2, 3), (2, 3))}),
        (depthwise_conv, (3, 3, 1, 3), {"window_strides": (1, 1), "padding": "SAME", "feature_group_count": 3}),
    ],
)
def test_gradients_are_those_of_the_same_values_in_float64(product, kernel, options):
    """The kernel's to float32; that of the map, and the values, to bfloat16, as they are without."""
    random = np.random.default_rng(0)
    model = nnx.Conv(3, kernel[-1], kernel[:2], use_bias=False, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    model.conv_general_dilated = product
    widen_gradients(model)
    layer = functools.partial(
        model.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=None, **options
    )
    plain = functools.partial(product, dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=None, **options)
    x = jnp.asarray(random.normal(size=(4, 9, 9, 3)), jnp.bfloat16)
    weights = jnp.asarray(random.normal(size=kernel), jnp.float32)
    out, pull = jax.vjp(layer, x, weights)
    g = jnp.asarray(random.normal(size=out.shape), jnp.bfloat16)
    to_map, to_kernel = pull(g)
    plain_out, plain_pull = jax.vjp(plain, x, weights.astype(jnp.bfloat16))
    assert (out == plain_out).all()
    assert (to_map == plain_pull(g)[0]).all()
    assert (to_map.dtype, to_kernel.dtype) == (jnp.bfloat16, jnp.float32)
    with jax.enable_x64(True):
        x, g = np.asarray(x, np.float64), np.asarray(g, np.float64)
        exact = jax.vjp(lambda k: plain(jnp.asarray(x), k), jnp.zeros(kernel, jnp.float64))[1](jnp.asarray(g))[0]
    np.testing.assert_allclose(to_kernel, exact, rtol=0, atol=2e-6 * np.abs(exact).max())


def test_networks_built_alike_have_one_structure():
    """So that runs of a sweep share their compiled update."""
    one, other = (split_model(Kinds(wide=True))[0] for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)


def test_what_is_recomputed_backward_stays_so():
    """`--remat keep_convs` knows products by their primitives, which are inside of a derivative's rule here."""
    kept = {}
    for remat in ("none", "keep_convs"):
        for wide in (False, True):
            graphdef, params, stats = split_model(Kinds(wide=wide))
            loss = make_loss(graphdef, StepOptions(remat=remat))
            images, labels = jnp.zeros((4, 8, 8, 3)), jnp.zeros(4, jnp.int32)

            def of_params(p, loss=loss, stats=stats, images=images, labels=labels):
                return loss(p, stats, images, labels, jax.random.key(0))[0]

            residuals = jax.eval_shape(lambda p, f=of_params: jax.vjp(f, p)[1], params)
            kept[remat, wide] = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(residuals))
    assert kept["keep_convs", True] < kept["none", True]
