"""One way to name weights: directories, files, published networks, the Hub and addresses, against a server here."""

import dataclasses
import errno
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save, save_file

import aa_flax
from aa_flax.files import file_sha256
from aa_flax.models.abstract import abstract_model
from aa_flax.models.specs import resolve_spec
from aa_flax.models.variables import variables
from aa_flax.weights import catalog, names
from aa_flax.weights import download as downloads
from aa_flax.weights.catalog import Published, Source
from aa_flax.weights.download import DownloadError
from aa_flax.weights.mapping import counts_in
from aa_flax.weights.names import kind_of, obtain
from aa_flax.weights.torch.names import blur_sites, rules
from tests.foreign_networks import with_values
from tests.loopback import COMMIT, Server, loopback
from tests.state_files import file_of, filt, shapes_of
from train.data import DataConfig, open_dataset
from train.errors import CommandError
from train.fit.config import TrainConfig
from train.fit.inputs import parent_of, weights_digest
from train.fit.network import initial_network
from train.networks import open_network

ROOT = Path(__file__).parents[1]
REPO = "timm/mobilenet_v2.test_in1k"
# A configuration of timm's form, with sizes of its own for training and tests.
TIMM: dict[str, Any] = {
    "architecture": "mobilenet_v2",
    "num_classes": 1000,
    "num_features": 1280,
    "pretrained_cfg": {
        "tag": "test_in1k",
        "input_size": [3, 224, 224],
        "test_input_size": [3, 288, 288],
        "interpolation": "bicubic",
        "crop_pct": 0.95,
        "test_crop_pct": 1.0,
        "crop_mode": "center",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "num_classes": 1000,
        "license": "apache-2.0",
    },
}

LAYOUT = {"layout": "torchvision", "filter_size": None}


@pytest.fixture(scope="module")
def plain() -> bytes:
    """A file of MobileNetV2 with torchvision's names, which timm's test repository has too."""
    return save(file_of("mobilenet_v2_plain"))


@pytest.fixture(scope="module")
def small() -> aa_flax.Network:
    options = {"num_classes": 3, "width_mult": 0.1}
    return with_values(lambda: abstract_model("mobilenet_v2_lpf3", **options))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AA_FLAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


@pytest.fixture
def server(plain: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The Hub with a repository of timm's form, and a public server with the same file."""
    with loopback() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        server.add_repository(REPO, TIMM, plain)
        server.files["/mobilenet_v2.pth"] = plain
        yield server


def entry(*addresses: str, weights: bytes, **changes: Any) -> Published:
    fields = {
        "model": "mobilenet_v2",
        "filter_size": None,
        "training": "torchvision",
        "top1": 71.88,
        "consistency": None,
        "license": "BSD",
        "sha256_prefix": hashlib.sha256(weights).hexdigest()[:8],
        "sources": tuple(map(Source, addresses)),
    }
    return Published(**{**fields, **changes})


def same(model: nnx.Module) -> None:
    """The network has the weights of the file."""
    state = file_of("mobilenet_v2_plain")
    found = variables(model)
    np.testing.assert_array_equal(found["classifier.kernel"][...], state["classifier.1.weight"].T)
    np.testing.assert_array_equal(found["stem.bn.var"][...], state["features.0.1.running_var"])


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (".", "local"),
        (Path("."), "local"),
        ("resnet50_lpf4", "published"),
        ("resnet50_plain.torchvision", "published"),
        ("hf://a/b", "repository"),
        (Path("hf://a/b"), "repository"),
        ("hf://a/b@v1.0", "repository"),
        ("https://a.org/b.pth", "address"),
        (Path("https://a.org/b.pth"), "address"),
        ("https://a.org/b.safetensors#sha256=01234567", "address"),
        ("http://localhost:1/b.pth", "address"),
    ],
)
def test_kinds_of_names(name: str | Path, kind: str):
    assert kind_of(name) == kind


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet51", r"no directory or file 'resnet51' either: unknown network .*did you mean"),
        ("a/b", "a/b: there is no such directory or file"),
        ("resnet51.pth", r"resnet51\.pth: there is no such directory or file"),
        ("s3://bucket/x", "s3://bucket/x: no path of this machine"),
        ("hf://a", "hf://a: write hf://owner/name"),
        ("hf://a/b/c", "write hf://owner/name"),
        ("hf://a/b@", "write hf://owner/name"),
        ("hf://a/b@../x", "write hf://owner/name"),
        ("http://a.org/b.pth", "not encrypted"),
        ("https:///b.pth", "an address of weights ends in"),
        ("https://a.org/b", "an address of weights ends in"),
        ("https://a.org/b.pth#x", "behind # may stand sha256="),
    ],
)
def test_what_is_no_name(name: str | Path, message: str):
    for function in (kind_of, aa_flax.load_pretrained):
        with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
            function(name)
        assert "\n" not in str(caught.value)


