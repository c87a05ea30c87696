"""What `python -m train explain` knows of a photo, as numbers: explain.json, and the data of explain.html."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from train.explain.shift_views import View

TOP = 5


def describe(image: str, views: Sequence[View], shown: Sequence[int], names: Sequence[str]) -> dict[str, Any]:
    """The answers of networks at every shift of a photo, as JSON has them.

    Args:
        image: what to call the photo.
        views: what the networks say.
        shown: the classes that are drawn, the most important first.
        names: of all classes.

    Returns:
        For each network `predictions`, the class at each shift; `top`, the most probable classes there and their
        probabilities; `probabilities`, those of the drawn classes at each shift; and `diagonal`, the same along the
        diagonal and at its end, which lies outside the grid. `names` has the name of each class that occurs.
    """
    networks = [_network(view, shown) for view in views]
    met = {index for network in networks for row in network["top"]["classes"] for cell in row for index in cell}
    return {
        "image": image,
        "classes": {str(index): names[index] for index in shown},
        "names": {str(index): names[index] for index in sorted(met.union(shown))},
        "networks": networks,
    }


def _network(view: View, shown: Sequence[int]) -> dict[str, Any]:
    # Stable, so that of equal classes the first comes first, as in `argmax`.
    top = np.argsort(-view.grid, axis=-1, kind="stable")[..., :TOP]
    chances = np.take_along_axis(view.grid, top, axis=-1)
    return {
        "model": view.name,
        "consistency": view.consistency,
        "flips_on_diagonal": view.flips,
        "predictions": view.predictions.tolist(),
        "top": {"classes": top.tolist(), "probabilities": _rounded(chances, 4)},
        "probabilities": {str(index): _rounded(view.grid[..., index], 4) for index in shown},
        "diagonal": {str(index): _rounded(view.diagonal[:, index], 6) for index in shown},
    }


def _rounded(chances: np.ndarray, digits: int) -> list[Any]:
    return np.round(chances.astype(np.float64), digits).tolist()
