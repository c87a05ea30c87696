"""A batch cut over devices, on Auto and on Explicit axes (JAX's default): the same values, or one line that helps."""

import contextlib
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.tree_util import Partial

import aa_flax
import aa_flax.nn as aann
from aa_flax import consistency, linen, plain_pooling
from aa_flax.models import mobilenet
from aa_flax.models.abstract import abstract_model
from aa_flax.models.batch_norm import BatchNorm
from aa_flax.models.convolutions import dense_conv, depthwise_conv

pytestmark = pytest.mark.every_platform

AXES = ("Auto", "Explicit")
# Auto axes are no part of what is traced: where a mesh could matter, `make test` has Explicit ones.
BOTH = [pytest.param("Auto", marks=pytest.mark.slow), "Explicit"]
# One block a stage: every kind of layer, little to compile.
SHALLOW = {"depths": (1, 1, 1, 1), "num_classes": 3}
DENSE = {"growth_rate": 8, "num_init_features": 16}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "alexnet": ("alexnet", {"num_classes": 0}),
    "vgg": ("vgg11_bn", {"num_classes": 0, "depths": (1, 1, 1, 1, 1)}),
    "resnet": ("resnet18", SHALLOW),
    "densenet": ("densenet121", SHALLOW | DENSE),
    "mobilenet": ("mobilenet_v2", {"num_classes": 3, "width_mult": 0.25}),
    "convnext": ("convnext_tiny", SHALLOW | {"widths": (8, 12, 16, 24), "stochastic_depth_prob": 0.0}),
}
SIDES = {"alexnet": 63, "vgg": 32, "resnet": 40, "densenet": 40, "mobilenet": 40, "convnext": 40}


@pytest.fixture(autouse=True, scope="module")
def _few_blocks():
    patch = pytest.MonkeyPatch()
    patch.setattr(mobilenet, "STAGES", tuple((t, c, 1, s) for t, c, _, s in mobilenet.STAGES[:5]))
    yield
    patch.undo()


@functools.cache
def mesh(axes: str) -> Mesh:
    return jax.make_mesh((4,), ("data",), axis_types=(getattr(AxisType, axes),), devices=jax.devices()[:4])


def spread(tree: Any, axes: str, *spec: str | None) -> Any:
    """Arrays of the tree cut over the mesh, or shapes that say so."""
    sharding = NamedSharding(mesh(axes), P(*spec))

    def place(x: Any) -> Any:
        if isinstance(x, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
        return jax.device_put(x, sharding)

    return jax.tree.map(place, tree)


def training_loss(model: nnx.Module):
    """A scalar with a different weight for each number of the answer, as a function of (parameters, rest, images)."""
    model.train()
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params: Any, rest: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        call: Any = nnx.merge(graphdef, params, rest)
        answer = call(images, rngs=nnx.Rngs(dropout=0))
        return weighted(answer), answer

    return loss, nnx.as_pure(params), nnx.as_pure(rest)


def weighted(answer: jax.Array) -> jax.Array:
    return jnp.sum(answer * jnp.cos(jnp.arange(answer.size, dtype=answer.dtype)).reshape(answer.shape))


@functools.cache
def traced(name: str, axes: str) -> tuple[Any, Any, jax.ShapeDtypeStruct]:
    """A family's parameters, their gradient and the answer, as shapes."""
    network, usual = FAMILIES[name]
    loss, *state = training_loss(abstract_model(network, **usual))
    images = jax.ShapeDtypeStruct((8, SIDES[name], SIDES[name], 3), jnp.float32)
    given = (*spread(state, axes), spread(images, axes, "data"))
    return state[0], *jax.eval_shape(jax.grad(loss, has_aux=True), *given)


@pytest.mark.parametrize("what", ["forward", "gradient"])
@pytest.mark.parametrize("axes", BOTH)
@pytest.mark.parametrize("name", FAMILIES)
def test_families(name, axes, what):
    params, gradient, answer = traced(name, axes)
    if what == "gradient":
        assert jax.tree.map(jnp.shape, gradient) == jax.tree.map(jnp.shape, params)
    elif axes == "Explicit":
        assert answer.sharding.spec[0] == "data"
    assert answer.shape[0] == 8


@functools.cache
def trained(name: str) -> dict[str, Any]:
    """What a family answers in training, and its gradient, on one device and on each kind of mesh.

    In float64: sums round differently on several devices, and an activation that is zero but for rounding lets its
    gradient pass on some of them.
    """
    network, usual = FAMILIES[name]
    with jax.enable_x64(True):
        wide = {"dtype": jnp.float64, "param_dtype": jnp.float64}
        loss, *state = training_loss(aa_flax.create_model(network, rngs=nnx.Rngs(0), **wide, **usual))
        images = np.random.default_rng(0).normal(size=(8, SIDES[name], SIDES[name], 3))
        program = jax.jit(jax.value_and_grad(loss, has_aux=True))
        placed = {axes: (*spread(state, axes), spread(images, axes, "data")) for axes in AXES}
        return {key: jax.device_get(program(*given)) for key, given in {"one": (*state, images), **placed}.items()}


@pytest.mark.slow
@pytest.mark.parametrize("what", ["forward", "gradient"])
@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in FAMILIES])
def test_values_of_families(name, axes, what):
    found = trained(name)
    pick = (lambda both: both[0][1]) if what == "forward" else (lambda both: both[1])
    got, want = pick(found[axes]), pick(found["one"])
    size = max(np.abs(leaf).max() for leaf in jax.tree.leaves(want))
    for left, right in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert left.dtype == right.dtype == np.float64
        np.testing.assert_allclose(left, right, rtol=1e-8, atol=1e-8 * size)


