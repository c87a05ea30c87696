"""The update: pure, compiled once, the same on any devices, and each of its options against its formula."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType
from jax.tree_util import Partial

from aa_flax.downsample import BlurPool2D, LearnablePolyphase
from aa_flax.models.batch_norm import BatchNorm
from aa_flax.platforms import traced_for
from train.data import Augmentation
from train.data.augment import augment
from train.data.mixing import mix
from train.fit.distributed import Placement
from train.fit.losses import binary_cross_entropy, cross_entropy
from train.fit.optim import OptimConfig, learning_rate, sgd
from train.fit.step import (
    StepOptions,
    TrainState,
    compile_step,
    compile_steps,
    initial_state,
    make_loss,
    make_train_step,
    split_model,
)

BATCH, SIZE, CLASSES = 16, 8, 5
OPTIM = OptimConfig(lr=0.1, schedule="constant")


class Choosing(nnx.Module):
    """Learnable polyphase sampling between two layers."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.down = LearnablePolyphase(4, rngs=rngs)
        self.fc = nnx.Linear(4, CLASSES, rngs=rngs)

    def __call__(self, x, *, rngs=None):
        x = self.conv(x)
        return self.fc(jax.nn.relu(self.down(x, self.down.choose(x, rngs=rngs))).mean((1, 2)))


class Tiny(nnx.Module):
    """Convolution, BatchNorm, dropout, linear: everything an update has to carry."""

    def __init__(self, *, bn_group: int | None = None, drop: float = 0.0):
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.bn = BatchNorm(8, group_size=bn_group, rngs=rngs)
        self.dropout = nnx.Dropout(drop)
        self.fc = nnx.Linear(8, CLASSES, rngs=rngs)

    def __call__(self, x, *, rngs=None):
        x = jax.nn.relu(self.bn(self.conv(x))).mean((1, 2))
        return self.fc(self.dropout(x, rngs=rngs))


def place(devices: int) -> Placement:
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    return Placement(mesh)


def data(count: int = BATCH, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)
    return {"image": images, "label": random.integers(0, CLASSES, count, dtype=np.int32)}


def scaled(images: jax.Array, step: jax.Array) -> jax.Array:
    return images.astype(jnp.float32) / 128 - 1


def build(model: nnx.Module | None = None, optim: OptimConfig = OPTIM, prepare=scaled, **options):
    """The update and its first state, for a model of this file."""
    graphdef, params, stats = split_model(model or Tiny())
    rate = learning_rate(optim, epochs=2, steps_per_epoch=4)
    optimizer = sgd(optim, rate)
    step = make_train_step(graphdef, optimizer, rate, prepare, StepOptions(ema=optim.ema, **options))
    return jax.jit(step), initial_state(params, stats, optimizer, ema=optim.ema is not None)


def train(step, state: TrainState, placement: Placement, count: int = 4):
    """Losses of some updates, and the last state on the host."""
    compiled = compile_step(placement.mesh)
    state = placement.everywhere(state)
    losses = []
    for i in range(count):
        state, metrics = compiled(Partial(step), state, placement.batch(data(seed=i)))
        losses.append(float(metrics["loss"]))
    assert compiled._cache_size() == 1
    return losses, jax.device_get(state)


def assert_close(one, other, tolerance: float = 1e-5) -> None:
    for (path, a), b in zip(jax.tree_util.tree_flatten_with_path(one)[0], jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * (1 + np.abs(b).max()), err_msg=str(path))


def test_eight_devices_make_the_update_of_one():
    step, state = build()
    alone, final_alone = train(step, state, place(1))
    together, final_together = train(step, state, place(8))
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    assert_close(final_together, final_alone)
    assert alone[-1] != alone[0]


def test_a_temperature_follows_the_step_and_the_noise_is_that_of_any_devices():
    """It is part of the state, and the update is that of the layer with this temperature."""
    step, state = build(Choosing(), temperature=lambda step: 1 / (1 + step.astype(jnp.float32)))
    alone, final_alone = train(step, state, place(1))
    together, final_together = train(step, state, place(8))
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    assert_close(final_together, final_alone)
    assert float(final_alone.stats["down"]["temperature"]) == 0.25
    constant, _ = train(*build(Choosing()), place(1))
    assert constant[0] == alone[0]
    assert abs(constant[1] - alone[1]) > 1e-6


