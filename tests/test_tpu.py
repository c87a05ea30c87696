"""What is read out of the text of a program for TPUs, and the queue around it. Nothing here needs the TPU compiler."""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import pytest

from benchmarks.__main__ import main
from benchmarks.tpu import command, lowering
from benchmarks.tpu.compiled import (
    PARTS,
    Instruction,
    collectives,
    computations,
    cycles_by_part,
    kernels,
    part_of,
    without_estimate,
)
from benchmarks.tpu.compiler import Compiler, require_libtpu
from benchmarks.tpu.programs import Program, check_topology
from benchmarks.tpu.results import Results
from benchmarks.tpu.tables import held_bytes, largest_batch, page
from train.fit.distributed import Placement

FORWARD = Program(topology="v5e:2x2", work="forward", name="resnet18", form="antialiased")
LINE = {
    "digest": "d",
    "error": None,
    "seconds": 2.0,
    "processor_seconds": 3.0,
    "chips": 4,
    "memory": {"fixed": 100, "arguments": 740, "results": 20, "shared": 10, "temporary": 640, "code": 50},
    "flops": 2e9,
    "bytes": 1e9,
    "gigaoperations": 4.0,
    "kernels": 3,
    "without_estimate": {},
    "cycles": dict.fromkeys(PARTS, 1_000_000),
    "collectives": {"all-reduce": {"count": 2, "bytes": {"f32": 3_000_000}}},
    "slowest": [],
}


@pytest.fixture(scope="module")
def text() -> str:
    """A part of what libtpu 0.0.42.1 made of ResNet's block, forward and backward on v5e:2x2."""
    return (Path(__file__).parent / "data/tpu_block.txt").read_text(encoding="utf-8")


def test_kernels_of_a_real_program(text):
    found = kernels(text)
    assert [(one["name"], one["part"], one["cycles"]) for one in found] == [
        ("broadcast_maximum_fusion", "rest", 34828),
        ("fusion.24", "convolutions", 32319),
        ("pad_bitcast_fusion", "convolutions", 27140),
        ("fusion.5", "BatchNorm", 26358),
        ("copy.48", "copies", 22581),
        ("fusion.96", "blur", 12736),
    ]
    assert found[1]["op_name"] == "jit(backward)/jvp()/conv_general_dilated"
    assert found[1]["shape"] == "f32[56,32,8,128]"
    sums = cycles_by_part(found)
    assert tuple(sums) == PARTS
    assert (sums["convolutions"], sums["maximum"], sum(sums.values())) == (32319 + 27140, 0, 155962)
    assert without_estimate(text) == {"custom-call": 1, "all-reduce": 2}


def test_collectives_of_a_real_program(text):
    # The statistics of one BatchNorm, and the gradients of three kernels in bfloat16.
    kernels_of_block = 3 * 3 * 64 * 128 + 3 * 3 * 128 * 128 + 64 * 128
    sizes = {"f32": 2 * 128 * 4, "bf16": 2 * kernels_of_block}
    assert collectives(text) == {"all-reduce": {"count": 2, "bytes": sizes}}


def test_a_line_is_read_whatever_its_type():
    line = "  ROOT %fusion.4 = (bf16[8,4]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/f32[]{:T(128)}) fusion(%a), calls=%fused.2"
    (one,) = computations("ENTRY %main (a: bf16[8,4]) -> bf16[8,4] {\n" + line + "\n}")[0]["main"]
    assert (one.name, one.opcode, one.called, one.cycles) == ("fusion.4", "fusion", "fused.2", None)
    assert one.type.startswith("(bf16[8,4]")
    assert one.type.endswith("{:T(128)})")


@pytest.mark.parametrize(
    ("op_name", "part"),
    [
        ("jit(one)/jvp(maximum)/select_n", "maximum"),
        ("jit(one)/transpose(jvp(batch_norm))/reduce_sum", "BatchNorm"),
        ("jit(one)/maximum/blur/pad", "blur"),
        ("jit(one)/jvp(jit(relu))/max", "rest"),
        ("jit(one)/blurred/maximum_of/add", "rest"),
        ("jit(one)/transpose(jvp())/conv_general_dilated", "convolutions"),
        ("jit(one)/jvp(blur)/dot_general", "blur"),
        ("", "rest"),
    ],
)
def test_the_innermost_scope_decides(op_name, part):
    kernel = Instruction("fusion", "f32[2]", "fusion", f'%a), metadata={{op_name="{op_name}"}}')
    assert part_of(kernel, {}) == part


