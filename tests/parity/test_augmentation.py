"""Policies, mixing and losses against torchvision's and PyTorch's own."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.parity.oracles import torch, torchvision
from train.data.mixing import mixed, outside
from train.data.policies import LEVELS, OPERATIONS, narrow_strength
from train.fit.losses import binary_cross_entropy, cross_entropy

autoaugment = torchvision.transforms.autoaugment
# torchvision calls by words in capitals what Pillow has by its own names.
THEIRS = {name: "".join(word.capitalize() for word in name.split("_")) for name in OPERATIONS} | {
    "autocontrast": "AutoContrast"
}


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """Smooth shapes and noise, of sides that are not equal."""
    y, x = np.mgrid[:67, :90]
    waves = np.stack([np.sin(x / 9), np.cos(y / 7), np.sin((x + y) / 11)], -1)
    noise = np.random.default_rng(0).normal(size=(67, 90, 3))
    return Image.fromarray(np.clip(128 + 60 * waves + 25 * noise, 0, 255).astype(np.uint8))


def done(name: str, photo: Image.Image, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Ours and theirs."""
    nearest = torchvision.transforms.InterpolationMode.NEAREST
    theirs = autoaugment._apply_op(photo, THEIRS[name], strength, nearest, None)
    return np.asarray(OPERATIONS[name].apply(photo, strength)), np.asarray(theirs)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_torchvision_s_at_every_strength_of_both_policies(name, photo):
    pixels, operation = np.asarray(photo), OPERATIONS[name]
    wide, signed = autoaugment.TrivialAugmentWide()._augmentation_space(LEVELS)[THEIRS[name]]
    narrow, also = autoaugment.RandAugment()._augmentation_space(LEVELS, pixels.shape[:2])[THEIRS[name]]
    assert operation.signed == signed == also
    assert bool(operation.wide) == (wide.ndim > 0)
    for level in range(LEVELS if operation.wide else 1):
        strengths = (float(wide[level]), float(narrow[level])) if operation.wide else (0.0,)
        ours = (operation.wide[level], narrow_strength(operation, level, pixels)) if operation.wide else (0.0,)
        np.testing.assert_allclose(ours, strengths, rtol=1e-6, atol=1e-6)
        for strength in strengths:
            for sign in (1, -1) if signed else (1,):
                np.testing.assert_array_equal(*done(name, photo, sign * strength))


def test_the_policies_choose_among_the_same_operations():
    assert {THEIRS[name] for name in OPERATIONS} == set(autoaugment.TrivialAugmentWide()._augmentation_space(LEVELS))
    assert {THEIRS[name] for name in OPERATIONS} == set(autoaugment.RandAugment()._augmentation_space(LEVELS, (9, 9)))


def test_mixing_is_torchvision_s():
    from torchvision.transforms import v2

    random = np.random.default_rng(0)
    images, classes = random.normal(size=(6, 3, 20, 30)).astype(np.float32), torch.arange(6) % 4
    share, row, column = 0.4, 3, 22
    cut = v2.CutMix(num_classes=4)
    half = [int(0.5 * np.sqrt(1 - share) * side) for side in (20, 30)]
    box = (max(column - half[1], 0), max(row - half[0], 0), min(column + half[1], 30), min(row + half[0], 20))
    left = 1 - (box[2] - box[0]) * (box[3] - box[1]) / 600
    settings = {
        cut: {"labels": classes, "batch_size": 6, "box": box, "lam_adjusted": left},
        v2.MixUp(num_classes=4): {"labels": classes, "batch_size": 6, "lam": share},
    }
    rectangle = outside(jnp.full(6, share), jnp.full((6, 2), jnp.array([[row, column]])), 20, 30)
    for (transform, params), kept in zip(settings.items(), (rectangle, jnp.full((6, 1, 1), share)), strict=True):
        theirs = transform.transform(torch.from_numpy(images), params).numpy()
        their_labels = transform.transform(classes, params).numpy()
        found, shares = mixed(jnp.asarray(images.transpose(0, 2, 3, 1)), jnp.eye(4)[np.asarray(classes)], kept)
        np.testing.assert_allclose(np.asarray(found).transpose(0, 3, 1, 2), theirs, rtol=0, atol=1e-6)
        np.testing.assert_allclose(shares, their_labels, rtol=0, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_of_shares_are_torch_s(smoothing):
    random = np.random.default_rng(0)
    logits = random.normal(size=(8, 5)).astype(np.float32) * 4
    shares = random.dirichlet(np.ones(5), size=8).astype(np.float32)
    theirs = torch.nn.CrossEntropyLoss(label_smoothing=smoothing)(torch.from_numpy(logits), torch.from_numpy(shares))
    np.testing.assert_allclose(cross_entropy(jnp.asarray(logits), jnp.asarray(shares), smoothing), theirs, rtol=1e-6)
    smooth = torch.from_numpy(shares * (1 - smoothing) + np.float32(smoothing / 5))
    theirs = torch.nn.BCEWithLogitsLoss()(torch.from_numpy(logits), smooth)
    found = binary_cross_entropy(jnp.asarray(logits), jnp.asarray(shares), smoothing)
    np.testing.assert_allclose(found, theirs, rtol=1e-6)


def test_erased_rectangles_are_drawn_as_torchvision_s():
    """Areas and proportions of many draws have the same quantiles."""
    import jax

    from train.data.augment import rectangles

    torch.manual_seed(0)
    image = torch.zeros(3, 64, 96)
    erasing = torchvision.transforms.RandomErasing
    drawn = [erasing.get_params(image, (0.02, 0.33), (0.3, 3.3), [0.0])[2:4] for _ in range(2000)]
    theirs = np.array(drawn, np.float64)
    found = np.asarray(jax.jit(rectangles, static_argnums=(1, 2, 3))(jax.random.key(0), 2000, 64, 96))
    ours = np.stack([found.any(2).sum(1), found.any(1).sum(1)], -1).astype(np.float64)
    for measure in (lambda s: s[:, 0] * s[:, 1] / (64 * 96), lambda s: np.log(s[:, 0] / s[:, 1])):
        quantiles = [np.quantile(measure(sizes), np.linspace(0.05, 0.95, 10)) for sizes in (ours, theirs)]
        np.testing.assert_allclose(*quantiles, rtol=0, atol=0.06 * np.ptp(quantiles[1]))
