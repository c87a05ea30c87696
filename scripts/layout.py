"""The layout of the packages: rooms, floors and arrows, by their imports.

    python -m scripts.layout                        # aa_flax and train
    python -m scripts.layout aa_flax.weights        # the rooms of one package
    python -m scripts.layout train --depth 2        # modules in place of packages

A room is a module, or a package with all it holds; an arrow from one room to another is one or more imports, those
inside functions included. A room's floor is the length of the longest chain of arrows below it. Rooms that import each
other in a circle share a floor: no order of theirs makes all arrows point down.
"""

import argparse
from collections import defaultdict
from dataclasses import dataclass

import grimp


@dataclass(frozen=True)
class Layout:
    """A package by its rooms, named without the package; its own `__init__` is a room where it takes part."""

    package: str
    floors: dict[str, int]
    arrows: set[tuple[str, str]]
    circling: set[tuple[str, str]]

    def row(self) -> tuple[str, ...]:
        numbers = len(self.floors), max(self.floors.values()) + 1, len(self.arrows), len(self.circling)
        return (self.package, *map(str, numbers))

    def plan(self) -> str:
        """The rooms of every floor, the highest first, and every arrow in a circle."""
        rooms = defaultdict(list)
        for room, floor in self.floors.items():
            rooms[floor].append(room)
        lines = [f"{floor:>4}  {', '.join(sorted(rooms[floor]))}" for floor in sorted(rooms, reverse=True)]
        return "\n".join([self.package, *lines, *(f"      circle: {a} -> {b}" for a, b in sorted(self.circling))])


def layout(package: str, depth: int = 1) -> Layout:
    """Read the layout of `package` (its name) from the imports in its files, `depth` names below it."""
    graph = grimp.build_graph(package.partition(".")[0], cache_dir=None)
    inside = sorted(module for module in graph.modules if (module + ".").startswith(package + "."))
    if depth < 1 or not inside:
        raise ValueError(f"no package {package!r} with names {depth} below it")
    levels = package.count(".") + depth
    for module in inside:
        if module.count(".") == levels:
            graph.squash_module(module)
    named = {module: module.removeprefix(package + ".") for module in inside if module in graph.modules}
    below = {
        name: {named[other] for other in graph.find_modules_directly_imported_by(room) if other in named} - {name}
        for room, name in named.items()
    }
    arrows = {(room, other) for room, others in below.items() for other in others}
    if not any(package in arrow for arrow in arrows):
        below.pop(package)
    reached = {room: _reach(room, below) for room in below}
    circling = {(room, other) for room, other in arrows if room in reached[other]}
    floors = {room: _floor(room, below, reached) for room in below}
    return Layout(package, floors, arrows, circling)


def _reach(start: str, below: dict[str, set[str]]) -> set[str]:
    reached, new = set(), {start}
    while new:
        new = set().union(*(below[room] for room in new)) - reached
        reached |= new
    return reached


def _floor(room: str, below: dict[str, set[str]], reached: dict[str, set[str]]) -> int:
    circle = {other for other in reached[room] if room in reached[other]} | {room}
    under = set().union(*(below[each] for each in circle)) - circle
    return 1 + max((_floor(other, below, reached) for other in under), default=-1)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.layout", description="Rooms, floors, arrows and circles.")
    parser.add_argument("packages", nargs="*", default=["aa_flax", "train"])
    parser.add_argument("--depth", type=int, default=1, help="names below the package that make a room")
    options = parser.parse_args()
    try:
        layouts = [layout(package, options.depth) for package in options.packages]
    except ValueError as error:
        parser.error(str(error))
    table = [("package", "rooms", "floors", "arrows", "in circles"), *(each.row() for each in layouts)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for name, *numbers in table:
        print("  ".join([name.ljust(widths[0]), *map(str.rjust, numbers, widths[1:])]))
    for each in layouts:
        print("", each.plan(), sep="\n")


if __name__ == "__main__":
    main()
