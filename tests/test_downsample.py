"""Drop-in layers, blocks, blur upsampling, and subsampling beyond BlurPool, against formulas written out in numpy."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import aa_flax
from aa_flax.downsample import METHODS, ideal_matrix
from aa_flax.models.abstract import abstract_model
from aa_flax.models.batch_norm import FrozenBatchNorm
from aa_flax.models.layers import Builder
from aa_flax.models.resnet import ResNet, ResNetConfig
from aa_flax.strided import split_stride
from tests.foreign_networks import run, with_values

PADDINGS = ["SAME", "VALID", ((1, 1), (0, 2))]


def values(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def shape(function, *x: jax.Array) -> tuple[int, ...]:
    """Of the answer, without computing it."""
    return jax.eval_shape(function, *x).shape


def close(a, b, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)


# --- drop-ins ---


@pytest.mark.parametrize("padding", PADDINGS, ids=str)
@pytest.mark.parametrize(("window", "strides"), [((2, 2), (2, 2)), ((3, 2), (3, 1)), ((2, 3), None)])
def test_pools_with_one_tap_are_nnx(padding, window, strides):
    x = values(2, 11, 14, 3)
    for ours, theirs in ((aa_flax.nn.max_pool, nnx.max_pool), (aa_flax.nn.avg_pool, nnx.avg_pool)):
        want = jax.jit(lambda x, f=theirs: f(x, window, strides, padding))(x)
        close(jax.jit(lambda x, f=ours: f(x, window, strides, padding, filter_size=1))(x), want)
        assert shape(lambda x, f=ours: f(x, window, strides, padding), x) == want.shape
    want = jax.jit(lambda x: nnx.avg_pool(x, window, strides, padding, count_include_pad=False))(x)
    close(jax.jit(lambda x: aa_flax.nn.avg_pool(x, window, strides, padding, False, filter_size=1))(x), want)


def test_pools_take_what_nnx_takes():
    for size, window in (((9, 3), (2,)), ((2, 1, 5, 4, 3), (2, 2)), ((1, 3, 4, 5, 2), (2, 2, 2))):
        x = values(*size)
        want = jax.jit(lambda x, window=window: nnx.max_pool(x, window, window))(x)
        close(jax.jit(lambda x, window=window: aa_flax.nn.max_pool(x, window, window, filter_size=1))(x), want)
        assert shape(lambda x, window=window: aa_flax.nn.avg_pool(x, window, window), x) == want.shape
    half = jax.ShapeDtypeStruct((1, 8, 8, 2), jnp.bfloat16)
    assert jax.eval_shape(lambda x: aa_flax.nn.max_pool(x, (2, 2), (2, 2)), half).dtype == jnp.bfloat16
    with pytest.raises(ValueError, match=r"works on one axis, got images of shape \(1, 8, 8, 2\): write \(2, 2\)"):
        aa_flax.nn.max_pool(values(1, 8, 8, 2), (2,), (2,))
    with pytest.raises(ValueError, match="differ in length"):
        aa_flax.nn.avg_pool(values(1, 8, 8, 2), (2, 2), (2,))
    with pytest.raises(ValueError, match=r"takes \(..., 2 spatial axes, C\), got shape \(8, 8\)"):
        aa_flax.nn.avg_pool(values(8, 8), (2, 2))
    with pytest.raises(ValueError, match=r"max_pool: a window of \(2, 2\) does not fit into the map \(1, 1, 8, 2\)"):
        aa_flax.nn.max_pool(values(1, 1, 8, 2), (2, 2), (2, 2))


@pytest.mark.parametrize("pool", [aa_flax.nn.max_pool, aa_flax.nn.avg_pool])
def test_pools_say_what_is_wrong_with_an_argument(pool):
    """Numbers as PyTorch takes them, and filters that do not exist."""
    layer = {aa_flax.nn.max_pool: aa_flax.nn.MaxBlurPool, aa_flax.nn.avg_pool: aa_flax.nn.AvgBlurPool}[pool]
    for arguments, message in (
        ((2, 2), r"window_shape=2 is one number: give one for each spatial axis, such as \(2, 2\)"),
        (((2, 2), 2), "strides=2 is one number"),
        (((2, 2), (2,)), r"strides \(2,\) and window \(2, 2\) differ in length"),
        (((2, 2), (2, 2), 1), r"padding=1 is one number: give \(before, after\) .* such as \(\(1, 1\), \(1, 1\)\)"),
    ):
        for call in (lambda *a: pool(values(1, 8, 8, 2), *a), lambda *a: layer(*a)(values(1, 8, 8, 2))):
            with pytest.raises(ValueError, match=message):
                call(*arguments)
    for filter_size in (0, "x"):
        with pytest.raises(ValueError, match="filter_size must"):
            pool(values(1, 8, 8, 2), (2, 2), (2, 2), filter_size=filter_size)
        with pytest.raises(ValueError, match="filter_size must"):
            layer((2, 2), filter_size=filter_size)


@pytest.mark.parametrize(("padding", "strides"), [("SAME", 2), ("VALID", 3), (1, (2, 1)), ("CIRCULAR", 4)])
def test_convolutions_with_one_tap_are_nnx(padding, strides):
    x = values(1, 11, 14, 4)
    options = {"padding": padding, "feature_group_count": 2, "kernel_dilation": 2}
    theirs = nnx.Conv(4, 6, (3, 3), strides, rngs=nnx.Rngs(0), **options)
    once = aa_flax.nn.Conv(4, 6, (3, 3), strides, filter_size=1, rngs=nnx.Rngs(0), **options)
    close(once(x), theirs(x))
    four = aa_flax.nn.Conv(4, 6, (3, 3), strides, rngs=nnx.Rngs(0), **options)
    assert four(x).shape == theirs(x).shape
    assert jax.tree.structure(nnx.state(four)) == jax.tree.structure(nnx.state(theirs))


def test_convolution_is_dense_then_blurred():
    x = values(1, 9, 10, 3)
    dense = nnx.Conv(3, 4, (3, 3), padding=1, rngs=nnx.Rngs(0))
    blurred = aa_flax.nn.Conv(3, 4, (3, 3), (2, 1), padding=1, filter_size=3, pad_type="replicate", rngs=nnx.Rngs(0))
    close(blurred(x), aa_flax.blur_pool(dense(x), (3, 1), (2, 1), "replicate"))
    with pytest.raises(ValueError, match=r"works on one axis.*write \(3, 3\)"):
        aa_flax.nn.Conv(3, 4, 3, 2, rngs=nnx.Rngs(0))(x)
    with pytest.raises(ValueError, match="filter_size"):
        aa_flax.nn.Conv(3, 4, (3, 3), 2, filter_size=0, rngs=nnx.Rngs(0))


def test_average_and_blur_together_are_the_filter():
    """A mean over two samples is a binomial filter: with three taps behind it the paper's four."""
    x = values(1, 16, 18, 2)
    inner = (slice(None), slice(1, -1), slice(1, -1))
    close(aa_flax.nn.avg_pool(x, (2, 2), (2, 2))[inner], aa_flax.blur_pool(x, 4)[inner])
    close(aa_flax.nn.AvgBlurPool((2, 2))(x), aa_flax.nn.avg_pool(x, (2, 2), (2, 2)))