def test_the_state_is_donated_and_stays_float32():
    step, state = build()
    placement = place(1)
    compiled = compile_step(placement.mesh)
    before = placement.everywhere(state)
    after, _ = compiled(Partial(step), before, placement.batch(data()))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    assert {leaf.dtype for leaf in jax.tree.leaves((after.params, after.stats))} == {jnp.dtype("float32")}


def test_accumulation_averages_the_micro_batches():
    # Without statistics of the batch, an averaged gradient is the gradient of the whole batch.
    model = Tiny()
    model.bn.use_running_average = True
    whole, final_whole = train(*build(model), place(1))
    parts, final_parts = train(*build(model, accumulate=4), place(2))
    np.testing.assert_allclose(parts, whole, rtol=1e-5)
    assert_close(final_parts, final_whole)


def test_accumulation_keeps_every_image_on_its_device():
    step, state = build(accumulate=2)
    placement = place(8)
    compiled = compile_step(placement.mesh)
    text = compiled.lower(Partial(step), placement.everywhere(state), placement.batch(data())).compile().as_text()
    moved = [line for line in text.splitlines() if "all-gather" in line or "all-to-all" in line]
    images = [line for line in moved if f"{SIZE},{SIZE},3" in line]
    assert not images, images


def test_groups_of_statistics_are_those_of_separate_devices():
    # The loss of groups is the mean of the groups' losses, each with its own statistics.
    step, state = build(Tiny(bn_group=4))
    losses, _ = train(step, state, place(8), count=1)
    whole_step, _ = build(Tiny())
    quarters = []
    for i in range(4):
        part = {name: jnp.asarray(rows[4 * i : 4 * i + 4]) for name, rows in data(seed=0).items()}
        quarters.append(float(whole_step(state, part)[1]["loss"]))
    np.testing.assert_allclose(losses[0], np.mean(quarters), rtol=1e-5)
    assert np.ptp(quarters) > 1e-3


def test_dropout_is_a_function_of_seed_and_step():
    step, state = build(Tiny(drop=0.5))
    batch = jax.tree.map(jnp.asarray, data())
    later = state._replace(step=state.step + 1)
    other_seed, _ = build(Tiny(drop=0.5), seed=1)
    first = float(step(state, batch)[1]["loss"])
    assert float(step(state, batch)[1]["loss"]) == first
    assert float(step(later, batch)[1]["loss"]) != first
    assert float(other_seed(state, batch)[1]["loss"]) != first


