"""Slots: where a class says that its blurs belong, in its own words or in those of `slots=`."""

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from flax import nnx

from aa_flax.surgery.kinds import children

ARROW = "->"
_MISSING = object()


def check_slots(slots: Any) -> None:
    """Raises ValueError for what is no `{Class: {slot: source}}`."""
    form = 'slots takes {Block: {"blur": "conv1"}}, {Block: {"->conv2": "conv1"}} or {Block: {"pool_blur": 2}}'
    if not isinstance(slots, Mapping):
        raise ValueError(f"{form}, got {type(slots).__name__}")
    for kind, of_class in slots.items():
        if not isinstance(kind, type) or not isinstance(of_class, Mapping):
            raise ValueError(f"{form}, got {_name(kind)}: {_name(of_class)}")
        for slot, source in of_class.items():
            _check_slot(kind, slot, source)


def _check_slot(kind: type, slot: Any, source: Any) -> None:
    here = f"slots of {kind.__name__}: {slot!r}: {source!r}"
    if not isinstance(slot, str) or isinstance(source, bool) or not isinstance(source, str | int):
        raise ValueError(f"{here} is no pair of an attribute and a convolution's name or a pool's stride")
    if isinstance(source, str) and source.startswith(ARROW):
        raise ValueError(f"{here}: the arrow belongs to the slot: {source!r}: {slot!r}")
    if isinstance(source, int) and source < 2:
        raise ValueError(f"{here}: a pool's stride is at least 2")
    if isinstance(source, int) and slot.startswith(ARROW):
        raise ValueError(f"{here}: a blur before {slot[2:]} takes the stride of a convolution, which it has to name")
    if slot.removeprefix(ARROW) == source:
        raise ValueError(f"{here}: a layer cannot take its own stride over; place='before' blurs before a convolution")


def check_classes(argument: str, asked: Collection[type], held: set[type]) -> None:
    """Raises ValueError if the network has a module of none of the classes. One of them is enough: a table may serve
    several networks, those with basic blocks and those with bottlenecks."""
    if asked and held.isdisjoint(asked):
        kind = next(iter(asked)).__name__
        names = sorted({k.__name__ for k in held if issubclass(k, nnx.Module) and k is not nnx.Module})
        close = difflib.get_close_matches(kind, names, 3) or names[:8]
        raise ValueError(f"{argument} names {kind}, of which the network has none; it has {_listed(close)}")


def reach(module: nnx.Module, way: str, slot: str) -> tuple[Any, str, Any]:
    """Follows a dotted way from a module to an attribute: its owner, its name there, and what it holds."""
    owner, value, name = None, module, ""
    for name in way.split("."):
        owner, value = value, _get(value, name)
        if value is _MISSING:
            named = "" if way == slot else f" {way!r}"
            raise ValueError(
                f"{type(module).__name__} declares the slot {slot!r} but has no such attribute{named}: "
                f"{type(owner).__name__} has {_listed(names_of(owner))}"
            )
    return owner, name, value


def _get(node: Any, key: str) -> Any:
    if isinstance(node, Mapping):
        return node.get(key, _MISSING)
    if isinstance(node, tuple | list):
        return node[int(key)] if key.isdigit() and int(key) < len(node) else _MISSING
    return getattr(node, key, _MISSING)


def names_of(node: Any) -> list[str]:
    return [str(key) for key, _ in children(node) if not str(key).startswith("_")]


def _listed(names: list[str]) -> str:
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "") if names else "none"


def _name(thing: Any) -> str:
    return thing.__name__ if isinstance(thing, type) else repr(thing)[:40].split("\n")[0]
