"""Finding the weights of the published rows on the disk."""

import dataclasses
import hashlib
from pathlib import Path

import pytest
from flax import nnx

import aa_flax
from train.errors import CommandError
from train.reproduce.published_weights import find
from train.reproduce.rows import Row, published_rows


def published_row(spec: str, training: str) -> Row:
    return next(row for row in published_rows() if (row.spec, row.training) == (spec, training))


def save(directory: Path, spec: str, *, source: dict | None = None) -> None:
    model = aa_flax.create_model(spec, rngs=nnx.Rngs(0))
    aa_flax.save_pretrained(model, directory, source=source)


def test_every_row_has_a_file():
    rows = published_rows()
    assert len(rows) == 82
    assert len({row.file_name for row in rows}) == 82
    assert len({row.stem for row in rows}) == 82
    for row in rows:
        assert row.file_name is not None
        assert f"-{row.sha256_prefix}." in row.file_name


def with_file(row: Row, root: Path, content: bytes) -> Row:
    """The row as if its published file had this content, which is written below root."""
    assert row.file_name is not None
    (root / row.file_name).write_bytes(content)
    prefix = hashlib.sha256(content).hexdigest()[:8]
    return dataclasses.replace(row, sha256_prefix=prefix)


def test_find_takes_the_published_file(tmp_path):
    row = with_file(published_row("resnet18_lpf4", "finetuned"), tmp_path, b"content")
    found = find(tmp_path, row)
    assert found is not None
    assert (found.published, found.spec, found.label) == (True, "resnet18_lpf4", row.file_name)
    assert found.sha256 == hashlib.sha256(b"content").hexdigest()


def test_find_refuses_a_damaged_file(tmp_path):
    row = published_row("resnet18_lpf4", "finetuned")
    (tmp_path / row.file_name).write_bytes(b"cut off")
    with pytest.raises(CommandError, match=f"{row.file_name} is damaged: its SHA-256 begins with 117b4857"):
        find(tmp_path, row)


def test_find_finds_nothing_where_nothing_is(tmp_path):
    assert find(tmp_path / "absent", published_row("resnet18_lpf4", "finetuned")) is None


@pytest.mark.parametrize("training", ["scratch", "finetuned"])
def test_a_directory_belongs_to_the_file_it_came_from(tmp_path, training):
    row = published_row("mobilenet_v2_lpf4", training)
    digest = row.sha256_prefix + "0" * 56
    save(tmp_path / "mobilenet_v2_lpf4", "mobilenet_v2_lpf4", source={"sha256": digest, "file": "x.pth"})
    other = published_row("mobilenet_v2_lpf4", "finetuned" if training == "scratch" else "scratch")
    found = find(tmp_path, row)
    assert found is not None
    assert found.published
    assert found.label == "mobilenet_v2_lpf4 from x.pth"
    assert find(tmp_path, other) is None


def test_a_directory_of_unknown_origin_stands_in_the_filter_table(tmp_path):
    save(tmp_path / "mobilenet_v2_lpf4", "mobilenet_v2_lpf4")
    found = find(tmp_path, published_row("mobilenet_v2_lpf4", "scratch"))
    assert found is not None
    assert not found.published
    assert find(tmp_path, published_row("mobilenet_v2_lpf4", "finetuned")) is None


@pytest.mark.parametrize("name", ["mobilenet_v2_lpf4_finetuned", "stem"])
def test_a_directory_may_name_its_row(tmp_path, name):
    row = published_row("mobilenet_v2_lpf4", "finetuned")
    name = Path(row.file_name).stem if name == "stem" else name
    save(tmp_path / name, "mobilenet_v2_lpf4")
    found = find(tmp_path, row)
    assert found is not None
    assert found.path == tmp_path / name
    assert not found.published


def test_find_says_what_is_broken(tmp_path):
    row = published_row("mobilenet_v2_lpf2", "scratch")
    folder = tmp_path / "mobilenet_v2_lpf2"
    folder.mkdir()
    (folder / "config.json").write_text("{")
    with pytest.raises(CommandError, match="not valid JSON"):
        find(tmp_path, row)
    save(folder, "mobilenet_v2_lpf2")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CommandError, match=r"model\.safetensors: not found beside config\.json"):
        find(tmp_path, row)