@pytest.mark.parametrize(("stride", "shares"), [(1, (1, 1)), (2, (1, 2)), (3, (1, 3)), (4, (2, 2)), (6, (3, 2))])
def test_how_a_stride_is_shared_out(stride, shares):
    assert split_stride(stride) == shares


def test_blocks():
    x = values(2, 9, 10, 4)
    pool = aa_flax.nn.MaxBlurPool((3, 3), (2, 2), ((1, 1), (1, 1)), filter_size=3)
    close(
        jax.jit(pool)(x), jax.jit(lambda x: aa_flax.blur_pool(aa_flax.plain_pooling.max_pool(x, 3, 1, padding=1), 3))(x)
    )
    block = aa_flax.nn.ConvBlur(4, 6, (3, 3), norm=nnx.LayerNorm(6, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))
    close(jax.jit(block)(x), jax.jit(lambda x: aa_flax.blur_pool(nnx.relu(block.norm(block.conv(x)))))(x))
    other = aa_flax.nn.ConvBlur(4, 6, (3, 3), downsample=aa_flax.IdealLowPass(2), rngs=nnx.Rngs(0))
    close(jax.jit(other)(x), jax.jit(lambda x: aa_flax.IdealLowPass(2)(nnx.relu(other.conv(x))))(x))
    assert shape(aa_flax.nn.MaxBlurPool((2,)), values(1, 9, 2)) == (1, 4, 2)
    assert shape(aa_flax.nn.AvgBlurPool((2, 2, 2), (1, 2, 2)), values(1, 3, 8, 8, 2)) == (1, 2, 4, 4, 2)
    with pytest.raises(ValueError, match=r"kernel_size=3 is one number: .*\(3, 3\)"):
        aa_flax.nn.ConvBlur(4, 6, 3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"strides must be a whole number >= 1 or 2 of them, .* got \(2,\)"):
        aa_flax.nn.ConvBlur(4, 6, (3, 3), (2,), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="1, 2 or 3 spatial axes"):
        aa_flax.nn.MaxBlurPool((2, 2, 2, 2))


