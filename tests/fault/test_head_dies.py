"""The head node dies with everything on it, and the service is started again on the same data."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Any

import httpx
import psutil
import pytest

from compass.testing.embed_server import served

pytestmark = pytest.mark.ray

CHUNKS = 1_500
SPACES = "/collections/docs/vector-spaces"


def _kill_everything(service: Any) -> None:
    """Kill -9 of the whole family: GCS, raylet, workers, and the command itself."""
    family = [service.process, *psutil.Process(service.process.pid).children(recursive=True)]
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    service.process.wait(10)
    psutil.wait_procs(family[1:], timeout=10)
    service.log.write_text("")


@pytest.mark.timeout(240)
def test_everything_is_there_after_the_head_node_has_died(new_service: Any, traffic: Any, wait_until: Any) -> None:
    """Killed amid queries, writes, swaps, drops and a rebuild, and started again: nothing is lost, all goes on."""
    with served("words-b", 96, delay_ms=50) as endpoint, new_service(lease_s="2", rebuild_actors="1") as service:
        load = traffic(service.url)
        load.fill()
        with service.client() as http:
            for start in range(0, CHUNKS, 500):
                rows = [
                    {"file_id": "d", "chunk_index": i, "text": f"document {i} about subject{i % 97}"}
                    for i in range(start, start + 500)
                ]
                assert http.post("/collections/docs/ingest", json={"chunks": rows}).status_code == 200

        def status() -> dict[str, Any]:
            with contextlib.suppress(httpx.TransportError), service.client() as http:
                answer = http.get(f"{SPACES}/rebuilt/status")
                return dict(answer.json()) if answer.status_code == 200 else {}
            return {}

        load.start()
        wait_until(lambda: len(load.swapper.history) >= 3, 60, "swaps")
        with service.client() as http:
            http.post(SPACES, json={"name": "rebuilt", "dims": 96, "model": "words-b"})
            order = {"embed_endpoint": endpoint.url, "concurrency": 1, "max_docs_per_s": 200}
            started = http.post(f"{SPACES}/rebuilt/rebuild", json=order)
            assert started.status_code == 202, started.text
        wait_until(lambda: status().get("progress", 0) > 0.2, 60, "a part of it")
        before = max(one.epoch for one in load.history)
        written = len(load.writer.acknowledged)
        assert status()["progress"] < 0.9
        _kill_everything(service)
        service.start()
        swaps = len(load.swapper.history)
        wait_until(lambda: len(load.swapper.history) >= swaps + 3, 30, "swaps after the start")
        # a swap to what is the default already keeps the epoch, so it is the epoch that tells
        wait_until(lambda: load.swapper.history[-1].epoch > before, 60, "a new default after the start")
        wait_until(lambda: len(load.writer.acknowledged) > written, 30, "writes after the start")
        wait_until(lambda: status().get("status") == "active", 90, "the end of the rebuild")
        load.stop()
        assert load.wrong() == []
        assert status()["run"]["job_id"] == started.json()["job_id"], "the run that was interrupted went on"
        newest = load.writer.acknowledged[-1]
        with service.client() as http:

            def found_in(space: str) -> bool:
                # exact: texts that differ in a number alone lie so close together that a graph misses some
                query = {"query": newest, "vector_space": space, "top_k": 5, "exact": True}
                hits = http.post("/collections/docs/search", json=query).json()["results"]
                return newest in [hit["chunk"]["text"] for hit in hits]

            for space in ("old", "new", "rebuilt"):  # a write waits for the default alone, the others follow
                wait_until(partial(found_in, space), 30, f"{newest!r} in {space}")