def test_a_repository_of_timms_form(server: Server, cache: Path, plain: bytes):
    model = aa_flax.load_pretrained(f"hf://{REPO}")
    same(model)
    known = model.provenance.config
    assert (known.model, known.license, known.metrics) == ("mobilenet_v2_plain", "Apache-2.0", {})
    assert (known.preprocessing.resize, known.preprocessing.crop, known.preprocessing.interpolation) == (
        235,
        224,
        "bicubic",
    )
    assert known.test_preprocessing == dataclasses.replace(known.preprocessing, resize=288, crop=288)
    digest = hashlib.sha256(plain).hexdigest()
    assert known.source == {"url": f"hf://{REPO}", "revision": COMMIT, "sha256": digest, **LAYOUT}
    asked = len(server.requests)
    same(aa_flax.load_pretrained(f"hf://{REPO}"))
    assert len(server.requests) == asked == 3  # the configuration, the weights, where these lie
    # The commit that the branch had is the same repository, and is asked for once more.
    aa_flax.load_pretrained(f"hf://{REPO}@{COMMIT}")
    assert server.requests[asked:] == [f"/{REPO}/resolve/{COMMIT}/config.json"]
    assert files_in(cache) == [
        f"hub/timm--mobilenet_v2.test_in1k/{COMMIT}/config.json",
        f"hub/timm--mobilenet_v2.test_in1k/{COMMIT}/model.safetensors",
        f"hub/timm--mobilenet_v2.test_in1k/{COMMIT}/model.safetensors.sha256",
        f"hub/timm--mobilenet_v2.test_in1k/refs/{COMMIT}",
        "hub/timm--mobilenet_v2.test_in1k/refs/main",
    ]


def test_the_same_by_its_published_name(server: Server, plain: bytes, monkeypatch: pytest.MonkeyPatch):
    """Figures and the licence are the catalogue's."""
    published = dataclasses.replace(entry(f"hf://{REPO}", weights=b""), training="test_in1k", sha256_prefix="")
    monkeypatch.setattr(Published, "spec", property(lambda self: "mobilenet_v2_plain"))
    monkeypatch.setattr(catalog, "published", lambda: (published,))
    for name in ("mobilenet_v2_plain.test_in1k", "mobilenet_v2_plain", f"hf://{REPO}"):
        model = aa_flax.load_pretrained(name)
        same(model)
        known = model.provenance.config
        assert known.metrics == {"published": {"top1": 71.88}}
        assert known.source["training"] == "test_in1k"
        assert known.source["revision"] == COMMIT
        assert known.preprocessing.resize == 235
    assert len(server.requests) == 3
    server.faults["cdn"] = 404
    monkeypatch.setenv("AA_FLAX_CACHE", "other")
    with pytest.raises(
        DownloadError, match=r'404 Not Found\. A file got otherwise: load it by .*spec="mobilenet_v2_plain\.test_'
    ):
        aa_flax.load_pretrained("mobilenet_v2_plain")


