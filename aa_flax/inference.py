"""Networks made ready for inference."""

from typing import TypeVar

import jax
from flax import nnx

from aa_flax.models.base import Network
from aa_flax.models.create import example_images
from aa_flax.models.folding import Folded, fold
from aa_flax.models.specs import with_options

AnyModule = TypeVar("AnyModule", bound=nnx.Module)


def fold_batchnorm(
    model: AnyModule,
    *,
    param_dtype: jax.typing.DTypeLike | None = None,
    example: jax.typing.ArrayLike | jax.ShapeDtypeStruct | None = None,
) -> AnyModule:
    """A copy of a network for inference, with every batch normalisation that follows a product folded into it.

    `BN(conv(x))` with running statistics is a convolution with other weights and a bias. What may be folded is
    read from a trace of the network, not from names: a normalisation over the last axis whose input is the output of
    one `nnx.Conv` or `nnx.Linear` that nothing else uses. Others, such as the ones before DenseNet's 1x1
    convolutions, or layers with a `__call__` of their own, stay. The network is not changed.

    A network of this package says so in its spec (`folded_bn`): it can be saved, loaded and changed further. Only
    PyTorch's names, which know no bias there, have to be asked for before.

    Args:
        model: any NNX module; those of `aa_flax.create_model` need no `example`.
        param_dtype: dtype of all parameters of the copy, such as bfloat16 for a network that computes in it, so
            that no call has to convert them; None keeps each one's. The folding itself runs in float64 on the host.
        example: an input of the network, or its shape and dtype: only these are looked at.

    Returns:
        The copy in evaluation mode. `train` cannot bring the folded normalisations back.

    Raises:
        TypeError: if `model` is no NNX module.
        ValueError: if `example` is missing for a network that is not of this package.
    """
    if not isinstance(model, nnx.Module):
        raise TypeError(f"fold_batchnorm takes a flax.nnx.Module, got {type(model).__name__}")
    spec = model.spec if isinstance(model, Network) else None
    if example is None:
        channels = model.image_channels() if isinstance(model, Network) else None
        if channels is None:
            raise ValueError("fold_batchnorm needs example=, an input of the network, or its shape and dtype")
        example = example_images(channels)
    folded = fold(nnx.clone(model), example)
    folded.eval()
    changed = any(isinstance(module, Folded) for _, module in nnx.iter_modules(folded))
    if changed and isinstance(folded, Network) and spec is not None:
        folded.spec = with_options(spec, folded_bn=True)
    if param_dtype is not None:
        params = nnx.state(folded, nnx.Param)
        nnx.update(folded, jax.tree.map(lambda p: p.astype(param_dtype), params))
    return folded
