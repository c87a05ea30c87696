"""How networks of a comparison are measured and timed."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a person chose.

    Attributes:
        protocols: names of `aa_flax.consistency.PROTOCOLS`.
        batch_size: photos in a batch; never changes a percentage.
        seed: of the random shifts.
        max_unreadable: share of the photos that may be unreadable.
        timing_batch: images in a timed forward pass.
        timing_repeats: timed passes; the median counts.
    """

    protocols: tuple[str, ...]
    batch_size: int
    seed: int
    max_unreadable: float
    timing_batch: int
    timing_repeats: int