def test_micro_batches_draw_masks_of_their_own():
    model = Tiny(drop=0.5)
    model.bn.use_running_average = True
    step, state = build(model, accumulate=2)
    half = data(BATCH // 2)
    same = {name: jnp.asarray(np.repeat(rows, 2, axis=0)) for name, rows in half.items()}
    one, _ = build(model)
    # Both micro-batches hold the same images: with the same masks the mean would be that of one of them.
    single = one(state, {name: jnp.asarray(rows) for name, rows in half.items()})[1]["loss"]
    assert abs(float(step(state, same)[1]["loss"]) - float(single)) > 1e-4


def test_augmentation_on_eight_devices_is_that_on_one():
    class Rules:
        mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

    prepare = functools.partial(_augmented, augmentation=Augmentation(flip=True, shift=2), preprocessing=Rules())
    alone, _ = train(*build(prepare=prepare), place(1))
    together, _ = train(*build(prepare=prepare), place(8))
    plain, _ = train(*build(), place(1))
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    assert abs(plain[0] - alone[0]) > 1e-4


def _augmented(images, step, *, augmentation, preprocessing):
    return augment(images, seed=0, step=step, augmentation=augmentation, preprocessing=preprocessing)


def soft_labels(count: int) -> np.ndarray:
    """Shares of two classes each."""
    random, classes = np.random.default_rng(1), np.eye(CLASSES)
    share = random.uniform(size=(count, 1))
    return share * classes[np.arange(count) % CLASSES] + (1 - share) * classes[np.arange(1, count + 1) % CLASSES]


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_label_smoothing_is_cross_entropy_with_the_mixed_target(smoothing):
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(6, CLASSES)).astype(np.float32) * 3, np.arange(6) % CLASSES
    shifted = logits - logits.max(1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    for given, shares in ((labels, np.eye(CLASSES)[labels]), (soft_labels(6), soft_labels(6))):
        target = (1 - smoothing) * shares + smoothing / CLASSES
        expected = -(target * log_probabilities).sum(1).mean()
        np.testing.assert_allclose(
            cross_entropy(jnp.asarray(logits), jnp.asarray(given), smoothing), expected, rtol=1e-5
        )


@pytest.mark.parametrize(("smoothing", "threshold"), [(0.0, None), (0.1, None), (0.0, 0.2), (0.1, 0.2)])
def test_binary_cross_entropy_asks_for_each_class_by_itself(smoothing, threshold):
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(6, CLASSES)).astype(np.float32) * 3, np.arange(6) % CLASSES
    probability = 1 / (1 + np.exp(-logits.astype(np.float64)))
    for given, shares in ((labels, np.eye(CLASSES)[labels]), (soft_labels(6), soft_labels(6))):
        shown = shares if threshold is None else shares > threshold
        target = (1 - smoothing) * shown + smoothing / CLASSES
        expected = -(target * np.log(probability) + (1 - target) * np.log(1 - probability)).mean()
        found = binary_cross_entropy(jnp.asarray(logits), jnp.asarray(given), smoothing, threshold)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_mixing_is_that_of_the_whole_batch_whatever_carries_it_out():
    """On one device and on eight, in one piece and in micro-batches: the loss is that of the mixture."""
    rule = Augmentation(mixup=1.0, cutmix=1.0)

    def mixture(images, labels, step):
        return mix(images, labels, seed=5, step=step, augmentation=rule, num_classes=CLASSES)

    model = Tiny()
    model.bn.use_running_average = True
    graphdef, params, stats = split_model(model)
    batch = data(seed=0)
    images, shares = mixture(scaled(jnp.asarray(batch["image"]), jnp.int32(0)), batch["label"], 0)
    expected = cross_entropy(nnx.merge(graphdef, params, stats)(images), shares)
    alone, _ = train(*build(model, mix=mixture), place(1), count=2)
    parts, _ = train(*build(model, mix=mixture, accumulate=2), place(8), count=2)
    np.testing.assert_allclose(alone[0], expected, rtol=1e-5)
    np.testing.assert_allclose(parts, alone, rtol=1e-5)
    unmixed, _ = train(*build(model), place(1), count=1)
    assert abs(unmixed[0] - alone[0]) > 1e-3


def test_an_update_can_minimise_each_class_s_own_loss():
    model = Tiny()
    model.bn.use_running_average = True
    graphdef, params, stats = split_model(model)
    batch = data(seed=0)
    logits = nnx.merge(graphdef, params, stats)(scaled(jnp.asarray(batch["image"]), jnp.int32(0)))
    losses, _ = train(*build(model, loss="bce", bce_threshold=0.2), place(1), count=1)
    np.testing.assert_allclose(losses[0], binary_cross_entropy(logits, jnp.asarray(batch["label"])), rtol=1e-5)


def test_cross_entropy_of_bfloat16_logits_is_computed_in_float32():
    logits = jnp.array([[300.0, 299.0], [-300.0, 0.0]], jnp.bfloat16)
    loss = cross_entropy(logits, jnp.array([0, 1]))
    assert loss.dtype == jnp.float32
    exact = np.asarray(logits, np.float64)
    expected = np.mean(np.log1p(np.exp(np.array([exact[0, 1] - exact[0, 0], exact[1, 0] - exact[1, 1]]))))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_the_moving_average_follows_its_formula():
    decay = 0.25
    step, state = build(optim=OptimConfig(lr=0.1, schedule="constant", ema=decay))
    expected = {"params": state.params, "stats": state.stats}
    for i in range(4):
        state, _ = step(state, jax.tree.map(jnp.asarray, data(seed=i)))
        keep = min(decay, (1 + i) / (10 + i))
        new = {"params": state.params, "stats": state.stats}
        expected = jax.tree.map(lambda old, value, keep=keep: keep * old + (1 - keep) * value, expected, new)
    assert_close(state.ema, expected, 1e-6)
    assert_close(state.ema["stats"], expected["stats"], 1e-6)


class Deep(Tiny):
    """Several rounds of convolution, normalisation and activation: there is something to recompute."""

    def __init__(self):
        super().__init__()
        self.more = nnx.Dict({str(i): nnx.Conv(8, 8, (3, 3), rngs=nnx.Rngs(i)) for i in range(2)})

    def __call__(self, x, *, rngs=None):
        x = self.conv(x)
        for layer in self.more.values():
            x = layer(jax.nn.relu(jnp.tanh(self.bn(x))))
        return self.fc(x.mean((1, 2)))


