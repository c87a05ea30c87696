"""Shift stability of any network: protocols, each a pure function of `fn(images) -> logits`.

    from aa_flax import consistency
    result = consistency.Crop(crop=224).measure(fn, images, preprocess=consistency.Normalise())
    print(result)                       # 91.12 +- 1.21: percent, standard error over images
    result.value, result.stderr, result.parts, result.per_image, result.arrays, result.as_dict()

A protocol is a frozen dataclass of settings: `Accuracy`, `Zhang2019`, `Crop`, `Exact`, `Circular`,
`Diagonal`, `WorstCase`, `Fractional`, `FractionalWorst`, `Distance`, `Unshifted`. Images are
(N, H, W, C), float or integer, cut to the size that the protocol moves in (256 for crops of 224);
there is no data loading here.

`measure` takes images in memory. For those that come in batches there are two levels:

    protocol = consistency.create_protocol("crop", crop=224, seed=0)       # a class of PROTOCOLS
    arrays = protocol.per_image(fn, images, index=numbers, labels=labels)  # for each batch
    result = protocol.summarise(consistency.gather(all_batches))           # once

`index` numbers the images of the whole set from 0. Shifts are drawn from it and the seed alone, so
results do not depend on batch size, order or devices (`zhang2019` pairs up neighbours in the
order of these numbers, by definition). Padded images are dropped from the arrays before `gather`.

`fn` is one of

- an `nnx.Module`, or a method of one, such as `network.features`: measured in eval mode whatever its
  own mode, compiled here;
- a `jax.tree_util.Partial(function, arrays...)`: compiled here together with the shifts, which one
  `lax.map` runs in pieces of `device_batch` crops; its arrays are arguments, so changed weights
  need no new compilation (what the function closes over beyond them is frozen at the first call);
- any other callable, called as it is with a `jax.Array` of at most `device_batch` crops: jit it
  yourself. It need not be JAX: what it returns is read with `np.asarray`.

`Equivariance` measures functions of images to maps, `fn(images) -> (N, h, w, C)`: how far the map of a shifted image
is from the shifted map. `Video` measures the frames of one video, in their order: how often neighbours are predicted
differently.

`preprocess` (for instance `Normalise()`) is applied to the crops before `fn`. The docs page
docs/measuring.md defines every protocol and says what it does not say.
"""

import functools
import warnings
from difflib import get_close_matches
from inspect import signature
from typing import TYPE_CHECKING, Any

from aa_flax.consistency.by_distance import Distance, agreement_by_distance
from aa_flax.consistency.fixed import Accuracy, Diagonal, Exact, FractionalWorst, WorstCase
from aa_flax.consistency.from_centre import Unshifted
from aa_flax.consistency.maps import Equivariance
from aa_flax.consistency.paired import Difference, difference, holm
from aa_flax.consistency.pairs import Circular, Crop, Fractional, Pairs, Zhang2019
from aa_flax.consistency.protocol import ShiftProtocol, gather
from aa_flax.consistency.result import Estimate, Result
from aa_flax.consistency.video import Video, over_videos
from aa_flax.consistency.views import Normalise, fourier_shift

PROTOCOLS: dict[str, type[ShiftProtocol]] = {
    protocol.name: protocol
    for protocol in (
        *(Accuracy, Zhang2019, Crop, Exact, Circular, Diagonal, WorstCase),
        *(Fractional, FractionalWorst, Distance, Unshifted),
    )
}
"""Every protocol by its name."""


def create_protocol(name: str, *, seed: int = 0, **settings: Any) -> ShiftProtocol:
    """A protocol by name, for loops over names.

    Args:
        name: a key of `PROTOCOLS`.
        seed: of the random shifts; left out for the protocols that draw none.
        settings: fields of the protocol, such as `crop`, `device_batch`, `pairs`.

    Raises:
        ValueError: an unknown name (the message lists close ones) or a setting out of range.
        TypeError: a setting that the protocol does not have.
    """
    if name not in PROTOCOLS:
        close = get_close_matches(name, PROTOCOLS, n=3) or list(PROTOCOLS)
        raise ValueError(f"unknown protocol {name!r}; close to it: {', '.join(close)}")
    fields = signature(PROTOCOLS[name]).parameters
    unknown = [each for each in settings if each not in fields]
    if unknown:
        raise TypeError(f"the protocol {name!r} has no setting {unknown[0]!r}; it has: {', '.join(fields)}")
    return PROTOCOLS[name](**settings, **({"seed": seed} if "seed" in fields else {}))


def _measure(kind: type[ShiftProtocol], fn: Any, images: Any, labels: Any = None, **given: Any) -> Result:
    run = {name: given.pop(name) for name in ("preprocess", "progress") if name in given}
    return kind(**given).measure(fn, images, labels, **run)


if not TYPE_CHECKING:  # so that type checkers point at the names of earlier versions too

    def __getattr__(name: str) -> Any:
        if name == "Protocol":
            here, now = ShiftProtocol, "consistency.ShiftProtocol"
        elif kind := PROTOCOLS.get("worst" if name == "worst_case" else name):
            here, now = functools.partial(_measure, kind), f"consistency.{kind.__name__}(...).measure(fn, images, ...)"
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        warnings.warn(f"consistency.{name} is deprecated: write {now}", DeprecationWarning, stacklevel=2)
        return here


__all__ = [
    "PROTOCOLS",
    "Accuracy",
    "Circular",
    "Crop",
    "Diagonal",
    "Difference",
    "Distance",
    "Equivariance",
    "Estimate",
    "Exact",
    "Fractional",
    "FractionalWorst",
    "Normalise",
    "Pairs",
    "Result",
    "ShiftProtocol",
    "Unshifted",
    "Video",
    "WorstCase",
    "Zhang2019",
    "agreement_by_distance",
    "create_protocol",
    "difference",
    "fourier_shift",
    "gather",
    "holm",
    "over_videos",
]
