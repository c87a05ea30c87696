"""What is written: the same bytes for the same weights, whole or not at all, by one process at a time."""

import dataclasses
import hashlib
import os

import pytest
from safetensors.numpy import load_file, save_file

import aa_flax
from aa_flax.files import file_sha256, whole_directory, whole_file, write_atomically
from aa_flax.models.abstract import abstract_model
from aa_flax.models.base import Network
from aa_flax.weights.config import PretrainedConfig
from tests.foreign_networks import with_values


@pytest.fixture(scope="module")
def network() -> Network:
    return with_values(lambda: abstract_model("resnet18_lpf3", depths=(1, 1, 1, 1), num_classes=2))


def sums(directory) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in directory.iterdir()}


def test_the_same_weights_are_the_same_bytes(tmp_path, network):
    """Ten times, for an order drawn by chance among two would come out the same in five of ten."""
    first = sums(aa_flax.save_pretrained(network, tmp_path / "first", license="MIT"))
    for attempt in range(10):
        assert sums(aa_flax.save_pretrained(network, tmp_path / str(attempt), license="MIT")) == first
    loaded = aa_flax.load_pretrained(tmp_path / "first")
    assert sums(aa_flax.save_pretrained(loaded, tmp_path / "again", license="MIT")) == first
    assert load_file(tmp_path / "first" / "model.safetensors").keys() == aa_flax.weights.store.variables(network).keys()


def test_files_with_more_metadata_are_read(tmp_path, network):
    """As earlier versions wrote them."""
    aa_flax.save_pretrained(network, tmp_path)
    weights = tmp_path / "model.safetensors"
    save_file(load_file(weights), weights, metadata={"format": "flax", "model": "resnet18_lpf3"})
    assert aa_flax.load_pretrained(tmp_path).spec == network.spec


def test_two_that_write_one_new_directory(tmp_path):
    """The first to finish has written it; the other says so and leaves nothing."""
    target = tmp_path / "new"

    def write(name: str, inside=lambda: None) -> None:
        with whole_directory(target, last="b") as fresh:
            (fresh / name).write_text(name)
            inside()

    with pytest.raises(FileExistsError, match=r"new: another process has written it meanwhile.*another directory"):
        write("b", lambda: write("a"))
    assert os.listdir(tmp_path) == ["new"]
    assert os.listdir(target) == ["a"]
    # Where it exists already, the last to finish is kept, with whole files.
    write("b", lambda: write("b"))
    assert sorted(os.listdir(target)) == ["a", "b"]


def test_errors_name_the_directory_that_was_asked_for(tmp_path):
    with pytest.raises(OSError, match=r"/x: .*No space left"), whole_directory(tmp_path / "x", last="b"):
        raise OSError(28, "No space left on device")
    assert not os.listdir(tmp_path)


def test_a_file_is_the_old_one_or_the_new(tmp_path):
    """Whatever ends the writing, and with a name as long as a file system takes."""
    path = tmp_path / "deep" / ("x" * 255)

    def fail(error: BaseException) -> None:
        with whole_file(path) as file:
            file.write(b"half")
            raise error

    write_atomically(path, b"old")
    for error in (KeyboardInterrupt(), OSError(28, "No space left on device")):
        with pytest.raises(type(error)):
            fail(error)
        assert path.read_bytes() == b"old"
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


def test_the_digest_of_a_file_and_how_far_it_is(tmp_path):
    content, seen = bytes(600_000), []
    (tmp_path / "a").write_bytes(content)
    digest = file_sha256(tmp_path / "a", lambda done, total: seen.append((done, total)))
    assert digest == file_sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()
    assert (seen[-1], len(seen)) == ((600_000, 600_000), 3)


@pytest.mark.parametrize(
    "field",
    [
        {"class_names": ("cat", "caf\udce9")},
        {"license": "caf\udce9"},
        {"source": {"file": "caf\udce9.pth"}},
        {"metrics": {"caf\udce9": 1.0}},
    ],
    ids=lambda field: next(iter(field)),
)
def test_text_in_another_encoding_is_refused_before_anything_is_written(field, tmp_path, network):
    config = dataclasses.replace(PretrainedConfig(spec=network.spec), **field)
    with pytest.raises(ValueError, match=r"config\.json cannot hold .*caf\\udce9.*no Unicode text: rename it"):
        aa_flax.save_pretrained(network, tmp_path / "out", **field)
    with pytest.raises(ValueError, match="no Unicode text"):
        aa_flax.weights.config.dump_config(config)
    assert not os.listdir(tmp_path)
