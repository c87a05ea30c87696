"""`python -m benchmarks tpu`: which programs there are, which are missing, and what became of them."""

import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from aa_flax.files import write_atomically
from benchmarks.options import NINE
from benchmarks.tpu.compiler import Compiler, require_libtpu, versions
from benchmarks.tpu.programs import Form, Program, Work, check_topology
from benchmarks.tpu.results import Results
from benchmarks.tpu.tables import cycles, page
from train.environment import git_revision

KEPT = Path("docs/results/tpu.jsonl")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Compiles networks for TPUs with the TPU's own compiler, on any machine; runs nothing.

    A whole update takes minutes. What is compiled is kept, and the same command compiles what is missing. Exit code 1
    if anything does not compile.
    """

    names: tuple[str, ...] = ()
    """Networks, by default the nine of the paper; with --parts: blur, stem, block (the default), pool, transition or
    inverted."""

    parts: bool = False
    """Parts of the networks in place of networks. They are compiled anew each time."""

    topology: tuple[str, ...] = ()
    """Generation and chips of the slice, such as v5e:2x2, v5p:2x2x1 or v6e:16x16; by default v5e:2x2, with --parts
    v6e:2x2 as well."""

    work: tuple[Work, ...] = ()
    """Of networks forward (inference) and update, the trainer's; of parts forward and backward, which is result and
    gradients. Both by default."""

    forms: tuple[Form, ...] = ("plain", "antialiased", "obvious")
    """obvious: anti-aliased with a depthwise convolution as the blur."""

    filter_size: int = 4
    """Taps of the blurs."""

    batch: int = 64
    """Images a chip."""

    image_size: int = 224
    """Height and width of the networks' images."""

    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of the computation."""

    bn_group: int | None = None
    """Images over which BatchNorm takes its statistics in updates, see `python -m train fit --help`."""

    results: Path = KEPT
    """What was compiled, a line of JSON for each network's program."""

    beside: Path | None = None
    """Results of other code, to be compared with."""

    again: bool = False
    """Trace what is there already too, and compile what has changed."""

    dry_run: bool = False
    """List what is missing and compile nothing."""

    output: Path = Path("out/benchmarks")
    """Folder of the tables, tpu.md and tpu.json."""

    texts: Path | None = None
    """Folder for the text of each compiled program."""

    smoke: bool = False
    """A blur, forward."""


def run(config: Config) -> int:
    """Compiles what is missing; see `Config`."""
    if config.smoke:
        config = dataclasses.replace(config, parts=True, names=("blur",), work=("forward",), batch=1)
    programs = list(wanted(config))
    results = Results(None if config.parts else config.results)
    before = None if config.beside is None else Results(config.beside)
    missing = [program for program in programs if config.again or program not in results.lines]
    if config.dry_run:
        print(*missing, f"{len(missing)} of {len(programs)} programs are missing", sep="\n")
        return 0
    if missing:
        require_libtpu()
        # Now: the compiler's process keeps the code that it starts with, whatever is changed meanwhile.
        revision = git_revision()
        with Compiler(config.texts) as compiler:
            for number, program in enumerate(missing, 1):
                print(f"{number} of {len(missing)}: {program}", file=sys.stderr, flush=True)
                _compile(program, compiler, results, revision)
                _write(config, programs, results, before)
    print(_write(config, programs, results, before))
    return 1 if any(results.lines[program]["error"] for program in programs) else 0


def wanted(config: Config) -> Iterator[Program]:
    """The programs that a command line asks for, the quick ones first.

    Raises:
        ValueError: there is no such topology, network or part.
    """
    for topology in (topologies := config.topology or (("v5e:2x2", "v6e:2x2") if config.parts else ("v5e:2x2",))):
        check_topology(topology)
    names = config.names or (("blur", "stem", "block") if config.parts else NINE)
    known: tuple[Work, ...] = ("forward", "backward") if config.parts else ("forward", "update")
    works = config.work or known
    if unknown := set(works) - set(known):
        where = "with" if config.parts else "without"
        raise ValueError(f"--work {min(unknown)} is none of {', '.join(known)} {where} --parts")
    _check_names(names, parts=config.parts)
    for work, topology, name, form in itertools.product(works, topologies, names, config.forms):
        if config.parts and name == "blur" and form == "plain":
            continue
        yield Program(
            topology=topology,
            work=work,
            name=name,
            form=form,
            part=config.parts,
            filter_size=config.filter_size,
            batch=config.batch,
            image_size=config.image_size,
            dtype=config.dtype,
            bn_group=config.bn_group if work == "update" else None,
        )


def _check_names(names: tuple[str, ...], *, parts: bool) -> None:
    from aa_flax.models.registry import MODELS
    from benchmarks.tpu.parts import PARTS

    known = PARTS if parts else MODELS
    for name in names:
        if name not in known:
            what = f"parts: {', '.join(PARTS)}" if parts else "networks: see aa_flax.list_models()"
            raise ValueError(f"--names {name} is none of the {what}")


def _compile(program: Program, compiler: Compiler, results: Results, revision: str | None) -> None:
    kept: dict[str, Any] = results.lines.get(program, {})
    here = versions()
    known = kept.get("digest") if kept.get("versions") == here else None
    start = time.monotonic()
    found = compiler.compile(program, known)
    if found == {"digest": known}:
        print("  unchanged", file=sys.stderr, flush=True)
        return
    line = {"program": dataclasses.asdict(program), "versions": here, "revision": revision} | found
    results.add(program, line)
    said = line["error"] or f"{cycles(line) / 1e6:.2f} M estimated cycles"
    print(f"  {said}, {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)


def _write(config: Config, programs: list[Program], results: Results, before: Results | None) -> str:
    """Saves the tables so far; a reader never sees half of one."""
    text = page(programs, results, before)
    lines = [results.lines[program] for program in programs if program in results.lines]
    for suffix, content in ((".md", text), (".json", json.dumps(lines, indent=1))):
        write_atomically(config.output / f"tpu{suffix}", f"{content}\n".encode())
    return text
