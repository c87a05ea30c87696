"""Differences of two networks on the same images, against enumeration and binomial tests."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from aa_flax import consistency
from aa_flax.consistency.paired import sign_flip


@given(st.lists(st.sampled_from([-100, -60, -40, -20, 0, 0, 20, 40, 60, 100]), min_size=1, max_size=9))
@settings(max_examples=60)
def test_the_share_is_that_of_all_exchanges(differences):
    found = np.array(differences, float)
    sums = [abs(np.dot(signs, found)) for signs in itertools.product((-1, 1), repeat=len(found))]
    assert sign_flip(found) == pytest.approx(np.mean(np.array(sums) >= abs(found.sum()) - 1e-9), abs=1e-12)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 100))
@settings(max_examples=40)
def test_right_and_wrong_answers_are_mcnemar_s_exact_test(better, worse, equal):
    found = np.repeat([100.0, -100.0, 0.0], [better, worse, equal + 1])
    expected = stats.binomtest(better, better + worse).pvalue if better + worse else 1.0
    assert sign_flip(found) == pytest.approx(expected, abs=1e-12)


def test_many_images_are_the_same_test():
    random = np.random.default_rng(0)
    for shift in (0.0, 0.02, 0.05):
        found = np.clip(np.rint(random.normal(shift, 1, 6000)), -5, 5) * 20
        few = consistency.paired._MANY
        assert (found != 0).sum() > few
        normal = sign_flip(found)
        consistency.paired._MANY = len(found)
        try:
            exact = sign_flip(found)
        finally:
            consistency.paired._MANY = few
        assert normal == pytest.approx(exact, rel=0.02, abs=1e-6)


def test_chance_alone_is_found_as_often_as_it_is_said():
    random = np.random.default_rng(1)
    p = np.array([sign_flip(random.choice([-40, -20, 0, 20, 40], 80)) for _ in range(2000)])
    for level in (0.01, 0.05, 0.2, 0.5):
        assert abs(np.mean(p <= level) - level) < 4 * np.sqrt(level * (1 - level) / len(p)) + 0.02 * level


def test_a_difference_has_the_error_of_pairs():
    random = np.random.default_rng(2)
    hard = random.normal(70, 20, 400)
    a, b = hard + random.normal(1, 2, 400), hard + random.normal(0, 2, 400)
    found = consistency.difference(a, b)
    assert found.value == pytest.approx((a - b).mean())
    assert found.stderr == pytest.approx((a - b).std(ddof=1) / 20)
    assert found.stderr < consistency.Estimate.over_images(a).stderr / 4
    assert found.p < 1e-6
    assert consistency.difference(b, a).value == -found.value
    assert consistency.difference(a, a) == consistency.Difference(0.0, 0.0, 1.0)
    with pytest.raises(ValueError, match=r"the same images .* \(400,\) and \(399,\)"):
        consistency.difference(a, b[1:])


def test_holm_by_hand():
    assert consistency.holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert consistency.holm([0.5, 0.9]).tolist() == [1.0, 1.0]
    assert consistency.holm([]).tolist() == []
