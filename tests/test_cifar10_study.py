"""The CIFAR-10 study: its bookkeeping, its schedule, and the page that publishes it."""

import json
from pathlib import Path

import pytest

from examples import cifar10_tables as tables
from examples.cifar10_study import Study, config_of, finished, main, runs_of
from train.fit.config import validate
from train.fit.optim import OptimConfig

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
PUBLISHED = tuple(RESULTS / f"cifar10{part}.jsonl" for part in ("", "-networks", "-long"))


def test_the_page_holds_every_table_of_the_raw_results(capsys: pytest.CaptureFixture[str]) -> None:
    tables.main(tables.Tables(results=PUBLISHED))
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(printed) > 20
    page = (ROOT / "docs" / "results-cifar10.md").read_text().splitlines()
    assert [line for line in printed if line not in page] == []


def test_the_readme_holds_the_means_of_the_raw_results() -> None:
    cells = tables.read(PUBLISHED[0])
    readme = (ROOT / "README.md").read_text()
    for augment in tables.AUGMENT:
        for taps in (0, 4):
            lines = cells["resnet18", augment, "scratch", taps]
            assert all(tables.spread(lines, figure) in readme for figure in tables.FIGURES)


@pytest.mark.parametrize("path", sorted(RESULTS.glob("cifar10*.jsonl")), ids=lambda path: path.stem)
def test_no_published_run_appears_twice(path: Path) -> None:
    assert len(finished(path)) == len(path.read_text().splitlines())


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_runs_of_a_file_are_comparable(path: Path) -> None:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({(line["epochs"], line["batch"]) for line in lines if line["recipe"] == "scratch"}) == 1
    cells = tables.read(path)
    assert {len(lines) for lines in cells.values()} == {3}


def test_gain_pairs_runs_by_seed() -> None:
    plain = [{"seed": seed, "accuracy": value} for seed, value in ((0, 10.0), (1, 20.0), (2, 60.0))]
    blurred = [{"seed": seed, "accuracy": value} for seed, value in ((2, 63.0), (1, 22.0))]
    # Differences 3 and 2: mean 2.5, standard error 0.7071 / sqrt(2).
    assert tables.gain(plain, blurred, "accuracy") == "+2.50 ± 0.50"
    assert tables.gain(plain, blurred[:1], "accuracy") == "+3.00"


@pytest.mark.parametrize("text", ["{", "[]", '{"model": "resnet18"}'])
def test_other_files_are_named_with_their_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.jsonl"
    path.write_text(PUBLISHED[0].read_text().splitlines()[0] + "\n" + text + "\n")
    with pytest.raises(ValueError, match="line 2: not a run of"):
        tables.read(path)


def test_a_study_knows_its_finished_runs(tmp_path: Path) -> None:
    output = tmp_path / "study.jsonl"
    study = Study(data=tmp_path, output=output, epochs=6, recipes=("scratch", "finetune", "longer"), batch=128)
    runs = list(runs_of(study, "resnet18", 4))
    assert len(runs) == 3 * 2 * 3
    assert {(run.recipe, run.epochs) for run in runs} == {("scratch", 6), ("finetune", 2), ("longer", 8)}
    assert {run.recipe for run in runs_of(study, "resnet18", 0)} == {"scratch"}
    assert finished(output) == set()
    line = {"model": "resnet18", "filter_size": 4, "augment": "none", "recipe": "longer", "seed": 1}
    output.write_text(json.dumps(line | {"epochs": 8, "batch": 128, "accuracy": 50.0}) + "\n")
    (done,) = finished(output)
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


@pytest.mark.slow
def test_the_small_study_is_repeatable(shared: Path, tmp_path: Path, optimised: None) -> None:
    runs = []
    for name in ("once", "again"):
        output = tmp_path / f"{name}.jsonl"
        main(Study(data=shared / "data" / "cifar10-images.tar.xz", output=output, small=True))
        lines = [json.loads(line) for line in output.read_text().splitlines()]
        runs.append([{key: line[key] for key in line if not key.endswith("_seconds")} for line in lines])
    assert len(runs[0]) == 2
    assert runs[0] == runs[1]
