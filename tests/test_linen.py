"""The Linen modules: clean trees, NNX's numbers to the bit, and closed traps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import errors, linen, nnx

import aa_flax
import aa_flax.linen
from aa_flax.models.abstract import abstract_model
from tests.foreign_networks import run, with_values

pytestmark = pytest.mark.every_platform
SHALLOW = {"depths": (1, 1, 1, 1)}


def image(size: int = 33) -> jax.Array:
    return jnp.asarray(np.random.default_rng(3).normal(size=(2, size, size, 3)), jnp.float32)


@functools.cache
def resnet() -> tuple[aa_flax.Network, aa_flax.linen.LinenNetwork, dict]:
    model = with_values(lambda: abstract_model("resnet18_lpf3", **SHALLOW, num_classes=4))
    return model, *aa_flax.linen.from_nnx(model)


def paths(tree) -> list[str]:
    return [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(tree)]


def test_the_tree_is_clean():
    model, module, variables = resnet()
    assert list(variables) == ["params", "batch_stats"]
    assert variables["params"]["layer1"]["0"]["conv1"]["kernel"] is model.layer1[0].conv1.kernel.get_value()
    assert all(type(key) is str for path, _ in jax.tree.leaves_with_path(variables) for key in (p.key for p in path))
    shapes = jax.eval_shape(module.init, jax.random.key(0), image())
    assert paths(shapes) == paths(variables)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, variables)


def test_evaluation_is_nnx_to_the_bit():
    model, module, variables = resnet()
    model.eval()
    want = run(model, image())
    assert want.shape == (2, 4)
    np.testing.assert_array_equal(jax.jit(module.apply)(variables, image()), want)
    back = aa_flax.linen.to_nnx(module, variables)
    np.testing.assert_array_equal(run(back, image()), want)
    assert back.spec == model.spec
    assert aa_flax.linen.from_nnx(back)[0] == module


def test_a_training_step_is_nnx_to_the_bit():
    model, _, variables = resnet()
    module = aa_flax.linen.create_model("resnet18_lpf3", **SHALLOW, num_classes=4, train=True)
    graphdef, state = nnx.split(model)

    @jax.jit
    def theirs(state, x):
        network = nnx.merge(graphdef, state, copy=True)
        network.train()
        return network(x), nnx.to_pure_dict(nnx.state(network, nnx.BatchStat))

    ours = jax.jit(lambda v, x: module.apply(v, x, mutable=["batch_stats"]))
    logits, updates = ours(variables, image())
    want, statistics = theirs(state, image())
    np.testing.assert_array_equal(logits, want)
    jax.tree.map(np.testing.assert_array_equal, updates["batch_stats"], statistics)
    assert bool((updates["batch_stats"]["bn1"]["mean"] != variables["batch_stats"]["bn1"]["mean"]).any())


def test_training_without_mutable_raises_instead_of_losing_the_statistics():
    _, module, variables = resnet()
    with pytest.raises(ValueError, match=r"call apply\(..., mutable=\['batch_stats'\]\)"):
        jax.eval_shape(functools.partial(module.apply, train=True), variables, image())
    frozen = aa_flax.linen.create_model("resnet18_lpf3", **SHALLOW, num_classes=4, train=True, frozen_bn=True)
    assert jax.eval_shape(frozen.apply, variables, image()).shape == (2, 4)


def test_one_value_a_channel_is_refused_in_training_but_initialises():
    module = aa_flax.linen.create_model("resnet18_lpf3", **SHALLOW, num_classes=4, train=True)
    variables = jax.eval_shape(module.init, jax.random.key(0), jnp.ones((1, 32, 32, 3)))
    step = functools.partial(module.apply, mutable=["batch_stats"])
    with pytest.raises(ValueError, match="needs more than one value a channel"):
        jax.eval_shape(step, variables, jnp.ones((1, 32, 32, 3)))
    assert jax.eval_shape(step, variables, jnp.ones((2, 32, 32, 3)))[0].shape == (2, 4)


def test_variables_of_another_network_are_refused():
    _, module, variables = resnet()
    numbered = variables["params"] | {"layer1": {int(k): v for k, v in variables["params"]["layer1"].items()}}
    missing = {k: v for k, v in variables["params"].items() if k != "fc"}
    wide = aa_flax.linen.create_model("resnet18_lpf3", **SHALLOW, num_classes=5)
    for given, use, message in (
        (
            numbered,
            module,
            r"6 missing from params:\n    layer1.0.bn1.bias\n(.|\n)*6 left over in params:\n    layer1.0 \(not text",
        ),
        (missing, module, r"resnet18_lpf3:\n  2 missing from params:\n    fc.bias\n    fc.kernel"),
        (variables["params"] | {"head": {"kernel": 1.0}}, module, r"1 left over in params:\n    head.kernel"),
        (variables["params"], wide, r"fc.kernel: expected \(512, 5\), found \(512, 4\)"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(use.apply, variables | {"params": given}, image())
        with pytest.raises(ValueError, match=message):
            aa_flax.linen.to_nnx(use, variables | {"params": given})
    with pytest.raises(ValueError, match="missing from params"):
        jax.eval_shape(module.apply, {}, image())


class Segmenter(linen.Module):
    """Somebody's Linen model around the backbone."""

    @linen.compact
    def __call__(self, x, train: bool = False):
        backbone = aa_flax.linen.create_model("resnet18_lpf3", **SHALLOW, num_classes=0).copy(name="backbone")
        maps = backbone.feature_pyramid(x, train)
        return linen.Conv(2, (1, 1), name="head")(maps[-1])