# --- blur upsampling ---


def upsampled_by_definition(x: np.ndarray, axis: int, k: int, stride: int, size: int) -> np.ndarray:
    """Zeros between the samples, the blur's taps mirrored, what leaves at an edge reflected back in; then scaled."""
    taps = np.array([math.comb(k - 1, i) for i in range(k)]) / 2 ** (k - 1)
    x = np.moveaxis(np.asarray(x, np.float64), axis, 0)
    y, weight = np.zeros((size, *x.shape[1:])), np.zeros(size)
    reflected = np.pad(np.arange(size), 20 * k, mode="reflect")
    for o in range(len(x)):
        for i, tap in enumerate(taps):
            target = reflected[20 * k + stride * o + i - (k - 1) // 2]
            y[target] += tap * x[o]
            weight[target] += tap
    return np.moveaxis(y / weight.reshape(-1, *[1] * (x.ndim - 1)), 0, axis)


@pytest.mark.parametrize(
    ("k", "stride", "size"), [(2, 2, 10), (3, 2, 9), (4, 2, 10), (5, 2, 9), (4, 3, 14), (7, 4, 19)]
)
def test_upsampling_by_definition(k, stride, size):
    x = values(2, 5, 3)
    got = aa_flax.blur_upsample(x, k, stride, size=(size,))
    close(got, upsampled_by_definition(x, 1, k, stride, size))


def test_upsampling_in_two_and_three_dimensions():
    image = values(1, 4, 5, 2)
    want = upsampled_by_definition(upsampled_by_definition(image, 1, 4, 2, 8), 2, 4, 2, 9)
    close(aa_flax.BlurUpsample()(image, size=(8, 9)), want)
    volume = aa_flax.BlurUpsample(3, (1, 2, 2), spatial_dims=3)(values(1, 3, 4, 5, 2))
    assert volume.shape == (1, 3, 8, 10, 2)


@pytest.mark.parametrize("pad_type", ["reflect", "replicate", "zero", "circular"])
def test_constants_stay_constant(pad_type):
    for k, stride in ((2, 2), (3, 2), (4, 2), (6, 2), (4, 3), (6, 4)):
        y = jax.jit(lambda x, k=k, s=stride: aa_flax.blur_upsample(x, k, s, pad_type))(jnp.full((1, 4, 5, 1), 3.0))
        assert y.shape == (1, 4 * stride, 5 * stride, 1)
        close(y, 3.0, 1e-6)


def test_upsampling_is_the_scaled_transpose_of_the_blur_and_differentiable_both_ways():
    x, g = values(1, 4, 4, 1), values(1, 8, 8, 1, seed=1)
    down = lambda y: aa_flax.blur_pool(y, 4)  # noqa: E731
    transpose = jax.linear_transpose(down, g)
    close(aa_flax.blur_upsample(x) * transpose(jnp.ones_like(x))[0], transpose(x)[0])
    _, tangent = jax.jvp(aa_flax.blur_upsample, (x,), (x,))
    close(tangent, aa_flax.blur_upsample(x))
    cotangent = jax.vjp(aa_flax.blur_upsample, x)[1](g)[0]
    close(jnp.vdot(cotangent, x), jnp.vdot(g, aa_flax.blur_upsample(x)), 1e-4)
    # Reverse mode gathers, as the blur's does: a scatter would be many times slower on a GPU.
    reverse = jax.jit(lambda g: jax.vjp(aa_flax.blur_upsample, x)[1](g)).lower(g).as_text()
    forward = jax.jit(lambda x: jax.jvp(aa_flax.blur_upsample, (x,), (x,))).lower(x).as_text()
    assert "stablehlo.scatter" not in reverse
    assert "stablehlo.scatter" in forward


def test_the_tpu_form_of_upsampling_computes_the_same():
    x = values(2, 5, 6, 3)
    with aa_flax.traced_for("tpu"):
        close(jax.jit(aa_flax.blur_upsample)(x), aa_flax.blur_upsample(x))


def test_misuse_of_upsampling():
    x = values(1, 4, 4, 1)
    with pytest.raises(ValueError, match="filter_size=1 leaves gaps at stride 2: every sample is reached from 2 taps"):
        aa_flax.blur_upsample(x, 1)
    with pytest.raises(ValueError, match="from 4 taps on"):
        aa_flax.blur_upsample(x, 3, 3)
    with pytest.raises(ValueError, match=r"size=\(9, 8\) is no size that stride \(2, 2\) brings to \(4, 4\)"):
        aa_flax.blur_upsample(x, size=(9, 8))
    with pytest.raises(TypeError, match="floating point"):
        aa_flax.blur_upsample(jnp.ones((1, 4, 4, 1), jnp.int32))
    with pytest.raises(ValueError, match=r"takes \(N, spatial..., C\)"):
        aa_flax.blur_upsample(jnp.ones((4, 4)))
    with pytest.raises(ValueError, match="stride must be"):
        aa_flax.blur_upsample(x, 4, (2, 2, 2))


# --- adaptive polyphase sampling ---


@pytest.mark.parametrize("k", [1, 4])
def test_polyphase_keeps_the_grid_with_the_largest_norm(k):
    x = values(3, 6, 8, 2)
    blurred = np.asarray(jax.jit(lambda x: aa_flax.blur_pool(x, k, 1, "circular"))(x))
    want = []
    for example in blurred:
        grids = [example[i::2, j::2] for i, j in itertools.product(range(2), repeat=2)]
        want.append(max(grids, key=lambda grid: np.linalg.norm(grid.astype(np.float64))))
    close(jax.jit(aa_flax.AdaptivePolyphase(k))(x), np.stack(want), 1e-6)


def test_polyphase_follows_another_map():
    layer = aa_flax.AdaptivePolyphase(1)
    like = np.zeros((2, 4, 4, 3), np.float32)
    like[0, 1::2, 0::2] = like[1, 0::2, 1::2] = 1.0
    x = values(2, 4, 4, 5)
    given = np.asarray(x)
    close(jax.jit(layer)(x, like), np.stack([given[0, 1::2, 0::2], given[1, 0::2, 1::2]]))
    for other in (like[:1], like[:, :3]):
        with pytest.raises(ValueError, match=r"like must have the batch and sizes of the map \(2, 4, 4, 5\), got"):
            layer(x, other)


def test_polyphase_of_a_rolled_map_is_the_rolled_polyphase():
    x = values(1, 8, 8, 2)
    layer = jax.jit(aa_flax.AdaptivePolyphase(3))
    y = np.asarray(layer(x))
    rolls = [np.roll(y, (i, j), (1, 2)) for i, j in itertools.product(range(4), repeat=2)]
    for shift in itertools.product(range(8), (0, 3)):
        got = layer(np.roll(x, shift, (1, 2)))
        assert min(np.abs(np.asarray(got) - roll).max() for roll in rolls) < 1e-6


def test_polyphase_of_odd_maps_and_other_ranks():
    assert shape(aa_flax.AdaptivePolyphase(4, pad_type="reflect"), values(1, 5, 7, 2)) == (1, 3, 4, 2)
    assert shape(aa_flax.AdaptivePolyphase(3, 3, spatial_dims=1), values(2, 9, 2)) == (2, 3, 2)
    assert shape(aa_flax.AdaptivePolyphase(2, (1, 2, 2), spatial_dims=3), values(1, 3, 4, 4, 2)) == (1, 3, 2, 2, 2)
    with pytest.raises(ValueError, match="stride must be a whole number >= 1 or 2 of them, one for each spatial axis"):
        aa_flax.AdaptivePolyphase(4, (2, 2, 2))
    with pytest.raises(ValueError, match="AdaptivePolyphase takes"):
        aa_flax.AdaptivePolyphase()(values(4, 4))


@pytest.mark.parametrize("layer", [aa_flax.AdaptivePolyphase(), aa_flax.IdealLowPass()], ids=lambda x: type(x).__name__)
def test_whole_numbers_are_refused(layer):
    with pytest.raises(TypeError, match=f"{type(layer).__name__} takes floating point arrays, got int32"):
        layer(jnp.ones((1, 4, 4, 1), jnp.int32))


def tiny_resnet(downsample: str, **options) -> ResNet:
    build = Builder(
        filter_size=3,
        pad_type="circular",
        downsample=downsample,
        circular=True,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        rngs=nnx.Rngs(0),
        **options,
    )
    config = ResNetConfig(depths=(1, 1, 1, 1), block="basic", pool_only=False)
    return ResNet(config, num_classes=10, in_channels=3, build=build)


def test_a_circular_polyphase_network_never_changes_its_mind():
    """100.00 % circular consistency, with random weights and after training steps; BlurPool does not reach it."""
    x, labels = values(4, 32, 32, 3), jnp.arange(4)
    shifts = [(1, 0), (0, 3), (5, 7), (-8, 2), (31, 16)]
    rolled = jnp.concatenate([x, *(jnp.roll(x, shift, (1, 2)) for shift in shifts)])
    graphdef, params, rest = nnx.split(with_values(lambda: tiny_resnet("aps")), nnx.Param, ...)

    @jax.jit
    def answers(params, rest):
        model = nnx.merge(graphdef, params, rest, copy=True)
        model.eval()
        return model(rolled).reshape(len(shifts) + 1, len(x), -1)

    @jax.jit
    def step(params, rest):
        def loss(params):
            model = nnx.merge(graphdef, params, rest, copy=True)
            logits = model(x)
            return -jax.nn.log_softmax(logits)[jnp.arange(4), labels].mean(), nnx.state(model, nnx.BatchStat)

        grads, rest_ = jax.grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - 0.01 * g, params, grads), rest_

    for _ in range(2):
        logits = answers(params, rest)
        spread = float(jnp.abs(logits[0] - logits[0].mean(0)).max())
        assert spread > 1e-3, "the answers must depend on the image"
        assert float(jnp.abs(logits - logits[0]).max()) < 1e-3 * spread
        assert 100 * float((logits.argmax(-1) == logits[0].argmax(-1)).mean()) == 100.0
        for _ in range(2):
            params, rest = step(params, rest)

    blurred = nnx.merge(nnx.graphdef(nnx.eval_shape(lambda: tiny_resnet("blur"))), params, rest)
    blurred.eval()
    logits = run(blurred, rolled).reshape(len(shifts) + 1, len(x), -1)
    assert float(jnp.abs(logits - logits[0]).max()) > 1e-2 * spread