def test_recomputing_keeps_less_for_the_backward_pass_and_gives_the_same_update():
    graphdef, params, stats = split_model(Deep())
    images, labels = jnp.asarray(data()["image"], jnp.float32) / 128 - 1, jnp.asarray(data()["label"])
    kept, gradients = {}, {}
    for remat in ("none", "keep_convs"):
        loss = functools.partial(make_loss(graphdef, StepOptions(remat=remat)), stats=stats, images=images)

        def of_params(p, loss=loss):
            return loss(p, labels=labels, key=jax.random.key(0))[0]

        residuals = jax.eval_shape(lambda p, f=of_params: jax.vjp(f, p)[1], params)
        kept[remat] = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(residuals))
        gradients[remat] = jax.jit(jax.grad(of_params))(params)
    assert kept["keep_convs"] < 0.6 * kept["none"], kept
    assert_close(gradients["keep_convs"], gradients["none"])


def test_many_updates_in_one_call_are_the_single_ones():
    step, state = build()
    whole = data(count=3 * BATCH, seed=7)
    order = np.random.default_rng(1).permutation(3 * BATCH).astype(np.int32).reshape(3, BATCH)
    single = state
    losses = []
    for rows in order:
        single, metrics = step(single, {name: jnp.asarray(values[rows]) for name, values in whole.items()})
        losses.append(float(metrics["loss"]))
    placement = place(8)
    many = functools.partial(compile_steps(placement.mesh, limit=3), Partial(step))
    on_devices, rows = placement.everywhere(whole), placement.put(order)
    first, metrics = many(placement.everywhere(state), on_devices, rows, placement.put(np.array([0, 1], np.int32)))
    np.testing.assert_allclose(metrics["loss"][:1], losses[:1], rtol=1e-5)
    last, metrics = many(first, on_devices, rows, placement.put(np.array([1, 2], np.int32)))
    np.testing.assert_allclose(metrics["loss"][:2], losses[1:], rtol=1e-5)
    assert many.func._cache_size() == 1
    assert_close(jax.device_get(last), jax.device_get(single))


def test_updates_hold_the_form_for_their_devices_alone():
    step, state = build(nnx.Sequential(BlurPool2D(3), Tiny()))
    batch, order, window = data(), np.zeros((1, BATCH), np.int32), np.zeros(2, np.int32)

    def gathers(platform: str, program, *given) -> int:
        with traced_for(platform):
            return str(program.trace(*given).jaxpr).count("gather")

    assert gathers("tpu", step, state, batch) < gathers("cpu", step, state, batch)
    mesh = place(1).mesh
    for program, given in (
        (compile_step(mesh), (batch,)),
        (compile_steps(mesh, limit=1), (batch, order, window)),
    ):
        given = (program, Partial(step), state, *given)
        assert gathers("tpu", *given) == gathers("cpu", *given)


def test_a_gradient_longer_than_the_limit_is_scaled_down():
    limit = 1e-3
    step, state = build(optim=OptimConfig(lr=1.0, schedule="constant", momentum=0, weight_decay=0, clip_norm=limit))
    after, metrics = step(state, jax.tree.map(jnp.asarray, data()))
    moved = optax.tree.norm(jax.tree.map(jnp.subtract, after.params, state.params))
    assert float(metrics["grad_norm"]) > limit
    np.testing.assert_allclose(moved, limit, rtol=1e-2)


def test_decay_can_leave_out_biases_and_scales():
    zero = jax.tree.map(jnp.zeros_like, split_model(Tiny())[1])
    ones = jax.tree.map(jnp.ones_like, zero)
    optimizer = sgd(OptimConfig(lr=1.0, weight_decay=0.5, momentum=0, decay_all=False), lambda _: jnp.float32(1))
    updates, _ = optimizer.update(zero, optimizer.init(ones), ones)
    moved = {
        jax.tree_util.keystr(path): float(leaf.mean())
        for path, leaf in jax.tree_util.tree_flatten_with_path(updates)[0]
    }
    assert {name: value for name, value in moved.items() if value} == {
        "['conv']['kernel']": -0.5,
        "['fc']['kernel']": -0.5,
    }
