"""A model's variables by dotted path."""

from flax import nnx


def variables(model: nnx.Module) -> dict[str, nnx.Variable]:
    """The parameters and batch statistics of a model by dotted path.

    Args:
        model: any NNX module; its variables may be abstract (`nnx.eval_shape`).

    Returns:
        The `nnx.Variable` objects of the model itself (`Param` and `BatchStat`, not copies), keyed by
        path, e.g. `layer1.0.conv1.kernel`, sorted by key. Each has `.shape` and `.dtype`.

    Raises:
        ValueError: two variables have one dotted path.
    """
    found: dict[str, nnx.Variable] = {}
    for path, node in nnx.iter_graph(model):
        if isinstance(node, (nnx.Param, nnx.BatchStat)):
            key = ".".join(str(part) for part in path)
            if key in found:
                raise ValueError(f"two variables of the model have the path {key!r}")
            found[key] = node
    return dict(sorted(found.items()))
