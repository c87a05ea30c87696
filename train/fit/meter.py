"""How fast a run is, how much of its time goes by waiting for data, and a profiler trace of what the devices do."""

import dataclasses
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from aa_flax.buckets import AnyPath, BucketPath

TRACE_AFTER = 10


@dataclasses.dataclass
class Speed:
    """A stretch of training.

    Attributes:
        seconds: its length, without compilation, validation and saving.
        images: training images it processed.
        waited: seconds of it spent waiting for data.
    """

    seconds: float = 0.0
    images: int = 0
    waited: float = 0.0

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds if self.seconds else 0.0

    @property
    def wait(self) -> float:
        """Share of the time spent waiting for data, 0 to 1."""
        return min(1.0, self.waited / self.seconds) if self.seconds else 0.0


class Meter:
    """Measures from one finished update to the next.

    Attributes:
        total: since the start of this process.
        lap: since the last `new_lap`.
    """

    def __init__(self) -> None:
        self.total, self.lap = Speed(), Speed()
        self._mark: tuple[float, float] | None = None

    def tick(self, images: int, waited: float) -> None:
        """An update is finished.

        Args:
            images: how many images it processed.
            waited: seconds spent waiting for data since the start.
        """
        now = time.perf_counter()
        if self._mark is not None:
            for speed in (self.total, self.lap):
                speed.seconds += now - self._mark[0]
                speed.waited += waited - self._mark[1]
                speed.images += images
        self._mark = (now, waited)

    def new_lap(self) -> Speed:
        """Begins a lap; returns the one that ends."""
        ended, self.lap = self.lap, Speed()
        return ended

    def pause(self) -> None:
        """What happens until the next update is not training."""
        self._mark = None


class Tracer:
    """Records a profiler trace of some updates: from the eleventh on, or of a shorter run the last.

    Args:
        directory: where it is written.
        count: how many updates; 0 for none.
        step: updates made so far.
        last_step: updates in the whole run.
        say: tells a person.

    Attributes:
        edges: the steps at which it begins and ends; without any where nothing is recorded.
    """

    def __init__(self, directory: AnyPath, count: int, step: int, last_step: int, say: Callable[[str], None]):
        first = max(step, min(step + TRACE_AFTER, last_step - count))
        self.edges: Sequence[int] = (first, first + count) if count else ()
        self._directory, self._say, self._tracing = directory, say, False
        self._on_disk: Path | None = None

    def begin(self, step: int) -> None:
        """Begins before the update after this step, if that is the first to be recorded."""
        if step in self.edges[:1]:
            # The profiler writes to disks only.
            self._on_disk = Path(tempfile.mkdtemp()) if isinstance(self._directory, BucketPath) else self._directory
            jax.profiler.start_trace(str(self._on_disk))
            self._tracing = True

    def end(self, step: int, state: Any) -> None:
        """Ends after this step, if that is the last to be recorded; see `stop`."""
        if step in self.edges[1:]:
            self.stop(state)

    def stop(self, state: Any) -> None:
        """Ends, if it has begun; `state` is what the last update makes, and is waited for."""
        if self._tracing:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            self._tracing = False
            if isinstance(self._directory, BucketPath) and self._on_disk is not None:
                self._directory.upload_tree(self._on_disk)
                shutil.rmtree(self._on_disk)
            self._say(f"profiler trace written to {self._directory}")
