"""Networks measured side by side: every photo is decoded once and shown to all."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import jax
import numpy as np

from train.compare.answers import STRETCH, Answers, Entrant, joined, read_stretch, write_stretch
from train.compare.settings import Settings
from train.data import Batch, ImageFolder, evaluation_batches
from train.errors import CommandError
from train.evaluate.scoring import look, whole_batch


class Stretch:
    """Photos next to each other as a source of their own.

    Args:
        photos: the whole folder.
        start: the first of them.
        keep: whether they are asked for several times: then each is decoded once, and its pixels are kept.
    """

    def __init__(self, photos: ImageFolder, start: int, *, keep: bool) -> None:
        self._photos, self._start, self._keep = photos, start, keep
        self._count = min(STRETCH, len(photos) - start)
        self._decoded: dict[int, tuple[np.ndarray, int]] = {}

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        if index in self._decoded:
            return self._decoded[index]
        decoded = self._photos[self._start + index]
        if self._keep:
            self._decoded[index] = decoded
        return decoded

    def name(self, index: int) -> str:
        return self._photos.name(self._start + index)


@dataclass
class Unreadable:
    """Photos that no network was shown, and why.

    Attributes:
        photos: how many there are.
        share: of them that may be unreadable.
        reasons: by name.
    """

    photos: int
    share: float
    reasons: dict[str, str] = field(default_factory=dict)

    def add(self, found: dict[str, str]) -> None:
        """Takes note of some, and of what is too much.

        Raises:
            CommandError: they are more than the allowed share.
        """
        self.reasons.update(found)
        if len(self.reasons) > self.share * self.photos:
            name, reason = next(iter(self.reasons.items()))
            raise CommandError(
                f"{len(self.reasons)} of {self.photos} photos are unreadable, more than the share of --max-unreadable "
                f"({self.share:g}); the first is {name} ({reason})"
            )


def measure_all(
    entrants: Sequence[Entrant], settings: Settings, *, progress: Callable[[int], None] = lambda count: None
) -> dict[str, str]:
    """Measures what is not kept yet.

    Args:
        entrants: all on the same folder.
        settings: how.
        progress: called with the number of photos that are done.

    Returns:
        Why photos were unreadable, by name, as far as they were met in this run.

    Raises:
        CommandError: too many unreadable photos.
    """
    photos = entrants[0].photos
    bad = Unreadable(len(photos), settings.max_unreadable)
    for start in range(0, len(photos), STRETCH):
        missing = [entrant for entrant in entrants if read_stretch(entrant, start) is None]
        ways = dict.fromkeys(entrant.way for entrant in missing)
        decoded = Stretch(photos, start, keep=len(ways) > 1)
        for way in ways:
            _measure_stretch([each for each in missing if each.way == way], decoded, start, settings, bad)
        progress(len(decoded))
    return bad.reasons


def _measure_stretch(
    entrants: Sequence[Entrant], decoded: Stretch, start: int, settings: Settings, bad: Unreadable
) -> None:
    """Shows some photos to networks that want them prepared in the same way, and writes what they answered."""
    batches = evaluation_batches(
        decoded,
        entrants[0].network.preprocessing,
        global_batch=whole_batch(settings.batch_size),
        max_bad_fraction=1.0,
    )
    seen: list[list[Answers]] = [[] for _ in entrants]
    try:
        for batch in batches:
            for entrant, found in zip(entrants, seen, strict=True):
                found.append(_answers(entrant, batch, start))
    finally:
        batches.close()
    bad.add(batches.bad.found)
    for entrant, found in zip(entrants, seen, strict=True):
        write_stretch(entrant, start, joined(found))


def _answers(entrant: Entrant, batch: Batch, start: int) -> Answers:
    """What one network answers on the photos of a batch."""
    rows, position = np.flatnonzero(batch["mask"]), batch["index"] + start
    # Beyond the last photo are rows that only fill the batch.
    label = entrant.photos.labels[np.minimum(position, len(entrant.photos) - 1)]
    asked = {**batch, "index": position, "label": label}
    arrays = look(entrant.fn, asked, entrant.protocols, entrant.network.preprocessing, margin=entrant.margin)
    return jax.tree.map(lambda array: np.asarray(array)[rows], arrays)
