"""BatchNorm statistics that no images can have: weights that answer as they should, but do not train."""

import numpy as np
from flax import nnx


def folded_norms(model: nnx.Module) -> list[str]:
    """Dotted paths of the normalisations whose statistics are mean 0 and one variance for all channels, sorted.

    Such are left by tools that fold a BatchNorm into the convolution before it and keep the layer (variance 1, or 1
    minus its epsilon), and by networks that were never trained. Statistics of images are different in every channel.

    Args:
        model: any NNX module with values.
    """
    return sorted(
        ".".join(map(str, path))
        for path, layer in nnx.iter_modules(model)
        if isinstance(layer, nnx.BatchNorm) and not np.any(layer.mean[...]) and np.ptp(np.asarray(layer.var[...])) == 0
    )


def describe_folded_norms(model: nnx.Module) -> str | None:
    """A line about `folded_norms`, None where there are none."""
    folded = folded_norms(model)
    if not folded:
        return None
    count = sum(isinstance(layer, nnx.BatchNorm) for _, layer in nnx.iter_modules(model))
    return (
        f"{len(folded)} of {count} BatchNorm layers have mean 0 and one variance in all channels ({folded[0]}, ...), "
        "as no images give: they were folded into the convolutions, or never trained. In training BatchNorm takes the "
        "statistics of each batch, which changes what the network computes"
    )