def test_a_program_without_an_entry_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        computations("HloModule nothing")


def test_all_reduces_that_are_awaited_count_once():
    lines = [
        "%all-reduce-start.1 = (f32[64]{0}, bf16[3,3,64,64]{3,2,1,0}) all-reduce-start(%a, %b), to_apply=%add",
        "%all-reduce-done.1 = (f32[64]{0}, bf16[3,3,64,64]{3,2,1,0}) all-reduce-done(%all-reduce-start.1)",
        "%all-reduce.2 = f32[]{:T(128)} all-reduce(%c), to_apply=%add",
    ]
    text = "ENTRY %main (a: f32[64]) -> f32[64] {\n  " + "\n  ".join(lines) + "\n}"
    assert collectives(text) == {"all-reduce": {"count": 2, "bytes": {"f32": 64 * 4 + 4, "bf16": 3 * 3 * 64 * 64 * 2}}}


def test_topologies():
    for name in ("v5e:2x2", "v5p:2x2x1", "v6e:16x16"):
        check_topology(name)
    for name in ("v5e", "v5:2x2", "v5e:4", "v5e:2x2x", "tpu"):
        with pytest.raises(ValueError, match=f"--topology {name} must be"):
            check_topology(name)


def test_the_largest_batch_keeps_code_and_state():
    # 64 images need 1440 - 150 bytes besides what stays.
    assert held_bytes(LINE) == 1440
    assert largest_batch(FORWARD, LINE) == int(((16 << 30) - 150) / (1290 / 64))


class Scripted:
    """A compiler that answers from a table, by form, and counts."""

    def __init__(self, answers):
        self.answers, self.asked = answers, []

    def __call__(self, texts):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def compile(self, program, known):
        self.asked.append((program.form, known))
        answer = self.answers[program.form]
        if isinstance(answer, BaseException):
            raise answer
        return {"digest": known} if known and known == answer.get("digest") else answer


@pytest.fixture
def scripted(monkeypatch):
    compiler = Scripted({"plain": LINE, "antialiased": LINE | {"digest": "e"}, "obvious": {"error": "out of memory"}})
    monkeypatch.setattr(command, "Compiler", compiler)
    monkeypatch.setattr(command, "require_libtpu", lambda: None)
    monkeypatch.setattr(command, "versions", lambda: {"jax": "1", "libtpu": "2"})
    return compiler


def _call(tmp_path, *words):
    options = ["--names", "resnet18", "--work", "forward", "--results", str(tmp_path / "kept.jsonl")]
    return main(["tpu", *options, "--output", str(tmp_path), *words])


def test_a_run_that_was_ended_goes_on(scripted, tmp_path, capsys):
    answer, scripted.answers["antialiased"] = scripted.answers["antialiased"], KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        _call(tmp_path)
    assert _call(tmp_path, "--dry-run") == 0
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "v5e:2x2 forward resnet18 antialiased",
        "v5e:2x2 forward resnet18 obvious",
        "2 of 3 programs are missing",
    ]
    scripted.answers["antialiased"], scripted.asked = answer, []
    assert _call(tmp_path) == 1  # one does not compile
    assert scripted.asked == [("antialiased", None), ("obvious", None)]
    assert [json.loads(line)["program"]["form"] for line in (tmp_path / "kept.jsonl").read_text().splitlines()] == [
        "plain",
        "antialiased",
        "obvious",
    ]
    shown = capsys.readouterr().out
    assert shown == (tmp_path / "tpu.md").read_text()
    assert "v5e:2x2 forward resnet18 obvious: out of memory" in shown
    assert len(json.loads((tmp_path / "tpu.json").read_text())) == 3


def test_again_compiles_what_has_changed(scripted, tmp_path):
    forms = ("--forms", "plain", "antialiased")
    assert _call(tmp_path, *forms) == 0
    scripted.answers["antialiased"], scripted.asked = LINE | {"digest": "f", "flops": 8e9}, []
    assert _call(tmp_path, *forms) == 0
    assert scripted.asked == []
    assert _call(tmp_path, *forms, "--again") == 0
    assert scripted.asked == [("plain", "d"), ("antialiased", "e")]
    lines = Results(tmp_path / "kept.jsonl").lines
    assert {program.form: line["flops"] for program, line in lines.items()} == {"plain": 2e9, "antialiased": 8e9}


def test_another_compiler_is_asked_again(scripted, tmp_path, monkeypatch):
    _call(tmp_path, "--forms", "plain")
    monkeypatch.setattr(command, "versions", lambda: {"jax": "1", "libtpu": "3"})
    _call(tmp_path, "--forms", "plain", "--again")
    assert scripted.asked == [("plain", None), ("plain", None)]


