"""What a training run is made of: one frozen dataclass, its checks, and its JSON form."""

import dataclasses
import math
import operator
from collections.abc import Callable
from typing import Annotated, Any, Literal

import tyro

from aa_flax.downsample import METHODS, LearnablePolyphase, method
from aa_flax.models.base import ModelSpec
from aa_flax.models.specs import parse_spec, resolve_spec
from aa_flax.weights.names import kind_of
from train.data import DataConfig
from train.errors import CommandError
from train.fit.distributed import LaunchConfig, check_launch
from train.fit.optim import OptimConfig
from train.fit.step import Remat
from train.local_paths import Place, require_local_paths


def _downsample() -> Any:
    """A text that help shows as the choice it is; made when a command line is read, for somebody may add methods."""
    form = tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=f"{{{','.join(METHODS)}}}[:OPTION=VALUE,...]",
        instance_from_str=lambda words: words[0],
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=lambda value: [value],
    )
    return Annotated[str, form]


_DOWNSAMPLE = tyro.conf.arg(
    constructor_factory=_downsample,
    # tyro shows what such a value stands for as a list.
    help_behavior_hint=lambda default: f"(default: {default.strip('[]').strip(chr(39))})",
)
PresetName = Literal["zhang2019", "finetune", "modern", "pod", "rsb_a3", "convnext", "cifar10", "digits"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Options of the network beyond its name; what is left out keeps the family's default."""

    pad_type: Literal["reflect", "replicate", "zero", "circular"] | None = None
    """Padding of the blurs."""

    downsample: Annotated[str, _DOWNSAMPLE] = "blur"
    """What subsamples, see aa_flax.downsample, and options of it: aps:criterion=l1,choose_on=unblurred."""

    circular: bool = False
    """Convolutions and pools see a map that goes on at its other side."""

    stem_stride: Literal[1, 2] | None = None
    """ResNet, MobileNetV2: stride of the first convolution; 1 for small images."""

    activation: Literal["relu", "gelu", "alias_free"] | None = None
    """ResNet, ConvNeXt: the non-linearity; alias_free, with --net.downsample ideal, for a network that every shift
    commutes with."""

    norm: Literal["batch", "layer", "alias_free"] | None = None
    """ResNet, ConvNeXt: the normalisation; alias_free divides an image by one number."""

    pool_only: bool | None = None
    """AlexNet, ResNet, DenseNet: leave the stem's strided convolution as it is."""

    width_mult: float | None = None
    """MobileNetV2: factor on the number of channels."""

    zero_init_residual: bool | None = None
    """ResNet: start each residual branch at zero."""

    drop_rate: float | None = None
    """DenseNet: dropout on the new features of each layer."""

    stochastic_depth_prob: float | None = None
    """ResNet, ConvNeXt: how often the last block is left out in training, image by image; earlier ones less often."""

    in_channels: int | None = None
    """Channels of the network's images: 3, or 1 for photos turned grey."""

    frozen_bn: bool = False
    """Normalise by the statistics of the given weights throughout, and train no scale or bias of BatchNorm."""

    @property
    def has_temperature(self) -> bool:
        """Whether the network's subsampling has a temperature, `--optim.lps-temperature`."""
        return issubclass(method(self.downsample).layer, LearnablePolyphase)

    def family_options(self) -> dict[str, Any]:
        """The options of one family that were given, as arguments of `aa_flax.create_model`."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in given.items() if value is not None and name != "pad_type"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What is written down, how often, and where."""

    every: int = 20
    """Steps between lines of metrics.jsonl."""

    tensorboard: bool = True
    """Whether TensorBoard files are written (without TensorFlow); --log.no-tensorboard leaves them out."""

    wandb: str | None = None
    """Log to this Weights & Biases project as well; needs the package wandb."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a network of the zoo, from scratch or from given weights, on one device or many."""

    model: tyro.conf.Positional[str] = "resnet50_lpf4"
    """Network: NAME, NAME_lpf2 to NAME_lpf7 (filter taps; none given means 4) or NAME_plain."""

    preset: PresetName = "zhang2019"
    """Recipe that sets the defaults shown here. Not given: that of the data named (cifar10, digits, for all others
    zhang2019); digits where none are."""

    config: Place | None = None
    """Start from the config.json of another run instead of a preset."""

    run_dir: Place | None = None
    """Where the run lives; runs/MODEL-PRESET when not given. A run found there continues. gs://bucket/run is in a
    bucket."""

    resume: Literal["auto", "never"] = "auto"
    """never: refuse a directory that already holds a run."""

    accept_changes: bool = False
    """Continue a run although options that change its outcome differ from those it was started with."""

    seed: int = 0
    """Root of the initial weights, the order of the data, augmentation and dropout."""

    epochs: int = 90
    """Passes over the training images."""

    batch: int = 256
    """Images per update, over all devices and processes."""

    accumulate: int = 1
    """Micro-batches per update; their gradients are averaged."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the computation; parameters and statistics are always float32."""

    bn_group: int | None = None
    """Images over which BatchNorm takes its statistics; the whole (micro-)batch when not given."""

    remat: Remat = "none"
    """keep_convs: recompute all but convolutions in the backward pass, for less memory."""

    init: str | None = None
    """Weights to start from: a directory written by `export` or convert_weights.py, a published name such as
    resnet50_plain, a .pth or .safetensors, gs://bucket/name, hf://owner/name, or an https address."""

    new_head: bool = False
    """With --init: start the classifier afresh, for another number of classes."""

    recalibrate_bn: int | None = None
    """With --init: before the first update take BatchNorm's statistics from so many batches of training images."""

    on_device: bool = False
    """Keep the whole data set in device memory (small images of one size only): no loader, no waiting."""

    validate_every: int = 1
    """Epochs between validations; the last epoch is always validated."""

    checkpoint_every: int | None = None
    """Steps between checkpoints besides the one after each epoch."""

    profile: int = 0
    """Record a profiler trace of this many steps in RUN_DIR/profile: from the eleventh on, or the last ones."""

    compilation_cache: Place | None = None
    """Directory in which compiled programs are kept for the next start."""

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    net: NetworkConfig = dataclasses.field(default_factory=NetworkConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)
    launch: Annotated[LaunchConfig, tyro.conf.arg(name="")] = dataclasses.field(default_factory=LaunchConfig)


# Options that say how a run is carried out; those left change what comes out.
CONDUCT = frozenset(
    [
        "config",
        "run_dir",
        "resume",
        "accept_changes",
        "preset",
        "on_device",
        "validate_every",
        "checkpoint_every",
        "profile",
        "compilation_cache",
        "remat",
        "log",
        "launch",
        "data.workers",
        "data.cache_dir",
        "data.max_bad_fraction",
    ]
)


Rule = tuple[Callable[[float], bool], str]
_AT_LEAST_1: Rule = (lambda x: x >= 1, "at least 1")
_AT_LEAST_0: Rule = (lambda x: 0 <= x < math.inf, "0 or more")
_POSITIVE: Rule = (lambda x: 0 < x < math.inf, "a positive number")
_BELOW_1: Rule = (lambda x: 0 <= x < 1, "from 0 to below 1")
_RULES: dict[str, Rule] = {
    "epochs": _AT_LEAST_1,
    "batch": _AT_LEAST_1,
    "accumulate": _AT_LEAST_1,
    "bn_group": _AT_LEAST_1,
    "seed": (lambda x: 0 <= x < 2**31, "from 0 to 2**31-1"),
    "validate_every": _AT_LEAST_1,
    "checkpoint_every": _AT_LEAST_1,
    "profile": _AT_LEAST_0,
    "recalibrate_bn": _AT_LEAST_1,
    "log.every": _AT_LEAST_1,
    "optim.lr": _POSITIVE,
    "optim.scale_lr_to": _AT_LEAST_1,
    "optim.drop_every": _AT_LEAST_1,
    "optim.warmup_epochs": _AT_LEAST_0,
    "optim.momentum": _BELOW_1,
    "optim.beta2": _BELOW_1,
    "optim.epsilon": _POSITIVE,
    "optim.trust_coefficient": _POSITIVE,
    "optim.weight_decay": _AT_LEAST_0,
    "optim.label_smoothing": _BELOW_1,
    "optim.bce_threshold": _BELOW_1,
    "optim.clip_norm": _POSITIVE,
    "optim.ema": (lambda x: 0 < x < 1, "between 0 and 1, such as 0.9999"),
    "net.width_mult": _POSITIVE,
    "net.in_channels": (lambda x: x in (1, 3), "1 or 3: photos are read as RGB, and can be turned grey"),
    "net.drop_rate": _BELOW_1,
    "net.stochastic_depth_prob": _BELOW_1,
}


def validate(config: TrainConfig) -> None:
    """Checks every value before data or devices are touched.

    Raises:
        CommandError: names the first option that cannot be, its value, and what it may be.
    """
    for name, (fine, allowed) in _RULES.items():
        value = operator.attrgetter(name)(config)
        if value is not None and not fine(value):
            raise CommandError(f"--{name.replace('_', '-')} is {value}, but must be {allowed}")
    require_local_paths(config)
    # A run that goes on needs what it started from no more: what is not there any more is no mistake here.
    if config.init is not None and ":/" in config.init:
        try:
            kind_of(config.init)
        except ValueError as error:
            raise CommandError(f"--init: {error}") from None
    check_launch(config.launch)
    network_spec(config)
    _validate_together(config)


def _validate_together(config: TrainConfig) -> None:
    micro, rest = divmod(config.batch, config.accumulate)
    if rest:
        raise CommandError(f"--accumulate is {config.accumulate}, but must divide --batch ({config.batch})")
    group = config.bn_group
    if group is not None and micro % group:
        raise CommandError(f"--bn-group is {group}, but must divide the {micro} images of a (micro-)batch")
    warmup = config.optim.warmup_epochs
    if warmup > config.epochs:
        raise CommandError(f"--optim.warmup-epochs is {warmup}, but must be from 0 to --epochs ({config.epochs})")
    if config.optim.nesterov and config.optim.name not in ("sgd", "lars"):
        raise CommandError(
            f"--optim.nesterov is for sgd and lars, not {config.optim.name}: leave it out (--optim.no-nesterov where "
            "the preset sets it)"
        )
    if config.optim.bce_threshold is not None and config.optim.loss != "bce":
        raise CommandError("--optim.bce-threshold is for --optim.loss bce: give both or neither")
    points = config.optim.lps_temperature
    epochs = [epoch for epoch, _ in points]
    if not points or any(not 0 < t < math.inf for _, t in points) or epochs != sorted(set(epochs)):
        given = " ".join(f"{number:g}" for point in points for number in point)
        raise CommandError(
            f"--optim.lps-temperature is {given or 'empty'}, but must be pairs of a growing epoch and a positive "
            "temperature, such as 0 1 90 0.1"
        )
    if points != OptimConfig().lps_temperature and not config.net.has_temperature:
        raise CommandError(
            f"--optim.lps-temperature is for --net.downsample lps, which has a temperature; {config.net.downsample} "
            "has none"
        )
    if config.new_head and config.init is None:
        raise CommandError("--new-head starts the classifier of given weights afresh: it needs --init")
    if config.recalibrate_bn is not None and config.init is None:
        raise CommandError("--recalibrate-bn takes the statistics of given weights anew: it needs --init")
    if config.recalibrate_bn is not None and config.net.frozen_bn:
        raise CommandError("--recalibrate-bn and --net.frozen-bn exclude each other: give one of them")
    if config.preset == "finetune" and config.init is None:
        name = parse_spec(config.model)[0]
        raise CommandError(
            "the preset finetune starts from trained weights: give --init, for instance a directory that "
            f"convert_weights.py made of a file of {name}"
        )


def network_spec(config: TrainConfig, num_classes: int = 1000) -> ModelSpec:
    """The network of a run.

    Raises:
        CommandError: there is no such network.
    """
    try:
        return resolve_spec(
            config.model, num_classes=num_classes, pad_type=config.net.pad_type, **config.net.family_options()
        )
    except (ValueError, TypeError) as error:
        raise CommandError(f"model {config.model}: {error}") from error
