"""How a name and options become a checked specification of a network, a `ModelSpec`."""

import dataclasses
import math
import re
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np

from aa_flax.blurpool import canonical_pad_type
from aa_flax.downsample import METHODS, method
from aa_flax.models.base import ModelSpec
from aa_flax.models.registry import family_of

DEFAULT_FILTER_SIZE = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class CommonOptions:
    """Options of every network, which decide what its layers are made of; see `create_model`."""

    downsample: str = "blur"
    circular: bool = False
    frozen_bn: bool = False
    folded_bn: bool = False


def parse_spec(spec: str) -> tuple[str, int | None]:
    """Splits `<name>[_lpf<k>|_plain]`.

    Args:
        spec: a network's name, with its filter size or `plain`; no suffix means `_lpf4`. Names that say how the network
            is anti-aliased, such as `resnetblur50`, stand alone.

    Returns:
        The name and the filter size, None for the plain network.

    Raises:
        ValueError: for an unknown name (close ones are listed), a filter size below 1, or a suffix behind a name that
            takes none.
    """
    network, point, _ = spec.partition(".")
    if point and network:
        parse_spec(network)
        raise ValueError(f"{spec!r} names weights, for aa_flax.load_pretrained; the network alone is {network!r}")
    match = re.fullmatch(r"(?P<name>.+?)(?:_lpf(?P<taps>\d+)|_(?P<plain>plain))?", spec)
    name = match["name"] if match else spec
    own = family_of(name, asked=spec).filter_size
    if own is not None:
        if spec != name:
            raise ValueError(f"{spec!r}: {name} takes no suffix, its name says how it is anti-aliased")
        return name, own
    if match is None or match["plain"]:
        return name, None
    taps = DEFAULT_FILTER_SIZE if match["taps"] is None else int(match["taps"])
    if taps < 1:
        raise ValueError(f"{spec!r}: the filter size must be at least 1; _plain is the network without blur")
    return name, taps


def default_options(name: str) -> dict[str, Any]:
    """The options of one network and their values where none is given."""
    rows = (CommonOptions(), family_of(name).configs[name])
    return {field.name: getattr(row, field.name) for row in rows for field in dataclasses.fields(row)}


def common_options(spec: ModelSpec) -> CommonOptions:
    """The options of a network that every network has."""
    return _with_options(CommonOptions(), spec)


def config_of(spec: ModelSpec) -> Any:
    """The configuration of a network within its family (`model.config`)."""
    return _with_options(family_of(spec.name).configs[spec.name], spec)


def _with_options(row: Any, spec: ModelSpec) -> Any:
    names = [field.name for field in dataclasses.fields(row)]
    return dataclasses.replace(row, **{k: v for k, v in spec.options if k in names})


def with_options(spec: ModelSpec, **options: Any) -> ModelSpec:
    """The spec with some of its options changed; takes what has been checked."""
    known = default_options(spec.name)
    merged = dict(spec.options) | options
    return dataclasses.replace(spec, options=tuple(sorted((k, v) for k, v in merged.items() if v != known[k])))


def changed_spec(spec: ModelSpec, **changes: Any) -> ModelSpec:
    """The spec with some of its fields or options changed, which are checked as `create_model` does."""
    fields = ("filter_size", "num_classes", "in_channels", "pad_type")
    arguments: dict[str, Any] = {name: getattr(spec, name) for name in fields} | dict(spec.options) | changes
    return _checked(spec.name, **arguments)


def _plain(value: Any) -> Any:
    """JSON has lists where the configurations have tuples, and NumPy numbers of its own."""
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    return value.item() if isinstance(value, np.generic) else value


