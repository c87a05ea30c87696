"""Weights with BatchNorm folded away are noticed, and train after recalibration; others get the batches' statistics."""

from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import aa_flax
from aa_flax.models.base import Network
from aa_flax.models.batch_norm import BatchNorm
from aa_flax.weights.statistics import describe_folded_norms, folded_norms
from train.errors import CommandError
from train.fit.config import NetworkConfig, TrainConfig
from train.fit.distributed import Placement
from train.fit.optim import OptimConfig, learning_rate, sgd
from train.fit.recalibrate import recalibrate, settle_statistics


class Small(Network):
    """Three convolutions, each with its normalisation."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        widths = (3, 8, 6, 5)
        self.convs = nnx.List([nnx.Conv(a, b, (3, 3), use_bias=False, rngs=rngs) for a, b in pairwise(widths)])
        self.bns = nnx.List([BatchNorm(width, rngs=rngs) for width in widths[1:]])

    def __call__(self, x, *, rngs=None):
        for conv, bn in zip(self.convs, self.bns, strict=True):
            x = nnx.relu(bn(conv(x)))
        return x.mean((1, 2))


def trained() -> Small:
    """A network whose statistics and scales are as odd as those of training."""
    model = Small()
    random = np.random.default_rng(1)
    for layer in norms(model).values():
        size = layer.num_features
        layer.mean[...] = jnp.asarray(random.normal(0, 1, size), jnp.float32)
        layer.var[...] = jnp.asarray(random.uniform(0.5, 2, size), jnp.float32)
        layer.scale[...] = jnp.asarray(random.uniform(0.5, 2, size), jnp.float32)
        layer.bias[...] = jnp.asarray(random.normal(0, 1, size), jnp.float32)
    return model


def norms(model) -> dict[str, BatchNorm]:
    return {".".join(map(str, path)): layer for path, layer in nnx.iter_modules(model) if isinstance(layer, BatchNorm)}


def fold(model) -> None:
    """What other tools do: the work of BatchNorm goes into the kernel before it, whose layer stays."""
    for conv, layer in zip(model.convs, model.bns, strict=True):
        factor = layer.scale[...] / jnp.sqrt(layer.var[...] + layer.epsilon)
        conv.kernel[...] = conv.kernel[...] * factor
        layer.bias[...] = layer.bias[...] - layer.mean[...] * factor
        layer.mean[...], layer.var[...] = jnp.zeros_like(factor), jnp.full_like(factor, 1 - layer.epsilon)
        layer.scale[...] = jnp.ones_like(factor)


def pictures(count: int = 3) -> list[np.ndarray]:
    return list(np.random.default_rng(2).normal(0.3, 1, (count, 8, 9, 9, 3)).astype(np.float32))


def as_they_are(images: jax.Array, step: jax.Array) -> jax.Array:
    return images


def answers(model, images, *, training: bool) -> np.ndarray:
    model = nnx.clone(model)
    model.train() if training else model.eval()
    return np.asarray(model(jnp.asarray(images)))


def test_only_statistics_that_no_images_give_are_noticed():
    model = trained()
    assert folded_norms(model) == []
    assert describe_folded_norms(model) is None
    names = sorted(norms(model))
    norms(model)[names[2]].mean[...] *= 0
    assert folded_norms(model) == []
    norms(model)[names[2]].var[...] = jnp.full_like(norms(model)[names[2]].var[...], 0.99999)
    assert folded_norms(model) == [names[2]]
    line = describe_folded_norms(model)
    assert line is not None
    assert line.startswith(f"1 of {len(names)} BatchNorm layers have mean 0 and one variance")
    assert "\n" not in line


def test_the_real_checkpoint_is_noticed(shared):
    state = aa_flax.read_torch_checkpoint(shared / "weights/mobilenet_v2_imagenet.pth")
    model = aa_flax.convert_state_dict(state, "mobilenet_v2_plain")
    assert len(folded_norms(model)) == 52


def test_a_folded_network_computes_in_training_what_it_did():
    model = trained()
    fold(model)
    images = np.concatenate(pictures())
    before = answers(model, images, training=False)
    # What the notice is about: the same weights in training are another network.
    assert np.abs(answers(model, images, training=True) - before).max() > 0.1 * np.abs(before).max()
    count = recalibrate(model, [jnp.asarray(images)], as_they_are, Placement.of_all_devices())
    assert count == len(norms(model))
    assert folded_norms(model) == []
    np.testing.assert_allclose(answers(model, images, training=False), before, atol=2e-5 * np.abs(before).max())
    np.testing.assert_allclose(answers(model, images, training=True), before, atol=2e-2 * np.abs(before).max())


def test_true_statistics_become_the_mean_of_those_of_the_batches():
    model, batches = trained(), pictures()
    kept = recalibrate(model, map(jnp.asarray, batches), as_they_are, Placement.of_all_devices())
    assert kept == 0
    # The running statistics of a clone without momentum are those of one batch.
    expected: dict[str, list[np.ndarray]] = {}
    for batch in batches:
        clone = trained()
        for layer in norms(clone).values():
            layer.momentum = 0.0
        clone(jnp.asarray(batch))
        for name, layer in norms(clone).items():
            expected.setdefault(name, []).append(np.stack([layer.mean[...], layer.var[...]]))
    fresh = norms(trained())
    for name, layer in norms(model).items():
        np.testing.assert_allclose(
            np.stack([layer.mean[...], layer.var[...]]), np.mean(expected[name], axis=0), rtol=1e-4, atol=1e-5
        )
        np.testing.assert_array_equal(layer.scale[...], fresh[name].scale[...])
        np.testing.assert_array_equal(layer.bias[...], fresh[name].bias[...])


@pytest.mark.parametrize("decay_all", [True, False])
def test_frozen_scales_and_biases_do_not_decay(decay_all):
    config = OptimConfig(lr=0.5, weight_decay=0.1, schedule="constant", decay_all=decay_all)
    params = {"0": {"conv": {"kernel": jnp.ones((2, 2))}, "bn": {"scale": jnp.ones(2), "bias": jnp.ones(2)}}}
    params["fc"] = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    optimizer = sgd(config, learning_rate(config, epochs=1, steps_per_epoch=1), frozen_norms=True)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    changed = jax.tree.map(lambda u: bool(jnp.any(u != 0)), updates)
    assert changed == {
        "0": {"conv": {"kernel": True}, "bn": {"scale": False, "bias": False}},
        "fc": {"kernel": True, "bias": decay_all},
    }


def settled(model, **options) -> list[str]:
    said: list[str] = []
    config = TrainConfig(model="resnet18", init="weights", **options)
    nothing: Any = None
    settle_statistics(model, config, nothing, nothing, nothing, said.append)
    return said


def test_folded_weights_are_told_with_the_remedies():
    model = trained()
    assert settled(model) == []
    fold(model)
    (line,) = settled(model)
    assert line.startswith("--init weights: 3 of 3 BatchNorm layers have mean 0")
    assert "--recalibrate-bn 50 takes statistics" in line
    assert "--net.frozen-bn" in line
    # Frozen, they are used as they are.
    assert settled(model, net=NetworkConfig(frozen_bn=True)) == []


def test_a_network_without_batch_norm_is_not_recalibrated():
    with pytest.raises(CommandError, match="--recalibrate-bn: resnet18 has no BatchNorm"):
        settled(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), recalibrate_bn=3)
