"""`python -m train` with a MobileNetV2 cut down to two blocks, so that a test spends its time on the trainer."""

import sys

from aa_flax.models import mobilenet

SMALL_STAGES = ((1, 16, 1, 1), (6, 24, 1, 2))


def shrink() -> None:
    """Cuts the network down in this process."""
    mobilenet.STAGES = SMALL_STAGES


if __name__ == "__main__":
    shrink()
    from train.__main__ import main

    sys.exit(main())
