"""The comparison of methods: its bookkeeping, a run of it, and what is made of its lines."""

import dataclasses
import functools
import itertools
import json
from pathlib import Path
from statistics import mean

import jax
import numpy as np
import pytest
from flax import nnx

from examples import methods_comparison as comparison
from examples import methods_tables as tables
from examples.cells import BudgetSpent, Deadline, Ledger, read
from examples.methods_comparison import Comparison, cells_of, compile_next, ledger_of
from examples.methods_runs import METHODS, MODELS, SMALL, Cell, Runner, Terms, config_of
from examples.page import END, begin, put_into
from tests.small_train import SMALL_STAGES
from train.data import DataConfig
from train.data.channels import network_input
from train.errors import CommandError
from train.fit.config import network_spec, validate

TERMS = Terms(epochs=3, batch=16, dtype="float32", pairs=2, reach=1, together=6)


def line(cell: Cell, terms: Terms = TERMS, **figures) -> dict:
    """A line of the output, with figures made up."""
    known = dict.fromkeys(tables.MEASURES, 50.0) | {"stderr": dict.fromkeys(tables.MEASURES, 1.5)}
    cost = {"loss": 1.0, "parameters": 1234, "update_ms": 2.0, "train_seconds": 3.0, "measure_seconds": 1.0}
    return {**dataclasses.asdict(cell), **dataclasses.asdict(terms), **known, **cost, "device": "cpu", **figures}


def write(path: Path, lines: list[dict]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return path


def asked(tmp_path: Path, **options) -> Comparison:
    return Comparison(data=tmp_path, output=tmp_path / "runs.jsonl", **options)


def test_every_run_is_one_that_the_trainer_makes_on_equal_terms(tmp_path):
    cells = cells_of(asked(tmp_path))
    assert len(cells) == len(set(cells)) == 3 * sum(len(method.models or MODELS) for method in METHODS.values())
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)
    configs = [config_of(cell, TERMS, DataConfig(name="synthetic")) for cell in cells]
    for config in configs:
        validate(config)
        options = dict(network_spec(config).options)
        assert options["circular"]
        assert options["stem_stride"] == 1
    for model in MODELS:
        same = {
            dataclasses.replace(config, model="", seed=0, net=configs[0].net)
            for cell, config in zip(cells, configs, strict=True)
            if cell.model == model and not METHODS[cell.method].cooled
        }
        assert len(same) == 1  # but for the network nothing differs


def test_few_updates_have_a_rate_of_their_own_for_mobilenet_alone():
    def rates(**terms) -> list[float]:
        cells = (Cell(method="plain", model=model, seed=0) for model in MODELS)
        chosen = dataclasses.replace(TERMS, **terms)
        return [config_of(cell, chosen, DataConfig(name="synthetic")).optim.lr for cell in cells]

    resnet, mobilenet = rates()
    assert rates(mobilenet_rate=10.0) == [resnet, pytest.approx(10 * mobilenet)]


