"""Training and measuring under JAX's strictest rules: no rank and no dtype is promoted behind one's back."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.tree_util import Partial

import aa_flax
import aa_flax.nn as aann
from aa_flax import consistency, plain_pooling
from aa_flax.models.abstract import abstract_model
from aa_flax.weights.config import Preprocessing
from train.data import Augmentation
from train.data.augment import augment
from train.evaluate.scoring import protocols_for, score
from train.fit.optim import OptimConfig, learning_rate, sgd
from train.fit.step import StepOptions, initial_state, make_train_step, split_model

SHALLOW = {"depths": (1, 1, 1, 1), "num_classes": 3}
NETWORKS: dict[str, dict[str, Any]] = {
    "alexnet": {"num_classes": 3},
    "vgg11_bn": {"num_classes": 3, "depths": (1, 1, 1, 1, 1)},
    "resnet18": SHALLOW,
    "densenet121": SHALLOW | {"growth_rate": 8, "num_init_features": 16, "drop_rate": 0.1},
    "mobilenet_v2": {"num_classes": 3, "width_mult": 0.25},
}
CASES = {name: (name, {}, "bfloat16", 1) for name in NETWORKS}
CASES["alexnet in parts"] = ("alexnet", {"filter_size": None}, "float32", 2)
CASES["plain"] = ("resnet18", {"filter_size": None}, "float32", 1)
CASES |= {kind: ("resnet18", {"downsample": kind}, "bfloat16", 1) for kind in ("aps", "lps", "ddac", "ideal")}
CASES["frozen"] = ("resnet18", {"frozen_bn": True}, "bfloat16", 1)
AUGMENTATION = Augmentation(shift=2, flip=True)
RULE = Preprocessing(resize=20, crop=12)


@pytest.fixture(autouse=True)
def _strict() -> Iterator[None]:
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


def test_the_rules_hold_here():
    with pytest.raises(ValueError, match="rank_promotion"):
        jnp.ones((2, 3)) + jnp.ones(3)
    with pytest.raises(ValueError, match="strict"):
        jnp.ones(3) + jnp.ones(3, jnp.bfloat16)


@pytest.mark.parametrize("case", CASES)
def test_a_network_is_updated_and_evaluated(case):
    name, options, dtype, parts = CASES[case]
    model = abstract_model(name, dtype=jnp.dtype(dtype), **NETWORKS[name], **options)
    model.train()
    graphdef, params, stats = split_model(model)
    config = OptimConfig(lr=0.1, schedule="cosine", warmup_epochs=1.0, clip_norm=1.0, nesterov=True)
    rate = learning_rate(config, epochs=2, steps_per_epoch=4)
    optimizer = sgd(config, rate)

    def prepare(images: jax.Array, step: jax.Array) -> jax.Array:
        return augment(images, seed=0, step=step, augmentation=AUGMENTATION, preprocessing=RULE)

    options = StepOptions(accumulate=parts, label_smoothing=0.1, ema=0.99, temperature=rate)
    update = make_train_step(graphdef, optimizer, rate, prepare, options)
    state = jax.eval_shape(lambda *trees: initial_state(*trees, optimizer, ema=True), params, stats)
    batch = {"image": jax.ShapeDtypeStruct((8, 63, 63, 3), jnp.uint8), "label": jax.ShapeDtypeStruct((8,), jnp.int32)}
    after, metrics = jax.eval_shape(update, state, batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert {x.dtype for x in metrics.values()} == {jnp.dtype(jnp.float32)}
    images = jax.ShapeDtypeStruct((8, 63, 63, 3), jnp.float32)
    logits = jax.eval_shape(lambda averages, x: evaluate(model, averages, x), state.ema, images)
    assert logits.shape == (8, 3)


def evaluate(model: Any, averages: Any, images: jax.Array) -> jax.Array:
    network = nnx.view(model, use_running_average=True, deterministic=True, raise_if_not_found=False)
    return nnx.merge(nnx.graphdef(network), averages["params"], averages["stats"])(images)


def answer(kernel: jax.Array, x: jax.Array) -> jax.Array:
    y = aann.max_pool(x, (2, 2), (2, 2))
    y = aa_flax.blur_upsample(plain_pooling.avg_pool(y, 2, 2))
    y = aann.max_pool(y, (2, 2), (2, 2)) + aann.avg_pool(y, (2, 2), (2, 2))
    return plain_pooling.adaptive_avg_pool(y, 2).reshape(len(x), -1).astype(kernel.dtype) @ kernel


@pytest.mark.parametrize("name", consistency.PROTOCOLS)
def test_protocols_and_scoring(name):
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (8, 20, 20, 3), dtype=np.uint8),
        "label": rng.integers(0, 5, 8, dtype=np.int32),
        "index": np.arange(8),
        "mask": np.ones(8, bool),
        "bad": np.zeros(8, bool),
    }
    fn = Partial(answer, rng.normal(size=(12, 5)).astype(np.float32))
    protocols = protocols_for([name], RULE, device_batch=8)
    measured = score(fn, [batch], protocols, RULE).results[name]
    assert 0 <= measured.value <= 100
    halves = Partial(answer, fn.args[0].astype(jnp.bfloat16))
    images = batch["image"].astype(jnp.bfloat16) / 256
    assert 0 <= protocols[name].measure(halves, images, batch["label"]).value <= 100
