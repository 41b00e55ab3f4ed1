"""Rebuilds against endpoints that misbehave, through the real service: what a user sees and can do."""

from __future__ import annotations

import threading
import time
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse, Response

from compass.index.backfill import SAMPLES
from compass.testing.embed_server import served

pytestmark = pytest.mark.ray

MODEL, DIMS = "words-b", 64
MANY = 5_000  # more than the service's rebuilds embed without Ray Data


class Moody:
    """A reply of an embed server that a test turns as it likes."""

    def __init__(self) -> None:
        self.poison, self.down = threading.Event(), threading.Event()
        self.most = 0  # inputs in one request

    def __call__(self, texts: list[str]) -> Response | None:
        self.most = max(self.most, len(texts))
        if self.down.is_set():
            return JSONResponse({"error": "the GPU is on fire", "error_type": "Unhealthy"}, 503)
        if self.poison.is_set() and any("POISON" in text for text in texts):
            said = "Input validation error: `inputs` must have less than 512 tokens. Given: 9000"
            return JSONResponse({"error": said, "error_type": "Validation"}, 422)
        return None


def filled(http: httpx.Client, name: str, texts: list[str]) -> str:
    """A collection of these texts with a space `new` beside its default; its path."""
    base = f"/collections/{name}"
    space = {"dims": 32, "model": "m", "embed_endpoint": "builtin"}
    assert http.post("/collections", json={"name": name, "vector_spaces": {"old": space}}).status_code == 201
    for at in range(0, len(texts), 1_000):
        rows = [{"file_id": "f", "chunk_index": i, "text": texts[i]} for i in range(at, min(at + 1_000, len(texts)))]
        assert http.post(f"{base}/ingest", json={"chunks": rows, "wait_s": 0}).status_code == 200
    added = http.post(f"{base}/vector-spaces", json={"name": "new", "dims": DIMS, "model": MODEL})
    assert added.status_code == 201, added.text
    return base


def rebuilt(http: httpx.Client, base: str, **order: Any) -> dict[str, Any]:
    """Rebuild `new`, and the status at the end."""
    started = http.post(f"{base}/vector-spaces/new/rebuild", json=order)
    assert started.status_code == 202, started.text
    return ended(http, base)


def ended(http: httpx.Client, base: str) -> dict[str, Any]:
    deadline = time.monotonic() + 90
    while (status := http.get(f"{base}/vector-spaces/new/status").json())["run"]["state"] == "running":
        assert time.monotonic() < deadline, status
        time.sleep(0.1)
    return dict(status)


def test_poison_is_quarantined_listed_accepted_and_retried(http: httpx.Client, name: str) -> None:
    """From the first failed run to the healed endpoint, each step as the status advises."""
    mood = Moody()
    mood.poison.set()
    texts = [f"text {i} of topic{i % 17}" + (" POISON" if i in (5, 77, 270) else "") for i in range(300)]
    with served(MODEL, DIMS, reply=mood) as endpoint:
        base = filled(http, name, texts)
        status = rebuilt(http, base, embed_endpoint=endpoint.url)
        assert (status["status"], status["run"]["state"], status["failed"]) == ("failed", "failed", 3)
        assert "3 chunks quarantined" in status["error"]
        page = http.get(f"{base}/vector-spaces/new/quarantine", params={"limit": 2}).json()
        rest = http.get(f"{base}/vector-spaces/new/quarantine", params={"after": page["next"]}).json()
        found = page["chunks"] + rest["chunks"]
        assert [chunk["chunk_index"] for chunk in found] == [5, 77, 270]
        assert all("less than 512 tokens" in chunk["reason"] for chunk in found)
        assert rest["next"] is None

        mood.most = 0
        status = rebuilt(http, base, max_failed=3)
        assert (status["status"], status["progress"], status["failed"]) == ("active", 1.0, 3)
        assert mood.most <= SAMPLES, "nothing durable is sent again, but for what shows that the model is the same"
        assert http.put(f"{base}/default-vector-space", json={"name": "new"}).status_code == 200
        more = [{"file_id": "g", "chunk_index": 0, "text": "one more POISON"}]
        assert http.post(f"{base}/ingest", json={"chunks": more, "wait_s": 5}).status_code == 200
        assert http.put(f"{base}/default-vector-space", json={"name": "old"}).status_code == 200
        refused = http.put(f"{base}/default-vector-space", json={"name": "new"}).json()
        assert (refused["type"], refused["quarantined"], refused["accepted"]) == ("space-quarantined", 4, 3)

        mood.poison.clear()
        status = rebuilt(http, base)
        assert (status["run"]["state"], status["failed"], status["embedded"]) == ("done", 0, 301)
        assert http.get(f"{base}/vector-spaces/new/quarantine").json() == {"chunks": [], "next": None}
        assert http.put(f"{base}/default-vector-space", json={"name": "new"}).status_code == 200


