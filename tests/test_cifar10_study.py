"""The CIFAR-10 study: its bookkeeping, its schedule, and the page that publishes it."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks.options import NINE
from examples import cifar10_study
from examples import cifar10_tables as tables
from examples.cells import read
from examples.cifar10_study import Run, Study, config_of, few_images, ledger_of, main, runs_of
from examples.page import END, begin
from train.errors import CommandError
from train.fit.config import validate
from train.fit.optim import OptimConfig

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
# As the page's command has them; those of the queue for GPUs appear with its first run.
PUBLISHED = tuple(RESULTS / f"cifar10{part}.jsonl" for part in ("", "-nine", "-networks", "-long"))
THERE = tuple(path for path in PUBLISHED if path.exists())


def test_the_page_follows_from_the_raw_results(tmp_path: Path) -> None:
    page = ROOT / "docs" / "results-cifar10.md"
    copy = tmp_path / "page.md"
    before, _, rest = page.read_text().partition(begin("examples.cifar10_tables"))
    copy.write_text(before + begin("examples.cifar10_tables") + rest[rest.index(END) :])
    tables.main(tables.Tables(results=PUBLISHED, page=copy))
    assert copy.read_text() == page.read_text()
    assert sum(line.startswith("|") for line in copy.read_text().splitlines()) > 20
    assert (RESULTS / "cifar10-nine.jsonl").exists() != ("`cifar10-nine.jsonl` does not exist yet" in before + rest)


def test_the_page_judges_the_nine_networks_of_the_paper() -> None:
    shown = tables.gain_table(tables.read(RESULTS / "cifar10-networks.jsonl"))
    assert {line.split(" | ")[0].strip("| ") for line in shown.splitlines()[2:-2]} == set(NINE)


def test_the_readme_holds_the_means_of_the_raw_results() -> None:
    cells = tables.read(PUBLISHED[0])
    readme = (ROOT / "README.md").read_text()
    for augment in tables.AUGMENT:
        for taps in (0, 4):
            lines = cells["resnet18", augment, "scratch", taps]
            assert all(tables.spread(lines, figure) in readme for figure in tables.FIGURES)


@pytest.mark.parametrize("path", sorted(RESULTS.glob("cifar10*.jsonl")), ids=lambda path: path.stem)
def test_no_published_run_appears_twice(path: Path) -> None:
    assert len(read(path, Run)) == len(path.read_text().splitlines())


@pytest.mark.parametrize("path", THERE, ids=lambda path: path.stem)
def test_runs_of_a_file_are_comparable(path: Path) -> None:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({(line["epochs"], line["batch"]) for line in lines if line["recipe"] == "scratch"}) == 1
    cells = tables.read(path)
    assert {len(lines) for lines in cells.values()} == {3}


def lines_of(values: dict[int, float]) -> list[dict]:
    return [{"seed": seed, "accuracy": value} for seed, value in values.items()]


def test_a_gain_is_students_of_pairs_of_seeds() -> None:
    plain = lines_of({0: 10.0, 1: 20.0, 2: 60.0})
    blurred = lines_of({2: 63.0, 1: 22.0, 0: 10.5, 7: 99.0})
    found = tables.gain(plain, blurred, "accuracy")
    differences = [3.0, 2.0, 0.5]
    oracle = stats.ttest_rel([63.0, 22.0, 10.5], [60.0, 20.0, 10.0])
    low, high = stats.t.interval(0.95, 2, loc=np.mean(differences), scale=stats.sem(differences))
    assert found is not None
    assert found == pytest.approx((np.mean(differences), (high - low) / 2, oracle.pvalue))
    assert str(found) == f"+1.83 ± {found.reach:.2f}"


def test_few_seeds_are_said_to_be_few() -> None:
    plain = lines_of({0: 10.0, 1: 20.0})
    one = tables.gain(plain, lines_of({1: 21.0}), "accuracy")
    assert one == tables.Gain(1.0)
    assert (str(one), one.verdict(None)) == ("+1.00", "one seed cannot tell")
    assert tables.gain(plain, [{"seed": 1, "loss": None}], "accuracy") is None
    two = tables.gain(plain, lines_of({0: 11.0, 1: 22.0}), "accuracy")
    assert two is not None
    assert two.verdict(two.p) == "not beyond chance"  # +1 and +2: twelve standard errors would be needed
    assert tables.gain(plain, lines_of({0: 11.0, 1: 21.0}), "accuracy") == tables.Gain(1.0, 0.0, 0.0)
    assert tables.gain(plain, plain, "accuracy") == tables.Gain(0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("gain", "together", "verdict"),
    [
        (tables.Gain(2.0, 1.0, 0.001), 0.018, "rose (p 0.018)"),
        (tables.Gain(-2.0, 1.0, 0.001), 0.018, "fell (p 0.018)"),
        (tables.Gain(2.0, 1.0, 0.01), 0.18, "rose, taken alone (p 0.01)"),
        (tables.Gain(2.0, 3.0, 0.2), 1.0, "not beyond chance"),
    ],
)
def test_verdicts(gain: tables.Gain, together: float, verdict: str) -> None:
    assert gain.verdict(together) == verdict


def test_a_table_allows_for_all_its_tests_and_has_a_word_for_what_did_not_train() -> None:
    def cell(values: tuple[float, ...]) -> list[dict]:
        return [{"seed": seed, "accuracy": value, "consistency": value} for seed, value in enumerate(values)]

    cells = {}
    for model in ("alexnet", "resnet18"):
        cells[model, "shift", "scratch", 0] = cell((10.0, 20.0, 30.0))
        cells[model, "shift", "scratch", 4] = cell((11.0, 21.1, 31.05))
    single = tables.gain(cells["alexnet", "shift", "scratch", 0], cells["alexnet", "shift", "scratch", 4], "accuracy")
    assert single is not None
    assert single.p is not None
    shown = tables.gain_table(cells)
    assert shown.count(f"rose (p {4 * single.p:.2g})") == 4
    assert shown.endswith("accuracy rose in 2 of 2 and fell in 0, consistency rose in 2 of 2 and fell in 0.")
    assert tables.spread([{"seed": 0, "loss": None}], "accuracy") == "did not train"


@pytest.mark.parametrize("text", ["{", "[]", '{"model": "resnet18"}'])
def test_other_files_are_named_with_their_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.jsonl"
    path.write_text(PUBLISHED[0].read_text().splitlines()[0] + "\n" + text + "\n")
    with pytest.raises(CommandError, match="line 2: not a run of"):
        tables.read(path)


def test_a_study_knows_its_finished_runs(tmp_path: Path) -> None:
    output = tmp_path / "study.jsonl"
    study = Study(data=tmp_path, output=output, epochs=6, recipes=("scratch", "finetune", "longer"), batch=128)
    runs = list(runs_of(study, "resnet18", 4))
    assert len(runs) == 3 * 2 * 3
    assert {(run.recipe, run.epochs) for run in runs} == {("scratch", 6), ("finetune", 2), ("longer", 8)}
    assert {run.recipe for run in runs_of(study, "resnet18", 0)} == {"scratch"}
    assert ledger_of(study).done == {}
    line = {"model": "resnet18", "filter_size": 4, "augment": "none", "recipe": "longer", "seed": 1}
    output.write_text(json.dumps(line | {"epochs": 8, "batch": 128, "accuracy": 50.0}) + "\n")
    (done,) = read(output, Run)
    assert done in runs
    assert done.spec == "resnet18_lpf4"
    other = Study(data=tmp_path, output=output, epochs=6, recipes=("longer",), batch=256)
    assert done not in set(runs_of(other, "resnet18", 4))


@pytest.mark.parametrize(
    ("model", "peak"), [("resnet18", 0.1), ("mobilenet_v2", 0.05), ("vgg16_bn", 0.05), ("alexnet", 0.01)]
)
def test_runs_have_the_recipe_that_the_page_states(tmp_path: Path, model: str, peak: float) -> None:
    recipes = ("scratch", "finetune", "longer")
    study = Study(data=tmp_path, output=tmp_path / "study.jsonl", recipes=recipes, batch=512)
    for run in runs_of(study, model, 4):
        config = config_of(run, study)
        validate(config)
        tuned = run.recipe == "finetune"
        assert (config.model, config.seed, config.epochs, config.batch) == (run.spec, run.seed, run.epochs, run.batch)
        assert config.optim == OptimConfig(
            lr=pytest.approx(peak * 2 * (0.1 if tuned else 1)),
            schedule="cosine",
            warmup_epochs=0 if tuned else 2,
            nesterov=True,
            weight_decay=5e-4,
            decay_all=False,
        )
        assert config.dtype == "bfloat16"
        assert config.data.image_size == 64
        assert (config.data.augment == "standard") == (run.augment == "shift")


def test_warm_up_rate_and_clipping_are_a_runs_own(tmp_path: Path) -> None:
    steady = {"rate": 0.5, "warmup_epochs": 5, "clip_norm": 1.0}
    run, *_ = runs_of(Study(data=tmp_path, output=tmp_path / "s.jsonl", seeds=(7,), **steady), "alexnet", 4)
    optim = config_of(run, Study(data=tmp_path, output=tmp_path / "s.jsonl")).optim
    assert (optim.lr, optim.warmup_epochs, optim.clip_norm) == (pytest.approx(0.005), 5, 1.0)


@pytest.mark.slow
@pytest.mark.deep
def test_the_small_study_is_repeatable(
    shared: Path, tmp_path: Path, optimised: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Fewer images still.
    monkeypatch.setattr(cifar10_study, "few_images", functools.partial(few_images, share=200))
    runs = []
    for name in ("once", "again"):
        output = tmp_path / f"{name}.jsonl"
        main(Study(data=shared / "data" / "cifar10-images.tar.xz", output=output, small=True))
        lines = [json.loads(line) for line in output.read_text().splitlines()]
        runs.append([{key: line[key] for key in line if not key.endswith("_seconds")} for line in lines])
    assert len(runs[0]) == 2
    assert runs[0] == runs[1]
