"""What a family of networks says of itself, as one value that all other parts read."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

from aa_flax.models.base import Network


@dataclasses.dataclass(frozen=True, kw_only=True)
class TorchNames:
    r"""What PyTorch calls the modules of a network: in torchvision's, and where the reference has it otherwise.

    The reference (`antialiased-cnns`) inserts BlurPool modules into torchvision's networks. Modules in a `Sequential`
    are called by their position, so that each inserted blur moves the names behind it by one. That follows from
    `blurs`: only torchvision's names are told.

    Attributes:
        modules: pairs of a regular expression for a module's whole path here and its name in torchvision's network,
            with `\1` for the expression's groups; the first that matches counts. All others have one name in both.
        blurs: the BlurPool modules of the reference's network, and for each the layer here whose output it blurs,
            behind activations and pools.
        absent: numbered modules of torchvision's network that the reference's lacks: those behind them move up.
        flattened: the linear layer that reads a flattened map, and the convolution that makes the map's channels.
        package: whose network it is, where that is not torchvision.
        as_maps: names of variables with one number a channel that are maps of one pixel there, (C, 1, 1).
    """

    modules: tuple[tuple[str, str], ...] = ()
    blurs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    absent: tuple[str, ...] = ()
    flattened: tuple[str, str] | None = None
    package: str = "torchvision"
    as_maps: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network was trained on ImageNet by those who published it: SGD with momentum 0.9, batches of 256.

    Attributes:
        lr: peak learning rate.
        schedule: `steps` divides by 10 every 30 epochs, `cosine_epochs` falls to 0 once an epoch.
        weight_decay: L2 penalty on every parameter.
        epochs: passes over the training images.
    """

    lr: float = 0.1
    schedule: Literal["steps", "cosine_epochs"] = "steps"
    weight_decay: float = 1e-4
    epochs: int = 90


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """Networks of one kind, which differ in their configurations.

    Attributes:
        network: the class, called as `network(config, num_classes=..., in_channels=..., build=...)`. It names the
            layers at both ends (`first_conv`, `last_linear`) and the attributes that take over strides
            (`antialias_slots`, see `aa_flax.antialias`).
        configs: by name of the network its configuration, a frozen dataclass whose fields are the options of
            `aa_flax.create_model`.
        torch: PyTorch's names for a configuration; None where no such network is known in PyTorch.
        placements: the options that move blurs from one place to another, and the values they can have: by them a
            file is recognised that blurs elsewhere than the network asked for.
        recipe: how `python -m train fit` trains the networks.
        filter_size: taps of the blurs, where the names of the networks say how they are anti-aliased: they take no
            suffix and are never plain. None for networks that exist plain and with filters of any size.
        pad_type: padding of the blurs where none is asked for.
        antialias_option: the option with the taps of what `aa_flax.antialias` can still blur in such a network.

    Raises:
        TypeError, ValueError: if the parts do not make a family; the message names the part.
    """

    network: type[Network]
    configs: Mapping[str, Any]
    torch: Callable[[Any], TorchNames] | None = None
    placements: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    recipe: Recipe = Recipe()
    filter_size: int | None = None
    pad_type: str = "reflect"
    antialias_option: str | None = None

    def __post_init__(self):
        if not (isinstance(self.network, type) and issubclass(self.network, Network)):
            raise TypeError(f"network must be a class derived from aa_flax.Network, got {self.network!r}")
        for attribute in ("first_conv", "last_linear"):
            if not getattr(self.network, attribute):
                raise ValueError(f"{self.network.__name__} must name a layer of its own as {attribute}")
        for name, config in self.configs.items():
            parameters = getattr(config, "__dataclass_params__", None)
            if isinstance(config, type) or parameters is None or not parameters.frozen:
                raise TypeError(f"the configuration of {name!r} must be a frozen dataclass, got {config!r}")
