"""The Hub without a network: the real client reads a cache in its own layout, a stand-in takes the uploads."""

import base64
import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import jax
import numpy as np
import pytest
from flax import nnx

import aa_flax
import convert_weights
from aa_flax import hub
from aa_flax.models.abstract import abstract_model
from aa_flax.models.specs import resolve_spec
from aa_flax.weights import catalog
from tests.foreign_networks import with_values
from tests.loopback import COMMIT, Server, loopback

REPO = "somebody/tiny"


@pytest.fixture(scope="module")
def model() -> aa_flax.Network:
    options = {"num_classes": 2, "width_mult": 0.1, "downsample": "aps"}
    return with_values(lambda: abstract_model("mobilenet_v2_lpf3", **options))


def _content(source) -> bytes:
    return source if isinstance(source, bytes) else Path(source).read_bytes()


class FakeApi:
    """Takes commits as the client's HfApi does, and keeps them in the layout of the client's cache."""

    cache: Path
    calls: list

    def __init__(self, token=None, endpoint=None):
        self.token = token

    def create_repo(self, repo_id, *, private=False, exist_ok=False):
        self.calls.append((repo_id, private, exist_ok, self.token))

    def create_commit(self, repo_id, operations, *, commit_message):
        files = {op.path_in_repo: _content(op.path_or_fileobj) for op in operations}
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
    assert f'aa_flax.load_pretrained("hf://{REPO}")' in card


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


@pytest.fixture
def hub_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that answers the client's posts as the Hub does, small files and large ones alike."""
    with loopback() as server:
        server.token = "hf_secret"
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        monkeypatch.setattr(huggingface_hub, "get_token", lambda: server.token)
        monkeypatch.setenv("HF_TOKEN", server.token)
        files = ["config.json", "model.safetensors", "README.md"]
        server.answers = {
            "/api/repos/create": {"url": f"{server.address}/{REPO}", "id": "1", "name": REPO},
            "/api/validate-yaml": {"errors": [], "warnings": []},
            f"/api/models/{REPO}/preupload/main": {
                "files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in files]
            },
            f"/api/models/{REPO}/commit/main": {
                "commitUrl": f"{server.address}/{REPO}/commit/{COMMIT}",
                "commitOid": COMMIT,
                "success": True,
            },
        }
        yield server


def pushed(server: Server) -> dict[str, bytes]:
    """The files of the commit that was posted."""
    lines = map(json.loads, server.posts[f"/api/models/{REPO}/commit/main"].splitlines())
    return {x["value"]["path"]: base64.b64decode(x["value"]["content"]) for x in lines if x["key"] == "file"}


def evaluation(directory: Path, path: Path) -> Path:
    digest = hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()
    figures = {"top1": 12.5, "top5": 50.0, "consistency": {"crop": {"value": 88.25, "stderr": 0.5}}}
    path.write_text(json.dumps({"images": 64, **figures, "repeat": {"weights_sha256": digest}}))
    return path


def test_the_real_client_uploads_a_directory_with_its_figures(model, hub_here, tmp_path, capsys):
    saved = {"license": "CC BY-NC-SA 4.0", "metrics": {"published": {"top1": 11.0}}}
    directory = aa_flax.save_pretrained(model, tmp_path / "saved", **saved)
    report = evaluation(directory, tmp_path / "report.json")
    words = [str(directory), "--push", REPO, "--report", str(report)]
    assert convert_weights.main(words) == 0
    assert f"uploaded    {hub_here.address}/{REPO}/commit/{COMMIT}" in capsys.readouterr().out
    files = pushed(hub_here)
    assert files["model.safetensors"] == (directory / "model.safetensors").read_bytes()
    measured = {"images": 64, "top1": 12.5, "top5": 50.0, "consistency (crop)": 88.25}
    assert json.loads(files["config.json"])["metrics"] == {"published": {"top1": 11.0}, "measured": measured}
    card = files["README.md"].decode()
    for line in ("| measured top1 | 12.5 |", "| measured consistency (crop) | 88.25 |", "| published top1 | 11 |"):
        assert line in card
    assert "## Licence\n\nCC BY-NC-SA 4.0" in card
    assert "@inproceedings{zhang2019shiftinvar," in card
    assert f'aa_flax.load_pretrained("hf://{REPO}")' in card
    # What was uploaded is what `hf://` loads.
    hub_here.add_repository(REPO, files["config.json"], files["model.safetensors"])
    hub_here.token = ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AA_FLAX_CACHE", str(tmp_path / "cache"))
        same(aa_flax.load_pretrained(f"hf://{REPO}"), model)


def test_uploads_that_cannot_be(model, hub_here, tmp_path, monkeypatch, capsys):
    directory = aa_flax.save_pretrained(model, tmp_path / "saved")
    report = evaluation(directory, tmp_path / "report.json")

    def refused(*words: str) -> str:
        assert convert_weights.main([str(directory), *words]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ")
        return error

    assert "a repository is called owner/name, not 'nobody'" in refused("--push", "nobody")
    report.write_text(report.read_text().replace('"weights_sha256": "', '"weights_sha256": "0'))
    assert f"{report}: measured other weights" in refused("--push", REPO, "--report", str(report))
    report.write_text("[]")
    assert f"{report}: no report of" in refused("--push", REPO, "--report", str(report))
    assert hub_here.posts == {}
    del hub_here.answers["/api/repos/create"]
    assert f"{hub_here.address} does not take {REPO}: " in refused("--push", REPO)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert "needs a token that may write there: hf auth login" in refused("--push", REPO)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert 'pip install "aa_flax[hub]"' in refused("--push", REPO)


def test_timms_networks_are_cited_as_timms():
    config = catalog.find("resnetaa50").config
    card = hub.model_card(config, REPO)
    assert "timm's network, anti-aliased as its name says" in card
    assert "Ross Wightman" in card
    assert "| published at 288 pixels top1 | 81.618 |" in card
    assert huggingface_hub.ModelCard(card).data.to_dict()["license"] == "apache-2.0"
