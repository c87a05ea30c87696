"""What was asked of the surgery, and what is known of the network before it."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from flax import nnx

from aa_flax.downsample import Downsample, method
from aa_flax.surgery.kinds import Path, children, enlarges, is_circular, kernel_size
from aa_flax.tracing.flow import Flow
from aa_flax.tracing.program import TracedProgram, dotted

Slots = Mapping[str, str | int]
Place = Literal["activation", "before", "after"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The arguments of `aa_flax.antialias`, which says what each means."""

    filter_size: int
    pad_type: str | None
    where: Callable[[str, Any], bool] | None
    first: bool
    min_channels: int
    spatial_dims: int
    slots: Mapping[type, Slots]
    replace: Mapping[type, Callable[[Any], Any]]
    place: Place
    downsample: str | Callable[[int | None, tuple[int, ...]], Downsample]
    rngs: nnx.Rngs | None

    @property
    def needs_channels(self) -> bool:
        """Whether the layers that subsample have parameters, so that they depend on the channels of their map."""
        return isinstance(self.downsample, str) and method(self.downsample).layer.has_parameters

    def declines(self, path: str, layer: Any) -> bool:
        return self.where is not None and not self.where(path, layer)

    def slots_of(self, module: nnx.Module) -> Slots:
        given = _of_class(self.slots, module)
        return getattr(type(module), "antialias_slots", {}) if given is None else given

    def replacement_of(self, module: Any) -> Callable[[Any], Any] | None:
        return _of_class(self.replace, module)


def _of_class(table: Mapping[type, Any], thing: Any) -> Any:
    return next((table[kind] for kind in type(thing).__mro__ if kind in table), None)


class Survey:
    """The order of a network's layers, every path of each, and the convolutions that read its input.

    Attributes:
        places: the dotted paths of each module, by its identity.
        circular: whether every convolution that sees neighbours lets the map go on at its other side.
        calls: for each module its calls on the example; nothing without one.
        flow: the way that the example takes, or None.
    """

    def __init__(self, model: nnx.Module, copy: nnx.Module, program: TracedProgram | None):
        # Copying sorts the attributes: the order they were made in is only known to the network itself.
        self.order = {dotted(path): i for i, (path, _) in enumerate(edges((), model, set()))}
        self.places: dict[int, list[str]] = {}
        self.kinds: set[type] = set()
        self._modules: dict[str, nnx.Module] = {}
        self.calls = {} if program is None else program.calls
        self.flow = None if program is None else Flow(program)
        convs: dict[str, nnx.Conv] = {}
        for path, module in edges((), copy, set()):
            self.places.setdefault(id(module), []).append(dotted(path))
            self.kinds.update(type(module).__mro__)
            if isinstance(module, nnx.Module):
                self._modules[dotted(path)] = module
            if isinstance(module, nnx.Conv):
                convs.setdefault(dotted(path), module)
        windows = {path: conv for path, conv in convs.items() if max(kernel_size(conv)) > 1}
        self.circular = bool(windows) and all(map(is_circular, windows.values()))
        self._readers = {id(conv) for conv in self._find_readers(convs, windows)}

    def rank(self, path: str) -> int:
        return self.order.get(path, len(self.order))

    def reads_input(self, conv: nnx.Conv) -> bool:
        return id(conv) in self._readers

    def behind_activation(self, path: str) -> tuple[str, nnx.Module] | None:
        """Path and module that alone take what an activation makes of a layer's output, where the example shows it."""
        target = None if self.flow is None else self.flow.behind_activation(path)
        module = self._modules.get(target or "")
        if not target or module is None or len(self.places[id(module)]) > 1:
            return None
        return target, module

    def _find_readers(self, convs: dict[str, nnx.Conv], windows: dict[str, nnx.Conv]) -> list[nnx.Conv]:
        if self.flow is not None:
            readers = self.flow.readers()
            return [conv for path, conv in convs.items() if path in readers]
        # Without an input this is a guess. Pictures have the fewest channels, and a map of three or fewer is one:
        # networks of several inputs have several. A 1x1 window rather belongs to a squeeze.
        seen = sorted((c.in_features, self.rank(path), path) for path, c in windows.items() if not enlarges(c))
        return [windows[path] for i, (channels, _, path) in enumerate(seen) if i == 0 or channels <= 3]


def edges(path: Path, node: Any, seen: set[int]) -> Iterator[tuple[Path, Any]]:
    """Every module at every path, and every slot of a module; what a module holds is listed once."""
    yield path, node
    if isinstance(node, nnx.Module):
        if id(node) in seen:
            return
        seen.add(id(node))
    for key, child in children(node):
        yield from edges((*path, key), child, seen)