@pytest.mark.parametrize(
    ("spec", "options", "needed"),
    [
        ("resnet18_lpf3", {"downsample": "aps"}, "pool_only=False and pad_type='circular'"),
        ("densenet121_lpf1", {"downsample": "lps"}, "pool_only=False"),
        ("mobilenet_v2_lpf3", {"downsample": "aps", "pad_type": "circular"}, "stem_stride=1"),
        ("resnet18_lpf3", {"downsample": "aps", "pad_type": "circular", "stem_stride": 1}, None),
        ("resnet18_lpf3", {"downsample": "blur"}, None),
    ],
)
def test_what_breaks_the_promise_to_rolled_images_is_said(spec, options, needed):
    def create():
        return nnx.eval_shape(lambda: aa_flax.create_model(spec, circular=True, rngs=nnx.Rngs(0), **options))

    if needed is None:
        create()
        return
    with pytest.warns(UserWarning, match=f"gives rolled images the same answer only with {needed}$"):
        create()


# --- content-adaptive filters ---


def test_content_adaptive_filters_by_definition():
    layer = with_values(lambda: aa_flax.ContentAdaptiveBlur(4, 3, groups=2, rngs=nnx.Rngs(0)))
    layer.eval()
    x = values(2, 5, 6, 4)
    got = jax.jit(layer)(x)
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    kernel = np.asarray(layer.filters.kernel[...], np.float64)
    norm = layer.norm
    want = np.zeros((2, 3, 3, 4))
    for n, i, j in np.ndindex(2, 3, 3):
        window = padded[n, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
        raw = np.einsum("abc,abco->o", window, kernel)
        scale = np.asarray(norm.scale[...]) / np.sqrt(np.asarray(norm.var[...]) + norm.epsilon)
        raw = (raw - np.asarray(norm.mean[...])) * scale + np.asarray(norm.bias[...])
        for group in range(2):
            weights = np.exp(raw[9 * group : 9 * group + 9])
            weights = (weights / weights.sum()).reshape(3, 3, 1)
            want[n, i, j, 2 * group : 2 * group + 2] = (weights * window[..., 2 * group : 2 * group + 2]).sum((0, 1))
    close(got, want)
    close(jax.jit(layer)(jnp.full((1, 5, 5, 4), 2.0)), 2.0)


def test_content_adaptive_filters_of_any_size_and_rank():
    for k, size, stride in (
        (4, (1, 7, 9, 6), 2),
        (2, (1, 5, 4), 3),
        (3, (1, 2, 4, 4, 2), (1, 2, 2)),
        (4, (1, 1, 2, 2), 2),
    ):
        dims = len(size) - 2
        layer = aa_flax.ContentAdaptiveBlur(
            size[-1], k, stride, groups=1, spatial_dims=dims, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0)
        )
        x = values(*size).astype(jnp.bfloat16)
        steps = (stride,) * dims if isinstance(stride, int) else stride
        y = jax.eval_shape(lambda x, layer=layer: nnx.clone(layer)(x), x)
        assert y.shape == (1, *(-(-n // s) for n, s in zip(size[1:-1], steps, strict=True)), size[-1])
        assert y.dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="groups must divide the 6 channels, got 4"):
        aa_flax.ContentAdaptiveBlur(6, groups=4, rngs=nnx.Rngs(0))


def test_weights_normalised_over_all_groups():
    """The authors' softmax: over the samples of all groups at once, so that ones do not stay ones."""
    layer = with_values(lambda: aa_flax.ContentAdaptiveBlur(4, 3, groups=2, normalise="all", rngs=nnx.Rngs(0)))
    layer.eval()
    x = values(2, 5, 6, 4)
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    raw = np.asarray(layer.norm(layer.filters(padded)), np.float64)
    weights = np.exp(raw) / np.exp(raw).sum(-1, keepdims=True)
    want = np.zeros((2, 3, 3, 4))
    for n, i, j, c in np.ndindex(want.shape):
        window = np.asarray(padded)[n, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3, c].ravel()
        want[n, i, j, c] = weights[n, i, j].reshape(2, 9)[c // 2] @ window
    np.testing.assert_allclose(layer(x), want, atol=1e-5)
    sums = layer(jnp.ones((1, 5, 6, 4)))
    np.testing.assert_allclose(sums[..., 0] + sums[..., 2], 1, atol=1e-6)
    with pytest.raises(ValueError, match="normalise must be one of group, all, got 'none'"):
        aa_flax.ContentAdaptiveBlur(4, groups=2, normalise="none", rngs=nnx.Rngs(0))


def test_statistics_of_all_samples():
    """In training the normalisation sees what it would see without subsampling; in evaluation nothing changes."""

    def made(stride: int, **options) -> aa_flax.ContentAdaptiveBlur:
        return with_values(lambda: aa_flax.ContentAdaptiveBlur(4, 3, stride, groups=2, rngs=nnx.Rngs(0), **options))

    x, dense, full = values(2, 7, 6, 4), made(2, dense_statistics=True), made(1)
    np.testing.assert_allclose(dense(x), full(x)[:, ::2, ::2], atol=1e-6)
    np.testing.assert_allclose(dense.norm.mean[...], full.norm.mean[...], atol=1e-6)
    sparse = made(2)
    dense.eval(), sparse.eval()
    nnx.update(sparse, nnx.state(dense))
    np.testing.assert_allclose(dense(x), sparse(x), atol=1e-6)


# --- the ideal low-pass filter ---


@pytest.mark.parametrize(("size", "stride"), [(8, 2), (12, 2), (9, 2), (12, 3), (10, 4), (2, 2), (1, 2)])
def test_ideal_filter_by_fourier_transform(size, stride):
    x = np.random.default_rng(0).normal(size=size)
    out = -(-size // stride)
    spectrum = np.fft.fft(x)
    kept = np.zeros(out, complex)
    for f in range(-out + 1, out):
        if abs(f) < out / 2:
            kept[f % out] = spectrum[f % size]
    want = np.fft.ifft(kept * out / size)
    assert np.abs(want.imag).max() < 1e-12
    np.testing.assert_allclose(ideal_matrix(size, stride) @ x, want.real, atol=1e-12)
    got = aa_flax.IdealLowPass(stride, spatial_dims=1)(jnp.asarray(x, jnp.float32)[None, :, None])
    close(got[0, :, 0], want.real)


def test_ideal_filter_lets_no_alias_through():
    row = np.arange(16)
    waves = {f: jnp.asarray(np.cos(2 * np.pi * f * row / 16), jnp.float32)[None, :, None] for f in (0, 3, 4, 5, 8)}
    layer = aa_flax.IdealLowPass(spatial_dims=1)
    for f, wave in waves.items():
        want = np.cos(2 * np.pi * f * row[:8] / 8) if f < 4 else np.zeros(8)
        close(layer(wave)[0, :, 0], want, 1e-6)
    x = values(1, 8, 6, 2).astype(jnp.bfloat16)
    assert aa_flax.IdealLowPass((1, 2))(x).dtype == jnp.bfloat16
    assert aa_flax.IdealLowPass((1, 2))(x).shape == (1, 8, 3, 2)


# --- in the networks ---


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("alexnet", "ddac"),
        ("vgg11", "ideal"),
        *(("resnet18", kind) for kind in ("aps", "lps", "ddac", "ideal")),
        ("mobilenet_v2", "ddac"),
        ("mobilenet_v2", "lps"),
        ("vgg11", "lps"),
        ("alexnet", "lps"),
        ("densenet121", "lps"),
        ("densenet121", "aps"),
    ],
)
def test_every_family_takes_every_downsampling(name, kind):
    def paths(model) -> set[str]:
        return {".".join(map(str, p)) for p, _ in nnx.to_flat_state(nnx.state(model))}

    model = abstract_model(f"{name}_lpf3", num_classes=3, downsample=kind)
    model.eval()
    new = paths(model) - paths(abstract_model(f"{name}_lpf3", num_classes=3))
    assert bool(new) == METHODS[kind].has_parameters
    assert all("blur" in path for path in new)
    assert dict(model.spec.options) == {"downsample": kind}
    graphdef, state = nnx.split(model)
    y = jax.eval_shape(lambda s, x: nnx.merge(graphdef, s)(x), state, jax.ShapeDtypeStruct((2, 65, 71, 3), jnp.float32))
    assert y.shape == (2, 3)


def test_a_network_with_filters_of_its_own_is_saved_and_loaded(tmp_path):
    options = {"num_classes": 2, "width_mult": 0.1, "downsample": "ddac"}
    model = with_values(lambda: abstract_model("mobilenet_v2_lpf3", **options))
    aa_flax.save_pretrained(model, tmp_path / "m")
    loaded = aa_flax.load_pretrained(tmp_path / "m")
    assert loaded.spec == model.spec
    jax.tree.map(np.testing.assert_array_equal, nnx.state(loaded), nnx.state(model))


def test_misuse_of_the_networks_options():
    with pytest.raises(ValueError, match="downsample must be one of blur, aps, lps, ddac, ideal, asap, got 'wavelet'"):
        abstract_model("resnet18", downsample="wavelet")
    with pytest.raises(ValueError, match="'resnet18_plain' has no blur for downsample='aps'"):
        abstract_model("resnet18_plain", downsample="aps")
    with pytest.raises(ValueError, match="circular=True is for networks whose convolutions keep the map's size"):
        abstract_model("alexnet", circular=True)


def test_frozen_batch_norm_stays_as_it_is():
    model = with_values(lambda: tiny_resnet("blur", frozen_bn=True))
    assert isinstance(model.bn1, FrozenBatchNorm)
    model.train()
    before = nnx.state(model, nnx.BatchStat)
    before = jax.tree.map(jnp.copy, before)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def gradients(params, rest, x):
        def loss(params):
            model = nnx.merge(graphdef, params, rest, copy=True)
            return jnp.square(model(x)).mean(), nnx.state(model, nnx.BatchStat)

        return jax.grad(loss, has_aux=True)(params)

    grads, after = gradients(params, rest, values(2, 32, 32, 3))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    for path, grad in nnx.to_flat_state(grads):
        norm = path[-1] in ("scale", "bias") and path[0] != "fc"
        assert bool((grad[...] == 0).all()) == norm, path
