"""Our networks as compiled functions of plain arrays, with the weights of a PyTorch network or fresh ones."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import aa_flax
from aa_flax.models.base import Network
from aa_flax.models.registry import MODELS
from benchmarks import peers


@dataclasses.dataclass(frozen=True)
class Variant:
    """A network of the zoo, plain (`filter_size` None) or anti-aliased; timm's are as their names say."""

    name: str
    filter_size: int | None

    def __str__(self) -> str:
        if MODELS[self.name].filter_size is not None:
            return self.name
        return f"{self.name}_plain" if self.filter_size is None else f"{self.name}_lpf{self.filter_size}"

    def create(self, dtype: Any, param_dtype: Any = jnp.float32, state: dict[str, np.ndarray] | None = None) -> Network:
        """The network, with the weights of a PyTorch state dict where one is given; in training mode."""
        options = {"dtype": dtype, "param_dtype": param_dtype}
        if state is None:
            return aa_flax.create_model(str(self), rngs=nnx.Rngs(0), **options)
        model = aa_flax.convert_state_dict(state, str(self), **options)
        model.train()
        return model


def variants(names: Sequence[str], kinds: Sequence[str], filter_size: int) -> Iterator[Variant]:
    """The networks of a benchmark.

    Args:
        names: which.
        kinds: "antialiased" and "plain"; timm's networks exist in one form, which is the first.
        filter_size: taps of the anti-aliased ones.

    Raises:
        ValueError: there is no such network.
    """
    for name in names:
        if name not in MODELS:
            raise ValueError(f"--models {name}: no such network; `aa_flax.list_models()` has them")
    for name in names:
        own = MODELS[name].filter_size
        for kind in kinds if own is None else [kind for kind in kinds if kind == "antialiased"]:
            yield Variant(name, (own or filter_size) if kind == "antialiased" else None)


@dataclasses.dataclass
class Compiled:
    """A forward pass compiled for one shape.

    Attributes:
        run: the compiled function of (state, images).
        state: the network's arrays, on the device.
    """

    run: Any
    state: Any

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.run(self.state, images)

    @property
    def memory(self) -> int | None:
        """Bytes for weights, images, result and everything between."""
        return planned_memory(self.run)


def planned_memory(compiled: Any) -> int | None:
    """Most bytes that a compiled function holds at once, arguments included, as XLA planned them."""
    plan = compiled.memory_analysis()
    if plan is None:
        return None
    kept = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
    return kept + plan.temp_size_in_bytes


def forward(model: Network, batch: int, size: int, dtype: Any) -> Compiled:
    """The network in evaluation mode, compiled for a batch of square images."""
    model.eval()
    graphdef, state = nnx.split(model)
    arrays = nnx.to_pure_dict(state)
    given = jax.ShapeDtypeStruct((batch, size, size, 3), dtype)
    run = jax.jit(lambda arrays, x: nnx.merge(graphdef, arrays)(x)).lower(arrays, given).compile()
    return Compiled(run, jax.device_put(arrays, jax.devices()[0]))


@functools.cache
def gflop(variant: Variant, size: int) -> float | None:
    """Operations of one image's forward pass in 1e9, a multiplication and an addition apart, as XLA counts them.

    None where XLA does not count.
    """
    # XLA counts for CPUs only; which device runs the network does not matter to the count. Convolutions of float32 in
    # Winograd's way would count a quarter.
    with jax.enable_x64(True), aa_flax.traced_for("cpu"), jax.default_device(jax.devices("cpu")[0]):
        model = nnx.eval_shape(lambda: variant.create(jnp.float64, jnp.float64))
        model.eval()
        graphdef, state = nnx.split(model)
        image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float64)
        lowered = jax.jit(lambda state, x: nnx.merge(graphdef, state)(x)).lower(state, image)
    costs = lowered.cost_analysis()
    return None if costs is None else costs["flops"] / 1e9


def images(batch: int, size: int, seed: int = 0) -> np.ndarray:
    """Random images, normalised, float32 NHWC."""
    return np.random.default_rng(seed).standard_normal((batch, size, size, 3), np.float32)


def reference_logits(net: Any, x: np.ndarray) -> np.ndarray:
    """What the PyTorch network answers in float64."""
    torch = peers.torch()
    net = net.eval().to(peers.device(), torch.float64)
    with torch.inference_mode():
        logits = net(peers.nchw(x, "eager", torch.float64)).cpu().numpy()
    net.to("cpu", torch.float32)
    return logits