VARIANTS: dict[str, tuple[str, str, dict[str, Any], str | None]] = {
    **{f"{name}-plain": (name, "_plain", {}, None) for name in FAMILIES},
    **{f"{name}-{platform}": (name, "", {}, platform) for name in FAMILIES for platform in ("cuda", "tpu")},
    **{f"resnet-{kind}": ("resnet", "", {"downsample": kind}, None) for kind in ("aps", "lps", "ddac", "ideal")},
    "resnet-circular": ("resnet", "", {"circular": True, "pad_type": "circular", "pool_only": False}, None),
    "resnet-frozen": ("resnet", "", {"frozen_bn": True}, None),
}


SLOW = {f"{name}-{platform}" for name in ("vgg", "densenet") for platform in ("cuda", "tpu")}


@pytest.mark.parametrize("variant", [pytest.param(v, marks=[pytest.mark.slow] * (v in SLOW)) for v in VARIANTS])
def test_every_variant_is_traced_and_lowered_on_explicit_axes(variant):
    name, suffix, options, platform = VARIANTS[variant]
    network, usual = FAMILIES[name]
    loss, *state = training_loss(abstract_model(network + suffix, **usual, **options))
    images = jax.ShapeDtypeStruct((8, SIDES[name], SIDES[name], 3), jnp.float32)
    given = (*spread(state, "Explicit"), spread(images, "Explicit", "data"))
    gradient = jax.jit(jax.grad(loss, has_aux=True))
    if platform is None:
        shapes, answer = jax.eval_shape(gradient, *given)
    else:
        with aa_flax.traced_for(platform):
            traced = gradient.trace(*given)
            traced.lower(lowering_platforms=(platform,))
        shapes, answer = traced.out_info
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, state[0])
    assert answer.sharding.spec[0] == "data"


