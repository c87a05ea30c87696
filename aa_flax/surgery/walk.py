"""The walk over a network that finds its strided layers and puts a blur behind each."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from flax import nnx

from aa_flax import nn
from aa_flax.strided import BlurAfter, BlurredConvolution, BlurredPReLU, split_stride
from aa_flax.surgery.kinds import (
    BLURRED,
    KEEPS_PLACE,
    POOLS,
    Path,
    children,
    describe,
    dotted,
    enlarges,
    is_activation,
    kernel_size,
    pool_arguments,
    pool_of,
    strides_of,
)
from aa_flax.surgery.report import STRIDE_1, Change, SurgeryReport

Slots = Mapping[str, str | int]


class Surgeon:
    """Walks over a copy of the network and changes it in place."""

    def __init__(
        self,
        filter_size: int,
        pad_type: str,
        where: Callable[[str, Any], bool] | None,
        min_channels: int,
        spatial_dims: int,
        slots: Mapping[type, Slots],
    ):
        self.filter_size, self.pad_type = filter_size, pad_type
        self.where, self.min_channels = where, min_channels
        self.spatial_dims, self.slots = spatial_dims, slots
        self.changes: list[Change] = []
        self.order: dict[str, int] = {}
        self.places: dict[int, list[str]] = {}
        self.first: nnx.Conv | None = None
        self.seen: set[int] = set()

    def survey(self, model: nnx.Module, copy: nnx.Module, first: bool) -> None:
        """Notes the order of the network's layers, every path of each, and the convolution that reads the image."""
        # Copying sorts the attributes: the order they were made in is only known to the network itself.
        self.order = {dotted(path): i for i, (path, _) in enumerate(_edges((), model, set()))}
        convs: dict[str, nnx.Conv] = {}
        for path, module in _edges((), copy, set()):
            self.places.setdefault(id(module), []).append(dotted(path))
            if isinstance(module, nnx.Conv):
                convs.setdefault(dotted(path), module)
        if convs and not first:
            # Images have the fewest channels; where several layers do, the first one reads them.
            self.first = min(convs.items(), key=lambda item: (item[1].in_features, self._rank(item[0])))[1]

    def _rank(self, path: str) -> int:
        return self.order.get(path, len(self.order))

    def report(self) -> SurgeryReport:
        """What was done, in the network's order."""
        return SurgeryReport(tuple(sorted(self.changes, key=lambda change: self._rank(change.path))))

    def visit(self, path: Path, node: Any) -> Any:
        """Changes what lies below ``node``; returns what has to stand in its place."""
        if isinstance(node, nnx.Module):
            if id(node) not in self.seen:
                self.seen.add(id(node))
                self._visit_module(path, node)
            return node
        if isinstance(node, functools.partial) and pool_of(node):
            return self._visit_pool(path, node)
        if not isinstance(node, tuple | list | Mapping):
            return node
        new = [(key, child, self.visit((*path, key), child)) for key, child in children(node)]
        if all(child is replaced for _, child, replaced in new):
            return node
        if isinstance(node, Mapping):
            return {key: replaced for key, _, replaced in new}
        values = [replaced for _, _, replaced in new]
        return type(node)(*values) if hasattr(node, "_fields") else type(node)(values)

    def _visit_module(self, path: Path, module: nnx.Module) -> None:
        for slot, source in self._slots_of(module).items():
            self._fill_slot(path, module, slot, source)
        if isinstance(module, nnx.Sequential) and type(module).__call__ is nnx.Sequential.__call__:
            self._visit_chain(list(self._chain(path, module)))
        if isinstance(module, nnx.Conv | nnx.ConvTranspose):
            self._visit_conv(path, module)
            return
        for key, child in children(module):
            replaced = self.visit((*path, key), child)
            if replaced is not child:
                _set(dotted(path), module, key, replaced)

    def _visit_conv(self, path: Path, conv: nnx.Conv | nnx.ConvTranspose) -> None:
        if self._accepts(path, conv):
            assert isinstance(conv, nnx.Conv)
            detail = "blur after the convolution: where its activation is cannot be seen"
            if set(kernel_size(conv)) == {1} and conv.padding in ("SAME", "VALID", 0):
                detail = "blur before the convolution, with which it commutes"
            self._done(path, conv, detail)
            hook = BlurredConvolution(self.filter_size, self.pad_type, function=conv.conv_general_dilated)
            conv.conv_general_dilated = hook

    def _visit_pool(self, path: Path, pool: functools.partial) -> Any:
        given, function = pool_arguments(pool), pool_of(pool)
        strides = given.get("strides")
        reason = None
        if not strides or max(strides) == 1:
            reason = STRIDE_1
        elif function not in POOLS:
            reason = "only max_pool and avg_pool have an anti-aliased form"
        elif self.where is not None and not self.where(dotted(path), pool):
            reason = "left out by `where`"
        if reason:
            self._skipped(path, pool, reason)
            return pool
        assert strides
        self._check_axes(path, pool, len(strides))
        self._done(path, pool, f"blur after a dense {function.__name__}")
        return functools.partial(POOLS[function], **given, filter_size=self.filter_size, pad_type=self.pad_type)

    def _chain(self, path: Path, sequential: nnx.Sequential) -> Iterator[tuple[Path, nnx.List, int, Any]]:
        """The layers of a Sequential in order, Sequentials inside it unrolled unless they are also used elsewhere."""
        for i, layer in enumerate(sequential.layers):
            here = (*path, "layers", i)
            if isinstance(layer, nnx.Sequential) and len(self.places[id(layer)]) == 1:
                yield from self._chain(here, layer)
            else:
                yield here, sequential.layers, i, layer

    def _visit_chain(self, chain: list[tuple[Path, nnx.List, int, Any]]) -> None:
        for position, (path, _, _, layer) in enumerate(chain):
            if not isinstance(layer, nnx.Conv) or id(layer) in self.seen:
                continue
            behind = (entry for entry in chain[position + 1 :] if not isinstance(entry[3], KEEPS_PLACE))
            target = next(behind, None)
            if target is None or not is_activation(target[3]):
                continue
            self.seen.add(id(layer))
            if self._accepts(path, layer):
                activation_path, container, index, activation = target
                self._done(path, layer, f"blur after the activation {dotted(activation_path)}")
                container[index] = self._after(activation, _make_dense(layer))

    def _after(self, activation: Any, factors: tuple[int, ...]) -> Any:
        if isinstance(activation, nnx.PReLU):
            return BlurredPReLU(activation, factors, self.filter_size, self.pad_type)
        return BlurAfter(activation, factors, self.filter_size, self.pad_type)

    def _slots_of(self, module: nnx.Module) -> Slots:
        for kind in type(module).__mro__:
            if kind in self.slots:
                return self.slots[kind]
        return getattr(type(module), "antialias_slots", {})

    def _fill_slot(self, path: Path, module: nnx.Module, slot: str, source: str | int) -> None:
        *way, name = slot.split(".")
        owner: Any = functools.reduce(lambda node, key: getattr(node, key, None), way, module)
        if not hasattr(owner, name):
            raise ValueError(f"{type(module).__name__} declares the slot {slot!r} but has no such attribute")
        current = getattr(owner, name)
        if isinstance(current, BLURRED):
            return
        if isinstance(source, int):
            factors = self._pool_slot(path, module, slot, source)
        else:
            factors = self._conv_slot(path, module, slot, source)
        if factors is None:
            return
        here = (*path, *way)
        if way and len(self.places[id(owner)]) > 1:
            shared = " and ".join(self.places[id(owner)])
            raise ValueError(f"{shared} are one module, whose {name} can hold no blur: give each place its own")
        if current is None:
            layer: Any = nn.blur_layer(factors, self.filter_size, self.pad_type)
        elif is_activation(current):
            layer = self._after(current, factors)
        else:
            raise ValueError(
                f"the slot {dotted((*here, name))} holds {current!r}: it must hold None or an activation function; "
                "where a module wraps the function, a dotted slot reaches into it"
            )
        _set(dotted(here), owner, name, layer)

    def _pool_slot(self, path: Path, module: nnx.Module, slot: str, stride: int) -> tuple[int, ...] | None:
        here = dotted((*path, slot))
        if self.where is not None and not self.where(here, module):
            self.changes.append(Change(here, f"pool stride {stride}", "skipped", "left out by `where`"))
            return None
        detail = f"blur in {slot}, where {type(module).__name__} pools"
        self.changes.append(Change(here, f"pool stride {stride}", "antialiased", detail))
        return (stride,) * self.spatial_dims

    def _conv_slot(self, path: Path, module: nnx.Module, slot: str, source: str) -> tuple[int, ...] | None:
        conv = functools.reduce(lambda node, name: getattr(node, name, None), source.split("."), module)
        if not isinstance(conv, nnx.Conv):
            raise ValueError(f"the slot {slot!r} of {type(module).__name__} names {source!r}, which is no nnx.Conv")
        if id(conv) in self.seen:
            return None
        self.seen.add(id(conv))
        here = (*path, *source.split("."))
        if not self._accepts(here, conv):
            return None
        self._done(here, conv, f"blur in {dotted((*path, slot))}, where {type(module).__name__} puts it")
        return _make_dense(conv)

    def _accepts(self, path: Path, conv: nnx.Conv | nnx.ConvTranspose) -> bool:
        """Whether a convolution is to be changed; if not, the report says why."""
        reason = self._objection(dotted(path), conv)
        if reason:
            self._skipped(path, conv, reason)
            return False
        self._check_axes(path, conv, len(kernel_size(conv)))
        places = self.places[id(conv)]
        if len(places) > 1:
            raise ValueError(
                f"{' and '.join(places)} are one layer, whose stride cannot move into two places: give "
                "each its own nnx.Conv (they may share the kernel variable), or leave it out by `where`"
            )
        return True

    def _objection(self, path: str, conv: nnx.Conv | nnx.ConvTranspose) -> str | None:
        if isinstance(conv, nnx.ConvTranspose) or enlarges(conv):
            return self._enlarging(path, conv)
        if max(strides_of(conv)) == 1:
            return STRIDE_1
        if isinstance(conv.conv_general_dilated, BlurredConvolution):
            return "already anti-aliased"
        if conv is self.first:
            return f"reads the image ({conv.in_features} channels); first=True includes it"
        if conv.in_features < self.min_channels:
            return f"fewer than min_channels={self.min_channels} input channels"
        if self.where is not None and not self.where(path, conv):
            return "left out by `where`"
        if type(conv).__call__ is not nnx.Conv.__call__:
            return f"{type(conv).__name__} has a __call__ of its own: declare antialias_slots or use aa_flax.nn.Conv"
        return None

    def _enlarging(self, path: str, conv: nnx.Conv | nnx.ConvTranspose) -> str:
        if isinstance(conv, nnx.ConvTranspose) and max(strides_of(conv)) == 1:
            return STRIDE_1
        advice = "it enlarges: a stride-1 convolution and aa_flax.BlurUpsample before it take its place"
        if self.where is not None and self.where(path, conv):
            raise ValueError(f"{path} ({describe(conv)}) cannot be anti-aliased by a blur behind it: {advice}")
        return advice

    def _check_axes(self, path: Path, layer: Any, axes: int) -> None:
        if axes == self.spatial_dims:
            return
        hint = f"pass spatial_dims={axes} if the whole network works on {axes} axes"
        if axes == 1 and isinstance(layer, nnx.Conv):
            size = layer.kernel_size[0]
            hint = f"nnx.Conv takes kernel_size={size} for one axis, write {(size, size)} for images; {hint}"
        raise ValueError(f"{dotted(path)} ({describe(layer)}) works on {axes} axes, not {self.spatial_dims}: {hint}")

    def _done(self, path: Path, layer: Any, detail: str) -> None:
        self.changes.append(Change(dotted(path), describe(layer), "antialiased", detail))

    def _skipped(self, path: Path, layer: Any, detail: str) -> None:
        self.changes.append(Change(dotted(path), describe(layer), "skipped", detail))


