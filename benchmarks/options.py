"""What the benchmarks' options have in common."""

import dataclasses
from pathlib import Path
from typing import Any

# The networks of the paper's tables.
NINE = (
    "alexnet",
    "vgg16",
    "vgg16_bn",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "densenet121",
    "mobilenet_v2",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Common:
    """Options of every benchmark."""

    output: Path = Path("out/benchmarks")
    """Folder of the tables, NAME.md and NAME.json."""

    rounds: int = 7
    """Windows for each case; figures are medians over them."""

    window: float = 0.2
    """Seconds of a window."""

    torch: bool = True
    """Measure PyTorch beside ours, where it is installed."""

    compile: bool = True
    """Measure torch.compile too."""

    smoke: bool = False
    """Tiny shapes, one short round: shows that results are right and says nothing about time."""

    @property
    def timing(self) -> dict[str, Any]:
        """Arguments for `measure.alternate`."""
        return {"rounds": 1, "window": 0.0} if self.smoke else {"rounds": self.rounds, "window": self.window}