def test_a_run_is_made_measured_and_written(tmp_path, monkeypatch):
    monkeypatch.setattr("aa_flax.models.mobilenet.STAGES", SMALL_STAGES)
    data = DataConfig(name="synthetic", image_size=16, synthetic_size=48)
    runner, output = Runner(TERMS, data), tmp_path / "runs.jsonl"
    cells = [Cell(method="blur3", model="mobilenet_v2", seed=seed) for seed in (0, 1)]
    spent = Deadline(0.0, clock=iter(range(99)).__next__)
    with pytest.raises(BudgetSpent):
        runner.make(cells[0], spent.check)
    ledger = Ledger(Cell, output, cells)
    ledger.make_all(lambda cell: runner.make(cell, Deadline(None).check), Deadline(None))
    assert read(output, Cell, dataclasses.asdict(TERMS)) == ledger.done
    assert [*ledger.done] == cells
    first, second = ledger.done.values()
    assert first["accuracy"] != second["accuracy"] or first["loss"] != second["loss"]
    assert first["worst"] <= first["accuracy"]
    # The same weights, asked without any protocol.
    config, dataset = config_of(cells[0], TERMS, data), runner._dataset
    state, loss = runner._sweep.train(config)
    network = nnx.jit(runner._sweep.program(config).network(state.params, state.stats))
    pixels, labels = zip(*(dataset.val[i] for i in range(len(dataset.val))), strict=True)
    images = network_input(dataset.preprocessing)(np.stack(pixels))
    right = 100.0 * (np.asarray(network(images)).argmax(1) == labels)
    assert first["accuracy"] == pytest.approx(right.mean(), abs=1e-4)
    assert first["stderr"]["accuracy"] == pytest.approx(right.std(ddof=1) / len(right) ** 0.5, abs=1e-4)
    assert first["loss"] == pytest.approx(loss, abs=1e-5)
    assert first["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert len(runner._sweep._programs) == 1


class Scribe(Runner):
    """A runner that only notes what is asked of it."""

    def __init__(self):
        self.made, self.waiting = [], []

    def compile(self, cell):
        self.waiting.append(cell.method)

    def make(self, cell, updates):
        # Threads may come in any order.
        self.made += [*sorted(self.waiting), f"{cell.method}!"]
        self.waiting = []
        return line(cell)


def test_programs_are_compiled_a_few_ahead_of_the_runs(tmp_path):
    methods = ("plain", "aps", "blur3", "blur4", "lps")
    cells = cells_of(asked(tmp_path, methods=methods, models=("resnet18",), seeds=(0, 1)))
    runner = Scribe()
    ahead = functools.partial(compile_next, runner, at_once=3)
    Ledger(Cell, tmp_path / "runs.jsonl", cells).make_all(lambda cell: runner.make(cell, print), Deadline(None), ahead)
    first = ["plain", "plain!", "aps", "blur3", "blur4", "aps!", "blur3!", "blur4!", "lps", "lps!"]
    assert runner.made == [*first, *(f"{method}!" for method in methods)]


def test_a_run_that_fails_is_a_line_too(tmp_path, monkeypatch):
    monkeypatch.setattr("aa_flax.models.mobilenet.STAGES", SMALL_STAGES)
    runner = Runner(TERMS, DataConfig(name="synthetic", image_size=16, synthetic_size=48))
    cell = Cell(method="blur3", model="mobilenet_v2", seed=0)
    start = runner._sweep.train(config_of(cell, dataclasses.replace(TERMS, epochs=2), runner._data))[0]
    broken = jax.tree.map(lambda x: x * np.nan, start)
    monkeypatch.setattr(runner._sweep, "train", lambda config, progress: (broken, 0.5))
    made = runner.make(cell, lambda made: None)
    assert "NaN" in made["failed"]
    assert "accuracy" not in made


def test_runs_are_known_again_and_others_refused(tmp_path):
    cells = cells_of(asked(tmp_path, methods=("plain", "aps")))
    path = write(tmp_path / "runs.jsonl", [line(cell) for cell in cells[:3]])
    assert [*read(path, Cell, dataclasses.asdict(TERMS))] == cells[:3]
    with pytest.raises(CommandError, match="holds runs with epochs 3, these would have 8: give another --output"):
        ledger_of(asked(tmp_path))
    with path.open("a") as file:
        file.write('{"method": "plain"}\n')
    with pytest.raises(CommandError, match=r"line 4: not a run of examples\.methods_runs"):
        read(path, Cell, dataclasses.asdict(TERMS))
    with pytest.raises(CommandError, match="--methods apz: there are plain, blur3"):
        cells_of(asked(tmp_path, methods=("apz",)))


def test_a_dry_run_lists_what_is_missing(tmp_path, capsys):
    wanted = asked(tmp_path, methods=("plain", "aps"), models=("resnet18",), seeds=(0, 1), small=True, dry_run=True)
    plain, aps, *_ = cells_of(wanted)
    write(wanted.output, [line(plain, SMALL, train_seconds=9.0), line(aps, SMALL)])
    comparison.main(wanted)
    assert capsys.readouterr().out.splitlines() == [
        f"{'plain resnet18 seed 1':44}    10 s",
        f"{'aps resnet18 seed 1':44}     4 s",
        "2 runs are missing, 2 are there; 14 s are expected",
    ]
    ddac = Cell(method="ddac", model="resnet18", seed=0)
    assert ledger_of(wanted).expected(ddac, ()) == mean([10, 4])


def test_tables_have_means_and_standard_errors(tmp_path):
    values = [81.0, 83.0, 88.0]
    lines = [line(Cell(method="aps", model="resnet18", seed=seed), accuracy=v) for seed, v in enumerate(values)]
    lines += [line(Cell(method="plain", model="resnet18", seed=0), crop=77.7)]
    runs = tables.read(write(tmp_path / "runs.jsonl", lines))
    assert tables.estimate(runs["resnet18", "aps"], "accuracy") == pytest.approx((84, np.std(values, ddof=1) / 3**0.5))
    assert tables.estimate(runs["resnet18", "plain"], "crop") == (77.7, 1.5)
    rows = tables.table(runs, "resnet18").splitlines()
    assert rows[2].startswith("| plain | 1 | 50.00 ± 1.50 | 77.70 ± 1.50 |")
    assert rows[3].startswith("| APS | 3 | 84.00 ± 2.08 |")
    assert rows[3].endswith("| 1,234 | 2.00 ± 0.00 |")
    assert rows[2].endswith("| 1,234 | 2.00 |")
    assert (
        tables.lap([line(cell, update_ms=ms) for cell, ms in zip(cells_of(asked(tmp_path)), (1.0, 4.0), strict=False)])
        == "2.50 ± 1.50"
    )


def test_what_did_not_train_is_said(tmp_path):
    made = {k: v for k, v in line(Cell(method="aps", model="resnet18", seed=0)).items() if k not in tables.MEASURES}
    runs = tables.read(write(tmp_path / "runs.jsonl", [made | {"loss": None, "failed": "the loss is nan"}]))
    assert "| APS | 1 | did not train | - | - | - | - | - | 1,234 | 2.00 |" in tables.table(runs, "resnet18")
    tables.draw(runs, tmp_path / "picture.png")


def test_tables_take_their_place_in_the_page(tmp_path, capsys):
    cells = [Cell(method=m, model=n, seed=0) for m, n in itertools.product(("plain", "ddac"), MODELS)]
    path = write(tmp_path / "runs.jsonl", [line(cell) for cell in cells])
    page = tmp_path / "page.md"
    page.write_text(f"# Head\n\n{begin('examples.methods_tables')}\nold\n{END}\n\nTail\n")
    tables.main(tables.Tables(results=(path,), page=page, pictures=tmp_path))
    text = page.read_text()
    assert text.startswith("# Head\n")
    assert text.endswith("\n\nTail\n")
    assert "old" not in text
    assert (tmp_path / "runs.png").read_bytes()[:4] == b"\x89PNG"
    tables.main(tables.Tables(results=(path,)))
    assert capsys.readouterr().out.strip() in text
    page.write_text("no place\n")
    with pytest.raises(CommandError, match="has no place for the tables"):
        put_into(page, "x", "examples.methods_tables")
    with pytest.raises(CommandError, match="line 1: not a run of"):
        tables.read(write(tmp_path / "other.jsonl", [{"model": "resnet18"}]))


def test_the_page_holds_the_tables_of_the_raw_results():
    docs = Path(__file__).parents[1] / "docs"
    page = (docs / "results-methods.md").read_text()
    for name, common in {"methods": Terms(), "methods-small": SMALL}.items():
        path = docs / "results" / f"{name}.jsonl"
        runs = tables.read(path)
        lines = read(path, Cell, dataclasses.asdict(common))
        assert sum(map(len, runs.values())) == len(lines) == len(path.read_text().splitlines())
        assert tables.terms(path, runs) in page
        assert all(tables.table(runs, model) in page for model, _ in runs)
