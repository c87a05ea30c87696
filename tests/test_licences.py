"""The licence of weights that began with others."""

import pytest

from train.fit.licences import licence_of

NC_SA = "CC BY-NC-SA 4.0"


@pytest.mark.parametrize(
    ("given", "parents", "expected"),
    [
        (None, [], None),
        ("MIT", [], "MIT"),
        ("MIT", [None], "MIT"),
        (None, ["Apache-2.0"], "Apache-2.0"),
        ("MIT", ["MIT", NC_SA], NC_SA),
        ("MIT", ["Apache-2.0"], "MIT"),
        (None, [NC_SA], NC_SA),
        ("MIT", [NC_SA], NC_SA),
        ("CC BY-SA 4.0", [NC_SA], NC_SA),
        ("CC-BY-NC-SA-4.0", [NC_SA], "CC-BY-NC-SA-4.0"),
        ("CC BY-NC-ND 4.0", ["CC BY-NC 4.0"], "CC BY-NC-ND 4.0"),
        ("MIT", ["GPL-3.0"], "GPL-3.0"),
        ("MIT", ["BSD-3-Clause", NC_SA], NC_SA),
        ("MIT", ["for research only"], "for research only"),
        ("for research only", ["MIT"], "for research only"),
        ("Apache-2.0", ["cc-by-4.0"], "Apache-2.0"),
        ("MIT", ["PolyForm Noncommercial 1.0"], "PolyForm Noncommercial 1.0"),
        ("MIT", ["non-commercial research"], "non-commercial research"),
    ],
)
def test_the_stricter_licence_stays(given, parents, expected):
    licence, note = licence_of(given, parents)
    assert licence == expected
    inherited = bool([parent for parent in parents if parent]) and licence != given
    assert (f"licence {expected}: inherited" in note) == inherited
    assert ("binds to more than" in note) == (inherited and given is not None)
