"""How a specification becomes a network."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from aa_flax.models.base import ModelSpec, Network
from aa_flax.models.folding import fold
from aa_flax.models.layers import Builder
from aa_flax.models.registry import family_of
from aa_flax.models.specs import common_options, config_of, lost_exactness, resolve_spec

_DTYPES = (jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64)


def build_model(
    spec: ModelSpec,
    *,
    dtype: jax.typing.DTypeLike = jnp.float32,
    param_dtype: jax.typing.DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
) -> Network:
    """The network of a resolved spec; see `create_model`."""
    for argument, value in (("dtype", dtype), ("param_dtype", param_dtype)):
        if jnp.dtype(value) not in [jnp.dtype(d) for d in _DTYPES]:
            names = ", ".join(jnp.dtype(d).name for d in _DTYPES)
            raise ValueError(f"{argument} must be one of {names}, got {jnp.dtype(value).name}")
    common = common_options(spec)
    build = Builder(
        filter_size=spec.filter_size,
        pad_type=spec.pad_type,
        dtype=dtype,
        param_dtype=param_dtype,
        downsample=common.downsample,
        circular=common.circular,
        frozen_bn=common.frozen_bn,
        rngs=rngs,
    )
    network: Any = family_of(spec.name).network
    config = config_of(spec)
    model: Network = network(config, num_classes=spec.num_classes, in_channels=spec.in_channels, build=build)
    model.config = config
    if common.folded_bn:
        model = fold(model, example_images(spec.in_channels))
    model.spec = spec
    return model


def example_images(channels: int) -> jax.ShapeDtypeStruct:
    """Images that every network takes, for functions that trace one."""
    return jax.ShapeDtypeStruct((1, 224, 224, channels), jnp.float32)


def create_model(
    spec: str,
    *,
    filter_size: int | None = None,
    num_classes: int = 1000,
    in_channels: int = 3,
    pad_type: str | None = None,
    dtype: jax.typing.DTypeLike = jnp.float32,
    param_dtype: jax.typing.DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
    **options: Any,
) -> Network:
    """A network with fresh weights, in training mode as every new NNX module (`model.eval()` switches).

    `model(x)` takes images (N, H, W, in_channels), normalised, and gives raw logits; `model.features(x)` gives
    the last map. Networks with dropout take `model(x, rngs=...)` in training. `model.spec` describes the network.

    Args:
        spec: `<name>[_lpf<k>|_plain]`: anti-aliased with k taps, or torchvision's network; no suffix is `_lpf4`. The
            names of timm's networks, such as `resnetblur50`, say it themselves and take none.
        filter_size: taps of every blur, for a spec without suffix.
        num_classes: logits; 0 for a network without head, which gives pooled features (N, C).
        in_channels: channels of the image.
        pad_type: padding of every blur: `reflect`, `replicate`, `zero` or `circular`. None is what the network was
            published with: `reflect`, but for `mobilenetv4_conv_blur_medium`, which has `zero`.
        dtype: what layers compute and answer in; statistics and sums stay float32 or wider.
        param_dtype: dtype of the parameters.
        rngs: source of the initial values, which follow the reference.
        **options: the family's own, each an attribute of its configuration, such as `pool_only`, and for every
            network `downsample` (what subsamples: `blur`, `aps`, `lps`, `ddac`, `ideal` or `asap`, with options of it
            behind a colon, `aps:criterion=l1,choose_on=unblurred`; see `aa_flax.downsample`), `circular` (convolutions
            and pools see a map that goes on at its other side), `frozen_bn` (running statistics in every mode, no
            gradient for scale and bias) and `folded_bn` (convolutions with a bias in place of the normalisations after
            them, see `aa_flax.fold_batchnorm`).

    Raises:
        TypeError: for an option that the family does not have.
        ValueError: for an unknown name (close ones are listed) or values that make no network.

    Source: Zhang 2019, section 4; torchvision for the plain networks.
    """
    resolved = resolve_spec(
        spec,
        filter_size=filter_size,
        num_classes=num_classes,
        in_channels=in_channels,
        pad_type=pad_type,
        **options,
    )
    notice = lost_exactness(resolved)
    if notice:
        warnings.warn(notice, stacklevel=2)
    return build_model(resolved, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
