"""Tables of what was compiled."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from benchmarks.report import table
from benchmarks.tpu.compiled import PARTS
from benchmarks.tpu.programs import Program
from benchmarks.tpu.results import Results

ESTIMATES = "Estimates of the TPU compiler: nothing was run, and cycles are no times."


def page(programs: Iterable[Program], results: Results, before: Results | None = None) -> str:
    """All tables of the programs that have a result.

    Args:
        programs: which, in this order.
        results: theirs.
        before: of the same programs earlier, to be compared with.
    """
    lines = {program: results.lines[program] for program in programs if program in results.lines}
    compiled = {program: line for program, line in lines.items() if line["error"] is None}
    tables = {
        "Programs": [_program(program, line) for program, line in lines.items()],
        "Estimated cycles by part, in millions": [_cycles(*pair) for pair in compiled.items()],
        "Ratios of estimated cycles": _ratios(compiled, before),
        "What chips exchange": [row for pair in compiled.items() for row in _exchanged(*pair)],
    }
    parts = ["# tpu", *sorted({_versions(line) for line in lines.values()})]
    for title, rows in tables.items():
        if rows:
            parts += [f"## {title}", ESTIMATES, table(rows)]
    parts += [f"{program}: {line['error']}" for program, line in lines.items() if line["error"] is not None]
    return "\n\n".join(parts)


def _versions(line: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in line["versions"].items())


def _named(program: Program) -> dict[str, Any]:
    group = {} if program.bn_group is None else {"BN group": program.bn_group}
    return {"topology": program.topology, "name": program.name, "form": program.form, "work": program.work} | group


def held_bytes(line: dict[str, Any]) -> int:
    """Bytes of a chip that a program needs."""
    memory = line["memory"]
    kept = memory["arguments"] + memory["results"] - memory["shared"]
    return kept + memory["temporary"] + memory["code"]


def largest_batch(program: Program, line: dict[str, Any]) -> int:
    """Images that would fit a chip: code and state stay, and all else grows with the batch.

    Buffers of the size of the weights are among what is taken to grow, so that this is rather too few.
    """
    fixed = line["memory"]["fixed"] + line["memory"]["code"]
    each = (held_bytes(line) - fixed) / program.batch
    return int((program.chip_bytes - fixed) / each)


def cycles(line: dict[str, Any]) -> int:
    """The sum over all kernels."""
    return sum(line["cycles"].values())


def _program(program: Program, line: dict[str, Any]) -> dict[str, Any]:
    row = _named(program) | {"images a chip": program.batch}
    if line["error"] is not None:
        return row | {"compiled": "no"}
    return row | {
        "compiled": "yes",
        "GiB a chip": held_bytes(line) / 2**30,
        "of": program.chip_bytes >> 30,
        "largest batch a chip": None if program.part else largest_batch(program, line),
        "GFLOP": line["flops"] / 1e9,
        "GB": line["bytes"] / 1e9,
        "M cycles": cycles(line) / 1e6,
        "kernels": line["kernels"],
        "compile s": line["seconds"],
        "processor s": line["processor_seconds"],
    }


def _cycles(program: Program, line: dict[str, Any]) -> dict[str, Any]:
    millions = {part: line["cycles"][part] / 1e6 for part in PARTS}
    return _named(program) | millions | {"sum": cycles(line) / 1e6}


def _ratios(compiled: dict[Program, dict[str, Any]], before: Results | None) -> list[dict[str, Any]]:
    rows = []
    for program, line in compiled.items():
        if program.form != "antialiased":
            continue
        plain, obvious = (compiled.get(dataclasses.replace(program, form=form)) for form in ("plain", "obvious"))
        row = _named(program) | {
            "anti-aliased / plain": plain and cycles(line) / cycles(plain),
            "operations": plain and line["gigaoperations"] and line["gigaoperations"] / plain["gigaoperations"],
            "obvious / anti-aliased": obvious and cycles(obvious) / cycles(line),
        }
        if before is not None:
            earlier = before.lines.get(program, {"error": "missing"})
            row["before / now"] = None if earlier["error"] is not None else cycles(earlier) / cycles(line)
        rows.append(row)
    return rows


def _exchanged(program: Program, line: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for operation, found in line["collectives"].items():
        sizes = {f"MB {kind}": size / 1e6 for kind, size in sorted(found["bytes"].items())}
        rows.append(_named(program) | {"operation": operation, "number": found["count"]} | sizes)
    return rows