def convolve(function, size: int, stride: int, channels: int = 8, **options):
    kernel = np.random.default_rng(1).normal(size=(size, size, 1 if options else channels, 8)).astype(np.float32)
    padding = [(size // 2, size // 2)] * 2
    numbers = ("NHWC", "HWIO", "NHWC")
    return lambda x: function(
        x[..., :channels], kernel, (stride, stride), padding, dimension_numbers=numbers, **options
    )


def pure(layer: Any) -> tuple[Any, Any]:
    """The layer as a function of (arrays, map) without side effects, and its arrays."""
    if not isinstance(layer, nnx.Module):
        return lambda _, x: layer(x), {}
    graphdef, state = nnx.split(layer)
    return lambda state, x: nnx.merge(graphdef, state)(x), nnx.as_pure(state)


def layers() -> dict[str, tuple[Any, int]]:
    """Every layer, with the number of spatial axes that it takes."""
    rngs = nnx.Rngs(0)
    return {
        "BlurPool1D": (aa_flax.BlurPool1D(), 1),
        "BlurPool2D": (aa_flax.BlurPool2D(), 2),
        "BlurPool3D": (aa_flax.BlurPool3D(), 3),
        "aps": (aa_flax.AdaptivePolyphase(), 2),
        "lps": (aa_flax.LearnablePolyphase(8, 3, mode="convex", rngs=rngs), 2),
        "ddac": (aa_flax.ContentAdaptiveBlur(8, rngs=rngs), 2),
        "ideal": (aa_flax.IdealLowPass(), 2),
        "BlurUpsample": (aa_flax.BlurUpsample(), 2),
        "max_pool": (lambda x: plain_pooling.max_pool(x, 3, 2, 1), 2),
        "avg_pool": (lambda x: plain_pooling.avg_pool(x, 2, 2), 2),
        "adaptive_avg_pool": (lambda x: plain_pooling.adaptive_avg_pool(x, 5), 2),
        "BatchNorm": (BatchNorm(8, rngs=rngs), 2),
        "BatchNorm in groups of a device": (BatchNorm(8, group_size=2, rngs=rngs), 2),
        "BatchNorm in groups of two devices": (BatchNorm(8, group_size=4, rngs=rngs), 2),
        "BatchNorm in groups of one": (BatchNorm(8, group_size=1, rngs=rngs), 2),
        "nn.Conv": (aann.Conv(8, 8, (3, 3), 2, rngs=rngs), 2),
        "nn.ConvBlur": (aann.ConvBlur(8, 8, (3, 3), norm=nnx.BatchNorm(8, rngs=rngs), rngs=rngs), 2),
        "nn.max_pool": (lambda x: aann.max_pool(x, (3,), (2,), "SAME"), 1),
        "nn.avg_pool": (lambda x: aann.avg_pool(x, (2, 2), (2, 2)), 2),
        "nn.MaxBlurPool": (aann.MaxBlurPool((2, 3, 2), padding="SAME"), 3),
        "nn.AvgBlurPool": (aann.AvgBlurPool((2, 2)), 2),
        "dense convolution": (convolve(dense_conv, 3, 1), 2),
        "dense convolution, few windows": (convolve(dense_conv, 9, 1), 2),
        "dense convolution of one tap": (convolve(dense_conv, 1, 1), 2),
        "dense convolution of images": (convolve(dense_conv, 7, 2, channels=3), 2),
        "depthwise convolution": (convolve(depthwise_conv, 3, 2, feature_group_count=8), 2),
    }


LAYERS = tuple(layers())


def maps() -> dict[int, np.ndarray]:
    rng = np.random.default_rng(2)
    return {axes: rng.normal(size=(8, *(8,) * axes, 8)).astype(np.float32) for axes in (1, 2, 3)}


@functools.cache
def layered():
    """What all layers answer and the gradients of their maps, in one program for each place of the maps."""

    def loss(x: jax.Array, name: str) -> tuple[jax.Array, jax.Array]:
        answer = layers()[name][0](x)
        return weighted(answer), answer

    @jax.jit
    def program(given: dict[int, jax.Array]):
        kinds = {name: axes for name, (_, axes) in layers().items()}
        return {name: jax.value_and_grad(loss, has_aux=True)(given[axes], name) for name, axes in kinds.items()}

    placed = {"one": maps, **{axes: lambda axes=axes: spread(maps(), axes, "data") for axes in AXES}}

    @functools.cache
    def answers(where: str):
        # What is compared with needs one form of the blurs alone.
        with aa_flax.traced_for("cpu") if where == "one" else contextlib.nullcontext():
            return jax.device_get(program(placed[where]()))

    return answers


@pytest.mark.xdist_group("layers")
@pytest.mark.parametrize("axes", BOTH)
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name, axes):
    (_, answer), gradient = layered()(axes)[name]
    (_, wanted), slope = layered()("one")[name]
    np.testing.assert_allclose(answer, wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", LAYERS)
def test_a_map_cut_in_space_on_explicit_axes_is_refused_with_the_remedy(name):
    layer, axes = layers()[name]
    x, (function, arrays) = maps()[axes], pure(layer)
    cut = spread(x, "Explicit", None, "data")
    with pytest.raises(ValueError, match=r"(?m)^axis 1 of float32\[8,8@data.*reshard\(x, jax\.P\(None, None.*\)\)$"):
        jax.eval_shape(function, arrays, cut)
    with jax.set_mesh(mesh("Explicit")):
        whole = jax.sharding.reshard(cut, P("data"))
        assert jax.eval_shape(function, arrays, whole).shape == jax.eval_shape(function, arrays, x).shape


def test_networks_refuse_images_cut_in_space_on_explicit_axes():
    function, arrays = pure(abstract_model("resnet18", **SHALLOW))
    images = spread(jax.ShapeDtypeStruct((4, 32, 32, 3), jnp.float32), "Explicit", None, None, "data")
    with pytest.raises(ValueError, match=r"(?m)^axis 2 of float32\[4,32,32@data,3\] is cut over devices"):
        jax.eval_shape(function, arrays, images)


@pytest.mark.parametrize("axes", BOTH)
def test_all_is_made_and_used_within_a_mesh(axes):
    with jax.set_mesh(mesh(axes)):
        images = spread(np.ones((8, 32, 32, 3), np.float32), axes, "data")
        model = aa_flax.create_model("resnet18", rngs=nnx.Rngs(0), **SHALLOW)
        value, gradient = nnx.eval_shape(nnx.value_and_grad(lambda m, x: jnp.sum(m(x) ** 2)), model, images)
        assert value.shape == ()
        assert set(gradient) == set(nnx.state(model, nnx.Param))
        module, variables = linen.from_nnx(model)
        slope = jax.eval_shape(jax.grad(lambda v, x: jnp.sum(module.apply(v, x) ** 2)), variables, images)
        assert set(slope) == {"params", "batch_stats"}
        folded = aa_flax.fold_batchnorm(model)
        plain = nnx.Sequential(
            nnx.Conv(3, 4, (3, 3), 2, padding="CIRCULAR", rngs=nnx.Rngs(0)),
            nnx.BatchNorm(4, rngs=nnx.Rngs(0)),
            nnx.relu,
            lambda x: nnx.max_pool(x, (3, 3), (2, 2), "SAME"),
        )
        blurred, _ = aa_flax.antialias(plain, first=True)
        for network, size in ((folded, (8, 3)), (blurred, (8, 8, 8, 4))):
            function, arrays = pure(network)
            assert jax.eval_shape(function, arrays, images).shape == size
            slope = jax.grad(lambda arrays, x, f=function: jnp.sum(f(arrays, x) ** 2), argnums=1)
            assert jax.eval_shape(slope, arrays, images).shape == images.shape


def _answer(kernel: jax.Array, x: jax.Array) -> jax.Array:
    return aa_flax.blur_pool(jnp.tanh(x)).mean((1, 2)) @ kernel + x[:, 0, 0] @ kernel


@pytest.mark.parametrize("compiled_here", [True, False])
@pytest.mark.parametrize("name", ["crop", "fractional", "accuracy"])
def test_protocols_on_explicit_axes(name, compiled_here):
    rng = np.random.default_rng(3)
    kernel = rng.normal(size=(3, 5)).astype(np.float32)
    images, labels = rng.normal(size=(12, 18, 18, 3)).astype(np.float32), np.arange(12) % 5
    protocol = consistency.create_protocol(name, crop=12, device_batch=8, **({"shifts": 4} if name == "crop" else {}))
    want = protocol.measure(Partial(_answer, kernel), images, labels)
    weights = spread(kernel, "Explicit")
    fn = Partial(_answer, weights) if compiled_here else jax.jit(functools.partial(_answer, weights))
    got = protocol.measure(fn, *spread((images, labels), "Explicit", "data"))
    np.testing.assert_array_equal(got.arrays["predictions"], want.arrays["predictions"])
    assert got.value == want.value
