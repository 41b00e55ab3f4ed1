"""A query that is under way while the default is swapped, and while its space is dropped."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from compass.testing.embed_server import served

pytestmark = pytest.mark.ray

TEXTS = ["rotate a log file", "parse a date string", "compress some bytes"]
SLOW = "a query that takes its time"


class SlowEndpoint:
    """What an endpoint does with one query: it holds the answer back until a test lets it go."""

    def __init__(self) -> None:
        self.arrived, self.let_go = threading.Event(), threading.Event()

    async def reply(self, inputs: list[str]) -> None:
        if SLOW in inputs:
            self.arrived.set()
            await asyncio.to_thread(self.let_go.wait, 60)


@pytest.fixture
def endpoint() -> Iterator[SlowEndpoint]:
    made = SlowEndpoint()
    yield made
    made.let_go.set()


def test_a_slow_query_finishes_on_the_index_that_it_began_with(
    service: Any, http: Any, name: str, endpoint: SlowEndpoint, wait_until: Any
) -> None:
    """Its answer names the old space and epoch though the default has changed meanwhile. A drop of the old space
    waits for it, and then process and files are gone.
    """
    base = f"/collections/{name}"
    with served("words-a", 96, reply=endpoint.reply) as slow, ThreadPoolExecutor(2) as aside:
        spaces = {
            "old": {"dims": 96, "model": "words-a", "embed_endpoint": slow.url},
            "new": {"dims": 128, "model": "words-b", "embed_endpoint": "builtin"},
        }
        assert http.post("/collections", json={"name": name, "vector_spaces": spaces}).status_code == 201
        chunks = [{"file_id": "f", "chunk_index": i, "text": text} for i, text in enumerate(TEXTS)]
        assert "old" not in http.post(f"{base}/ingest", json={"chunks": chunks}).json()["pending"]
        old = next(s for s in http.get(f"{base}/vector-spaces").json() if s["name"] == "old")
        indexes = _index_processes(service)
        before = set(indexes())

        query = {"query": SLOW, "top_k": 3, "include_vectors": True}
        answer = aside.submit(http.post, f"{base}/search", json=query)
        assert endpoint.arrived.wait(20), "the query's text has reached the endpoint"

        swapped = http.put(f"{base}/default-vector-space", json={"name": "new"})
        assert (swapped.status_code, swapped.json()["epoch"]) == (200, 2)
        quick = http.post(f"{base}/search", json={"query": "parse a date"}).json()
        assert (quick["vector_space"], quick["epoch"]) == ("new", 2)

        drop = aside.submit(http.delete, f"{base}/vector-spaces/old")
        wait_until(lambda: [s["name"] for s in http.get(f"{base}/vector-spaces").json()] == ["new"])
        assert http.post(f"{base}/search", json={"query": "x", "vector_space": "old"}).status_code == 404
        assert not drop.done(), "the drop waits for the query"
        assert not answer.done()
        assert set(indexes()) == before, "the old space's process is still there to answer"

        endpoint.let_go.set()
        found = answer.result(30)
        assert found.status_code == 200, found.text
        body = found.json()
        assert (body["vector_space"], body["epoch"]) == ("old", 1)
        assert {h["chunk"]["text"] for h in body["results"]} == set(TEXTS)
        assert {len(h["chunk"]["embeddings"]["old"]) for h in body["results"]} == {96}

        assert drop.result(30).status_code == 204
        assert not list(Path(service.data).rglob(old["id"])), "its files are gone"
        gone = wait_until(lambda: before - set(indexes()), 10, "the end of the old index's process")
        assert len(gone) == 1


def _index_processes(service: Any) -> Any:
    """The pids of the processes that hold an index now."""
    return lambda: [process.pid for process in service.actor_processes("IndexProcess")]