def _edges(path: Path, node: Any, seen: set[int]) -> Iterator[tuple[Path, Any]]:
    """Every module at every path, and every slot of a module; what a module holds is listed once."""
    yield path, node
    if isinstance(node, nnx.Module):
        if id(node) in seen:
            return
        seen.add(id(node))
    for key, child in children(node):
        yield from _edges((*path, key), child, seen)


def _make_dense(conv: nnx.Conv) -> tuple[int, ...]:
    """Takes from a convolution the part of its stride that a blur elsewhere takes over, which is returned."""
    strides = strides_of(conv)
    kept, factors = zip(*map(split_stride, strides), strict=True)
    if isinstance(conv.padding, str) and conv.padding.startswith("SAME"):
        hook = BlurredConvolution(None, strides=strides, function=conv.conv_general_dilated)
        conv.conv_general_dilated = hook
    conv.strides = kept[0] if isinstance(conv.strides, int) else kept
    return factors


def _set(path: str, module: nnx.Module, key: str, value: Any) -> None:
    try:
        setattr(module, key, nnx.data(value) if isinstance(value, nnx.Module) else value)
    except dataclasses.FrozenInstanceError as error:
        raise ValueError(
            f"{path or 'the model'} is a frozen dataclass, its {key} cannot be replaced: drop frozen=True, or build it "
            "with aa_flax.nn's layers"
        ) from error
