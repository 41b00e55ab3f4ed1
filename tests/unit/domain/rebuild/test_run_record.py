"""What is stored of a run comes back, and tells the status."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from compass.domain.embedding.endpoint_stats import EndpointState, EndpointStats
from compass.domain.rebuild.budget import Spending
from compass.domain.rebuild.order import RebuildOrder
from compass.domain.rebuild.progress import Progress
from compass.domain.rebuild.run_record import RunRecord
from compass.domain.rebuild.status import RebuildStatus, RunStatus, status_of_run
from compass.rebuild.endpoint_stats import RunEndpoints

OLDER = Path(__file__).parents[3] / "data" / "v0.1.0"
ORDER = RebuildOrder(("http://a", "http://b"), "j", batch_size=8)
FLEET = (EndpointStats("http://a", in_flight=1, docs_per_s=2.5),)


def test_an_order_survives_json() -> None:
    """What the router has carried out before the run began is no part of the record."""
    order = replace(ORDER, restart=True, accept_new_fingerprint=True)
    stored = json.loads(json.dumps(order.to_json()))
    assert not {"restart", "accept_new_fingerprint"} & stored.keys()
    assert RebuildOrder.from_json({**stored, "state": "running"}) == ORDER


def test_a_record_survives_json() -> None:
    """A record that was stored is the same record, but for the speed, which begins anew."""
    record = RunRecord(ORDER, "attempt", "running", 5.0, owns_below=77, fleet=FLEET, stalled_s=61.0)
    record = replace(record, spending=Spending(1.0, 2.0, 1.5), mixed_models=True, progress=Progress(10, 5, 1))
    stored = json.loads(json.dumps(record.to_json()))
    assert RunRecord.from_json(stored) == record
    assert stored["tainted"] is True, "names on disk stay"


def test_a_record_of_an_older_version_is_written_as_it_was_read() -> None:
    """What version 0.1.0 left on disk has the same names and values for this one."""
    [stored] = OLDER.glob("*/spaces/new-*/run.json")
    record = json.loads(stored.read_text())
    assert RunRecord.from_json(record).to_json() == record


def test_a_record_tells_the_status() -> None:
    """How far the run is, what it costs, and why it failed."""
    progress = Progress().planned(0.0, total=10, embedded=5, failed=1, blank=0)
    record = RunRecord(
        ORDER, "a", "failed", 5.0, 9.0, "why", progress=progress, docs_per_s=7.5, eta_s=2.0, fleet=FLEET
    )
    assert status_of_run(record, active=False) == RebuildStatus(
        progress=0.6,
        percent=60.0,
        embedded=5,
        total=10,
        failed=1,
        docs_per_s=7.5,
        eta_s=2.0,
        run=RunStatus("failed", "j", 5.0, 9.0),
        endpoints=FLEET,
        error="why",
    )


def word(url: str, state: EndpointState = "up", **counts: Any) -> EndpointStats:
    """What a stage reports of an endpoint."""
    return EndpointStats(url, state, **{"window": 4, "docs_per_s": 10.0, "batch_size": 32, **counts})


def test_a_fleet_is_the_sum_of_what_the_stages_say() -> None:
    """Each endpoint is listed once; a stage's later word replaces its earlier one, the best state counts."""
    fleet = RunEndpoints(lambda: 0.0)
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
    fleet = RunEndpoints(lambda: 0.0)
    assert fleet.waiting() is None
    fleet.report("s1", [word("http://a", state="down", last_error="no route"), word("http://b", state="refused")])
    said = fleet.waiting() or ""
    assert "http://a: no route" in said
    assert "http://b: refused" in said
    fleet.report("s2", [word("http://a", state="new")])
    assert fleet.waiting() is None
