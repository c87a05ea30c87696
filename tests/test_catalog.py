"""What has been published, as data: networks, figures, licences, and where their checkpoints are."""

import csv
from pathlib import Path

import pytest

import aa_flax
from aa_flax.files import cache_directory
from aa_flax.models.registry import list_models
from aa_flax.models.specs import parse_spec
from aa_flax.weights import catalog
from aa_flax.weights.config import Preprocessing
from tests.zoo import ZHANG
from train.data.datasets import DataConfig, open_dataset
from train.errors import CommandError

TABLES = [entry for entry in catalog.published() if entry.consistency is not None]
TIMM = [entry for entry in catalog.published() if entry.repository]


def test_the_tables_of_the_paper_are_there():
    assert (len(TABLES), len([e for e in TABLES if e.filter_size])) == (82, 59)
    assert {e.model for e in TABLES} == set(ZHANG)
    keys = [(e.model, e.filter_size, e.training) for e in TABLES]
    assert len(set(keys)) == len(keys)
    assert {e.training for e in TABLES} == {"scratch", "finetuned", "torchvision"}


def test_entries_are_consistent():
    for e in TABLES:
        assert parse_spec(e.spec) == (e.model, e.filter_size)
        assert e.top1 is not None
        assert e.consistency is not None
        assert 50 < e.top1 < e.consistency < 100
        assert (e.filter_size is None) == (e.training == "torchvision")
        assert e.license == (None if e.filter_size is None else "CC BY-NC-SA 4.0")
        assert len(e.sha256_prefix) == 8
        suffix = "_finetune" if e.training == "finetuned" else ""
        if e.filter_size:
            assert e.file_name == f"{e.model}_lpf{e.filter_size}{suffix}-{e.sha256_prefix}.pth"
        assert e.file_name.endswith(f"-{e.sha256_prefix}.pth")
        assert all(source.address.startswith("https://") for source in e.sources)
        assert e.config.metrics == {"published": {"top1": e.top1, "consistency": e.consistency}}


def test_the_catalogue_says_what_can_be_had():
    plain, gone, mirrored = (catalog.find(name) for name in ("resnet50_plain", "resnet50_lpf3", "resnet50_lpf4"))
    assert plain.url == "https://download.pytorch.org/models/resnet50-0676ba61.pth"
    assert plain.reachable_from == "download.pytorch.org"
    assert gone.reachable_from == ""
    assert [(s.host, s.gone) for s in gone.sources] == [("antialiased-cnns.s3.us-east-2.amazonaws.com", True)]
    assert "403" in gone.sources[0].note
    assert [s.gone for s in mirrored.sources] == [True, False]
    assert mirrored.reachable_from == "dropbox.com (the paper's author, not verified here)"
    assert sum(bool(e.reachable_from) for e in TABLES) == 24
    assert {e.reachable_from for e in TIMM} == {"huggingface.co"}


def test_every_mirror_belongs_to_a_file():
    rows = list(csv.DictReader((Path(catalog.__file__).parent / "mirrors.csv").read_text().splitlines()))
    mirrored = {e.file_name for e in catalog.published() if len(e.sources) > 1}
    assert {row["file"] for row in rows} == mirrored


def test_timms_networks_have_figures_and_preparation_for_two_sizes():
    found = {e.name: e for e in TIMM}
    e = found["resnetaa50.a1h_in1k"]
    assert (e.spec, e.repository, e.license) == ("resnetaa50", "timm/resnetaa50.a1h_in1k", "Apache-2.0")
    assert (e.top1, e.top5, e.test_top1, e.test_top5) == (80.614, 95.212, 81.618, 95.794)
    assert e.preprocessing == Preprocessing(resize=235, crop=224, interpolation="bicubic")
    assert e.test_preprocessing == Preprocessing(resize=288, crop=288, interpolation="bicubic")
    assert e.metrics == {
        "published": {"top1": 80.614, "top5": 95.212},
        "published at 288 pixels": {"top1": 81.618, "top5": 95.794},
    }
    assert found["seresnextaa201d_32x8d.sw_in12k_ft_in1k_384"].test_preprocessing is None
    assert found["resnetaa50d.d_in12k"].num_classes == 11821
    assert found["resnetaa50d.d_in12k"].metrics == {}


