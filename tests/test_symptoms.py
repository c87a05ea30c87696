"""Figures of networks that learn nothing are told apart from results."""

import math

import numpy as np
import pytest

from train.data import ArraySource
from train.data.balance import majority_rate
from train.fit.config import NetworkConfig, TrainConfig
from train.fit.network import abstract_network
from train.fit.symptoms import statistics_of_one_image, symptoms


def told(loss: float, accuracy: float, consistency: float, classes: int = 10, majority: float | None = None) -> str:
    scores = {"accuracy": accuracy, "consistency": consistency}
    return " ".join(symptoms(loss, scores, num_classes=classes, majority=majority))


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_a_loss_that_stays_at_that_of_guessing(classes):
    guessing = math.log(classes)
    for loss in (guessing, 0.995 * guessing, 1.005 * guessing):
        assert f"ln({classes}) = {guessing:.4f}" in told(loss, 50, 80, classes)
    for loss in (0.9 * guessing, 1.1 * guessing, 0.0, math.nan):
        assert told(loss, 50, 80, classes) == ""


def test_a_consistency_of_100_is_worth_nothing_with_one_answer():
    assert "consistency of 100 with an accuracy of 10.00 says nothing" in told(1.0, 10, 100)
    assert "up to 95.00" in told(0.2, 95, 100, majority=95.0)
    assert told(1.0, 40, 100) == told(1.0, 10, 99.5) == told(0.0, 100, 100, classes=1) == ""


def test_the_share_of_the_most_frequent_class():
    labels = np.array([2, 0, 2, 2])
    assert majority_rate(ArraySource(np.zeros((4, 1, 1, 3), np.uint8), labels, "x")) == 75.0


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"batch": 1}, True),
        ({"batch": 8, "accumulate": 8}, True),
        ({"batch": 8, "bn_group": 1}, True),
        ({"batch": 8, "accumulate": 4}, False),
        ({"batch": 1, "net": NetworkConfig(frozen_bn=True)}, False),
        ({"batch": 1, "model": "vgg11"}, False),
    ],
)
def test_statistics_of_one_image(options, expected):
    config = TrainConfig(**{"model": "resnet18", **options})
    assert statistics_of_one_image(config, abstract_network(config, 3)) == expected
