"""Gradients of kernels that stay float32 where maps are bfloat16, so that sums over devices lose nothing."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from aa_flax.platforms import platform_dependent

Product = Callable[..., jax.Array]


def widen_gradients(model: nnx.Module) -> None:
    """Lets every convolution and linear layer of a network give the gradient of its kernel in float32.

    Such a layer casts its kernel to the dtype of its maps first. Autodiff then has the gradient in that dtype, and XLA
    sums it over the devices before it is cast back: of hundreds of bfloat16 addends a sum of bfloat16 keeps some eight
    bits. Maps and their gradients stay what they are, but for the result of a linear layer on (N, C) with a bias: it
    is float32. Biases of linear layers on maps and factors on maps keep their narrow gradients (ConvNeXt has both).

    On GPUs kernels' gradients are computed in the dtype of the maps, and summed in it.
    """
    for _, layer in nnx.iter_modules(model):
        if isinstance(layer, nnx.Conv):
            layer.conv_general_dilated = _Wide(layer.conv_general_dilated)
        elif isinstance(layer, nnx.Linear):
            layer.dot_general = _Wide(layer.dot_general)
        else:
            continue
        layer.promote_dtype = _narrow_all_but_kernel


def _narrow_all_but_kernel(arrays: Any, /, *, dtype: Any = None, inexact: bool = True) -> Any:
    """In place of `flax.nnx.nn.dtypes.promote_dtype`, for (map, kernel, bias)."""
    del inexact
    inputs, kernel, bias = arrays
    if bias is not None and kernel.ndim == 4:
        # One row an example: the gradient is narrow within an example and float32 over all of them.
        bias = jnp.broadcast_to(bias, (len(inputs), 1, 1, len(bias)))
    if bias is not None and inputs.ndim == 4:
        bias = bias.astype(dtype)
    return inputs.astype(dtype), kernel, bias


# A value, not a closure: networks that are built alike have the same structure and share their compiled update.
@dataclasses.dataclass(frozen=True)
class _Wide:
    """A product of a narrow map and a float32 kernel, linear in each, computed in the dtype of the map.

    Attributes:
        product: the same of two narrow ones.
    """

    product: Product

    def __call__(self, x: jax.Array, kernel: jax.Array, *places: Any, **options: Any) -> jax.Array:
        def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
            return self.product(x, kernel, *places, **options)

        @jax.custom_vjp
        def narrow(x: jax.Array, kernel: jax.Array) -> jax.Array:
            return product(x, kernel.astype(x.dtype))

        def forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            return narrow(x, kernel), (x, kernel)

        def backward(kept: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
            x, kernel = kept

            def of_kernel(dtype: Any) -> Callable[[jax.Array, jax.Array], jax.Array]:
                def gradient(x: jax.Array, g: jax.Array) -> jax.Array:
                    _, pull = jax.vjp(lambda k: product(x.astype(dtype), k), kernel.astype(dtype))
                    return pull(g.astype(dtype))[0].astype(kernel.dtype)

                return gradient

            # Not the transpose: a product may have a gradient of its own, in a faster form.
            _, to_map = jax.vjp(lambda x: product(x, kernel.astype(x.dtype)), x)
            # TPUs multiply float32 as bfloat16, which loses nothing of values that were bfloat16, and CPUs have no
            # other products. GPUs would take slower ones.
            exact, fast = of_kernel(jnp.float32), of_kernel(x.dtype)
            return to_map(g)[0], platform_dependent(x, g, cuda=fast, rocm=fast, default=exact)

        narrow.defvjp(forward, backward)
        return narrow(x, kernel)