def test_a_repository_of_this_library(server: Server, tmp_path: Path, small: aa_flax.Network):
    directory = aa_flax.save_pretrained(small, tmp_path / "saved", license="MIT", metrics={"top1": 12.5})
    files = [(directory / name).read_bytes() for name in ("config.json", "model.safetensors")]
    server.add_repository("me/small", *files)
    for _ in range(2):
        loaded = aa_flax.load_pretrained("hf://me/small@main", num_classes=3)
        assert loaded.spec == small.spec
        assert loaded.provenance.config == aa_flax.read_config(directory)
    assert len(server.requests) == 3
    with pytest.raises(ValueError, match=r"hf://me/small holds mobilenet_v2_lpf3, not mobilenet_v2_lpf4: leave the n"):
        aa_flax.load_pretrained("hf://me/small", spec="mobilenet_v2_lpf4")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"config": 404}, r"cannot download hf://timm/\S+: http\S+/resolve/main/config.json: the server answers 404"),
        ({"resolve": 401}, r"the server answers 401 .*private or gated: pip install \"aa_flax\[hub\]\", then hf auth"),
        ({"resolve": 403}, r"the server answers 403 Forbidden; if it is private"),
        ({"cdn": 404}, rf"resolve/{COMMIT}/model\.safetensors: the server answers 404"),
        ({"cdn": "cut"}, r"the connection broke off after \d+ of \d+ bytes"),
        ({"cdn": "altered"}, r"its SHA-256 begins with \w{8}, the server promised"),
        ({"config": "mute"}, r"no answer within 2 seconds"),
        ({"cdn": "mute"}, r"no answer within 2 seconds"),
    ],
)
def test_a_hub_with_faults(
    fault: dict[str, Any], reason: str, server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    server.faults |= fault
    with monkeypatch.context() as patch:
        if "mute" in fault.values():
            patch.setattr(downloads, "TIMEOUT_SECONDS", 2)
        with pytest.raises(DownloadError, match=reason) as caught:
            aa_flax.load_pretrained(f"hf://{REPO}")
    assert "\n" not in str(caught.value)
    assert not cache.exists() or files_in(cache) == []
    server.faults.clear()
    assert obtain(f"hf://{REPO}").path.is_file()


def test_no_network(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match=r"http://127\.0\.0\.1:9/a/b/resolve/main/config\.json: no connection \("):
        aa_flax.load_pretrained("hf://a/b")
    assert not cache.exists()


def test_a_full_disk(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch):
    def full(descriptor: int):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("aa_flax.files.os.fsync", full)
    with pytest.raises(DownloadError, match=r"cannot keep downloads in \S+: No space left on device; set AA_FLAX"):
        aa_flax.load_pretrained(f"hf://{REPO}")
    assert files_in(cache) == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (b"{", "config.json: not valid JSON"),
        ({"model_type": "bert"}, "neither of aa_flax nor of timm"),
        ([1], "neither of aa_flax nor of timm"),
        ({"architecture": "vit_base_patch16_224"}, "timm's network 'vit_base_patch16_224' cannot be had: unknown netw"),
        ({"architecture": 3}, "architecture must be a name"),
        (TIMM | {"num_classes": "many"}, "num_classes must be a whole number"),
        (TIMM | {"pretrained_cfg": {"input_size": 3}}, "input_size must be a list of 3 numbers, got 3"),
        (TIMM | {"pretrained_cfg": {"input_size": [3, 224, 192]}}, "input_size must be square, got 224 x 192"),
        (TIMM | {"pretrained_cfg": {"crop_mode": "border"}}, "crop_mode must be center, got 'border'"),
        (TIMM | {"pretrained_cfg": {"crop_pct": 2}}, "share must be above 0 and at most 1"),
        (TIMM | {"pretrained_cfg": {"mean": "grey"}}, "mean must be a list of numbers, got 'grey'"),
        (TIMM | {"pretrained_cfg": {"interpolation": "random"}}, "interpolation must be one of"),
    ],
)
def test_configurations_of_others(config: Any, message: str, server: Server, cache: Path):
    """Refused before the weights are fetched."""
    server.add_repository("x/y", config if isinstance(config, bytes) else json.dumps(config).encode(), b"")
    with pytest.raises(ValueError, match=message) as caught:
        aa_flax.load_pretrained("hf://x/y")
    assert str(caught.value).startswith("hf://x/y: config.json")
    assert "\n" not in str(caught.value)
    assert server.requests == ["/x/y/resolve/main/config.json"]
    assert not cache.exists()


def test_weights_of_another_network(server: Server):
    server.add_repository("x/y", TIMM | {"architecture": "resnet18"}, save(file_of("mobilenet_v2_plain")))
    with pytest.raises(aa_flax.CheckpointError, match="does not fit resnet18_plain"):
        aa_flax.load_pretrained("hf://x/y")


