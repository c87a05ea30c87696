"""`aa_flax.preprocess` against the transforms for evaluation of torchvision and timm, on photographs: the same bits."""

from pathlib import Path

import numpy as np
import pytest

import aa_flax
from aa_flax import Preprocessing
from tests.parity.oracles import torch, torchvision

TRANSFORMS = torchvision.transforms
RULES = {
    "torchvision's": Preprocessing(),
    "timm's 224 of 0.95": Preprocessing.of_share(224, 0.95, interpolation="bicubic"),
    "timm's 288 of 1": Preprocessing.of_share(288, 1.0, interpolation="bicubic"),
    "timm's 384 of 1": Preprocessing.of_share(384, 1.0, interpolation="bicubic"),
}
SHARES = {256: 0.875, 235: 0.95, 288: 1.0, 384: 1.0}
HOW_MANY = 20


@pytest.fixture(scope="module")
def photos(shared: Path) -> list[Path]:
    """Photographs of ImageNet, one of each of some classes."""
    paths = sorted((shared / "data/imagenet-sample/val").rglob("*.JPEG"))
    return paths[:: len(paths) // HOW_MANY][:HOW_MANY]


def of_torchvision(rule: Preprocessing):
    return TRANSFORMS.Compose(
        [
            TRANSFORMS.Resize(rule.resize, TRANSFORMS.InterpolationMode[rule.interpolation.upper()]),
            TRANSFORMS.CenterCrop(rule.crop),
            TRANSFORMS.ToTensor(),
            TRANSFORMS.Normalize(rule.mean, rule.std),
        ]
    )


def of_timm(rule: Preprocessing):
    from timm.data import create_transform  # after torchvision, for which `oracles` defines what is missing

    return create_transform(
        rule.crop,
        interpolation=rule.interpolation,
        mean=rule.mean,
        std=rule.std,
        crop_pct=SHARES[rule.resize],
        is_training=False,
    )


@pytest.mark.parametrize("transform", [of_torchvision, of_timm])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_the_same_bits_as_a_transform_for_evaluation(photos: list[Path], rule: Preprocessing, transform):
    assert len(photos) == HOW_MANY
    oracle = transform(rule)
    load = torchvision.datasets.folder.default_loader
    expected = torch.stack([oracle(load(str(path))) for path in photos]).permute(0, 2, 3, 1).numpy()
    found = aa_flax.preprocess(photos, rule)
    assert found.shape == (HOW_MANY, rule.crop, rule.crop, 3)
    np.testing.assert_array_equal(found, expected)
