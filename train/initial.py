"""Where a run's weights start: fresh, or from trained ones (fine-tuning)."""

import jax.numpy as jnp

from aa_flax.models.base import Network
from aa_flax.weights.store import load_pretrained
from aa_flax.weights.variables import variables
from train.config import TrainConfig, create_network
from train.errors import CommandError

# The last linear layer of each family.
HEADS = ("fc.", "fc8.", "classifier.")


def initial_network(config: TrainConfig, num_classes: int) -> Network:
    """The network of a run with its first weights, in training mode.

    Plain weights go into an anti-aliased network and the other way round: both have the same parameters.

    Args:
        config: the run; ``init`` names the weights to start from, ``new_head`` leaves their classifier out.
        num_classes: classes of the data.

    Raises:
        CommandError: no such weights, or weights that do not fit the network or the data.
    """
    model = create_network(config, num_classes)
    if config.init is None:
        return model
    try:
        source = load_pretrained(config.init)
    except (ValueError, OSError) as error:
        raise CommandError(f"--init {config.init}: {' '.join(str(error).split())}") from error
    found, wanted = variables(source), variables(model)
    if not config.new_head and source.spec.num_classes != num_classes:
        raise CommandError(
            f"--init {config.init} has {source.spec.num_classes} classes, the data have {num_classes}: "
            "add --new-head to start the classifier afresh"
        )
    kept = {name: v for name, v in wanted.items() if not (config.new_head and name.startswith(HEADS))}
    for name, variable in kept.items():
        if name not in found or found[name].shape != variable.shape:
            shape = found[name].shape if name in found else "nothing"
            raise CommandError(
                f"--init {config.init} ({source.spec}) does not fit {config.model}: "
                f"{name} has {shape} there and {variable.shape} here"
            )
    for name, variable in kept.items():
        variable.set_value(jnp.array(found[name][...], variable.dtype, copy=True))
    return model
