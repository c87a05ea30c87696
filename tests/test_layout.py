"""The house: how its layout is read, and whether its map shows what is there."""

import re
from pathlib import Path

import pytest

from scripts.layout import layout, main

ROOT = Path(__file__).parents[1]

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


@pytest.mark.parametrize("words", [["nonsense"], ["toy_house.cellar"], ["toy_house", "--depth", "0"]])
def test_what_is_no_package_is_refused_in_a_line(house, words, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["layout", *words])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert words[0] in capsys.readouterr().err.splitlines()[-1]


def test_a_package_and_a_depth_of_their_own(house):
    assert layout("toy_house.deep").floors == {"inner": 1, "floor": 0}
    assert layout("toy_house", depth=2).floors == {"top": 3, "deep.inner": 2, "low": 1, "deep": 0, "deep.floor": 0}


def drawn(page: str) -> set[str]:
    """The paths in the map of docs/architecture.md: names by indentation, then what they are."""
    found, above = set(), []
    for line in page.split("```text\n")[1].split("```")[0].splitlines():
        names = re.split(r"\s{2,}", line.strip())[0].split(", ")
        depth = (len(line) - len(line.lstrip())) // 2
        found |= {"".join([*above[:depth], name]) for name in names}
        above = [*above[:depth], names[-1]]
    return found


def test_the_map_has_every_module_and_nothing_else():
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    files = [path for top in ("aa_flax", "train", "scripts") for path in sorted((ROOT / top).rglob("*.py"))]
    modules = {path.relative_to(ROOT).as_posix() for path in files if path.name != "__init__.py"}
    packages = {f"{path.parent.relative_to(ROOT).as_posix()}/" for path in files}
    inside = {path for path in drawn(page) if path.startswith(("aa_flax/", "train/", "scripts/"))}
    assert inside == modules | packages
    assert all((ROOT / path).exists() for path in drawn(page))
    assert all((ROOT / path).is_file() for path in re.findall(r"`([\w/]+/\w+\.py)`", page))
