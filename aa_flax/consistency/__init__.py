"""Shift stability of any network: protocols, each a pure function of `fn(images) -> logits`.

    from aa_flax import consistency
    result = consistency.crop(fn, images, crop=224, preprocess=consistency.Normalise())
    print(result)                       # 91.12 +- 1.21: percent, standard error over images
    result.value, result.stderr, result.parts, result.per_image, result.arrays, result.as_dict()

One call each for images in memory: `accuracy`, `zhang2019`, `crop`, `exact`, `circular`,
`diagonal`, `worst_case`, `fractional`, `distance`. Images are (N, H, W, C), float or integer, cut
to the size that the protocol moves in (256 for crops of 224); there is no data loading here.

For images that come in batches, a protocol is a frozen dataclass with two levels:

    protocol = consistency.create_protocol("crop", crop=224, seed=0)       # a class of PROTOCOLS
    arrays = protocol.per_image(fn, images, index=numbers, labels=labels)  # for each batch
    result = protocol.summarise(consistency.gather(all_batches))           # once

`index` numbers the images of the whole set from 0. Shifts are drawn from it and the seed alone, so
results do not depend on batch size, order or devices (`zhang2019` pairs up neighbours in the
order of these numbers, by definition). Padded images are dropped from the arrays before `gather`.

`fn` is one of

- an `nnx.Module`: measured in eval mode whatever its own mode, compiled here;
- a `jax.tree_util.Partial(function, arrays...)`: compiled here together with the shifts, which one
  `lax.map` runs in pieces of `device_batch` crops; its arrays are arguments, so changed weights
  need no new compilation (what the function closes over beyond them is frozen at the first call);
- any other callable, called as it is with a `jax.Array` of at most `device_batch` crops: jit it
  yourself. It need not be JAX: what it returns is read with `np.asarray`.

`preprocess` (for instance `Normalise()`) is applied to the crops before `fn`. The docs page
docs/measuring.md defines every protocol and says what it does not say.
"""

from difflib import get_close_matches
from inspect import signature
from typing import Any

from aa_flax.consistency.by_distance import Distance, agreement_by_distance
from aa_flax.consistency.fixed import Accuracy, Diagonal, Exact, WorstCase
from aa_flax.consistency.measure import (
    accuracy,
    circular,
    crop,
    diagonal,
    distance,
    exact,
    fractional,
    worst_case,
    zhang2019,
)
from aa_flax.consistency.pairs import Circular, Crop, Fractional, Pairs, Zhang2019
from aa_flax.consistency.protocol import Protocol, gather
from aa_flax.consistency.result import Estimate, Result
from aa_flax.consistency.views import Normalise, fourier_shift

PROTOCOLS: dict[str, type[Protocol]] = {
    protocol.name: protocol
    for protocol in (Accuracy, Zhang2019, Crop, Exact, Circular, Diagonal, WorstCase, Fractional, Distance)
}
"""Every protocol by its name."""


def create_protocol(name: str, *, seed: int = 0, **settings: Any) -> Protocol:
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


__all__ = [
    "PROTOCOLS",
    "Accuracy",
    "Circular",
    "Crop",
    "Diagonal",
    "Distance",
    "Estimate",
    "Exact",
    "Fractional",
    "Normalise",
    "Pairs",
    "Protocol",
    "Result",
    "WorstCase",
    "Zhang2019",
    "accuracy",
    "agreement_by_distance",
    "circular",
    "create_protocol",
    "crop",
    "diagonal",
    "distance",
    "exact",
    "fourier_shift",
    "fractional",
    "gather",
    "worst_case",
    "zhang2019",
]