def test_a_private_repository_needs_the_client_and_its_token(server: Server, monkeypatch: pytest.MonkeyPatch):
    server.token = "secret"
    with pytest.raises(DownloadError, match="private or gated"):
        aa_flax.load_pretrained(f"hf://{REPO}")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "secret")
    asked: dict[str, Any] = {}

    def snapshot(repo: str, **options: Any) -> str:
        asked.update(options, repo=repo)
        folder = Path("snapshots") / COMMIT
        folder.mkdir(parents=True)
        for name in options["allow_patterns"]:
            (folder / name).write_bytes(server.files[f"/{REPO}/resolve/main/{name}"])
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    model = aa_flax.load_pretrained(f"hf://{REPO}")
    same(model)
    assert model.provenance.config.source["revision"] == COMMIT
    assert (asked["repo"], asked["revision"], asked["endpoint"]) == (REPO, "main", server.address)

    def refused(repo: str, **options: Any):
        raise OSError("it is\nanother's")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refused)
    with pytest.raises(DownloadError, match=r"answers 401 .*; with the token of its client: it is another's"):
        aa_flax.load_pretrained(f"hf://{REPO}")


def test_published_weights_and_their_sources(server: Server, plain: bytes, cache: Path, monkeypatch):
    addresses = [f"{server.address}/{name}" for name in ("gone/mobilenet_v2.pth", "mobilenet_v2.pth")]
    published = entry(*addresses, weights=plain)
    monkeypatch.setattr(catalog, "published", lambda: (published,))
    for name in ("mobilenet_v2_plain", "mobilenet_v2_plain.torchvision"):
        model = aa_flax.load_pretrained(name)
        same(model)
    assert server.requests == ["/gone/mobilenet_v2.pth", "/mobilenet_v2.pth"]
    known = model.provenance.config
    assert (known.license, known.metrics) == ("BSD", {"published": {"top1": 71.88}})
    assert known.source == {
        "url": addresses[0],
        "published": "mobilenet_v2_plain",
        "training": "torchvision",
        "sha256": hashlib.sha256(plain).hexdigest(),
        **LAYOUT,
    }
    assert files_in(cache) == ["mobilenet_v2.pth", "mobilenet_v2.pth.sha256"]
    read: list[Path] = []
    for module in (downloads, names):
        monkeypatch.setattr(module, "file_sha256", lambda path, *rest: read.append(path) or file_sha256(path, *rest))
    aa_flax.load_pretrained("mobilenet_v2_plain")
    assert read == [cache / "mobilenet_v2.pth"], "a file in the cache is hashed once"
    server.faults["/"] = 403
    monkeypatch.setenv("AA_FLAX_CACHE", "other")
    with pytest.raises(DownloadError) as caught:
        aa_flax.load_pretrained("mobilenet_v2_plain")
    assert str(caught.value) == (
        f"cannot download mobilenet_v2_plain.torchvision: {addresses[0]}: the server answers 403 Forbidden; "
        f"{addresses[1]}: the server answers 403 Forbidden. A file got otherwise: load it by "
        'aa_flax.load_pretrained(FILE, spec="mobilenet_v2_plain.torchvision"), keep it converted by '
        "aa_flax.save_pretrained, or copy it to other/mobilenet_v2.pth"
    )
    assert files_in(Path("other")) == []


