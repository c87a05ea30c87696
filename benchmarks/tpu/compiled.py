"""What a program's text says that the TPU compiler has made: kernels with their estimated cycles, and collectives."""

import collections
import dataclasses
import re
from collections.abc import Iterator
from typing import Any

PARTS = ("convolutions", "blur", "maximum", "BatchNorm", "copies", "rest")
# The layers' own scopes, see `jax.named_scope`.
_SCOPES = {"blur": "blur", "maximum": "maximum", "batch_norm": "BatchNorm"}
_PRODUCTS = ("conv_general_dilated", "dot_general")
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BITS = re.compile(r"\d+")

_COMPUTATION = re.compile(r"(ENTRY )?%(\S+) \(.*\{$")
# The type may be a tuple, with layouts such as {1,0:T(8,128)}; what is called begins with a small letter.
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%(\S+) = (.*?) ([a-z][\w-]*)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_CALLS = re.compile(r"calls=%([^\s,]+)")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of the text.

    Attributes:
        name: its own.
        type: what it gives.
        opcode: what it does.
        rest: operands and attributes.
    """

    name: str
    type: str
    opcode: str
    rest: str

    @property
    def op_name(self) -> str:
        """Where it comes from in the traced program: scopes and primitive."""
        found = _OP_NAME.search(self.rest)
        return found[1] if found else ""

    @property
    def cycles(self) -> int | None:
        """The compiler's estimate; None where it has none."""
        found = _CYCLES.search(self.rest)
        return int(found[1]) if found else None

    @property
    def called(self) -> str | None:
        """The computation that it fuses."""
        found = _CALLS.search(self.rest)
        return found[1] if found else None


def computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """The instructions of each computation, and the name of the one that is entered.

    Raises:
        ValueError: the text is no compiled program.
    """
    found: dict[str, list[Instruction]] = {}
    entry = current = None
    for line in text.splitlines():
        if opening := _COMPUTATION.match(line):
            current = opening[2]
            found[current] = []
            entry = current if opening[1] else entry
        elif current is not None and (instruction := _INSTRUCTION.match(line)):
            found[current].append(Instruction(*instruction.groups()))
    if entry is None:
        raise ValueError("the compiled text has no ENTRY computation")
    return found, entry


def _products(instruction: Instruction, all_of: dict[str, list[Instruction]]) -> Iterator[Instruction]:
    """The convolutions and products in a kernel; the TPU compiler writes both as convolutions."""
    if instruction.opcode in ("convolution", "dot"):
        yield instruction
    elif instruction.called in all_of:
        for inner in all_of[instruction.called]:
            yield from _products(inner, all_of)


def part_of(kernel: Instruction, all_of: dict[str, list[Instruction]]) -> str:
    """Which of `PARTS` a kernel counts to, whole.

    One with a product in it counts to the product, whatever else was fused with it; the others by their root.
    """
    scopes = [product.op_name for product in _products(kernel, all_of)]
    if scopes:
        return "blur" if all(_scope(name) == "blur" for name in scopes) else "convolutions"
    if kernel.opcode in ("copy", "copy-start", "copy-done", "transpose"):
        return "copies"
    if scope := _scope(kernel.op_name):
        return scope
    # What only lays out a map for a convolution is named after it.
    return "convolutions" if kernel.op_name.endswith(_PRODUCTS) else "rest"


def _scope(op_name: str) -> str | None:
    """The part of the innermost scope that has one."""
    found = re.findall(rf"\b({'|'.join(_SCOPES)})\b", op_name)
    return _SCOPES[found[-1]] if found else None


def kernels(text: str) -> list[dict[str, Any]]:
    """The kernels of the entered computation for which the compiler has an estimate, the most expensive first.

    Returns:
        Of each its `name`, `part`, `op_name`, `shape` and `cycles`.
    """
    all_of, entry = computations(text)
    found = [
        {
            "name": one.name,
            "part": part_of(one, all_of),
            "op_name": one.op_name,
            "shape": " ".join(f"{kind}[{sizes}]" for kind, sizes in _ARRAY.findall(one.type)),
            "cycles": one.cycles,
        }
        for one in all_of[entry]
        if one.cycles is not None
    ]
    return sorted(found, key=lambda kernel: -kernel["cycles"])


def without_estimate(text: str) -> dict[str, int]:
    """How many kernels of the entered computation have no estimate, by what they do."""
    all_of, entry = computations(text)
    working = ("fusion", "convolution", "custom-call", "copy", *_COLLECTIVES)
    return dict(collections.Counter(one.opcode for one in all_of[entry] if one.opcode in working and not one.cycles))


def cycles_by_part(found: list[dict[str, Any]]) -> dict[str, int]:
    """The sum of the estimates of `kernels` for each of `PARTS`."""
    sums: dict[str, int] = dict.fromkeys(PARTS, 0)
    for kernel in found:
        sums[kernel["part"]] += kernel["cycles"]
    return sums


def collectives(text: str) -> dict[str, dict[str, Any]]:
    """What chips exchange: for each operation how often it occurs, and bytes a chip by type of number.

    One that is started and awaited apart counts once.
    """
    found: dict[str, dict[str, Any]] = {}
    for instructions in computations(text)[0].values():
        for one in instructions:
            name = one.opcode.removesuffix("-done")  # what starts one gives its operands as well
            if name not in _COLLECTIVES:
                continue
            row = found.setdefault(name, {"count": 0, "bytes": {}})
            row["count"] += 1
            for kind, sizes in _ARRAY.findall(one.type):
                row["bytes"][kind] = row["bytes"].get(kind, 0) + _bytes(kind, sizes)
    return found


def _bytes(kind: str, sizes: str) -> int:
    bits = _BITS.search(kind)
    count = 1
    for size in filter(None, sizes.split(",")):
        count *= int(size)
    return count * (int(bits[0]) if bits else 8) // 8
