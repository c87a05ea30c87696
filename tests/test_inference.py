"""Folding batch normalisation: which ones, with what numbers, and what is left alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import aa_flax
from aa_flax.inference import fold_batchnorm
from aa_flax.models.batch_norm import BatchNorm
from aa_flax.models.folding import Folded
from aa_flax.models.specs import with_options


def _randomised(model):
    """Statistics and scales far from their start, kept positive where they have to be."""
    rng = np.random.default_rng(0)

    def draw(path, value):
        name = path[-1]
        if name == "kernel":
            # The initial weights of narrow layers let biases drown the image.
            return 2 * value
        low, high = (0.5, 1.5) if name in ("var", "scale") else (-0.5, 0.5)
        return jnp.asarray(rng.uniform(low, high, value.shape), value.dtype)

    state = nnx.to_pure_dict(nnx.state(model))
    flat = nnx.traversals.flatten_mapping(state)
    nnx.update(model, nnx.traversals.unflatten_mapping({path: draw(path, v) for path, v in flat.items()}))
    model.eval()
    return model


def _count(model, kind) -> int:
    return sum(isinstance(module, kind) for _, module in nnx.iter_modules(model))


NETWORKS = [
    ("resnet18", {"depths": (1, 1, 1, 1)}, 0),
    ("densenet121", {"depths": (1, 1, 1, 1)}, 8),  # norm1 of each layer, three transitions, norm5
    ("mobilenet_v2_plain", {"width_mult": 0.25}, 0),
    ("vgg11_bn", {"depths": (1, 1, 1, 1, 1), "num_classes": 0}, 0),  # the head has no normalisation, and most weights
]


@pytest.mark.parametrize(("name", "options", "left"), NETWORKS, ids=[n[0] for n in NETWORKS])
def test_folded_network_computes_the_same(name, options, left):
    model = _randomised(aa_flax.create_model(name, rngs=nnx.Rngs(0), **{"num_classes": 5, **options}))
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model)))
    folded = fold_batchnorm(model)
    assert _count(folded, nnx.BatchNorm) == left
    assert _count(folded, Folded) == _count(model, nnx.BatchNorm) - left
    assert folded.spec == with_options(model.spec, folded_bn=True)
    x = jax.random.normal(jax.random.key(0), (2, 32, 32, 3)) * jnp.asarray([1.0, 4.0])[:, None, None, None]
    want, got = (np.asarray(jax.jit(nnx.view(m).features)(x)) for m in (model, folded))
    assert np.abs(want[0] - want[1]).max() > 0.02 * np.abs(want).max(), "the features hardly depend on the image"
    assert np.abs(got - want).max() < 2e-5 * np.abs(want).max()
    jax.tree.map(np.testing.assert_array_equal, before, nnx.to_pure_dict(nnx.state(model)))


def test_parameters_may_change_their_dtype_and_statistics_leave():
    model = aa_flax.create_model("resnet18", depths=(1, 1, 1, 1), dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    folded = fold_batchnorm(model, param_dtype=jnp.bfloat16)
    assert {p.dtype for p in jax.tree.leaves(nnx.state(folded, nnx.Param))} == {jnp.dtype(jnp.bfloat16)}
    assert not jax.tree.leaves(nnx.state(folded, nnx.BatchStat))


class Standardised(nnx.Conv):
    """A convolution that is not linear in its kernel: scaling the kernel changes nothing."""

    def __call__(self, x):
        kernel = self.kernel[...]
        return super().__call__(x) / jnp.std(kernel)


class Mixed(nnx.Module):
    """Every case in which a normalisation has to stay, and five in which it goes."""

    def __init__(self, rngs: nnx.Rngs):
        def conv(**options):
            return nnx.Conv(4, 4, (3, 3), rngs=rngs, **options)

        self.goes, self.goes_bn = conv(), nnx.BatchNorm(4, rngs=rngs)
        self.remat, self.remat_bn = conv(use_bias=False), BatchNorm(4, rngs=rngs)
        self.shared, self.shared_bn = conv(), nnx.BatchNorm(4, rngs=rngs)
        self.forked, self.forked_bn = conv(), nnx.BatchNorm(4, rngs=rngs)
        self.after_relu, self.after_relu_bn = conv(), nnx.BatchNorm(4, rngs=rngs)
        self.linear, self.linear_bn = nnx.Linear(4, 4, rngs=rngs), nnx.BatchNorm(4, use_scale=False, rngs=rngs)
        self.tied, self.tied_bn, self.twin = conv(), nnx.BatchNorm(4, rngs=rngs), conv()
        self.twin.kernel, self.twin.bias = self.tied.kernel, self.tied.bias
        self.rows, self.rows_bn = conv(), nnx.BatchNorm(4, axis=1, rngs=rngs)
        self.standardised, self.standardised_bn = Standardised(4, 4, (3, 3), rngs=rngs), nnx.BatchNorm(4, rngs=rngs)
        self.batch, self.batch_bn = conv(), nnx.BatchNorm(4, rngs=rngs)
        self.last, self.last_bn = nnx.Sequential(jnp.sin, conv()), nnx.Sequential(nnx.BatchNorm(4, rngs=rngs))
        self.looped, self.looped_bn = conv(), nnx.BatchNorm(4, rngs=rngs)

    def __call__(self, x):
        x = self.goes_bn(self.goes(x))
        x = nnx.remat(lambda m, x: m.remat_bn(m.remat(x)))(self, x)
        x = self.shared_bn(self.shared(x)) + self.shared(jnp.cos(x))
        y = self.forked(x)
        x = self.forked_bn(y) + y
        x = self.after_relu_bn(jax.nn.relu(self.after_relu(x)))
        x = self.linear_bn(self.linear(x))
        x = self.tied_bn(self.tied(x)) + self.twin(jnp.sin(x))
        x = self.standardised_bn(self.standardised(self.rows_bn(self.rows(x))))
        x = self.last_bn(self.last(self.batch_bn(self.batch(x), use_running_average=False)))

        def body(carry, _):
            y = self.looped(carry)
            return self.looped_bn(y), y

        x, maps = jax.lax.scan(body, x, length=2)
        return x + maps[0]


def test_only_what_nothing_else_sees_is_folded():
    model = _randomised(Mixed(nnx.Rngs(0)))
    x = jax.random.normal(jax.random.key(0), (2, 4, 5, 4))
    with pytest.raises(ValueError, match="needs example="):
        fold_batchnorm(model)
    with pytest.raises(TypeError, match=r"fold_batchnorm takes a flax\.nnx\.Module, got function"):
        fold_batchnorm(lambda x: x)
    folded = fold_batchnorm(model, example=x)
    gone = {path[0] for path, module in nnx.iter_modules(folded) if isinstance(module, Folded)}
    assert gone == {"goes_bn", "remat_bn", "linear_bn", "tied_bn", "last_bn"}
    want, got = np.asarray(model(x)), np.asarray(folded(x))
    assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()
