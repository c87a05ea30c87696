"""Where the samples of a strided network are centred: the page shows what the script measures."""

from pathlib import Path

import jax.numpy as jnp
import pytest

import aa_flax
from examples import where_the_grid_moves

PAGE = Path(__file__).parents[1] / "docs" / "where-the-grid-moves.md"


def test_the_page_shows_what_the_script_prints(capsys):
    where_the_grid_moves.main()
    printed = "\n".join(line.rstrip() for line in capsys.readouterr().out.rstrip().splitlines())
    assert printed.count("\n") > 10
    assert f"```text\n{printed}\n```" in PAGE.read_text()


@pytest.mark.parametrize("filter_size", [1, 2, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("stride", [2, 3])
def test_the_centre_of_a_blur(filter_size, stride):
    """On the sample that the stride keeps for odd taps, half a sample further on for even ones; less what is padded."""
    ramp = jnp.arange(60, dtype=jnp.float32)[None, :, None]
    for pad_off in (0, 1):
        places = aa_flax.blur_pool(ramp, filter_size, stride, pad_off=pad_off)[0, 5:-5, 0]
        want = stride * (5 + jnp.arange(len(places))) - pad_off + (0.5 if filter_size % 2 == 0 else 0.0)
        assert float(abs(places - want).max()) < 1e-5


@pytest.mark.parametrize("place", ["before", "after"])
def test_a_blur_before_a_convolution_moves_the_grid_as_one_behind_it(place):
    network = where_the_grid_moves.conv(3, 2, 1)
    for filter_size, want in ((3, 0.0), (4, 0.5)):
        copy, _ = aa_flax.antialias(network, filter_size, first=True, spatial_dims=1, place=place)
        assert where_the_grid_moves.offset(copy) == pytest.approx(want, abs=1e-4)
