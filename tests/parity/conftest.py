"""Marks everything here as parity, and prints what the comparison measured."""

from pathlib import Path
from typing import Any

import pytest

from tests.parity import measured


@pytest.fixture(autouse=True)
def _optimised(optimised: None) -> None:
    """As the tests of whole networks are that compute more than they compile."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.parity)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A worker of pytest-xdist hands its rows over when it ends."""
    measured.ROWS.extend(tuple(row) for row in getattr(node, "workeroutput", {}).get("parity", ()))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["parity"] = [list(row) for row in measured.ROWS]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if measured.ROWS:
        measured.write()
        terminalreporter.section("parity with PyTorch, worst relative errors")
        terminalreporter.write_line(measured.table())
