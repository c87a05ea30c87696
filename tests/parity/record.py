"""Writes tests/data/recorded_logits.npz: what PyTorch computes with the weights of tests/formula.py.

    python -m tests.parity.record

Only numbers that PyTorch computed go into the file. tests/test_recorded.py compares with them where there is no
PyTorch.
"""

from pathlib import Path

import numpy as np
import torch

from tests import formula
from tests.parity import oracles
from tests.zoo import ZHANG

FILE = Path(__file__).parents[1] / "data" / "recorded_logits.npz"
SIZES = {"alexnet": (97, 129)}  # the reference cannot pad AlexNet's maps of a smaller image
SIZE = (65, 97)
LOGITS = 8


def logits(name: str, filter_size: int | None) -> np.ndarray:
    """The first logits of two images, (2, 8)."""
    net = oracles.network(name, filter_size)
    weights = formula.state_dict({key: tuple(t.shape) for key, t in net.state_dict().items()})
    missing, left_over = net.load_state_dict({k: torch.from_numpy(a) for k, a in weights.items()}, strict=False)
    assert not left_over, left_over
    assert all(key.endswith((".filt", "num_batches_tracked")) for key in missing), missing
    images = formula.images(SIZES.get(name, SIZE))
    with torch.no_grad():
        out = net(oracles.nchw(images)).numpy()
    assert np.abs(out[0] - out[1]).max() > 0.05 * np.abs(out).max(), f"{name} ignores the image"
    return out[:, :LOGITS]


def main() -> None:
    """Records every network, plain and with four taps."""
    recorded = {}
    for name in ZHANG:
        for filter_size in (None, 4):
            spec = f"{name}_plain" if filter_size is None else f"{name}_lpf{filter_size}"
            recorded[spec] = logits(name, filter_size)
            print(f"{spec:<24} {recorded[spec][0, :3]}", flush=True)
    np.savez(FILE, **recorded)
    print(f"{FILE}: {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
