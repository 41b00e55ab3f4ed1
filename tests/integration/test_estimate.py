"""A dry run and a budget, through the real service: what a user is told, and that it holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from compass.testing.embed_server import served

pytestmark = pytest.mark.ray

MODEL, DIMS, CHUNKS = "words-b", 64, 1_500
MANY = 7_500


def ingest(http: httpx.Client, base: str, file_id: str, count: int) -> None:
    """Write so many chunks of five words."""
    texts = [f"{file_id} {i} tells of subject{i % 50}" for i in range(count)]
    rows = [{"file_id": file_id, "chunk_index": i, "text": text} for i, text in enumerate(texts)]
    assert http.post(f"{base}/ingest", json={"chunks": rows, "wait_s": 0}).status_code == 200


@pytest.fixture
def base(http: httpx.Client, name: str, wait_until: Any) -> str:
    """A collection of 1,500 chunks of five words with a space `new` beside its default; its path."""
    path = f"/collections/{name}"
    space = {"dims": 32, "model": "m", "embed_endpoint": "builtin"}
    assert http.post("/collections", json={"name": name, "vector_spaces": {"old": space}}).status_code == 201
    ingest(http, path, "f", CHUNKS)
    assert http.post(f"{path}/vector-spaces", json={"name": "new", "dims": DIMS, "model": MODEL}).status_code == 201
    wait_until(
        lambda: "fingerprint" in http.get(path).json()["vector_spaces"]["old"],
        30,
        "the commit of who has built the default",
    )
    return path


def durable(service: Any, http: httpx.Client, base: str) -> tuple[Any, ...]:
    """All that a dry run might have changed: the files of the space, its record, the history, the log."""
    info = http.get(base).json()
    folder: Path = service.data
    files = sorted(str(p) for p in folder.rglob(f"spaces/{info['vector_spaces']['new']['id']}/**/*") if p.is_file())
    return files, info["vector_spaces"]["new"], info["seq"], http.get(f"{base}/history").json()


def test_a_dry_run_tells_the_speed_and_changes_nothing(
    service: Any, http: httpx.Client, base: str, wait_until: Any
) -> None:
    """Docs/s within a factor of 1.5 of the endpoint's pace, cost by its tokens; no byte is written for it."""
    rebuild = f"{base}/vector-spaces/new/rebuild"
    before = durable(service, http, base)
    with served(MODEL, DIMS, docs_per_s=150) as server:
        order = {"embed_endpoint": server.url, "cost_per_million_tokens": 1_000_000.0}
        answer = http.post(rebuild, json={**order, "dry_run": True})
        assert answer.status_code == 200, answer.text
        report = answer.json()
        assert durable(service, http, base) == before
        wait_until(lambda: not service.actor_processes("EstimatorProcess"), 10, "the end of the pilot's process")
        assert not service.actor_processes("RebuildProcess")

    assert 100 <= report["docs_per_s"]["estimate"] <= 225
    assert 100 <= report["endpoints"][0]["docs_per_s"]["estimate"] <= 225
    assert (report["chunks"]["missing"], report["tokens_from"], report["failures"]) == (CHUNKS, "server", [])
    assert report["cost"]["estimate"] == pytest.approx(5 * CHUNKS, rel=0.02)
    assert report["time_s"]["embedding"]["estimate"] == pytest.approx(CHUNKS / 150, rel=0.5)


def test_what_an_order_is_refused_for_a_dry_run_is_too(http: httpx.Client, base: str) -> None:
    """404 for an unknown space, 422 without an endpoint and for prices that do not fit, 409 for the default."""
    space = f"{base}/vector-spaces/new/rebuild"
    dry = {"dry_run": True}
    url = {"embed_endpoint": "http://127.0.0.1:9"}
    cases = [
        (404, f"{base}/vector-spaces/none/rebuild", {**dry, **url}),
        (422, space, dry),
        (422, space, {**dry, **url, "budget": 5}),
        (422, space, {**url, "budget": 5}),
        (422, space, {**dry, **url, "cost_per_hour": 1, "cost_per_million_tokens": 1}),
        (409, f"{base}/vector-spaces/old/rebuild", {**dry, "restart": True}),
    ]
    for status, path, body in cases:
        answer = http.post(path, json=body)
        assert answer.status_code == status, (path, body, answer.text)


def test_a_budget_ends_the_run_and_a_greater_one_goes_on(http: httpx.Client, base: str, wait_until: Any) -> None:
    """The server never counts more tokens than were paid for, and nothing that is durable is sent again."""
    rebuild, status = f"{base}/vector-spaces/new/rebuild", f"{base}/vector-spaces/new/status"
    words = [0]

    def reply(texts: list[str]) -> None:
        if texts != ["hello world"]:  # which asks what the endpoint is, before the run
            words[0] += sum(len(text.split()) for text in texts)

    def ended() -> Any:
        found = http.get(status).json()
        return found if found["run"]["state"] != "running" else None

    with served(MODEL, DIMS, reply=reply) as server:
        order = {"embed_endpoint": server.url, "cost_per_million_tokens": 1_000_000.0}
        running = http.post(rebuild, json={**order, "budget": 4_000.0, "max_docs_per_s": 500})
        assert running.status_code == 202, running.text
        refused = http.post(rebuild, json={**order, "dry_run": True})
        assert (refused.status_code, refused.json()["type"]) == (409, "rebuild-running")
        found = wait_until(ended, 60, "the end of the budget")
        assert (found["run"]["state"], found["cost"]["budget"]) == ("failed", 4_000.0)
        assert "the budget is spent" in found["error"]
        assert found["cost"]["spent"] == words[0]
        assert 3_500 <= words[0] <= 4_000
        kept = found["embedded"]
        assert kept == words[0] // 5

        report = http.post(rebuild, json={**order, "dry_run": True}).json()
        assert report["chunks"]["missing"] == CHUNKS - kept
        words[0] = 0
        assert http.post(rebuild, json={**order, "budget": 50_000.0}).status_code == 202
        found = wait_until(ended, 60, "the end of the rebuild")
        assert (found["run"]["state"], found["status"]) == ("done", "active"), json.dumps(found)
        assert found["cost"]["spent"] == 5 * (CHUNKS - kept)


def test_a_killed_run_forgets_no_spending(service: Any, http: httpx.Client, base: str, wait_until: Any) -> None:
    """Kill -9 of the rebuild's process: the same run goes on, with the account that it had, and keeps its budget."""
    rebuild, status = f"{base}/vector-spaces/new/rebuild", f"{base}/vector-spaces/new/status"
    words, budget = [0], 30_000.0
    ingest(http, base, "g", MANY)

    def reply(texts: list[str]) -> None:
        if texts != ["hello world"]:
            words[0] += sum(len(text.split()) for text in texts)

    def ended() -> Any:
        found = http.get(status).json()
        return found if found["run"]["state"] != "running" else None

    with served(MODEL, DIMS, reply=reply, docs_per_s=1_500) as server:
        order = {"embed_endpoint": server.url, "cost_per_million_tokens": 1_000_000.0, "budget": budget}
        job_id = http.post(rebuild, json={**order, "concurrency": 4}).json()["job_id"]
        wait_until(lambda: words[0] > 5_000, 30, "the first tokens")
        before = words[0]
        assert service.kill("RebuildProcess") == 1
        found = wait_until(ended, 60, "the end of the budget")
    assert (found["run"]["state"], found["run"]["job_id"]) == ("failed", job_id)
    assert "the budget is spent" in found["error"]
    assert before < words[0] <= found["cost"]["spent"] <= budget
    assert words[0] >= 0.6 * budget
