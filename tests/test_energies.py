"""The grid with the most energy: chosen by exact sums, so that near ties fall out the same wherever the image lies."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import aa_flax
from aa_flax.downsample.energies import CRITERIA, largest_map, most_energetic

ROLLS = [(1, 0), (0, 1), (1, 1), (5, -3), (17, 22), (-8, 31)]

choose = functools.partial(jax.jit, static_argnums=1)(most_energetic)


def near_ties(rng: np.random.Generator, examples: int, shape: tuple[int, ...], below: int = 2000) -> np.ndarray:
    """Four maps of the same whole numbers in other orders, but that one of them has a 1 in place of a 0."""
    flat = np.stack([rng.integers(-below, below, (examples, np.prod(shape)))] * 4)
    flat[..., 0] = 0
    flat[rng.integers(0, 4, examples), np.arange(examples), 0] = 1
    return rng.permuted(flat, axis=-1).reshape(4, examples, *shape)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), exponent=st.integers(-110, 110))
def test_the_choice_is_that_of_whole_numbers(seed, exponent):
    """Energies of 10**9 that differ by 1; squares below 2**24 are exact, and powers of two change nothing."""
    maps = near_ties(np.random.default_rng(seed), 8, (12, 9, 8))
    numbers = np.float32(2.0**exponent) * maps.astype(np.float32)
    np.testing.assert_array_equal(choose(tuple(numbers), 3), np.square(maps).sum((2, 3, 4)).argmax(0))


NORMS = {
    "l2": lambda x: np.square(x).sum((2, 3, 4)),
    "l1": lambda x: np.abs(x).sum((2, 3, 4)),
    "sum": lambda x: x.sum((2, 3, 4)),
    "linf": lambda x: np.abs(x).max((2, 3, 4)),
    "max": lambda x: x.max((2, 3, 4)),
    "smallest_l2": lambda x: -np.square(x).sum((2, 3, 4)),
    "smallest_l1": lambda x: -np.abs(x).sum((2, 3, 4)),
}


@pytest.mark.parametrize("criterion", CRITERIA)
def test_other_criteria(criterion):
    """Of whole numbers; the sums of near ties differ by 1, the largest numbers of four maps are drawn apart."""
    rng = np.random.default_rng(3)
    largest = criterion in ("linf", "max")
    maps = rng.integers(-999, 999, (4, 32, 5, 4, 3)) if largest else near_ties(rng, 32, (12, 9, 8))
    want = NORMS[criterion](maps).argmax(0)
    assert len(set(want)) > 1
    got = jax.jit(largest_map, static_argnums=(1, 2))(tuple(maps.astype(np.float32) / 64), 3, criterion)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("choose_on", ["blurred", "unblurred"])
@pytest.mark.parametrize("criterion", ["l1", "smallest_l2"])
def test_layers_choose_as_they_are_told(criterion, choose_on):
    x = np.random.default_rng(5).normal(size=(32, 8, 6, 3)).astype(np.float32)
    corners = list(itertools.product(range(2), repeat=2))
    blurred = np.asarray(aa_flax.blur_pool(x, 4, 1, "circular"))
    phases = np.stack([blurred[:, i::2, j::2] for i, j in corners])
    guide = phases if choose_on == "blurred" else np.stack([x[:, i::2, j::2] for i, j in corners])
    want = NORMS[criterion](guide.astype(np.float64)).argmax(0)
    assert np.any(want != NORMS["l2"](phases).argmax(0))
    layer = aa_flax.AdaptivePolyphase(4, criterion=criterion, choose_on=choose_on)
    np.testing.assert_array_equal(layer.choose(x).index, want)
    np.testing.assert_allclose(layer(x), phases[want, np.arange(32)], atol=1e-6)
    for wrong, message in (({"criterion": "sum"}, "criterion must be one of l2"), ({"choose_on": "both"}, "choose_on")):
        with pytest.raises(ValueError, match=message):
            aa_flax.AdaptivePolyphase(4, **wrong)


@pytest.mark.parametrize(("shape", "stride"), [((16, 12, 5), 2), ((15, 6, 2), 3), ((2**12, 3), 2)])
def test_near_ties_fall_out_the_same_wherever_the_map_lies(shape, stride):
    """Grids of the same numbers, but that one has its largest number one unit in the last place larger."""
    rng = np.random.default_rng(0)
    dims = len(shape) - 1
    grid = rng.normal(size=(8, *(n // stride for n in shape[:-1]), shape[-1])).astype(np.float32)
    offsets = list(itertools.product(range(stride), repeat=dims))
    x = np.empty((8, *shape), np.float32)
    for n, example in enumerate(x):
        odd = rng.integers(len(offsets))
        for i, offset in enumerate(offsets):
            numbers = rng.permutation(grid[n].ravel())
            if i == odd:
                largest = np.abs(numbers).argmax()
                numbers[largest] *= np.float32(1 + 2**-23)
            example[tuple(slice(o, None, stride) for o in offset)] = numbers.reshape(grid[n].shape)
    layer = jax.jit(aa_flax.AdaptivePolyphase(1, stride, spatial_dims=dims).__call__)
    kept = np.sort(np.asarray(layer(x)).reshape(8, -1))
    np.testing.assert_array_equal(np.abs(kept).max(1), np.abs(x).reshape(8, -1).max(1))
    for roll in itertools.product((0, 1, stride, 5), repeat=dims):
        rolled = np.roll(x, roll, tuple(range(1, 1 + dims)))
        np.testing.assert_array_equal(np.sort(np.asarray(layer(rolled)).reshape(8, -1)), kept)


@pytest.mark.parametrize(
    ("dtype", "below"), [(jnp.bfloat16, 128), (jnp.float16, 200), (jnp.float64, 2000), (jnp.float64, 2**26)]
)
def test_other_types(dtype, below):
    """Each with numbers as large as it holds exactly, and their squares in float32 or float64."""
    with jax.enable_x64(dtype == jnp.float64):
        maps = near_ties(np.random.default_rng(1), 6, (8, 8, 3), below)
        want = np.square(maps).sum((2, 3, 4)).argmax(0)
        np.testing.assert_array_equal(choose(tuple(jnp.asarray(one, dtype) for one in maps), 3), want)


def test_long_axes_have_more_digits():
    maps = near_ties(np.random.default_rng(2), 2, (2**18,))
    want = np.square(maps).sum(2).argmax(0)
    np.testing.assert_array_equal(choose(tuple(maps.astype(np.float32)), 1), want)


def test_extreme_maps():
    """No overflow, no zero division; a map with NaN or infinity is chosen, so that it shows."""
    ones = np.ones((1, 4, 4, 2), np.float32)
    for size in (3e38, 1e-37, 1e-3):
        assert choose((ones * 0, size * ones / 2, size * ones, -size * ones), 3) == 2
    assert choose((ones * 0, ones * 0), 3) == 0
    for bad in (np.nan, np.inf, -np.inf):
        broken = ones.copy()
        broken[0, 1, 2, 0] = bad
        assert choose((ones, 1e30 * ones, broken, ones), 3) == 2
        assert not np.isfinite(aa_flax.AdaptivePolyphase(1)(jnp.zeros((1, 4, 4, 1)).at[0, 1, 1].set(bad))).all()
    assert choose((np.zeros((2, 4, 0), np.float32),) * 2, 2).tolist() == [0, 0]


def test_the_choice_has_no_gradient():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 6, 3)), jnp.float32)
    layer = aa_flax.AdaptivePolyphase(1)
    got = jax.grad(lambda x: jnp.square(layer(x)).sum())(x)
    kept = np.isin(x, layer(x))
    np.testing.assert_array_equal(got, np.where(kept, 2 * x, 0))
    assert jax.jvp(lambda x: layer(x, like=2 * x), (x,), (jnp.ones_like(x),))[1].min() == 1


@pytest.mark.parametrize(("pad_type", "mode"), [(None, "reflect"), ("circular", "wrap"), ("zero", "constant")])
def test_the_end_of_an_axis_that_the_stride_does_not_divide(pad_type, mode):
    """After the blur; the authors' code wraps."""
    x = np.random.default_rng(3).normal(size=(4, 5, 7, 2)).astype(np.float32)
    blurred = np.asarray(aa_flax.blur_pool(x, 3, 1, "reflect"))
    filled = np.pad(blurred, ((0, 0), (0, 1), (0, 1), (0, 0)), mode)
    want = []
    for example in filled:
        grids = [example[i::2, j::2] for i, j in itertools.product(range(2), repeat=2)]
        want.append(max(grids, key=lambda grid: np.square(grid.astype(np.float64)).sum()))
    layer = aa_flax.AdaptivePolyphase(3, pad_type="reflect", end_pad_type=pad_type)
    np.testing.assert_allclose(layer(x), np.stack(want), atol=1e-6)