def test_inside_another_module():
    _, _, variables = resnet()
    outer = Segmenter()
    shapes = jax.eval_shape(outer.init, jax.random.key(0), image())
    assert sorted(shapes["params"]) == ["backbone", "head"]
    headless = {k: v for k, v in variables["params"].items() if k != "fc"}
    assert paths(shapes["params"]["backbone"]) == paths(headless)
    head = jax.tree.map(lambda a: jnp.ones(a.shape), shapes["params"]["head"])
    given = {
        "params": {"backbone": headless, "head": head},
        "batch_stats": {"backbone": variables["batch_stats"]},
    }
    assert jax.eval_shape(outer.apply, given, image()).shape == (2, 1, 1, 2)
    step = functools.partial(outer.apply, train=True, mutable=["batch_stats"])
    _, updates = jax.eval_shape(step, given, image())
    assert paths(updates["batch_stats"]) == paths(given["batch_stats"])


def test_dropout_and_networks_without_statistics():
    module = aa_flax.linen.create_model("alexnet_plain", num_classes=2)
    shapes = jax.eval_shape(module.init, jax.random.key(0), image(65))
    assert list(shapes) == ["params"]
    train = functools.partial(module.apply, train=True)
    with pytest.raises(errors.InvalidRngError, match="dropout"):
        jax.eval_shape(train, shapes, image(65))
    given = functools.partial(train, rngs={"dropout": jax.random.key(1)})
    assert jax.eval_shape(given, shapes, image(65)).shape == (2, 2)


def test_initial_values_are_the_networks_and_follow_the_key():
    """AlexNet without head is the quickest to initialise; its biases are uniform within 1/sqrt(fan_in)."""
    module = aa_flax.linen.create_model("alexnet", num_classes=0)
    init = jax.jit(module.init)
    one, again, two = (init(jax.random.key(k), image(65))["params"] for k in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, one, again)
    assert bool((one["conv1"]["kernel"] != two["conv1"]["kernel"]).any())
    bound = (3 * 11 * 11) ** -0.5
    assert 0.9 * bound < float(jnp.abs(one["conv1"]["kernel"]).max()) <= bound
    assert bool((one["conv2"]["bias"][:64] != one["conv1"]["bias"]).any())


def test_graph_mode_and_tree_mode_agree():
    _, module, variables = resnet()
    apply = lambda: jax.eval_shape(module.apply, variables, image())  # noqa: E731
    with nnx.set_graph_mode(False), nnx.set_graph_updates(False):
        tree = apply()
        assert paths(aa_flax.linen.from_nnx(aa_flax.linen.to_nnx(module, variables))[1]) == paths(variables)
    assert tree == apply()


def test_misuse():
    with pytest.raises(TypeError, match="no option 'pool'"):
        aa_flax.linen.create_model("resnet18", pool=True)
    with pytest.raises(ValueError, match="did you mean resnet18"):
        aa_flax.linen.create_model("resnet19")
    with pytest.raises(ValueError, match="Linear without a spec"):
        aa_flax.linen.from_nnx(nnx.Linear(1, 1, rngs=nnx.Rngs(0)))
