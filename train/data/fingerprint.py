"""A short digest of a source, by which the processes of a run compare their data without reading all of them."""

import hashlib

import numpy as np

from aa_flax.preprocessing.pixels import UnreadableImageError
from train.data.sources import Source

# Images whose pixels are compared; of all others only the names and labels are.
SAMPLES = 16


def fingerprint(source: Source) -> str:
    """Changes with the names, their order, the labels, and the pixels of a few images spread over the source."""
    digest = hashlib.sha256()
    for index in range(len(source)):
        digest.update(source.name(index).encode(errors="surrogateescape") + b"\0")
    digest.update(np.asarray(getattr(source, "labels", ()), np.int64).tobytes())
    for index in np.linspace(0, len(source) - 1, SAMPLES).astype(int):
        try:
            pixels, label = source[int(index)]
        except UnreadableImageError as error:
            digest.update(str(error).encode())
        else:
            digest.update(f"{label} {pixels.shape}".encode() + np.ascontiguousarray(pixels).tobytes())
    return digest.hexdigest()[:12]