def _check_option(name: str, option: str, value: Any, default: Any) -> None:
    """Refuses what is of another type or length than the option's default, is no choice, or makes no network."""
    kinds = get_type_hints(CommonOptions) | get_type_hints(type(family_of(name).configs[name]))
    choices = get_args(kinds[option]) if get_origin(kinds[option]) is Literal else ()
    if option == "downsample" and isinstance(value, str):
        method(value)
        return
    if option == "downsample":
        choices = tuple(METHODS)
    if choices and not any(_is_like(value, choice) and value == choice for choice in choices):
        raise ValueError(f"{option} must be one of {', '.join(map(str, choices))}, got {value!r}")
    if not _is_like(value, default) or value in (math.inf, -math.inf) or value != value:
        raise ValueError(f"{option} must be of the kind of {default!r}, got {value!r}")
    # Depths, widths and groups count something: zero or less makes no network, or one that divides by zero.
    for count in value if isinstance(value, tuple) else (value,):
        if isinstance(count, int) and not isinstance(count, bool) and count < 1:
            raise ValueError(f"{option}={value!r}: makes no network, whole numbers must be at least 1")


def _is_like(value: Any, default: Any) -> bool:
    if isinstance(default, tuple):
        return isinstance(value, tuple) and len(value) == len(default) and all(map(_is_like, value, default))
    return type(value) is type(default) or (type(default) is float and type(value) is int)


def lost_exactness(spec: ModelSpec) -> str | None:
    """A line about a circular network whose way to subsample promises the same answer to rolled images, if another
    option breaks that promise; None otherwise."""
    options: dict[str, Any] = default_options(spec.name) | dict(spec.options)
    if spec.filter_size is None or not (options["circular"] and method(options["downsample"]).layer.exact):
        return None
    needed = []
    if options.get("stem_stride", 2) != 1 and options.get("pool_only", "stem_stride" in options):
        needed.append("pool_only=False" if "pool_only" in options else "stem_stride=1")
    if spec.filter_size > 1 and spec.pad_type != "circular":
        needed.append("pad_type='circular'")
    if not needed:
        return None
    return (
        f"circular=True with downsample={options['downsample']!r} gives rolled images the same answer only with "
        f"{' and '.join(needed)}"
    )


def resolve_spec(
    spec: str,
    *,
    filter_size: int | None = None,
    num_classes: int = 1000,
    in_channels: int = 3,
    pad_type: str | None = None,
    **options: Any,
) -> ModelSpec:
    """Checks the arguments of `create_model` without building anything.

    Raises:
        TypeError: for an option that the family does not have.
        ValueError: for values that make no network.
    """
    name, taps = parse_spec(spec)
    if filter_size is not None and spec != name and filter_size != taps:
        raise ValueError(f"filter_size={filter_size} contradicts {spec!r}: give one of them")
    return _checked(
        name,
        filter_size=taps if filter_size is None else filter_size,
        num_classes=num_classes,
        in_channels=in_channels,
        pad_type=family_of(name).pad_type if pad_type is None else pad_type,
        **options,
    )


def _checked(
    name: str, *, filter_size: int | None, num_classes: int, in_channels: int, pad_type: str, **options: Any
) -> ModelSpec:
    filter_size, num_classes, in_channels = map(_plain, (filter_size, num_classes, in_channels))
    counts = (("filter_size", filter_size, 1), ("num_classes", num_classes, 0), ("in_channels", in_channels, 1))
    for argument, value, least in counts[filter_size is None :]:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{argument} must be a whole number >= {least}, got {value!r}")
    own = family_of(name).filter_size
    if own is not None and filter_size != own:
        raise ValueError(f"filter_size={filter_size}: {name} blurs with {own} taps, as its name says; leave it out")
    known = default_options(name)
    for option in options:
        if option not in known:
            raise TypeError(f"{name} has no option {option!r}; it has {', '.join(known)}")
    given = {option: _plain(value) for option, value in options.items()}
    for option, value in given.items():
        _check_option(name, option, value, known[option])
    if "downsample" in given:
        given["downsample"] = str(method(given["downsample"]))
    if filter_size is None and options.get("downsample", "blur") != "blur":
        raise ValueError(f"'{name}_plain' has no blur for downsample={options['downsample']!r} to stand in for")
    return ModelSpec(
        name=name,
        filter_size=filter_size,
        num_classes=num_classes,
        in_channels=in_channels,
        pad_type=canonical_pad_type(pad_type),
        options=tuple(sorted((k, v) for k, v in given.items() if v != known[k])),
        suffix=own is None,
    )
