"""Parts of the networks, at the sizes that they have there: what can be compiled in seconds."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from aa_flax.models import densenet, mobilenet, resnet
from aa_flax.models.layers import Builder
from aa_flax.plain_pooling import max_pool
from benchmarks.tpu.programs import Program
from train.fit.distributed import Placement
from train.fit.step import split_model


class Part(NamedTuple):
    """A part of a network.

    Attributes:
        shape: height, width and channels of its input.
        make: makes it.
        plain: whether it has a plain form.
    """

    shape: tuple[int, int, int]
    make: Callable[[Builder], Callable[[jax.Array], jax.Array]]
    plain: bool = True


class MaxPool(nnx.Module):
    """A maximum that halves the map: plain by its stride, anti-aliased dense with a blur behind it."""

    def __init__(self, window: int, padding: int, channels: int, *, activation: bool, build: Builder):
        self.window, self.padding, self.activation = window, padding, activation
        self.blur = build.blur(channels) if build.antialiased else None

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(x) if self.activation else x
        if self.blur is None:
            return max_pool(x, self.window, 2, self.padding)
        return self.blur(max_pool(x, 2, 1))


RESNET18 = resnet.CONFIGS["resnet18"]
PARTS = {
    "blur": Part((56, 56, 256), lambda build: build.blur(256), plain=False),
    # ResNet's, after its first convolution, and the first pool of VGG.
    "stem": Part((112, 112, 64), lambda build: MaxPool(3, 1, 64, activation=True, build=build)),
    "pool": Part((224, 224, 64), lambda build: MaxPool(2, 0, 64, activation=False, build=build)),
    "block": Part(
        (56, 56, 64), lambda build: resnet.BasicBlock(64, 128, 2, 1, resnet.CONFIGS["resnet18"], build=build)
    ),
    "transition": Part((56, 56, 256), lambda build: densenet.Transition(256, build=build)),
    "inverted": Part((56, 56, 24), lambda build: mobilenet.InvertedResidual(24, 32, 2, 6, build=build)),
}
QUICK = ("blur", "stem", "block")


def lower_part(program: Program, placement: Placement) -> Any:
    """A part, traced for the chips: its result in training mode, or that and the gradients of input and parameters."""
    part = PARTS[program.name]
    model = nnx.eval_shape(lambda: _Holder(part.make(_builder(program))))
    graphdef, params, stats = split_model(model)

    def forward(params: Any, stats: Any, x: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, params, stats)(x)

    def backward(params: Any, stats: Any, x: jax.Array, gradient: jax.Array) -> tuple[jax.Array, Any, jax.Array]:
        y, pull = jax.vjp(lambda params, x: forward(params, stats, x), params, x)
        return y, *pull(gradient)

    whole, cut = placement.replicated, placement.sharded
    x = jax.ShapeDtypeStruct((program.batch * placement.mesh.size, *part.shape), jnp.dtype(program.dtype))
    y = jax.eval_shape(forward, params, stats, x)
    if program.work == "forward":
        return jax.jit(forward, in_shardings=(whole, whole, cut), out_shardings=cut).lower(params, stats, x)
    run = jax.jit(backward, in_shardings=(whole, whole, cut, cut), out_shardings=(cut, whole, cut))
    return run.lower(params, stats, x, y)


class _Holder(nnx.Module):
    """A part as a module, whatever it is."""

    def __init__(self, part: Callable[[jax.Array], jax.Array]):
        self.part = part

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.part(x)


def _builder(program: Program) -> Builder:
    return Builder(
        filter_size=None if program.form == "plain" else program.filter_size,
        pad_type="reflect",
        downsample=program.downsample,
        dtype=jnp.dtype(program.dtype),
        param_dtype=jnp.float32,
        rngs=nnx.Rngs(0),
    )
