"""Samples go back to where they were taken from, so that a U-Net's answer moves as its image does."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import aa_flax
from aa_flax.downsample import Choice
from tests.foreign_networks import with_values
from tests.test_energies import ROLLS, pictures

CORNERS = list(itertools.product(range(2), repeat=2))


def values(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("mixed", [False, True])
def test_by_definition(mixed):
    """A map of zeros with the samples on their phase, or a share of them on each, blurred and times 2 per axis."""
    x = values(3, 4, 3, 2)
    shares = np.random.default_rng(1).dirichlet(np.ones(4), 3).T if mixed else np.eye(4)[[2, 0, 3]].T
    given = {"weights": jnp.asarray(shares, jnp.float32)} if mixed else {"index": jnp.array([2, 0, 3])}
    want = np.zeros((3, 8, 6, 2), np.float32)
    for (i, j), share in zip(CORNERS, shares, strict=True):
        want[:, i::2, j::2] = share[:, None, None, None] * np.asarray(x)
    choice = Choice(4, **given)
    np.testing.assert_allclose(aa_flax.PolyphaseUpsample(1, gain=1)(x, like=choice), want, atol=1e-6)
    blurred = 4 * np.asarray(aa_flax.blur_pool(want, 3, 1, "circular"))
    np.testing.assert_allclose(aa_flax.PolyphaseUpsample(3)(x, like=choice), blurred, atol=1e-5)
    odd = aa_flax.PolyphaseUpsample(1, gain=1)(x, size=(7, 6), like=choice)
    np.testing.assert_allclose(odd, want[:, :7], atol=1e-6)


def test_strides_of_each_axis():
    x, down = values(5, 2, 6, 9, 3), aa_flax.AdaptivePolyphase(1, (1, 2, 3), spatial_dims=3)
    x = x.reshape(5, 2, 6, 9, 3)
    choice = down.choose(x)
    y = aa_flax.PolyphaseUpsample(1, (1, 2, 3), spatial_dims=3)(down(x, choice), like=choice)
    np.testing.assert_allclose(y, np.where(y == 0, 0, 6 * x), rtol=1e-6)
    assert int((y != 0).sum()) == x.size // 6


def test_misuse():
    x, up = values(2, 4, 4, 1), aa_flax.PolyphaseUpsample(3)
    with pytest.raises(TypeError, match=r"needs like=down.choose\(x\), a Choice, got NoneType"):
        up(x)
    with pytest.raises(ValueError, match=r"chosen among 9 phases for a batch \(2,\), the map has 4"):
        up(x, like=Choice(9, index=jnp.zeros(2, int)))
    with pytest.raises(ValueError, match=r"size=\(9, 8\) is no size that stride \(2, 2\) brings to \(4, 4\)"):
        up(x, (9, 8), like=Choice(4, index=jnp.zeros(2, int)))
    same = aa_flax.BlurUpsample(4)(x, like=Choice(4, index=jnp.zeros(2, int)))
    np.testing.assert_array_equal(same, aa_flax.BlurUpsample(4)(x))


class UNet(nnx.Module):
    """Two levels; the way up puts samples back on the grids that the way down has chosen."""

    def __init__(self, method: str, up: type[nnx.Module], *, rngs: nnx.Rngs):
        def conv(cin: int, cout: int) -> nnx.Conv:
            return nnx.Conv(cin, cout, (3, 3), padding="CIRCULAR", rngs=rngs)

        def down(channels: int) -> aa_flax.Downsample:
            if method == "aps":
                return aa_flax.AdaptivePolyphase(3)
            return aa_flax.LearnablePolyphase(channels, 3, rngs=rngs)

        self.conv1, self.conv2, self.conv3 = conv(3, 8), conv(8, 16), conv(16, 16)
        self.down1, self.down2 = down(8), down(16)
        self.up1, self.up2 = up(3, pad_type="circular"), up(3, pad_type="circular")
        self.conv4, self.conv5 = conv(32, 8), conv(16, 3)

    def __call__(self, x: jax.Array) -> jax.Array:
        fine = nnx.relu(self.conv1(x))
        first = self.down1.choose(fine)
        coarse = nnx.relu(self.conv2(self.down1(fine, first)))
        second = self.down2.choose(coarse)
        y = nnx.relu(self.conv3(self.down2(coarse, second)))
        y = nnx.relu(self.conv4(jnp.concatenate([coarse, self.up2(y, like=second)], -1)))
        return self.conv5(jnp.concatenate([fine, self.up1(y, like=first)], -1))


def moved(method: str, up: type[nnx.Module]) -> int:
    """Pairs of image and roll, of 96, in which the answer does not move as the image does."""
    model = with_values(lambda: UNet(method, up, rngs=nnx.Rngs(0)))
    model.eval()
    graphdef, state = nnx.split(model)
    answer = jax.jit(lambda x: nnx.merge(graphdef, state)(x))
    x = pictures("noise")
    want = answer(x)
    close = 1e-4 * float(jnp.abs(want).max())
    apart = [jnp.abs(answer(np.roll(x, r, (1, 2))) - jnp.roll(want, r, (1, 2))).max((1, 2, 3)) for r in ROLLS]
    return int((jnp.stack(apart) > close).sum())


@pytest.mark.parametrize("method", ["aps", "lps"])
def test_a_unet_moves_its_answer_with_the_image(method):
    """`pytest -s tests/test_polyphase_upsample.py` prints how many pairs do not."""
    found = {up.__name__: moved(method, up) for up in (aa_flax.PolyphaseUpsample, aa_flax.BlurUpsample)}
    print(f"U-Net, {method}: " + ", ".join(f"{name} {count} of 96 pairs moved" for name, count in found.items()))
    assert found["PolyphaseUpsample"] == 0
    assert found["BlurUpsample"] > 48