def test_a_rebuild_waits_for_its_endpoints(http: httpx.Client, name: str, wait_until: Any) -> None:
    """All down when only Ray Data's stages still work: the status says so, and the run goes on once one is back."""
    mood = Moody()
    with (
        served(MODEL, DIMS, reply=mood, docs_per_s=600) as one,
        served(MODEL, DIMS, reply=mood, docs_per_s=600) as two,
    ):
        base = filled(http, name, [f"text {i} of topic{i % 17}" for i in range(MANY)])
        order = {"embed_endpoint": [one.url, two.url]}
        assert http.post(f"{base}/vector-spaces/new/rebuild", json=order).status_code == 202
        again = http.post(f"{base}/vector-spaces/new/rebuild", json=order)
        assert (again.status_code, again.json()["type"]) == (409, "rebuild-running")

        def status() -> dict[str, Any]:
            return dict(http.get(f"{base}/vector-spaces/new/status").json())

        wait_until(lambda: one.stats()["inputs"] + two.stats()["inputs"] > 3_000, 60)
        mood.down.set()
        waiting = wait_until(lambda: (s := status()).get("error") and s, 30, "the status tells of the endpoints")
        assert "no endpoint answers" in waiting["error"]
        assert "the GPU is on fire" in waiting["error"]
        assert {e["state"] for e in waiting["endpoints"]} == {"down"}
        assert (waiting["status"], waiting["run"]["state"]) == ("building", "running")
        mood.down.clear()
        done = ended(http, base)
        assert (done["status"], done["run"]["state"], done["embedded"]) == ("active", "done", MANY)
        assert min(one.stats()["inputs"], two.stats()["inputs"]) > 300  # both worked; one may have come back late
        assert sum(e["docs"] for e in done["endpoints"]) >= MANY - 1_000


def test_a_rebuild_gives_up_in_the_end_and_resumes(http: httpx.Client, name: str) -> None:
    """After `endpoint_timeout_s` it is failed, with the reason; a cancel does not wait; a new order goes on."""
    mood = Moody()
    with served(MODEL, DIMS, reply=mood) as endpoint:
        base = filled(http, name, [f"text {i} of topic{i % 17}" for i in range(200)])
        mood.down.set()
        status = rebuilt(http, base, embed_endpoint=endpoint.url, endpoint_timeout_s=2)
        assert (status["status"], status["run"]["state"]) == ("failed", "failed")
        assert "no endpoint gave a good answer for 2 s" in status["error"]
        assert "the GPU is on fire" in status["error"]
        assert http.post(f"{base}/vector-spaces/new/rebuild", json={}).status_code == 202
        time.sleep(1)
        began = time.monotonic()
        assert http.delete(f"{base}/vector-spaces/new/rebuild").status_code == 202
        assert time.monotonic() - began < 60, "it waits for no endpoint, which has 15 minutes"
        assert ended(http, base)["run"]["state"] == "cancelled"
        mood.down.clear()
        status = rebuilt(http, base)
        assert (status["status"], status["run"]["state"], status["embedded"]) == ("active", "done", 200)