def test_a_file_got_otherwise(plain: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "got.safetensors"
    file.write_bytes(plain)
    with pytest.raises(ValueError, match=r"got\.safetensors: it does not say which network it is of: give spec="):
        aa_flax.load_pretrained(file)
    model = aa_flax.load_pretrained(file, spec="mobilenet_v2_plain")
    same(model)
    digest = hashlib.sha256(plain).hexdigest()
    known = model.provenance.config
    assert (known.source, known.metrics) == ({"file": "got.safetensors", "sha256": digest, **LAYOUT}, {})
    # The catalogue knows it by its hash, and what it is not.
    monkeypatch.setattr(catalog, "published", lambda: (entry("https://x/y.pth", weights=plain),))
    for options in ({}, {"spec": "mobilenet_v2_plain"}, {"spec": "mobilenet_v2_plain.torchvision"}):
        known = aa_flax.load_pretrained(file, **options).provenance.config
        assert (known.license, known.metrics) == ("BSD", {"published": {"top1": 71.88}})
    start = aa_flax.load_pretrained(file, spec="mobilenet_v2_lpf3").provenance.config
    assert (start.model, start.license, start.metrics) == ("mobilenet_v2_lpf3", "BSD", {})
    monkeypatch.setattr(catalog, "published", lambda: (entry("https://x/y.pth", weights=b"other"),))
    with pytest.raises(aa_flax.CheckpointError, match=rf"not mobilenet_v2_plain.torchvision: .*{digest[:8]} instead"):
        aa_flax.load_pretrained(file, spec="mobilenet_v2_plain.torchvision")


def test_a_file_has_the_classes_and_channels_that_it_has(tmp_path: Path):
    options = {"num_classes": 5, "in_channels": 1}
    save_file(file_of("mobilenet_v2_lpf4", **options), tmp_path / "grey.safetensors")
    model = aa_flax.load_pretrained("grey.safetensors", spec="mobilenet_v2")
    assert (model.spec.num_classes, model.spec.in_channels) == (5, 1)
    assert model.provenance.config.preprocessing.mean == (0.449,)
    assert aa_flax.load_pretrained("grey.safetensors", spec="mobilenet_v2", num_classes=7).spec.num_classes == 7
    with pytest.raises(aa_flax.CheckpointError, match="does not fit resnet18_lpf4"):
        aa_flax.load_pretrained("grey.safetensors", spec="resnet18")


@pytest.mark.parametrize("suffix", ["plain", "lpf3"])
@pytest.mark.parametrize("name", ["alexnet", "vgg11", "resnet18", "densenet121", "mobilenet_v2"])
def test_classes_and_channels_are_found_in_files_of_every_family(name: str, suffix: str):
    spec = resolve_spec(f"{name}_{suffix}")
    shapes = shapes_of(abstract_model(str(spec), num_classes=7, in_channels=2))
    blurs = blur_sites(spec, shapes) if suffix != "plain" else {}
    state = {rule.key: np.broadcast_to(np.float32(0), rule.torch_shape) for rule in rules(spec, shapes, blurs.keys())}
    state |= {f"{place}.filt": filt(3, channels) for place, channels in blurs.items()}
    assert counts_in(state, spec) == {"num_classes": 7, "in_channels": 2}


def test_a_file_of_this_library_says_what_it_is(tmp_path: Path):
    saved = with_values(lambda: abstract_model("mobilenet_v2_lpf3", num_classes=3))
    directory = aa_flax.save_pretrained(saved, tmp_path / "saved", license="MIT")
    assert aa_flax.load_pretrained(directory / "model.safetensors").provenance.config.license == "MIT"
    (directory / "model.safetensors").rename(tmp_path / "alone.safetensors")
    loaded = aa_flax.load_pretrained("alone.safetensors")
    assert loaded.spec == saved.spec
    np.testing.assert_array_equal(variables(loaded)["stem.conv.kernel"][...], variables(saved)["stem.conv.kernel"][...])


def test_a_directory_of_timms_form(tmp_path: Path, plain: bytes):
    (tmp_path / "config.json").write_text(json.dumps(TIMM))
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors: not found beside config\.json"):
        aa_flax.load_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(plain)
    for name in (tmp_path, tmp_path / "model.safetensors"):
        same(aa_flax.load_pretrained(name))


def test_addresses(server: Server, plain: bytes, cache: Path):
    digest = hashlib.sha256(plain).hexdigest()
    address = f"{server.address}/mobilenet_v2.pth"
    with pytest.raises(ValueError, match="does not say which network"):
        aa_flax.load_pretrained(address)
    for name in (address, f"{address}#sha256={digest[:8]}", f"{address}#sha256={digest}"):
        model = aa_flax.load_pretrained(name, spec="mobilenet_v2_plain")
        same(model)
        assert model.provenance.config.source == {"url": address, "sha256": digest, **LAYOUT}
    assert server.requests == ["/mobilenet_v2.pth"]
    with pytest.raises(DownloadError, match="instead of 00000000: it was altered"):
        aa_flax.load_pretrained(f"{address}#sha256=00000000", spec="mobilenet_v2_plain")
    # What came first counts where no hash is told, and torch.hub's way to tell one is known.
    assert len(files_in(cache)) == 2
    server.files["/net-00000000.pth"] = plain
    with pytest.raises(DownloadError, match="instead of 00000000: it was altered"):
        obtain(f"{server.address}/net-00000000.pth", spec="mobilenet_v2_plain")
    server.files[f"/net-{digest[:8]}.pth"] = plain
    assert obtain(f"{server.address}/net-{digest[:8]}.pth", spec="mobilenet_v2_plain").sha256 == digest


def test_what_lies_on_this_disk_comes_first(tmp_path: Path, small: aa_flax.Network):
    aa_flax.save_pretrained(small, tmp_path / "mobilenet_v2_plain")
    assert aa_flax.load_pretrained("mobilenet_v2_plain").spec == small.spec


def test_commands_take_the_same_names(server: Server, plain: bytes, tmp_path: Path, monkeypatch, capsys):
    digest = hashlib.sha256(plain).hexdigest()
    monkeypatch.setattr(catalog, "published", lambda: (entry(f"{server.address}/mobilenet_v2.pth", weights=plain),))
    (tmp_path / "got.pth").write_bytes(plain)
    for name in ("mobilenet_v2_plain", f"hf://{REPO}", f"{server.address}/mobilenet_v2.pth", "got.pth"):
        opened = open_network(name)
        same(opened.model)
        assert (opened.config.model, opened.file.read_bytes() == plain) == ("mobilenet_v2_plain", True)
        assert weights_digest(name) == (None if name == "mobilenet_v2_plain" else digest)
        assert parent_of(name, "mobilenet_v2_lpf4")["source"]["sha256"] == digest
    assert "getting hf://" in capsys.readouterr().err
    assert weights_digest("gone.pth") is None
    with pytest.raises(CommandError, match=r"^--weights: cannot download hf://x/y: .*404"):
        open_network("hf://x/y")
    data = open_dataset(DataConfig(name="synthetic", image_size=16, synthetic_size=8, synthetic_classes=1000))
    for name in (f"hf://{REPO}", "got.pth"):
        same(initial_network(TrainConfig(model="mobilenet_v2_lpf4", init=name), data))


SCRIPT = """
import importlib.abc, sys

class Missing(importlib.abc.MetaPathFinder):
    blocked = {"huggingface_hub", "PIL", "torch", "torchvision", "timm", "grain", "tyro", "matplotlib", "requests",
               "httpx", "sklearn", "tensorflow"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.blocked:
            raise ImportError(f"{name} is not installed")

sys.meta_path.insert(0, Missing())
import aa_flax

for _ in range(2):
    print(aa_flax.load_pretrained("hf://timm/mobilenet_v2.test_in1k").spec)
for name in ("hf://timm/nothing", "hf://timm/refused", "hf://timm/cut", "hf://timm/altered"):
    try:
        aa_flax.load_pretrained(name)
    except aa_flax.DownloadError as error:
        print(error)
try:
    aa_flax.push_to_hub(".", "a/b")
except ImportError as error:
    print(error)
"""


def test_the_four_core_packages_suffice(server: Server, tmp_path: Path, cache: Path):
    """As in an environment that has nothing else."""
    for name in ("refused", "cut", "altered"):
        server.add_repository(f"timm/{name}", TIMM, b"weights" * 100)
    server.faults |= {"timm/refused": 403, "cdn/timm/cut": "cut", "cdn/timm/altered": "altered"}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False, cwd=tmp_path
    )
    lines = ended.stdout.splitlines()
    assert ended.returncode == 0, ended.stderr
    assert lines[:2] == ["mobilenet_v2_plain", "mobilenet_v2_plain"]
    assert len([path for path in server.requests if REPO in path]) == 3
    reasons = ("404 Not Found", "403 Forbidden; if it is private or gated", "broke off after 350 of 700", "promised")
    for line, reason in zip(lines[2:6], reasons, strict=True):
        assert reason in line
    assert 'pip install "aa_flax[hub]"' in lines[6]
    assert len(files_in(cache)) == 4
