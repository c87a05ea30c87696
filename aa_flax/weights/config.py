"""`config.json` of a pretrained directory: what the network is, how its images are prepared, where it comes from."""

import dataclasses
import json
import math
import os
import sys
from collections.abc import Sequence
from typing import Any

from aa_flax.buckets import any_path
from aa_flax.models.base import ModelSpec
from aa_flax.models.specs import resolve_spec
from aa_flax.weights.errors import CheckpointError
from aa_flax.weights.json_file import read_json

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
FORMAT_VERSION = 1
# The parts of a network's specification under the names that the file has for them.
_OF_SPEC = ("model", "num_classes", "in_channels", "pad_type", "options")
_PREPARATIONS = ("preprocessing", "test_preprocessing")
# Far above what anybody uses, far below what takes all memory.
_MAX_PIXELS = 8192
_MAX_FILTER_SIZE = 255
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an image becomes what the network expects; the defaults are ImageNet's standard, for three channels.

    Attributes:
        resize: length of the image's shorter side after resizing, in pixels.
        crop: side of the centre crop, in pixels, at most `resize`.
        interpolation: `nearest`, `bilinear`, `bicubic` or `lanczos`.
        mean: subtracted from each channel, whose values reach from 0 to 1.
        std: each channel is divided by it afterwards.

    Raises:
        ValueError: a value has another type or lies outside its range.
    """

    resize: int = 256
    crop: int = 224
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self):
        pixels = f"a whole number of pixels from 1 to {_MAX_PIXELS}"
        _require(_is_size(self.resize), "preprocessing.resize", pixels, self.resize)
        _require(_is_size(self.crop), "preprocessing.crop", pixels, self.crop)
        _require(self.crop <= self.resize, "preprocessing.crop", f"at most resize ({self.resize})", self.crop)
        choices = "one of " + ", ".join(INTERPOLATIONS)
        _require(self.interpolation in INTERPOLATIONS, "preprocessing.interpolation", choices, self.interpolation)
        for name, values in (("mean", self.mean), ("std", self.std)):
            numbers = isinstance(values, tuple) and bool(values) and all(map(_is_number, values))
            _require(numbers, f"preprocessing.{name}", "one finite number a channel", values)
        _require(min(self.std) > 0, "preprocessing.std", "above 0 everywhere", self.std)
        _require(len(self.std) == len(self.mean), "preprocessing.std", "as long as preprocessing.mean", self.std)

    @classmethod
    def of_share(cls, crop: int, share: float, **fields: Any) -> "Preprocessing":
        """The preparation that publishers write as a size and the share of the shorter side that it covers.

        The shorter side is resized to the whole pixels of `crop / share`: 224 of 0.95 are cut from 235, 288 of 1 from
        288.

        Args:
            crop: side of the centre crop, in pixels.
            share: above 0 and at most 1; timm calls it `crop_pct`.
            **fields: `interpolation`, `mean` and `std`.

        Raises:
            ValueError: a value lies outside its range.
        """
        _require(_is_number(share) and 0 < share <= 1, "share", "above 0 and at most 1", share)
        _require(_is_size(crop), "preprocessing.crop", f"a whole number of pixels from 1 to {_MAX_PIXELS}", crop)
        return cls(resize=math.floor(crop / share), crop=crop, **fields)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainedConfig:
    """Everything about pretrained weights but the weights: the content of `config.json`.

    Attributes:
        spec: the network; `model` (its name, such as `resnet50_lpf4`), `num_classes`, `in_channels`, `pad_type` and
            `options` are its parts as `config.json` has them.
        preprocessing: how images are prepared.
        test_preprocessing: how they are prepared where accuracy counts for more than speed, as of networks that were
            published with a second, larger size; None where there is one size.
        class_names: one for each logit, or None where they are not known.
        source: where the weights come from, e.g. `file`, `url`, `sha256`.
        license: of the weights, or None where it is not known.
        metrics: published or measured figures by name.

    Raises:
        ValueError: a field has another type or value than it may have.
    """

    spec: ModelSpec
    preprocessing: Preprocessing = dataclasses.field(default_factory=Preprocessing)
    test_preprocessing: Preprocessing | None = None
    class_names: tuple[str, ...] | None = None
    source: dict[str, Any] = dataclasses.field(default_factory=dict)
    license: str | None = None
    metrics: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        _require(isinstance(self.spec, ModelSpec), "spec", "a ModelSpec", self.spec)
        taps = self.spec.filter_size or 1
        _require(taps <= _MAX_FILTER_SIZE, "model", f"a network with at most {_MAX_FILTER_SIZE} taps", self.model)
        for name in ("source", "metrics"):
            _require_names(name, getattr(self, name))
        for name in _PREPARATIONS:
            rule = getattr(self, name)
            if rule is not None or name == "preprocessing":
                self._check_preparation(name, rule)
        _require(self.license is None or isinstance(self.license, str), "license", "a text or null", self.license)
        if self.class_names is not None:
            texts = isinstance(self.class_names, tuple) and all(isinstance(name, str) for name in self.class_names)
            _require(texts, "class_names", "a list of texts or null", self.class_names)
            count = len(self.class_names)
            _require(count == self.num_classes, "class_names", f"{self.num_classes} names (num_classes)", count)

    def _check_preparation(self, name: str, rule: Any) -> None:
        _require(isinstance(rule, Preprocessing), name, "a Preprocessing", rule)
        channels = self.in_channels
        standard = " (ImageNet's are the default)" if rule.mean == Preprocessing.mean else ""
        fitting = f"{channels} numbers, one a channel: give Preprocessing(mean=..., std=...) of these images{standard}"
        _require(len(rule.mean) == channels, f"{name}.mean", fitting, rule.mean)

    @property
    def model(self) -> str:
        """The network's name with its filter size."""
        return str(self.spec)

    @property
    def num_classes(self) -> int:
        """Logits."""
        return self.spec.num_classes

    @property
    def in_channels(self) -> int:
        """Channels of the image."""
        return self.spec.in_channels

    @property
    def pad_type(self) -> str:
        """Padding of every blur."""
        return self.spec.pad_type

    @property
    def options(self) -> dict[str, Any]:
        """The family's options that differ from the default."""
        return dict(self.spec.options)

    def as_dict(self) -> dict[str, Any]:
        """The fields as `config.json` has them, of plain values."""
        fields = dataclasses.asdict(self)
        del fields["spec"]
        if self.test_preprocessing is None:
            del fields["test_preprocessing"]
        return {name: getattr(self, name) for name in _OF_SPEC} | fields