def test_the_facts_are_those_of_the_project(shared):
    """Nothing was lost on the way from the tables that were gathered once."""
    with (shared / "facts/timm.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file) if not row["name"].startswith("tresnet")}
    assert {name for name in rows if name.partition(".")[0] in list_models()} == {e.name for e in TIMM}
    for e in TIMM:
        row = rows[e.name]
        assert (row["hf_repo"], int(row["num_classes"])) == (e.repository, e.num_classes)
        pairs = [(e.preprocessing, e.top1, e.top5), (e.test_preprocessing, e.test_top1, e.test_top5)]
        told = {f"{p.crop} px": f"{top1:.3f}/{top5:.3f}" for p, top1, top5 in pairs if p and top1}
        assert told == {part.split(" crop ")[0]: part.split(": ")[1] for part in row["published"].split("; ") if part}


def test_known_figures():
    figures = {
        "resnet50_plain": (76.16, 89.20),
        "resnet50_lpf4.scratch": (77.23, 91.29),
        "resnet50_lpf4": (77.41, 91.32),
        "mobilenet_v2_lpf5": (72.50, 87.79),
        "densenet161": (77.88, 91.66),
    }
    for name, expected in figures.items():
        e = catalog.find(name)
        assert (e.top1, e.consistency) == expected, name


def test_without_a_training_it_is_the_fine_tuned_one():
    for model, taps in {(e.model, e.filter_size) for e in TABLES if e.training == "finetuned"}:
        assert catalog.find(f"{model}_lpf{taps}").training == "finetuned"


def test_antialiasing_helps_every_network():
    for e in TABLES:
        plain = catalog.find(f"{e.model}_plain")
        assert e.consistency >= plain.consistency
        assert e.top1 >= plain.top1


def test_lists():
    assert {e.model for e in aa_flax.list_pretrained("vgg1?")} == {"vgg11", "vgg13", "vgg16", "vgg19"}
    assert {e.filter_size for e in aa_flax.list_pretrained("*_lpf5")} == {5}
    assert aa_flax.list_pretrained("nothing*") == []
    assert len(aa_flax.list_pretrained()) == 82 + len(TIMM)
    assert len(TIMM) >= 13
    good = aa_flax.list_pretrained(min_top1=85)
    assert good
    assert all(e.top1 >= 85 for e in good)
    free = aa_flax.list_pretrained("resnet*", licence="apache*", min_top1=80)
    assert {e.license for e in free} == {"Apache-2.0"}
    assert "resnetaa50.a1h_in1k" in {e.name for e in free}
    assert len(aa_flax.list_pretrained(licence="*nc*")) == 59
    assert [e.name for e in aa_flax.list_pretrained("*.a1h_in1k")] == ["resnetaa50.a1h_in1k"]


def test_what_is_not_published_lists_what_is():
    with pytest.raises(ValueError, match=r"nothing is published for resnet50_lpf7; .*resnet50_lpf4\.finetuned"):
        catalog.find("resnet50_lpf7")
    with pytest.raises(ValueError, match=r"nothing is published for mobilenetv4_conv_aa_medium; .*list_pretrained"):
        catalog.find("mobilenetv4_conv_aa_medium")
    with pytest.raises(ValueError, match=r"nothing is published for resnet50_lpf3\.finetuned"):
        catalog.find("resnet50_lpf3.finetuned")
    with pytest.raises(ValueError, match="did you mean resnet50"):
        catalog.find("resnet51")


def test_a_file_is_recognised_by_its_hash():
    found = catalog.identify("994b528f" + "0" * 56)
    assert found is not None
    assert found.name == "resnet50_lpf4.scratch"
    assert catalog.identify("0" * 64) is None


def test_cache_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("AA_FLAX_CACHE", str(tmp_path))
    assert cache_directory() == tmp_path
    monkeypatch.delenv("AA_FLAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "aa_flax"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert cache_directory() == tmp_path / ".cache" / "aa_flax"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AA_FLAX_CACHE", "~/mine")
    assert cache_directory() == tmp_path / "mine"


@pytest.mark.parametrize("variable", ["AA_FLAX_CACHE", "XDG_CACHE_HOME"])
def test_downloads_and_decoded_images_lie_in_one_cache(variable: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """With `~` and a relative path, which two readers of the variables may take in two ways."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("AA_FLAX_CACHE", raising=False)
    asked = []

    def remember(location: Path, cache: Path):
        asked.append(cache)
        raise CommandError("enough")

    monkeypatch.setattr("train.data.cifar.open_cifar10", remember)
    for value in ("~/mine", "relative", str(tmp_path)):
        monkeypatch.setenv(variable, value)
        with pytest.raises(CommandError, match="enough"):
            open_dataset(DataConfig(name="cifar10", dir=tmp_path))
        assert asked.pop() == cache_directory()
