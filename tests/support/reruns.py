"""Tests that start a real Ray may run once more; a few that need it are told, more than a few fail the run.

A plugin of pytest. Ray's own start-up now and then fails on a busy machine, which says nothing of Compass. Tests of
faults are left out: a write that is lost once in a hundred runs is lost, so they must fail at once.
"""

from __future__ import annotations

from pathlib import Path

import pytest

RAY_FOLDERS = ("integration", "notebooks")  # whatever is there works on a real Ray, so that no mark can be forgotten
NO_RERUNS = "fault"
MAX_RERUNS = 2


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses by the marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what works on a real Ray, and let it run once more where that can hide nothing."""
    for item in items:
        folders = _folders(config, item)
        if folders & set(RAY_FOLDERS):
            item.add_marker(pytest.mark.ray)
        if item.get_closest_marker("ray") is not None and NO_RERUNS not in folders:
            item.add_marker(pytest.mark.flaky(reruns=1))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Name each test that has run a second time."""
    tests = rerun_tests(config)
    if not tests:
        return
    terminalreporter.section("tests that ran a second time")
    for test in tests:
        terminalreporter.line(test)
    if len(tests) > MAX_RERUNS:
        terminalreporter.line(f"{len(tests)} of them, more than {MAX_RERUNS}: that is not Ray's start-up", red=True)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run in which more than a few tests needed a second one."""
    if len(rerun_tests(session.config)) > MAX_RERUNS and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def rerun_tests(config: pytest.Config) -> list[str]:
    """The tests of this run that have failed and were run again, in their order; none in a worker of xdist."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    stats: dict[str, list[pytest.TestReport]] = getattr(reporter, "stats", {})
    return list(dict.fromkeys(report.nodeid for report in stats.get("rerun", ())))


def _folders(config: pytest.Config, item: pytest.Item) -> set[str]:
    """The folders between a test's file and the root of the project."""
    path = Path(item.path)
    return set(path.relative_to(config.rootpath).parts[:-1]) if path.is_relative_to(config.rootpath) else set()