def dump_config(config: PretrainedConfig) -> str:
    """The text of `config.json`.

    Raises:
        ValueError: `options`, `source` or `metrics` hold what JSON cannot, or a text is no Unicode, as are names of
            files in another encoding.
    """
    content = {"format_version": FORMAT_VERSION, **config.as_dict()}
    try:
        text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        around = error.object[max(0, error.start - 30) : error.end + 30].strip()
        raise ValueError(f"{CONFIG_NAME} cannot hold {around!r}, which is no Unicode text: rename it") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"options, source and metrics may only hold what JSON can: {error}") from error
    return text


def read_config(directory: str | os.PathLike[str]) -> PretrainedConfig:
    """The configuration in a directory that `save_pretrained` or `convert_weights.py` has written.

    Args:
        directory: the folder with `config.json`, on this disk or in a bucket. Fields that the file leaves out have
            their defaults.

    Raises:
        FileNotFoundError: there is no `config.json`.
        CheckpointError: (a ValueError) it is no such configuration; the message names the field.
    """
    path = any_path(directory) / CONFIG_NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: not found; give a directory that aa_flax.save_pretrained or convert_weights.py has written"
        )
    try:
        content = read_json(path)
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from error
    try:
        return _from_json(content)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def _from_json(content: Any) -> PretrainedConfig:
    _require(isinstance(content, dict), "the file", "a JSON object", content)
    version = content.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise ValueError(
            f"format_version is {version!r}, and this version of aa_flax reads {FORMAT_VERSION}: "
            "update aa_flax, or write the directory again with save_pretrained"
        )
    fields = {key: value for key, value in content.items() if key != "format_version"}
    others = [field.name for field in dataclasses.fields(PretrainedConfig) if field.name != "spec"]
    _check_names(fields, (*_OF_SPEC, *others), "")
    spec = _spec_of({name: fields.pop(name) for name in _OF_SPEC if name in fields})
    for name in _PREPARATIONS:
        if name in fields:
            fields[name] = _preparation(name, fields[name])
    if "class_names" in fields:
        fields["class_names"] = _tuples(fields["class_names"])
    return PretrainedConfig(spec=spec, **fields)


def _preparation(name: str, given: Any) -> Preprocessing:
    _require(isinstance(given, dict), name, "a JSON object", given)
    _check_names(given, [field.name for field in dataclasses.fields(Preprocessing)], f"{name}.")
    try:
        return Preprocessing(**{key: _tuples(value) for key, value in given.items()})
    except ValueError as error:
        raise ValueError(f"{name}.{str(error).removeprefix('preprocessing.')}") from error


def _spec_of(fields: dict[str, Any]) -> ModelSpec:
    _require("model" in fields, "model", "given", None)
    model, options = fields.pop("model"), _tuples(fields.pop("options", {}))
    _require(isinstance(model, str), "model", "a network's name", model)
    _require_names("options", options)
    given = {name: fields[name] for name in ("num_classes", "in_channels", "pad_type") if name in fields}
    _require(isinstance(given.get("pad_type", ""), str), "pad_type", "a name", given.get("pad_type"))
    return resolve_spec(model, **given, **options)


def _require_names(name: str, value: Any) -> None:
    named = isinstance(value, dict) and all(isinstance(key, str) for key in value)
    _require(named, name, "a dictionary with texts as keys", value)


def _check_names(fields: dict[str, Any], known: Sequence[str], prefix: str) -> None:
    unknown = [key for key in fields if key not in known]
    if unknown:
        raise ValueError(f"unknown field {prefix}{unknown[0][:60]}; known are {', '.join(known)}")


def _tuples(value: Any) -> Any:
    """JSON has lists where the configuration has tuples."""
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return value


def _require(condition: bool, name: str, expected: str, value: Any) -> None:
    if not condition:
        shown = repr(value)
        raise ValueError(f"{name} must be {expected}, got {shown if len(shown) <= 80 else shown[:77] + '...'}")


def _is_size(value: Any) -> bool:
    return type(value) is int and 1 <= value <= _MAX_PIXELS


def _is_number(value: Any) -> bool:
    # Comparing never overflows, as converting a whole number does.
    return type(value) in (int, float) and -sys.float_info.max <= value <= sys.float_info.max
