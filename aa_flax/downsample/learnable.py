"""Learnable polyphase sampling: the grid that a small network prefers."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx

from aa_flax import blurpool
from aa_flax.axes import one_of, per_axis, whole_number
from aa_flax.blurpool import blur_axes
from aa_flax.downsample.base import Choice, Downsample, Site, map_axes
from aa_flax.downsample.energies import largest_map
from aa_flax.downsample.phases import chosen, phases
from aa_flax.dtypes import at_least_float32

Mode = Literal["gumbel", "convex"]


class Temperature(nnx.BatchStat):
    """How soft a choice is: a number that training changes without a gradient, kept with the statistics."""


class LearnablePolyphase(Downsample):
    """Learnable polyphase sampling (LPS): blur, then keep the phase that a small network prefers.

    One head sees every phase P_i: a 3x3 convolution, ReLU, a 3x3 convolution, and the mean over space and channels,
    its logit. In training the phases are mixed, `sum g_i P_i`, with g a Gumbel-softmax of the logits at a temperature;
    in evaluation the phase of the largest logit is kept. As the head pads circularly and is the same for all phases, a
    rolled map has the same logits in another order: the guarantee is that of `aa_flax.AdaptivePolyphase`, and logits
    are compared without rounding in their sums as there.

    The head's parameters are under `conv1` and `conv2`. The number under `temperature` is 1 at first; training may
    lower it (`fit --optim.lps-temperature`), and it is saved with the weights.

    Args:
        channels: channels of the input.
        filter_size: taps of the blur before the choice; 1 chooses without blur.
        stride: subsampling, one number or one for each spatial axis.
        pad_type: padding of the blur; only `circular` keeps the guarantee at the border.
        mode: `gumbel`, or `convex`: the phases are mixed by the softmax of the logits over the temperature, without
            noise, in evaluation too.
        hidden: channels of the head; None means `channels`.
        follows: the layer has no head and always follows a choice that it is given.
        end_pad_type: what fills up the end of an axis that the stride does not divide; None means `pad_type`.
        spatial_dims: spatial axes.
        dtype: what the head's first convolution computes in; logits are float32 or wider.
        param_dtype: dtype of the parameters.
        noise: source of noise in training where `choose` is given none, held as `nnx.Dropout` holds its own.
        rngs: source of the initial values.

    Source: Rojas-Gomez et al. 2022, *Learnable Polyphase Sampling for Shift Invariant and Equivariant Convolutional
    Networks* (arXiv 2210.08001), section 4.
    """

    title = "learnable polyphase sampling"
    has_parameters = True
    exact = True
    options: ClassVar = {"mode": get_args(Mode)}

    @classmethod
    def at(cls, site: Site, **options: Any) -> Downsample:
        assert site.channels is not None
        assert site.rngs is not None
        return cls(
            site.channels,
            site.filter_size,
            site.strides,
            site.pad_type,
            follows=site.follows,
            spatial_dims=len(site.strides),
            dtype=site.dtype,
            param_dtype=site.param_dtype,
            rngs=site.rngs,
            **options,
        )

    def __init__(
        self,
        channels: int,
        filter_size: int = 1,
        stride: int | Sequence[int] = 2,
        pad_type: str = "circular",
        *,
        mode: Mode = "gumbel",
        hidden: int | None = None,
        follows: bool = False,
        end_pad_type: str | None = None,
        spatial_dims: int = 2,
        dtype: jax.typing.DTypeLike | None = None,
        param_dtype: jax.typing.DTypeLike = jnp.float32,
        noise: nnx.Rngs | None = None,
        rngs: nnx.Rngs,
    ):
        self.filter_size = whole_number("filter_size", filter_size)
        self.stride = per_axis("stride", stride, spatial_dims)
        self.pad_type = blurpool.canonical_pad_type(pad_type)
        self.end_pad_type = self.pad_type if end_pad_type is None else blurpool.canonical_pad_type(end_pad_type)
        self.mode = one_of("mode", mode, get_args(Mode))
        self.follows, self.deterministic = follows, False
        self.noise = nnx.data(None) if noise is None else noise.dropout.fork()
        if follows:
            return
        hidden, window = hidden or channels, (3,) * spatial_dims
        options = {"padding": "CIRCULAR", "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.conv1 = nnx.Conv(channels, hidden, window, **options)
        self.conv2 = nnx.Conv(hidden, hidden, window, use_bias=False, **options)
        self.temperature = Temperature(jnp.ones((), jnp.float32))

    def set_view(self, deterministic: bool | None = None) -> None:
        """What `nnx.view` calls: evaluation keeps a phase, training mixes them."""
        if deterministic is not None:
            self.deterministic = deterministic

    def choose(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> Choice:
        """The phase to keep of each example; in training, or in the mode `convex`, how much of each.

        Raises:
            ValueError: in training, if there is no source of noise; if the layer follows another one.
        """
        if self.follows:
            raise ValueError("this LearnablePolyphase follows another path's choice: give it that as like")
        dims = len(self.stride)
        # Behind the batch, where no reshape of the convolution meets an axis that is cut over devices.
        scores = self._scores(jnp.stack(self._phases(x), -2 - dims))
        scores = jnp.moveaxis(scores, -2 - dims, 0)
        if self.mode == "gumbel" and self.deterministic:
            return Choice(len(scores), index=largest_map(list(scores), dims + 1, "sum"))
        logits = scores.mean(range(-1 - dims, -1)).sum(-1)
        if self.mode == "gumbel":
            logits = logits + jax.random.gumbel(self._key(rngs), logits.shape, logits.dtype)
        return Choice(len(scores), weights=jax.nn.softmax(logits / self.temperature[...].astype(logits.dtype), 0))

    def __call__(self, x: jax.Array, like: jax.Array | Choice | None = None) -> jax.Array:
        """Subsamples; with `like` as chosen for that map.

        Raises:
            ValueError: as `choose`, or if `like` was chosen for another batch or other strides.
        """
        choice = like if isinstance(like, Choice) else self.choose(x if like is None else like)
        return chosen(self._phases(x), choice)

    def _phases(self, x: jax.Array) -> list[jax.Array]:
        axes = map_axes(self, x, len(self.stride))
        x = blur_axes(x, axes, self.filter_size, 1, self.pad_type, 0)
        return phases(x, axes, self.stride, self.end_pad_type)

    def _scores(self, phases: jax.Array) -> jax.Array:
        """The logit of each phase as numbers whose mean over space, summed over channels, it is.

        The second convolution is linear and pads circularly: each of its taps sees all samples, so that its mean over
        space and channels is the same combination of its input's means. A bias would move all logits alike.
        """
        features = jax.nn.relu(self.conv1(phases))
        kernel = self.conv2.kernel[...]
        wide = at_least_float32(features.dtype)
        readout = kernel.astype(wide).mean(-1).sum(range(len(self.stride)))
        return features.astype(wide) * readout.reshape((1,) * (features.ndim - 1) + (-1,))

    def _key(self, rngs: nnx.Rngs | None) -> jax.Array:
        if rngs is not None:
            return rngs.dropout()
        if self.noise is None:
            raise ValueError(
                "LearnablePolyphase draws noise in training: call the network with rngs=nnx.Rngs(...) as for dropout, "
                "give choose(x, rngs=...) some, or construct the layer with noise=; model.eval() needs none"
            )
        return self.noise()
