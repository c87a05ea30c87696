"""Batch normalisation with PyTorch's numbers, for one device or many, trained or frozen."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from aa_flax.dtypes import at_least_float32
from aa_flax.meshes import require_whole


class BatchNorm(nnx.BatchNorm):
    """Batch normalisation with PyTorch's numbers.

    It differs from `nnx.BatchNorm` where that one loses accuracy or departs from PyTorch: statistics and the
    normalisation itself are computed in float32 or wider whatever the input, the variance does not cancel where the
    mean is large, and the running variance is the unbiased one.

    Args:
        num_features: channels.
        group_size: examples over which training statistics are taken; None means the whole (global) batch.
            Groups are runs of consecutive examples, as on the separate devices of a data-parallel run. The batch
            must be a multiple of it.
        dtype: dtype of the output; None keeps the input's.
        param_dtype: dtype of scale and bias. Statistics are float32 or wider.
        rngs: source of the initial values.
    """

    def __init__(
        self,
        num_features: int,
        *,
        group_size: int | None = None,
        dtype: jax.typing.DTypeLike | None = None,
        param_dtype: jax.typing.DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            num_features,
            momentum=0.9,
            epsilon=1e-5,
            use_fast_variance=False,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        statistics = at_least_float32(param_dtype)
        self.mean = nnx.BatchStat(jnp.zeros(num_features, statistics))
        self.var = nnx.BatchStat(jnp.ones(num_features, statistics))
        self.group_size = group_size

    @jax.named_scope("batch_norm")
    def __call__(self, x: jax.Array, use_running_average: bool | None = None, *, mask: None = None) -> jax.Array:
        """Normalises (N, ..., C); in training also updates the running statistics.

        Raises:
            ValueError: if the batch is no multiple of `group_size`, if training sees one value a channel, which has
                no variance, or if a mask is given.
        """
        if mask is not None:
            raise ValueError("aa_flax's BatchNorm takes no mask: every example counts")
        if use_running_average is None:
            use_running_average = bool(self.use_running_average)
        assert self.scale is not None
        assert self.bias is not None
        wide = x.astype(at_least_float32(x.dtype))
        mean, var, scale, bias = (_row(v[...], wide) for v in (self.mean, self.var, self.scale, self.bias))
        if use_running_average:
            centre, offset = mean, None
        else:
            centre, offset, var = self._batch_statistics(wide)
        factor = jax.lax.rsqrt(var + self.epsilon) * scale
        if offset is not None:
            # The mean is subtracted as the centre from every pixel and as the offset from the bias: the centre is a
            # constant for differentiation, and the gradient needs two sums over the map instead of three.
            bias = bias - offset * factor
        y = (wide - centre) * factor + bias
        return y.astype(self.dtype or x.dtype)

    def _batch_statistics(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """A rough mean, what the mean is above it, and the biased variance; updates the running statistics.

        All are (1, ..., C), or (N, ..., C) with groups: each example has those of its group.
        """
        _check_count(x.shape, self.group_size)
        group = len(x) if self.group_size is None else self.group_size
        if len(x) % group:
            raise ValueError(f"a batch of {len(x)} is no multiple of group_size={group}")

        def mean(values: jax.Array) -> jax.Array:
            if self.group_size is None:
                return values.mean(range(x.ndim - 1), keepdims=True)
            return _group_means(values.mean(range(1, x.ndim - 1)), group).reshape(len(x), *(1,) * (x.ndim - 2), -1)

        require_whole(x, range(1, x.ndim - 1))
        # One pass over x: both sums are taken about a rough mean, which keeps the variance from cancelling.
        shift = jax.lax.stop_gradient(mean(_every_eighth(x)))
        shifted = x - shift
        offset = mean(shifted)
        var = mean(jnp.square(shifted)) - jnp.square(offset)
        var = jnp.where(var < 0, 0, var)
        count = group * math.prod(x.shape[1:-1])
        unbiased = var * (count / max(count - 1, 1))
        for running, batch in ((self.mean, shift + offset), (self.var, unbiased)):
            # With groups the running statistics follow the mean over them; the reference keeps the first
            # device's, which has the same expectation and a larger spread.
            batch = jax.lax.stop_gradient(batch.mean(range(x.ndim - 1)))
            batch = batch.astype(running.dtype)
            # Not `running[...] =`: that asks a traced array for its sharding, and JAX 0.10 searches the whole trace.
            running.set_value(self.momentum * running[...] + (1 - self.momentum) * batch)
        return shift, offset, var


def _check_count(shape: tuple[int, ...], group_size: int | None) -> None:
    """Refuses training on one value a channel, as PyTorch does: its variance 0 would become the running one."""
    examples = shape[0] if group_size is None else group_size
    if examples * math.prod(shape[1:-1]) == 1:
        group = "" if group_size is None else f" in each group of group_size={group_size}"
        raise ValueError(
            f"batch normalisation in training needs more than one value a channel{group}, got a map {shape}: take more "
            "or larger images, call model.eval(), or freeze the statistics with frozen_bn=True"
        )


def _row(values: jax.Array, x: jax.Array) -> jax.Array:
    """One value for each channel, as (1, ..., C) of the rank and dtype of the map `x`."""
    return values.astype(x.dtype).reshape(*(1,) * (x.ndim - 1), -1)


def _group_means(values: jax.Array, size: int) -> jax.Array:
    """For each example of (N, C) the mean over the `size` consecutive examples of its group."""
    sharding = jax.typeof(values).sharding
    if sharding.shard_shape(values.shape)[0] % size:
        # On a mesh with Explicit axes JAX does not part a group between devices by itself.
        values = jax.sharding.reshard(values, jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec()))
    groups = values.reshape(-1, size, values.shape[-1])
    return jnp.broadcast_to(groups.mean(1, keepdims=True), groups.shape).reshape(values.shape)


def _every_eighth(x: jax.Array) -> jax.Array:
    """Every eighth pixel along each spatial axis, for a rough mean.

    A mean over one sample in n lies at most sqrt(n) standard deviations from the true one, so that a variance
    about it loses at most a factor of about n in precision, whatever the values; n is about 64 for images.
    """
    spatial = (slice(min(4, n // 2), None, 8) for n in x.shape[1:-1])
    return x[(slice(None), *spatial)]


class FrozenBatchNorm(BatchNorm):
    """A `BatchNorm` that stays as it is: running statistics in every mode, no gradient for scale and bias.

    For fine-tuning with batches too small for statistics of their own. Weight decay has to be kept from its
    parameters by the optimizer.
    """

    @jax.named_scope("batch_norm")
    def __call__(self, x: jax.Array, use_running_average: bool | None = None, *, mask: None = None) -> jax.Array:
        assert self.scale is not None
        assert self.bias is not None
        wide = x.astype(at_least_float32(x.dtype))
        mean, var, scale, bias = (
            _row(jax.lax.stop_gradient(v[...]), wide) for v in (self.mean, self.var, self.scale, self.bias)
        )
        y = (wide - mean) * (jax.lax.rsqrt(var + self.epsilon) * scale) + bias
        return y.astype(self.dtype or x.dtype)
