"""The progress of a rebuild never falls and is 1.0 exactly at the activation."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import run_record

from compass.domain.rebuild.progress import WINDOW_S, Progress
from compass.domain.rebuild.status import RunStatus, status_of_run

COUNTS = st.integers(0, 1_000)
LOOKS = st.fixed_dictionaries({"total": COUNTS, "embedded": COUNTS, "failed": COUNTS, "blank": COUNTS})


@given(st.lists(st.one_of(LOOKS, COUNTS)))
def test_never_falls_and_is_never_done_before_the_activation(steps: list[int | dict[str, int]]) -> None:
    """Whatever is counted, the fraction only rises, and stays below 1.0 until the space is active."""
    progress, shown = Progress(), [0.0]
    for now_s, step in enumerate(steps):
        if isinstance(step, int):
            progress = progress.observe(now_s, embedded=step)
        else:
            progress = progress.planned(now_s, **step)
        shown.append(progress.fraction)
    assert shown == sorted(shown)
    assert shown[-1] < 1.0
    assert progress.activated().fraction == 1.0


def test_activated_stays_done_while_chunks_are_added() -> None:
    """After the activation the fraction is 1.0 for good, even when much is written."""
    progress = Progress().activated().planned(1.0, total=1_000, embedded=1, failed=0, blank=0)
    assert progress.observe(2.0, embedded=2).fraction == 1.0


def test_blank_and_refused_chunks_count_as_done() -> None:
    """A chunk that needs no vector, or can have none, does not hold the progress back."""
    progress = Progress().planned(0.0, total=10, embedded=5, failed=2, blank=1)
    assert progress.fraction == pytest.approx(0.8)


def test_speed_is_of_the_last_seconds_and_not_of_what_was_there() -> None:
    """docs_per_s counts what this run embedded within the window; what it resumed from is no speed."""
    progress = Progress().planned(0.0, total=10_000, embedded=5_000, failed=0, blank=0)
    assert progress.docs_per_s(1.0) == 0.0
    progress = progress.observe(1.0, embedded=5_500)
    assert progress.docs_per_s(1.0) == pytest.approx(500)
    for second in range(2, 40):
        progress = progress.observe(float(second), embedded=5_500 + 10 * (second - 1))
    assert progress.docs_per_s(39.0) == pytest.approx(10)
    assert progress.eta_s(39.0) == pytest.approx((10_000 - progress.embedded) / 10)


def test_speed_falls_to_nothing_when_nothing_lands() -> None:
    """A stall shows: the speed is 0 after the window and there is no estimate."""
    progress = Progress().planned(0.0, total=100, embedded=0, failed=0, blank=0).observe(1.0, embedded=50)
    assert progress.docs_per_s(1.0 + WINDOW_S) == 0.0
    assert progress.eta_s(1.0 + WINDOW_S) is None


def test_survives_json_but_for_the_speed() -> None:
    """What is stored brings back every count and the mark."""
    progress = Progress().planned(0.0, total=10, embedded=4, failed=1, blank=2).observe(1.0, embedded=5)
    back = Progress.from_json(json.loads(json.dumps(progress.to_json())))
    assert back.to_json() == progress.to_json()
    assert back.docs_per_s(1.0) == 0.0


def test_status_of_a_space_without_a_run() -> None:
    """A space that had no run says so; its progress is 1.0 exactly if it is active."""
    assert status_of_run(None, active=True).progress == 1.0
    building = status_of_run(None, active=False)
    assert (building.progress, building.run) == (0.0, RunStatus("none"))


def test_status_is_done_only_while_the_space_is_active() -> None:
    """The space's own status decides about 1.0, not what a run has written of itself."""
    record = run_record(progress=Progress().activated())
    assert status_of_run(record, active=True).percent == 100
    assert status_of_run(record, active=False).progress < 1.0
    assert status_of_run(record, active=False).run == RunStatus("running", "j", 1.0)
