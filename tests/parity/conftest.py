"""Marks everything here as parity, and prints what the comparison measured."""

from pathlib import Path

import pytest

from tests.parity import measured


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.parity)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if measured.ROWS:
        terminalreporter.section("parity with PyTorch, worst relative errors")
        terminalreporter.write_line(measured.table())


def pytest_sessionfinish(session: pytest.Session) -> None:
    if measured.ROWS:
        measured.write()
