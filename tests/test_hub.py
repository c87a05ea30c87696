"""The Hub without a network: the real client reads a cache in its own layout, a stand-in takes the uploads."""

import dataclasses
import hashlib
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import jax
import numpy as np
import pytest
from flax import nnx

import aa_flax
from aa_flax import hub
from aa_flax.models.abstract import abstract_model
from aa_flax.models.specs import resolve_spec
from tests.foreign_networks import with_values

REPO = "somebody/tiny"


@pytest.fixture(scope="module")
def model() -> aa_flax.Network:
    options = {"num_classes": 2, "width_mult": 0.1, "downsample": "aps"}
    return with_values(lambda: abstract_model("mobilenet_v2_lpf3", **options))


class FakeApi:
    """Takes commits as the client's HfApi does, and keeps them in the layout of the client's cache."""

    cache: Path
    calls: list

    def __init__(self, token=None):
        self.token = token

    def create_repo(self, repo_id, *, private=False, exist_ok=False):
        self.calls.append((repo_id, private, exist_ok, self.token))

    def create_commit(self, repo_id, operations, *, commit_message):
        files = {op.path_in_repo: Path(op.path_or_fileobj).read_bytes() for op in operations}
        commit = hashlib.sha1(b"".join(files.values())).hexdigest()
        repo = self.cache / f"models--{repo_id.replace('/', '--')}"
        for name, content in files.items():
            blob = repo / "blobs" / hashlib.sha256(content).hexdigest()
            link = repo / "snapshots" / commit / name
            for path in (blob, link):
                path.parent.mkdir(parents=True, exist_ok=True)
            blob.write_bytes(content)
            link.symlink_to(blob)
        (repo / "refs").mkdir(exist_ok=True)
        (repo / "refs" / "main").write_text(commit)
        self.calls.append(commit_message)
        return SimpleNamespace(commit_url=f"https://huggingface.co/{repo_id}/commit/{commit}")


@pytest.fixture
def remote(tmp_path, monkeypatch) -> type[FakeApi]:
    fake = type("Api", (FakeApi,), {"cache": tmp_path / "cache", "calls": []})
    monkeypatch.setattr(huggingface_hub, "HfApi", fake)
    return fake


def same(a: nnx.Module, b: nnx.Module) -> None:
    jax.tree.map(np.testing.assert_array_equal, nnx.state(a), nnx.state(b))


def test_there_and_back_to_the_bit(model, remote):
    address = aa_flax.push_to_hub(model, REPO, private=True, token="t", license="Apache-2.0", metrics={"top1": 12.5})
    assert address.startswith(f"https://huggingface.co/{REPO}/commit/")
    assert remote.calls == [(REPO, True, True, "t"), "Upload mobilenet_v2_lpf3"]
    # The real client finds its own layout; its files are links, and none of them is written to.
    loaded = aa_flax.load_from_hub(REPO, cache_dir=remote.cache, local_files_only=True)
    same(loaded, model)
    assert loaded.spec == model.spec
    folder = huggingface_hub.snapshot_download(REPO, cache_dir=remote.cache, local_files_only=True)
    assert sorted(p.name for p in Path(folder).iterdir()) == ["README.md", "config.json", "model.safetensors"]
    card = (Path(folder) / "README.md").read_text()
    assert "| top1 | 12.5 |" in card
    assert f'aa_flax.load_from_hub("{REPO}")' in card


def test_a_directory_and_its_own_card(model, remote, tmp_path):
    directory = aa_flax.save_pretrained(model, tmp_path / "saved")
    (directory / "README.md").write_text("written by hand")
    aa_flax.push_to_hub(directory, REPO, commit_message="by hand")
    assert remote.calls[-1] == "by hand"
    folder = huggingface_hub.snapshot_download(REPO, cache_dir=remote.cache, local_files_only=True)
    assert (Path(folder) / "README.md").read_text() == "written by hand"
    assert sorted(p.name for p in directory.iterdir()) == ["README.md", "config.json", "model.safetensors"]


def test_the_card_is_one_that_the_client_reads():
    config = aa_flax.PretrainedConfig(
        spec=resolve_spec("resnet50_lpf4"),
        license="CC BY-NC-SA 4.0",
        source={"url": "https://example.org/w.pth", "sha256": "ab" * 32},
        metrics={"top1": 77.04, "consistency": {"crop": {"value": 89.32, "stderr": 0.1}}, "note": "published"},
    )
    text = hub.model_card(config, REPO)
    data = huggingface_hub.ModelCard(text).data.to_dict()
    assert data["license"] == "cc-by-nc-sa-4.0"
    assert data["library_name"] == "aa_flax"
    assert "anti-aliasing" in data["tags"]
    assert "anti-aliased by BlurPool with 4 taps and reflect padding, 1000 classes" in text
    assert "| consistency crop value | 89.32 |" in text
    assert "- url: https://example.org/w.pth" in text
    odd = dataclasses.replace(config, license='mine: "all"', spec=resolve_spec("vgg16_plain"), metrics={}, source={})
    data = huggingface_hub.ModelCard(hub.model_card(odd)).data.to_dict()
    assert (data["license"], data["license_name"]) == ("other", 'mine: "all"')
    assert "without anti-aliasing" in hub.model_card(odd)
    assert "## Figures" not in hub.model_card(odd)
    unknown = hub.model_card(dataclasses.replace(config, license=None))
    assert "license:" not in unknown.split("---")[1]
    assert "ask whoever trained" in unknown


def test_misuse(model, remote, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"model.safetensors: not found; save_pretrained writes it"):
        aa_flax.push_to_hub(tmp_path, REPO)
    saved = aa_flax.save_pretrained(model, tmp_path / "saved")
    with pytest.raises(TypeError, match=r"license cannot be given for a directory: they are in its config.json"):
        aa_flax.push_to_hub(saved, REPO, license="MIT")
    assert remote.calls == []
    with pytest.raises(FileNotFoundError):
        aa_flax.load_from_hub("nobody/nothing", cache_dir=tmp_path / "empty", local_files_only=True)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r'pip install "aa_flax\[hub\]"'):
        aa_flax.push_to_hub(saved, REPO)