def test_a_wrong_filling_is_refused():
    with pytest.raises(ValueError, match="pad_type"):
        aa_flax.AdaptivePolyphase(3, end_pad_type="wrong")


def pictures(kind: str) -> np.ndarray:
    """Sixteen images of noise, or of noise without its high frequencies."""
    x = np.random.default_rng(0).standard_normal((16, 64, 64, 3))
    if kind == "smooth":
        frequency = np.fft.fftfreq(64)
        low = np.exp(-400 * (frequency[:, None] ** 2 + frequency**2))[..., None]
        x = np.fft.ifft2(np.fft.fft2(x, axes=(1, 2)) * low, axes=(1, 2)).real
        x = x / x.std()
    return x.astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "k"), [*(("aps", k) for k in (1, 3, 4, 5)), ("lps", 1), ("lps", 5)])
@pytest.mark.usefixtures("optimised")
def test_no_rolled_image_is_answered_otherwise(method, k):
    """`pytest -m slow -s tests/test_energies.py` prints the pairs of image and roll whose logits move."""
    options = {"downsample": method, "pad_type": "circular", "circular": True, "pool_only": False}
    model = aa_flax.create_model(f"resnet18_lpf{k}", rngs=nnx.Rngs(0), **options)
    model.eval()
    graphdef, state = nnx.split(model)
    answer = jax.jit(lambda x: nnx.merge(graphdef, state)(x))
    for kind in ("noise", "smooth"):
        x = pictures(kind)
        want = answer(x)
        apart = [jnp.abs(answer(np.roll(x, roll, (1, 2))) - want).max(-1) for roll in ROLLS]
        moved = int((jnp.stack(apart) > 1e-4 * jnp.abs(want).max()).sum())
        print(f"{method} k={k} {kind}: {moved} of {len(ROLLS) * len(x)} pairs moved")
        assert moved == 0
