"""Which tests may run a second time, and what is told of it."""

from __future__ import annotations

from pathlib import Path

import pytest

SUPPORT = Path(__file__).parents[1] / "support"
FLAKY = """
runs = []
def test_it():
    runs.append(1)
    assert len(runs) > {failures}
"""
PASSES = "def test_it(): pass"


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project whose tests run with the plugin alone, and what it rests on; the others take seconds to load."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makeini(f"[pytest]\npythonpath = {SUPPORT}\nmarkers =\n    ray: needs a local Ray\n")
    pytester.makeconftest('pytest_plugins = ["reruns"]')
    return pytester


def write(project: pytest.Pytester, folder: str, source: str, name: str = "test_it") -> None:
    """Put a test file into a folder of the project."""
    path = project.path / "tests" / folder / f"{name}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)


def run(project: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    """Run the project's tests in a process of their own."""
    return project.runpytest_subprocess("--import-mode=importlib", "-p", "pytest_rerunfailures", *arguments)


@pytest.mark.parametrize("folder", ["integration", "notebooks"])
def test_a_test_on_a_real_ray_runs_once_more_and_is_named(project: pytest.Pytester, folder: str) -> None:
    """Marked or not: its folder says that there is a Ray."""
    write(project, folder, FLAKY.format(failures=1))
    done = run(project)
    done.stdout.fnmatch_lines(["*1 passed, 1 rerun*"])
    done.stdout.fnmatch_lines(["*tests that ran a second time*", f"tests/{folder}/test_it.py::test_it"])
    assert done.ret == pytest.ExitCode.OK


def test_it_runs_once_more_and_not_twice(project: pytest.Pytester) -> None:
    """What fails again has failed."""
    write(project, "integration", FLAKY.format(failures=2))
    done = run(project)
    done.stdout.fnmatch_lines(["*1 failed, 1 rerun*"])
    assert done.ret == pytest.ExitCode.TESTS_FAILED


@pytest.mark.parametrize("mark", ["", "import pytest\npytestmark = pytest.mark.ray\n"])
def test_a_test_of_faults_fails_at_once(project: pytest.Pytester, mark: str) -> None:
    """A lost write is lost, whether or not it is lost a second time."""
    write(project, "fault", mark + FLAKY.format(failures=1))
    done = run(project)
    done.assert_outcomes(failed=1)
    assert done.ret == pytest.ExitCode.TESTS_FAILED


def test_a_test_without_ray_fails_at_once(project: pytest.Pytester) -> None:
    """Nothing outside the project can make it fail."""
    write(project, "unit", FLAKY.format(failures=1))
    run(project).assert_outcomes(failed=1)


@pytest.mark.parametrize(("flaky", "code"), [(2, pytest.ExitCode.OK), (3, pytest.ExitCode.TESTS_FAILED)])
def test_more_than_two_second_runs_fail_the_whole(
    project: pytest.Pytester, flaky: int, code: pytest.ExitCode
) -> None:
    """Two can be chance; three are a fault of ours."""
    for number in range(flaky):
        write(project, "integration", FLAKY.format(failures=1), f"test_{number}")
    done = run(project)
    done.stdout.fnmatch_lines([f"*{flaky} passed, {flaky} rerun*"])
    assert done.ret == code


def test_the_second_runs_of_workers_are_counted_together(project: pytest.Pytester) -> None:
    """Side by side, too, it is the run that fails, whoever ran the tests."""
    for number in range(3):
        write(project, "integration", FLAKY.format(failures=1), f"test_{number}")
    done = run(project, "-p", "xdist.plugin", "-n2")
    done.stdout.fnmatch_lines(["*tests that ran a second time*", "*3 of them, more than 2*"])
    assert done.ret == pytest.ExitCode.TESTS_FAILED


def test_the_mark_chooses_tests_by_their_folder(project: pytest.Pytester) -> None:
    """`-m 'not ray'` leaves out what is in a folder of a real Ray."""
    write(project, "integration", PASSES)
    write(project, "unit", PASSES, "test_other")
    run(project, "-m", "not ray").assert_outcomes(passed=1, deselected=1)
