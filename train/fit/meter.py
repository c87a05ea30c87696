"""How fast a run is, and how much of its time goes by waiting for data."""

import dataclasses
import time


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
