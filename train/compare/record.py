"""A comparison as numbers: `compare.json`."""

from typing import Any

import numpy as np

from train.compare.comparison import Comparison
from train.environment import environment


def as_json(found: Comparison) -> dict[str, Any]:
    """All figures, the answers for each photo, and what repeats the run."""
    networks = []
    for row, ahead in zip(found.rows, found.ahead, strict=True):
        networks.append(
            {
                "model": row.name,
                "protocols": {name: result.as_dict() for name, result in row.results.items()},
                "parameters": row.network.parameters,
                "milliseconds": row.milliseconds,
                "on_the_front": ahead,
                "per_image": {
                    name: {"percent": result.per_image.tolist(), "predictions": _few(result.arrays["predictions"])}
                    for name, result in row.results.items()
                },
                "network": row.network.as_dict(),
            }
        )
    names = [row.name for row in found.rows]
    return {
        "images": found.images,
        "networks": networks,
        "differences": [
            {
                "protocol": name,
                "first": names[a],
                "second": names[b],
                **pair.as_dict(),
                "p": pair.p,
                "p_adjusted": found.adjusted[name, a, b],
            }
            for name, pairs in found.differences.items()
            for (a, b), pair in pairs.items()
        ],
        "unreadable": found.unreadable,
        "repeat": {"options": found.options, **environment()},
    }


def _few(predictions: np.ndarray) -> list[Any] | None:
    """Predictions where they are few; those of every shift would be more than anybody reads."""
    return predictions.tolist() if predictions[:1].size <= 64 else None
