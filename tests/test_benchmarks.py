"""The benchmarks in their smallest form: right results, whole tables. Never time."""

import json

import numpy as np
import pytest
from PIL import Image

from aa_flax import list_models
from aa_flax.models.specs import parse_spec
from benchmarks import measure, networks, training
from benchmarks.__main__ import BENCHMARKS, ONLY_BY_NAME, main
from benchmarks.report import Report, table


def _run(tmp_path, name: str, *options: str) -> dict:
    assert main([name, "--smoke", "--output", str(tmp_path), *options]) == 0
    assert (tmp_path / f"{name}.md").read_text().startswith(f"# {name}")
    return json.loads((tmp_path / f"{name}.json").read_text())


def test_blurpool(tmp_path):
    report = _run(
        tmp_path,
        "blurpool",
        "--no-torch",
        "--candidates",
        "--filter-sizes",
        "2",
        "5",
        "--dtypes",
        "float32",
        "bfloat16",
    )
    assert {title: len(rows) for title, rows in report["tables"].items()} == {"Forward": 4, "Backward": 4}
    assert {"depthwise / ours", "pallas / ours", "separate gathers / ours"} <= set(report["tables"]["Forward"][0])


def test_convolutions(tmp_path):
    report = _run(tmp_path, "convolutions", "--no-torch")
    assert {title: len(rows) for title, rows in report["tables"].items()} == {"Forward": 9, "Backward": 9}
    assert all(row["XLA / ours"] > 0 for rows in report["tables"].values() for row in rows)


def test_all_networks_have_the_forms_that_exist():
    chosen = [*networks.variants(["resnetblur18", "resnet18"], ("plain", "antialiased"), 5)]
    assert [*map(str, chosen)] == ["resnetblur18", "resnet18_plain", "resnet18_lpf5"]
    everything = [*networks.variants(list_models(), ("antialiased", "plain"), 4)]
    assert all(parse_spec(str(variant)) == (variant.name, variant.filter_size) for variant in everything)
    assert {variant.name for variant in everything} == set(list_models())


@pytest.mark.slow
def test_inference(tmp_path):
    report = _run(tmp_path, "inference", "--no-torch", "--models", "resnet18")
    forward = report["tables"]["Forward"]
    assert [row["network"] for row in forward] == ["resnet18_lpf4", "resnet18_plain"]
    assert forward[0]["GFLOP an image"] > forward[1]["GFLOP an image"]
    assert [row["network"] for row in report["tables"]["Cost of anti-aliasing in percent"]] == ["resnet18_lpf4"]


@pytest.mark.slow
def test_training(tmp_path):
    options = ("--models", "resnet18", "--variants", "antialiased", "--remat", "none", "keep_convs")
    report = _run(tmp_path, "training", "--no-torch", *options)
    (row,) = report["tables"]["Training step"]
    assert row["network"] == "resnet18_lpf4"
    assert "ours, remat keep_convs / ours" in row


def test_cost_of_antialiasing_is_taken_beside_plain_of_the_same_side(tmp_path):
    report = Report("training", tmp_path)
    for network, ours, torch in (("a_lpf4", 1.5, 4.0), ("a_plain", 1.2, 3.0), ("b_lpf4", 1.0, 1.0)):
        report.add(training.TITLE, {"network": network, "seconds": {"ours": ours, "torch compile": torch}})
    training.add_costs(report)
    (row,) = report.tables["Cost of anti-aliasing"]
    assert row["network"] == "a_lpf4"
    assert row["percent ours"] == pytest.approx(25)
    assert row["percent torch compile"] == pytest.approx(100 / 3)
    assert row["plain torch compile / ours"] == pytest.approx(2)


@pytest.mark.slow
@pytest.mark.deep
def test_startup(tmp_path):
    report = _run(tmp_path, "startup", "--no-torch")
    assert len(report["tables"]["Seconds in a fresh process"]) == 6


def test_dispatch(tmp_path):
    report = _run(tmp_path, "dispatch", "--no-torch")
    assert {title: len(rows) for title, rows in report["tables"].items()} == {
        "One update, resnet18_lpf4": 2,
        "One forward pass, resnet18_lpf4": 2,
    }


def test_input_pipeline(tmp_path):
    report = _run(tmp_path, "input_pipeline", "--no-torch")
    assert [len(rows) for rows in report["tables"].values()] == [2, 2]
    assert all(row["images/s per core"] > 0 for rows in report["tables"].values() for row in rows)
    assert "8 photos of noise, decoded anew in each round." in report["notes"]


def test_consistency(tmp_path):
    for i in range(8):
        path = tmp_path / "photos/a" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (110, 120, 3), np.uint8)).save(path)
    report = _run(tmp_path, "consistency", "--no-torch", "--model", "resnet18", "--data", str(tmp_path / "photos"))
    memory, files, decoding = report["tables"].values()
    assert [row["way"] for row in memory] == ["aa_flax", "cut on the host, jitted network"]
    for rows in (files, decoding):
        assert [row["way"] for row in rows] == ["decoded once", "decoded for every pass"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["blur"], "unknown benchmark 'blur'"),
        (["inference", "--models", "resnet5", "--no-torch"], "--models resnet5: no such network"),
        (["training", "--models", "resnet5", "--no-torch"], "--models resnet5: no such network"),
        (["blurpool", "--maps", "7", "--no-torch"], "--maps 7 is none of"),
        (["convolutions", "--layers", "first", "--no-torch"], "--layers first is none of"),
        (["consistency", "--data", "/nowhere", "--no-torch"], "data directory /nowhere does not exist"),
        (["input_pipeline", "--data", "/nowhere", "--no-torch"], "data directory /nowhere does not exist"),
    ],
)
def test_bad_input_is_one_line(words, message, capsys, tmp_path):
    assert main([*words, *(["--output", str(tmp_path)] if len(words) > 1 else [])]) == 2
    assert message in capsys.readouterr().err


def test_overview_names_every_benchmark(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in BENCHMARKS)


def test_without_a_name_all_run_in_turn_and_the_worst_code_counts(monkeypatch):
    ran = []
    monkeypatch.setattr("benchmarks.__main__._run", lambda *call: ran.append(call) or 2 * (call[0] == "dispatch"))
    assert main(["--smoke"]) == 2
    assert ran == [(name, ["--smoke"]) for name in BENCHMARKS if name not in ONLY_BY_NAME]


def test_a_wrong_or_unwritten_result_is_never_timed():
    want = np.ones((2, 3))
    with pytest.raises(ValueError, match="half is wrong: relative error"):
        measure.check("half", want / 2, want, 1e-3)
    with pytest.raises(ValueError, match="relative error nan"):
        measure.check("gap", np.full_like(want, np.nan), want, 1e-3)
    with pytest.raises(ValueError, match="has shape"):
        measure.check("short", want[:1], want, 1e-3)


def test_rounds_turn_and_figures_are_medians():
    order = []

    def case(name: str) -> measure.Case:
        return measure.Case(lambda: order.append(name), lambda _: None)

    times = measure.alternate({n: case(n) for n in "abc"}, rounds=3, window=0.0)
    assert order[-9:] == list("abcbcacab")
    assert all(t.low <= t.median <= t.high and t.rounds == 3 for t in times.values())


def test_tables_leave_out_nested_values_and_fill_gaps():
    shown = table([{"a": 1.23456, "all": {"x": 1}}, {"a": 1234.5, "b": None}])
    assert shown.splitlines() == ["| a | b |", "| --- | --- |", "| 1.23 | - |", "| 1,234 | - |"]
