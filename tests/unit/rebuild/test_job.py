"""What is stored of a run comes back, and tells the status."""

from __future__ import annotations

import json

from compass.domain.progress import Progress, status_of_run
from compass.rebuild.fleet import Fleet
from compass.rebuild.job import RebuildJob, RunRecord

ORDER = {
    "job_id": "j",
    "space_id": "s-1",
    "endpoints": ["http://a", "http://b"],
    "api_key_env": None,
    "batch_size": 8,
}


def test_a_job_is_read_from_an_order() -> None:
    """An order may say more than the job needs; what it leaves out has its default."""
    assert RebuildJob.of(ORDER) == RebuildJob("j", ("http://a", "http://b"), batch_size=8)


def test_a_record_survives_json() -> None:
    """A record that was stored is the same record."""
    progress = Progress().planned(0.0, total=10, embedded=5, failed=1, blank=0)
    fleet = ({"url": "http://a", "in_flight": 1, "docs_per_s": 2.5, "errors": 0, "last_error": None},)
    record = RunRecord(
        RebuildJob.of(ORDER), "attempt", "running", 5.0, owns_below=77, progress=progress, fleet=fleet, stalled_s=61.0
    )
    back = RunRecord.from_json(json.loads(json.dumps(record.to_json())))
    assert back.to_json() == record.to_json()
    assert back.job == record.job


def test_a_record_tells_the_status() -> None:
    """The keys that a record is stored under are those that the status reads."""
    progress = Progress().planned(0.0, total=10, embedded=5, failed=1, blank=0)
    fleet = ({"url": "http://a", "in_flight": 1, "docs_per_s": 2.5, "errors": 0, "last_error": None},)
    record = RunRecord(
        RebuildJob.of(ORDER),
        "a",
        "failed",
        5.0,
        9.0,
        "why",
        progress=progress,
        docs_per_s=7.5,
        eta_s=2.0,
        fleet=fleet,
    )
    assert status_of_run(json.loads(json.dumps(record.to_json())), active=False) == {
        "progress": 0.6,
        "percent": 60.0,
        "embedded": 5,
        "total": 10,
        "failed": 1,
        "docs_per_s": 7.5,
        "eta_s": 2.0,
        "run": {"state": "failed", "job_id": "j", "started_at": 5.0, "ended_at": 9.0},
        "endpoints": list(fleet),
        "error": "why",
    }


def test_a_fleet_is_the_sum_of_what_the_stages_say() -> None:
    """Each endpoint is listed once; a stage's later word replaces its earlier one."""

    def word(url: str, in_flight: int, errors: int, last_error: str | None) -> dict[str, object]:
        return {"url": url, "in_flight": in_flight, "docs_per_s": 10.0, "errors": errors, "last_error": last_error}

    fleet = Fleet()
    fleet.hear("s1", [word("http://a", 9, 9, "old")])
    fleet.hear("s1", [word("http://a", 1, 0, None), word("http://b", 2, 1, "503")])
    fleet.hear("s2", [word("http://a", 3, 2, "reset")])
    a, b = fleet.endpoints()
    assert a == {"url": "http://a", "in_flight": 4, "docs_per_s": 20.0, "errors": 2, "last_error": "reset"}
    assert b == word("http://b", 2, 1, "503")
