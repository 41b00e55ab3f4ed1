"""What is stored of a run comes back, and tells the status."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from compass.domain.rebuild.progress import Progress, status_of_run
from compass.domain.rebuild.run_record import RebuildJob, RunRecord
from compass.rebuild.endpoint_stats import Fleet

OLDER = Path(__file__).parents[3] / "data" / "v0.1.0"
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


def test_a_record_of_an_older_version_is_written_as_it_was_read() -> None:
    """What version 0.1.0 left on disk has the same names and values for this one."""
    [stored] = OLDER.glob("*/spaces/new-*/run.json")
    record = json.loads(stored.read_text())
    assert RunRecord.from_json(record).to_json() == record


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


def word(url: str, **said: Any) -> dict[str, Any]:
    """What a stage says of an endpoint."""
    counts = {"in_flight": 0, "window": 4, "docs_per_s": 10.0, "docs": 0, "tokens": 0, "errors": 0}
    return {"url": url, "state": "up", **counts, "batch_size": 32, "last_error": None, **said}


def test_a_fleet_is_the_sum_of_what_the_stages_say() -> None:
    """Each endpoint is listed once; a stage's later word replaces its earlier one, the best state counts."""
    fleet = Fleet(lambda: 0.0)
    fleet.report("s1", [word("http://a", in_flight=9, errors=9, last_error="old")])
    fleet.report("s1", [word("http://a", in_flight=1, docs=5, state="down"), word("http://b", errors=1)])
    fleet.report("s2", [word("http://a", in_flight=3, docs=7, errors=2, last_error="reset", state="paused")])
    a, b = fleet.endpoints()
    assert a == word(
        "http://a", in_flight=4, window=8, docs_per_s=20.0, docs=12, errors=2, last_error="reset", state="paused"
    )
    assert b == word("http://b", errors=1)


def test_a_fleet_waits_when_no_endpoint_answers() -> None:
    """Down or refused at every stage: the reason names each; one that is up, or not asked yet, ends it."""
    fleet = Fleet(lambda: 0.0)
    assert fleet.waiting() is None
    fleet.report("s1", [word("http://a", state="down", last_error="no route"), word("http://b", state="refused")])
    said = fleet.waiting() or ""
    assert "http://a: no route" in said
    assert "http://b: refused" in said
    fleet.report("s2", [word("http://a", state="new")])
    assert fleet.waiting() is None
