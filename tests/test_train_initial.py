"""What a run takes over from the weights it starts from, and what it says of the rest."""

import dataclasses

import numpy as np
import pytest
from flax import nnx

import aa_flax
from train.data import DataConfig, open_dataset
from train.errors import CommandError
from train.fit.config import NetworkConfig, TrainConfig
from train.fit.export import data_name
from train.fit.network import initial_network
from train.fit.record import Record

NAMES = ("rose", "daisy", "tulip")


@pytest.fixture(scope="module")
def dataset():
    small = open_dataset(DataConfig(name="synthetic", image_size=16, synthetic_size=8, synthetic_classes=3))
    return dataclasses.replace(small, class_names=NAMES, preprocessing=aa_flax.Preprocessing(resize=16, crop=16))


def started(directory, dataset, class_names, channels=3, **options) -> tuple[np.ndarray, np.ndarray]:
    """The classifier of the weights, whose outputs are numbered, and that of a run that starts from them."""
    model = aa_flax.create_model("mobilenet_v2_lpf3", num_classes=3, width_mult=0.25, rngs=nnx.Rngs(0))
    model.classifier.bias[...] = np.arange(3)
    aa_flax.save_pretrained(model, directory, class_names=class_names)
    net = NetworkConfig(width_mult=0.25, in_channels=channels)
    network = initial_network(TrainConfig(model="mobilenet_v2_lpf3", init=str(directory), net=net, **options), dataset)
    return np.asarray(network.classifier.bias[...]), np.asarray(network.classifier.kernel[...])


@pytest.mark.parametrize(
    ("names", "bias", "message"),
    [
        (None, [0, 1, 2], ""),
        (NAMES, [0, 1, 2], ""),
        (("tulip", "rose", "daisy"), [1, 2, 0], "its classes in another order"),
        (("rose", "pansy", "tulip"), [0, 1, 2], "number 1 is 'pansy' there and 'daisy' in the data: --new-head"),
    ],
)
def test_the_order_of_the_classes(tmp_path, dataset, caplog, names, bias, message):
    assert started(tmp_path, dataset, names)[0].tolist() == bias
    assert len(caplog.messages) == bool(message)
    assert all(message in line for line in caplog.messages)


def test_a_fresh_head_has_no_order(tmp_path, dataset, caplog):
    found, _ = started(tmp_path, dataset, ("tulip", "rose", "daisy"), new_head=True)
    assert found.tolist() == [0, 0, 0]
    assert caplog.messages == []


def test_weights_for_other_channels(tmp_path, dataset):
    with pytest.raises(CommandError, match=r"reads images of 3 channels, this network of 1 .*--in-channels 1 makes"):
        started(tmp_path, dataset, None, channels=1)


@pytest.mark.parametrize(
    ("name", "directory", "classes", "expected"),
    [
        ("imagenet", "data/flowers", ("rose", "daisy"), "flowers"),
        ("imagenet", "data/ilsvrc", ("n01440764", "n01443537"), "imagenet"),
        ("cifar10", "data/cifar.tar", ("airplane",), "cifar10"),
        ("digits", None, ("0",), "digits"),
    ],
)
def test_what_the_training_images_are_called(tmp_path, name, directory, classes, expected):
    data = DataConfig(name=name, dir=directory and tmp_path / directory)
    record = Record(config=TrainConfig(data=data), dataset={"name": name, "class_names": classes}, environment={})
    assert data_name(record) == expected
