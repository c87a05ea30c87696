"""The networks of a comparison, as a person names them in one word each."""

import re
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np
from flax import nnx

from aa_flax.export import DESCRIPTION
from aa_flax.local_paths import local_path
from aa_flax.weights.config import INTERPOLATIONS
from train.errors import CommandError
from train.measurable.naming import KINDS, Foreign
from train.measurable.network import Layout, Measurable, Told
from train.networks import OpenedNetwork, as_function, open_network, other_filter

# What may stand behind a network's name as +OPTION=VALUE.
TOLD = tuple(field.name for field in fields(Told))
OWN = ("name", "model")
OPTIONS = ("name", "model", "weights", *TOLD)
_OPTION = re.compile(rf"\+({'|'.join(OPTIONS)})=")


def open_entrant(word: str) -> Measurable:
    """One network.

    Args:
        word: `FILE.onnx`, `timm:NAME`, `torchvision:NAME`, `exported:DIRECTORY`, `fn:MODULE:FUNCTION`, weights as
            `evaluate --weights` names them, a PyTorch file alone with `+model=SPEC`; then any of `+name=...` (what
            to call it), `+weights=FILE` and what a person tells of networks of other make, such as `+size=224`.

    Raises:
        CommandError: names the word and what is wrong with it.
    """
    what, *pairs = _OPTION.split(word)
    said = dict(zip(pairs[::2], pairs[1::2], strict=True))
    kind, _, rest = what.partition(":")
    try:
        if kind in KINDS and rest:
            found = _foreign(kind, rest, said)
        elif what.endswith(".onnx"):
            found = _foreign("onnx", what, said)
        elif (Path(what) / DESCRIPTION).is_file():
            found = _foreign("exported", what, said)
        else:
            found = _own(what, said)
    except CommandError as error:
        raise CommandError(str(error) if what in str(error) else f"{what}: {error}") from error
    return replace(found, model=said.get("name", found.model))


def _foreign(kind: str, what: str, said: dict[str, str]) -> Measurable:
    if "model" in said:
        raise CommandError("+model is for PyTorch files of networks of this package")
    weights = Path(said["weights"]) if "weights" in said else None
    network: dict[str, Any] = {kind: what if kind in ("timm", "torchvision", "fn") else _path(what)}
    told: dict[str, Any] = {name: _value(name, text) for name, text in said.items() if name in TOLD}
    found = Foreign(**network, weights_file=weights, told=Told(**told)).open()
    assert found is not None
    return found


def _value(name: str, text: str) -> int | str:
    """What was told of a network, as `Told` has it."""
    if name in ("size", "resize", "classes"):
        if not text.isdecimal():
            raise CommandError(f"+{name}={text} is no whole number")
        return int(text)
    choices = {"layout": get_args(Layout), "interpolation": INTERPOLATIONS}
    if name in choices and text not in choices[name]:
        raise CommandError(f"+{name}={text} is none of {', '.join(choices[name])}")
    return text


def _path(text: str) -> Path:
    try:
        return local_path(text)
    except ValueError as error:
        raise CommandError(str(error)) from error


def _own(what: str, said: dict[str, str]) -> Measurable:
    if useless := [name for name in said if name not in OWN]:
        raise CommandError(f"+{useless[0]} is for networks of other make; config.json has it of this one")
    return of_network(open_network(what, said.get("model"), option="networks"))


def of_network(opened: OpenedNetwork) -> Measurable:
    """A network of this package."""
    model, config = opened.model, opened.config
    parameters = jax.tree.leaves(nnx.state(model, nnx.Param))
    return Measurable(
        model=config.model,
        fn=as_function(model),
        preprocessing=config.preprocessing,
        num_classes=config.num_classes,
        class_names=config.class_names,
        file=opened.file,
        parameters=sum(int(np.prod(leaf.shape)) for leaf in parameters),
        described={"kind": "aa_flax", "spec": config.model, "pad_type": config.pad_type, "options": config.options},
        notice=other_filter(config),
    )


def open_all(words: Sequence[str]) -> list[Measurable]:
    """All networks, each under a name of its own.

    Raises:
        CommandError: fewer than two, two of one name, one that cannot be opened.
    """
    if len(words) < 2:
        raise CommandError(f"{len(words)} network to compare; name two or more")
    found = [open_entrant(word) for word in words]
    for number, entrant in enumerate(found):
        if entrant.model in [other.model for other in found[:number]]:
            raise CommandError(
                f"two networks are called {entrant.model}; name one with +name=..., {words[number]}+name=B"
            )
    return found
