"""Recipes: what `--preset NAME` sets, for each network, from its family's recipe."""

import dataclasses
from collections.abc import Callable

from aa_flax.models.registry import family_of
from aa_flax.models.specs import default_options, parse_spec
from train.data import DataConfig
from train.errors import CommandError
from train.fit.config import NetworkConfig, PresetName, TrainConfig
from train.fit.optim import OptimConfig

# The recipes made for one data set; all other data are trained on as ImageNet is.
_RECIPES: dict[str, PresetName] = {"digits": "digits", "cifar10": "cifar10", "tfds_cifar10": "cifar10"}
_DEFAULT_MODELS = {"digits": "mobilenet_v2_lpf4", "cifar10": "resnet18_lpf4", "convnext": "convnext_tiny_lpf4"}


def preset(name: PresetName, model: str | None = None) -> TrainConfig:
    """The whole configuration of a recipe for a network.

    Args:
        name: which recipe.
        model: the network's spec; None for the recipe's own choice.

    Raises:
        CommandError: there is no such network.
    """
    spec = model or _DEFAULT_MODELS.get(name, "resnet50_lpf4")
    try:
        network = parse_spec(spec)[0]
    except ValueError as error:
        raise CommandError(str(error)) from error
    return dataclasses.replace(_PRESETS[name](network), model=spec, preset=name)


def recipe_for(data: DataConfig) -> PresetName:
    """The recipe for data whose options are given without one; the digits, which need no directory, where none are."""
    if data.name == "imagenet" and data.dir is None:
        return "digits"
    return _RECIPES.get(data.name, "zhang2019")


def _zhang2019(network: str) -> TrainConfig:
    """Zhang 2019, as published: SGD, decay on everything, mostly steps of 30 epochs; a family says what is its own."""
    recipe = family_of(network).recipe
    optim = OptimConfig(lr=recipe.lr, schedule=recipe.schedule, drop_every=30, weight_decay=recipe.weight_decay)
    return TrainConfig(epochs=recipe.epochs, optim=optim)


def _finetune(network: str) -> TrainConfig:
    """The last two thirds of zhang2019, from the plain network's weights: a tenth of the rate, 60 epochs."""
    base = _zhang2019(network)
    return dataclasses.replace(base, epochs=60, optim=dataclasses.replace(base.optim, lr=base.optim.lr / 10))


def _modern(network: str) -> TrainConfig:
    """What training has settled on since; each part is justified in docs/training.md."""
    optim = OptimConfig(
        lr=family_of(network).recipe.lr * 4,
        schedule="cosine",
        warmup_epochs=5,
        nesterov=True,
        weight_decay=5e-5,
        decay_all=False,
        label_smoothing=0.1,
        ema=0.9999,
    )
    data = DataConfig(auto_augment="trivial", random_erase=0.1, mixup=0.2, cutmix=1.0, train_size=176)
    return TrainConfig(epochs=100, batch=1024, dtype="bfloat16", data=data, optim=optim, net=_from_identity(network))


def _pod(network: str) -> TrainConfig:
    """Batches of 32,768 with LARS: Kumar et al. 2019 (arXiv 1909.09756), made for ResNet-50."""
    optim = OptimConfig(
        name="lars",
        lr=31.2,
        scale_lr_to=32768,
        schedule="polynomial",
        warmup_epochs=25,
        momentum=0.9,
        weight_decay=1e-4,
        label_smoothing=0.1,
    )
    # A chip has as many or a multiple: no statistics travel, and how many chips there are makes no difference.
    net = _from_identity(network)
    return TrainConfig(epochs=73, batch=32768, dtype="bfloat16", bn_group=64, optim=optim, net=net)


def _rsb_a3(network: str) -> TrainConfig:
    """Close to procedure A3 of Wightman et al. 2021 (arXiv 2110.00476), made for ResNet-50."""
    optim = OptimConfig(
        name="lamb",
        lr=8e-3,
        scale_lr_to=2048,
        schedule="cosine",
        warmup_epochs=5,
        weight_decay=0.02,
        clip_norm=1.0,
        loss="bce",
        bce_threshold=0.2,
    )
    # Their magnitude is 6 of 10.
    data = DataConfig(auto_augment="rand", rand_magnitude=18, mixup=0.1, cutmix=1.0, train_size=160)
    return TrainConfig(epochs=100, batch=2048, dtype="bfloat16", data=data, optim=optim, net=_from_identity(network))


def _convnext(network: str) -> TrainConfig:
    """How ConvNeXt was published to be trained: Liu et al. 2022 (arXiv 2201.03545), table 5."""
    optim = OptimConfig(
        name="adamw",
        lr=4e-3,
        scale_lr_to=4096,
        schedule="cosine",
        warmup_epochs=20,
        weight_decay=0.05,
        label_smoothing=0.1,
        ema=0.9999,
    )
    # Their magnitude is 9 of 10.
    data = DataConfig(auto_augment="rand", rand_magnitude=27, random_erase=0.25, mixup=0.8, cutmix=1.0)
    return TrainConfig(epochs=300, batch=4096, dtype="bfloat16", data=data, optim=optim)


def _from_identity(network: str) -> NetworkConfig:
    """Residual branches that start at zero, where a network has an option for it."""
    return NetworkConfig(zero_init_residual=True if "zero_init_residual" in default_options(network) else None)


def _cifar10(network: str) -> TrainConfig:
    """CIFAR-10 in 30 epochs: one cosine with a short warm-up, stronger decay for the small data set."""
    optim = OptimConfig(
        lr=family_of(network).recipe.lr / 2,
        schedule="cosine",
        warmup_epochs=2,
        nesterov=True,
        weight_decay=5e-4,
        decay_all=False,
    )
    return TrainConfig(epochs=30, batch=128, data=DataConfig(name="cifar10", image_size=64), optim=optim)


def _digits(network: str) -> TrainConfig:
    """Scikit-learn's digits, enlarged to 32x32: seconds an epoch on any machine, nothing to download."""
    optim = OptimConfig(
        lr=family_of(network).recipe.lr / 2,
        schedule="cosine",
        warmup_epochs=1,
        weight_decay=5e-4,
        decay_all=False,
    )
    net = NetworkConfig(width_mult=0.5 if "width_mult" in default_options(network) else None)
    data = DataConfig(name="digits", augment="no_shift")
    return TrainConfig(epochs=12, batch=64, data=data, net=net, optim=optim)


_PRESETS: dict[str, Callable[[str], TrainConfig]] = {
    "zhang2019": _zhang2019,
    "finetune": _finetune,
    "modern": _modern,
    "pod": _pod,
    "rsb_a3": _rsb_a3,
    "convnext": _convnext,
    "cifar10": _cifar10,
    "digits": _digits,
}
