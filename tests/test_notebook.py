"""`examples/quickstart.ipynb`: it runs from its first cell to its last, and holds nothing of a run."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "examples/quickstart.ipynb"


@pytest.fixture
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_holds_nothing_of_a_run(notebook):
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.metadata
        if cell.cell_type == "code":
            assert cell.execution_count is None
            assert cell.outputs == []
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert set(notebook.metadata.language_info) == {"name"}


@pytest.mark.slow
def test_it_runs(notebook):
    """As a reader would run it, in its folder; what its text says of the results is so."""
    folder = {"metadata": {"path": NOTEBOOK.parent}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=folder).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    # What is on the standard error would be warnings.
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    printed = "".join(output.text for output in outputs if output.get("name") == "stdout")
    assert re.findall(r"^ *(plain|lpf4): bird$", printed, re.MULTILINE) == ["plain", "lpf4"]
    places = [float(each) for each in re.findall(r"two places agree ([\d.]+) %", printed)]
    assert places[0] < 80 < places[1]
    consistency = [float(each) for each in re.findall(r"crop consistency ([\d.]+)", printed)]
    assert consistency[0] < consistency[1]
    difference, error = map(float, re.search(r"difference: ([\d.]+) \+- ([\d.]+)", printed).groups())
    assert difference > 3 * error
    assert [output for output in outputs if "image/png" in output.get("data", {})]