def test_parts_are_compiled_anew_and_kept_nowhere(scripted, tmp_path):
    words = ("--parts", "--names", "blur", "stem", "--work", "forward", "backward", "--forms", "plain", "antialiased")
    for _ in range(2):
        assert _call(tmp_path, *words) == 0
    # A blur has no plain form; two topologies, forward and backward.
    assert len(scripted.asked) == 2 * (2 + 1) * 2 * 2
    assert not (tmp_path / "kept.jsonl").exists()


def test_tables_say_what_they_are_and_compare(tmp_path):
    results, before = Results(None), Results(None)
    half = LINE | {"cycles": dict.fromkeys(PARTS, 500_000), "gigaoperations": 2.0}
    results.add(FORWARD, LINE)
    results.add(plain := dataclasses.replace(FORWARD, form="plain"), half)
    before.add(FORWARD, LINE | {"cycles": dict.fromkeys(PARTS, 3_000_000)})
    for line in (*results.lines.values(), *before.lines.values()):
        line["versions"] = {"libtpu": "2"}
    shown = page([FORWARD, plain], results, before).split("\n## ")
    assert len(shown) == 5
    assert all(part.splitlines()[2].startswith("Estimates of the TPU compiler: nothing was run") for part in shown[1:])
    (ratios,) = (part for part in shown if part.startswith("Ratios"))
    assert [cell.strip() for cell in ratios.splitlines()[6].split("|")[5:9]] == ["2", "2", "-", "3"]
    (exchanged,) = (part for part in shown if part.startswith("What chips"))
    assert exchanged.splitlines()[6].endswith("| all-reduce | 2 | 3 |")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--names", "resnet5"], "--names resnet5 is none of the networks"),
        (["--parts", "--names", "resnet18"], "--names resnet18 is none of the parts: blur, stem"),
        (["--work", "backward"], "--work backward is none of forward, update without --parts"),
        (["--topology", "v9:2"], "--topology v9:2 must be a generation (v4, v5e, v5p, v6e)"),
    ],
)
def test_bad_input_is_one_line(words, message, tmp_path, capsys):
    assert main(["tpu", *words, "--output", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_a_file_of_something_else_is_refused(tmp_path, capsys):
    (tmp_path / "kept.jsonl").write_text('{"program": {"topology": "v5e:2x2"}}\n')
    assert _call(tmp_path) == 2
    assert "kept.jsonl: line 1 is no result of this benchmark" in capsys.readouterr().err


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="libtpu, is not installed: run make tpu"):
        require_libtpu()


def test_an_error_belongs_to_its_program():
    nothing = dataclasses.replace(FORWARD, topology="nowhere:2x2")
    with Compiler() as compiler:
        answers = [compiler.compile(nothing) for _ in range(2)]
    assert all(set(answer) == {"error"} and "\n" not in answer["error"] for answer in answers)


def test_a_compiler_that_ends_is_started_again(monkeypatch, tmp_path):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho check failed >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    with Compiler() as compiler:
        for _ in range(2):
            assert compiler.compile(FORWARD) == {"error": "the compiler ended with code 3: check failed"}


def test_the_update_is_the_trainers():
    program = dataclasses.replace(FORWARD, work="update", name="alexnet", batch=2, image_size=64)
    placement = Placement.of_all_devices()
    lowered, fixed = lowering.lower(program, placement)
    (_, state, batch), _ = lowered.in_avals
    assert {name: array.shape for name, array in batch.items()} == {"image": (16, 64, 64, 3), "label": (16,)}
    assert batch["image"].dtype == "uint8"
    assert all(array.dtype == "float32" for array in jax.tree.leaves(state.params))
    # Weights and their momenta; two counters are less than the rest.
    assert 0 < fixed - 2 * 4 * sum(x.size for x in jax.tree.leaves(state.params)) < 64
    assert "bf16" in lowered.as_text()


@pytest.mark.parametrize("name", ["stem", "block", "transition", "inverted"])
def test_parts_have_the_size_that_they_have_in_networks(name):
    results = []
    for form in ("plain", "antialiased", "obvious"):
        program = Program(topology="v5e:2x2", work="backward", name=name, form=form, part=True, batch=1)
        lowered, fixed = lowering.lower(program, Placement.of_all_devices())
        assert fixed == 0
        results.append(jax.tree.leaves(lowered.out_info)[0].shape)
    assert len(set(results)) == 1
