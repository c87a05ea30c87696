"""The house: how its layout is read."""

import pytest

from scripts.layout import layout

# Imports of a toy package. `low` and `deep` import each other, one of them only when it is called.
FILES = {
    "__init__": "",
    "top": "from toy_house import low\nfrom toy_house.deep.inner import x",
    "low": "import toy_house.deep",
    "deep/__init__": "import json",
    "deep/inner": "from toy_house.deep import floor\ndef later():\n    from toy_house.low import y",
    "deep/floor": "x = 1",
}


@pytest.fixture
def house(tmp_path, monkeypatch):
    for name, source in FILES.items():
        path = tmp_path / "toy_house" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    monkeypatch.syspath_prepend(tmp_path)


def test_rooms_floors_arrows_and_circles(house):
    found = layout("toy_house")
    assert found.row() == ("toy_house", "3", "2", "4", "2")
    assert found.floors == {"top": 1, "low": 0, "deep": 0}
    assert found.circling == {("low", "deep"), ("deep", "low")}
    assert found.plan().splitlines()[:3] == ["toy_house", "   1  top", "   0  deep, low"]


def test_a_package_and_a_depth_of_their_own(house):
    assert layout("toy_house.deep").floors == {"inner": 1, "floor": 0}
    assert layout("toy_house", depth=2).floors == {"top": 3, "deep.inner": 2, "low": 1, "deep": 0, "deep.floor": 0}
