"""Runs that are continued: the same files under another path are the same, other files under the same path are not."""

import dataclasses
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from aa_flax.models.specs import resolve_spec
from aa_flax.weights.config import PretrainedConfig, dump_config
from train.data import DataConfig, open_dataset
from train.errors import CommandError
from train.fit.config import TrainConfig
from train.fit.inputs import describe_dataset, weights_digest
from train.fit.record import FILE_NAME, read_record
from train.fit.rundir import leave_record, may_continue


def photos(root: Path, classes: tuple[str, ...] = ("daisy", "pansy", "rose"), shade: int = 50) -> Path:
    for split in ("train", "val"):
        for i, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 9), (shade, 20 * i, 0)).save(root / split / name / "1.png")
    return root


def weights(root: Path, value: float = 1.0) -> str:
    root.mkdir()
    save_file({"x": np.asarray(jnp.full(3, value))}, root / "model.safetensors")
    (root / "config.json").write_text(dump_config(PretrainedConfig(spec=resolve_spec("resnet18"))))
    return str(root)


@dataclasses.dataclass
class Runs:
    """A run that has saved something, and others that would go on with it."""

    directory: Path

    def start(self, **options) -> None:
        leave_record(self.directory, *self._described(**options))
        (self.directory / "checkpoints" / "5").mkdir(parents=True, exist_ok=True)

    def changes(self, **options) -> list[str]:
        return may_continue(self.directory, *self._described(accept_changes=True, **options))

    def refusal(self, **options) -> str:
        with pytest.raises(CommandError) as caught:
            may_continue(self.directory, *self._described(**options))
        return str(caught.value)

    def _described(self, data: Path, **options):
        config = TrainConfig(model="resnet18", data=DataConfig(dir=data), **options)
        return config, describe_dataset(open_dataset(config.data))


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Runs:
    monkeypatch.chdir(tmp_path)
    return Runs(tmp_path / "run")


def test_other_classes_behind_the_same_path_are_refused(runs, tmp_path):
    root = photos(tmp_path / "photos")
    runs.start(data=root)
    assert runs.changes(data=root) == []
    for split in ("train", "val"):
        (root / split / "daisy").rename(root / split / "tulip")
    # Sorted anew, all three classes are others.
    message = runs.refusal(data=root)
    assert "holds a run with other options: data: class 0 daisy -> pansy, and 2 more. Choose another" in message
    assert runs.changes(data=root) == ["data: class 0 daisy -> pansy, and 2 more"]


def test_other_images_behind_the_same_path_are_refused(runs, tmp_path):
    root = photos(tmp_path / "photos")
    runs.start(data=root)
    Image.new("RGB", (8, 9), (200, 0, 0)).save(root / "train" / "rose" / "1.png")
    assert "as many training images, but others or in another order" in runs.refusal(data=root)


def test_the_same_images_under_another_path_go_on(runs, tmp_path):
    photos(tmp_path / "photos")
    runs.start(data=Path("photos"))
    shutil.copytree(tmp_path / "photos", tmp_path / "copy")
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    for path in (tmp_path / "photos", Path("./photos"), tmp_path / "link", Path("copy")):
        assert runs.changes(data=path) == [], path
    other = photos(tmp_path / "other", shade=90)
    found = runs.changes(data=other)
    assert found == [
        f"--data.dir: photos -> {other}",
        "data: as many training images, but others or in another order",
    ]


def test_a_record_without_digests_is_compared_by_its_paths(runs, tmp_path):
    root = photos(tmp_path / "photos")
    runs.start(data=Path("photos"), init=weights(tmp_path / "w"))
    path = tmp_path / "run" / FILE_NAME
    text = path.read_text()
    digest = read_record(path).dataset["digest"]
    path.write_text(text.replace(f'"digest": "{digest}"', '"steps": 1').replace(f'"{weights_digest("w")}"', "null"))
    assert read_record(path).init is None
    assert runs.changes(data=root, init="w") == []
    copy = shutil.copytree(root, tmp_path / "copy")
    assert runs.changes(data=copy, init="w") == [f"--data.dir: photos -> {copy}"]


def test_weights_to_start_from_are_compared_by_their_content(runs, tmp_path):
    root = photos(tmp_path / "photos")
    first = weights(tmp_path / "w")
    runs.start(data=root, init=first)
    digest = weights_digest(first)
    assert read_record(tmp_path / "run" / FILE_NAME).init == digest is not None
    shutil.copytree(first, tmp_path / "copy")
    assert runs.changes(data=root, init="w") == runs.changes(data=root, init="copy") == []
    other = weights(tmp_path / "other", 2.0)
    assert runs.changes(data=root, init=other) == [f"--init: {first} -> {other}"]
    assert runs.changes(data=root) == [f"--init: {first} -> None"]
    assert runs.changes(data=root, init="resnet18_plain") == [f"--init: {first} -> resnet18_plain"]
    # They were read at the start: gone or overwritten, the run is what it is.
    shutil.rmtree(first)
    assert runs.changes(data=root, init=first) == runs.changes(data=root, init="copy") == []
    runs.start(data=root, init=other, accept_changes=True)
    assert read_record(tmp_path / "run" / FILE_NAME).init == digest
