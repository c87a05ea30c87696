"""What the package promises about itself: its public names, its imports, its dependencies."""

import ast
import sys
import tomllib
from pathlib import Path

import pytest

import aa_flax

ROOT = Path(__file__).parents[1]
# What the wheel may import besides the standard library and itself, and what else may stand in a lazy import.
CORE = {"jax", "flax", "numpy", "safetensors", "ml_dtypes"}
OPTIONAL = {"flatbuffers", "huggingface_hub"}


def imports(path: Path) -> set[str]:
    """Top-level names of everything a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    return names


def packages_of(folder: str) -> dict[Path, set[str]]:
    return {path: imports(path) for path in sorted((ROOT / folder).rglob("*.py"))}


def test_every_public_name_exists_and_is_documented():
    assert aa_flax.__all__ == sorted(aa_flax.__all__)
    for name in aa_flax.__all__:
        assert getattr(aa_flax, name).__doc__, name


def test_the_library_imports_its_four_dependencies_only():
    for path, names in packages_of("aa_flax").items():
        foreign = names - sys.stdlib_module_names - CORE - OPTIONAL - {"aa_flax"}
        assert not foreign, f"{path} imports {foreign}"


def test_the_wheel_requires_what_the_library_imports():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = {requirement.split(">")[0] for requirement in project["dependencies"]}
    assert required == {"jax", "flax", "numpy", "safetensors"}


@pytest.mark.parametrize(
    ("below", "above"),
    [
        ("aa_flax/models/**/*.py", {"aa_flax.weights", "aa_flax.consistency", "train"}),
        ("aa_flax/weights/**/*.py", {"aa_flax.consistency", "train"}),
        ("aa_flax/consistency/**/*.py", {"aa_flax.weights", "train"}),
        ("train/*.py", {"train.fit", "train.reproduce", "train.explain", "train.evaluate", "train.page", "train.data"}),
        ("train/data/*.py", {"train.fit", "train.reproduce", "train.explain", "train.evaluate", "train.page"}),
        ("train/page/*.py", {"train.fit", "train.reproduce", "train.explain", "train.evaluate", "train.data"}),
        ("train/evaluate/*.py", {"train.fit", "train.reproduce", "train.explain"}),
        ("train/explain/*.py", {"train.fit", "train.reproduce"}),
        ("train/reproduce/*.py", {"train.fit", "train.explain"}),
        ("train/fit/*.py", {"train.reproduce", "train.explain"}),
    ],
)
def test_imports_point_one_way(below, above):
    files = sorted(ROOT.glob(below))
    assert files
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                assert not any(node.module == name or node.module.startswith(name + ".") for name in above), (
                    f"{path} imports {node.module}"
                )


def test_no_file_sets_flags_of_the_compiler():
    for folder in ("aa_flax", "train", "benchmarks", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                is_flags = isinstance(node, ast.Constant) and node.value == "XLA_FLAGS"
                assert not is_flags, f"{path} names XLA_FLAGS: an unknown flag ends the process"
