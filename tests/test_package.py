"""What the package promises about itself: its public names, its imports, its dependencies."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import aa_flax

ROOT = Path(__file__).parents[1]
# What the wheel may import besides the standard library and itself, and what else may stand in a lazy import.
CORE = {"jax", "flax", "numpy", "safetensors", "ml_dtypes"}
OPTIONAL = {"PIL", "flatbuffers", "gcsfs", "google", "huggingface_hub", "requests", "rich"}


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


def test_no_file_sets_flags_of_the_compiler():
    for folder in ("aa_flax", "train", "benchmarks", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                is_flags = isinstance(node, ast.Constant) and node.value == "XLA_FLAGS"
                assert not is_flags, f"{path} names XLA_FLAGS: an unknown flag ends the process"


def test_docstrings_are_markdown_with_sections_of_four_spaces():
    roles_or_double = re.compile(r":(?:func|class|meth|mod):`|(?<!`)``[^`\s,](?:[^`]*[^`\s])?``(?!`)")
    folders = ("aa_flax", "train", "benchmarks", "examples", "scripts", "tests")
    for path in [ROOT / "convert_weights.py", *(path for folder in folders for path in (ROOT / folder).rglob("*.py"))]:
        texts = [
            node.value.value
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        ]
        for text in texts:
            assert not roles_or_double.search(text), f"{path}: code is set in single backticks in {text!r}"
            for section in re.finditer(r"^( *)(?:Args|Returns|Raises|Attributes|Yields):\n( *)", text, re.MULTILINE):
                assert len(section[2]) == len(section[1]) + 4, f"{path}: sections are indented by 4 spaces in {text!r}"
