"""`config.json` beside every run: the whole configuration and what it ran on, enough to repeat it."""

import dataclasses
import json
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from aa_flax.buckets import AnyPath
from aa_flax.files import write_atomically
from aa_flax.weights.config import Preprocessing
from aa_flax.weights.json_file import read_json
from train.errors import CommandError
from train.fit.config import CONDUCT, TrainConfig
from train.local_paths import as_place

FILE_NAME = "config.json"
# What a record says of its data; in a configuration that somebody has written by hand it may be missing.
DATASET = {
    "name": str,
    "num_classes": int,
    "class_names": list,
    "preprocessing": dict,
    "train_images": int,
    "val_images": int,
}
# What each of several processes may have for itself; what lies behind the paths is compared instead.
OWN = frozenset(
    [
        *("config", "run_dir", "compilation_cache", "init"),
        *("data.dir", "data.cache_dir", "data.workers"),
        *("launch.coordinator", "launch.process_id"),
        *("log.tensorboard", "log.wandb"),
    ]
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """The content of a run's `config.json`.

    Attributes:
        config: the configuration.
        dataset: what the data turned out to be: classes, preprocessing, numbers of images, a digest.
        environment: versions, devices and source revision of the last start.
        init: SHA-256 of the weights that it started from, where they were a directory.
        parent: model, licence and source of the weights that it started from.
    """

    config: TrainConfig
    dataset: dict[str, Any]
    environment: dict[str, Any]
    init: str | None = None
    parent: dict[str, Any] | None = None


def write_record(path: AnyPath, record: Record) -> None:
    """Writes a record, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    content = {
        "config": plain(record.config),
        "dataset": record.dataset,
        "environment": record.environment,
        "init": record.init,
        "parent": record.parent,
    }
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def read_record(path: AnyPath) -> Record:
    """Reads a record.

    Raises:
        CommandError: there is no such file, or it is none of ours; names the field.
    """
    try:
        content = read_json(path)
    except OSError as error:
        raise CommandError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CommandError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict) or "config" not in content:
        raise CommandError(f"{path} is not the config.json of a run: it has no field 'config'")
    config = _parse(TrainConfig, content["config"], str(path))
    dataset, environment, init = content.get("dataset", {}), content.get("environment", {}), content.get("init")
    parent = content.get("parent")
    for name, value in (
        ("dataset", dataset),
        ("environment", environment),
        ("parent", {} if parent is None else parent),
    ):
        if not isinstance(value, dict):
            raise CommandError(f"{path}: {name}: expected an object, found {value!r:.80}")
    _check_dataset(dataset, f"{path}: dataset")
    if not (init is None or isinstance(init, str)):
        raise CommandError(f"{path}: init is {init!r:.80}, but must be text")
    return Record(config=config, dataset=dataset, environment=environment, init=init, parent=parent)


def _check_dataset(dataset: dict[str, Any], where: str) -> None:
    for name, kind in DATASET.items():
        if name in dataset and type(dataset[name]) is not kind:
            raise CommandError(f"{where}: {name} is {dataset[name]!r:.80}, but must be of type {kind.__name__}")
    if dataset.get("num_classes", 1) < 1:
        raise CommandError(f"{where}: num_classes is {dataset['num_classes']}, but must be at least 1")
    if not all(isinstance(name, str) for name in dataset.get("class_names", ())):
        raise CommandError(f"{where}: class_names must be text")
    try:
        preprocessing_of(dataset)
    except (ValueError, TypeError) as error:
        raise CommandError(f"{where}: preprocessing: {error}") from error


def preprocessing_of(dataset: Mapping[str, Any]) -> Preprocessing:
    """How the images of a record's data set are prepared."""
    stored: dict[str, Any] = dataset.get("preprocessing", {})
    # JSON has lists where dataclasses have tuples.
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in stored.items()}
    return Preprocessing(**values)


def shared_options(config: TrainConfig) -> dict[str, Any]:
    """The options that all processes of a run must have in common, by the name under which they are given."""
    return {_option(name): value for name, value in _flat(plain(config)) if name not in OWN}


def differences(old: TrainConfig, new: TrainConfig) -> list[str]:
    """Options that change what comes out of a run and differ, a line each: `--optim.lr: 0.1 -> 0.05`."""
    before, after = dict(_flat(plain(old))), dict(_flat(plain(new)))
    return [
        f"{_option(name)}: {before.get(name)} -> {after.get(name)}"
        for name in {**before, **after}
        if before.get(name) != after.get(name) and name not in CONDUCT and name.split(".")[0] not in CONDUCT
    ]


def plain(value: Any) -> Any:
    """A configuration as JSON has it: dictionaries, lists, numbers and text."""
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, AnyPath) else value


def _option(name: str) -> str:
    return f"--{name.removeprefix('launch.').replace('_', '-')}"


def _flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _parse(kind: Any, value: Any, where: str) -> Any:
    """The opposite of `plain`, strict about names and types."""
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise CommandError(f"{where}: expected an object, found {value!r}")
        hints = typing.get_type_hints(kind)
        unknown = sorted(value.keys() - hints.keys())
        if unknown:
            raise CommandError(f"{where}: unknown field {unknown[0]!r}")
        return kind(**{name: _parse(hints[name], value[name], f"{where}: {name}") for name in value})  # type: ignore[operator]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _parse(arguments[0], value, where)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _parse(next(a for a in arguments if a is not type(None)), value, where)
    if origin is tuple:
        return _parse_tuple(arguments, value, where)
    if origin is typing.Literal:
        if value not in arguments:
            raise CommandError(f"{where} is {value!r}, but must be one of {', '.join(map(str, arguments))}")
        return value
    return _parse_scalar(kind, value, where)


def _parse_tuple(kinds: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise CommandError(f"{where} is {value!r:.80}, but must be a list")
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(value)
    if len(value) != len(kinds):
        raise CommandError(f"{where} has {len(value)} entries, but must have {len(kinds)}")
    return tuple(_parse(kind, each, f"{where}: {i}") for i, (kind, each) in enumerate(zip(kinds, value, strict=True)))


def _parse_scalar(kind: Any, value: Any, where: str) -> Any:
    if kind is Path and isinstance(value, str):
        return as_place(value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise CommandError(f"{where} is {value!r}, but must be of type {kind.__name__}")
    return value
