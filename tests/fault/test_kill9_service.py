"""kill -9 of every kind of process, one after another, in the middle of a rebuild with writes."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from compass.index.backfill import SAMPLES
from compass.storage.objects import open_objects
from compass.storage.root import Root
from compass.storage.snapshot.parts import MissingObjectError
from compass.testing.embed_server import served

pytestmark = pytest.mark.ray

CHUNKS = 3_000
KINDS = ["RebuildProcess", "IndexProcess", "CollectionProcess", "RouterProcess", "ServeReplica"]


class Writer(threading.Thread):
    """Writes until told to stop, sending again what was not acknowledged; remembers what was."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.url, self.stopped = url, threading.Event()
        self.written: dict[int, str] = {}

    def run(self) -> None:
        with httpx.Client(trust_env=False, timeout=30) as http:
            turn = 0
            while not self.stopped.is_set():
                turn += 1
                text = f"written while processes die, turn {turn}"
                chunk = {"file_id": "w", "chunk_index": turn % 40, "text": text}
                while not self.stopped.is_set():
                    try:
                        answer = http.post(f"{self.url}/ingest", json={"chunks": [chunk], "wait_s": 0})
                    except httpx.HTTPError:
                        time.sleep(0.1)
                        continue
                    assert answer.status_code in (200, 503), answer.text
                    if answer.status_code == 200:
                        self.written[turn % 40] = text
                        break
                    time.sleep(0.1)
                time.sleep(0.02)


def test_a_rebuild_survives_the_death_of_every_process(new_service: Any, wait_until: Any) -> None:
    """It ends right, nothing acknowledged is lost, and no durable vector is embedded twice."""
    arrived: list[tuple[str, float]] = []
    since: dict[str, float] = {}

    def note(inputs: list[str]) -> None:
        now = time.time()
        if len(inputs) > SAMPLES:  # a few stored texts are embedded again to see whether the model is still the same
            arrived.extend((text, now) for text in inputs)

    with (
        served("words-b", 96, delay_ms=25, reply=note) as endpoint,
        new_service(rebuild_actors="1") as service,
        service.client() as http,
    ):
        space = {"dims": 32, "model": "m", "embed_endpoint": "builtin"}
        assert http.post("/collections", json={"name": "c", "vector_spaces": {"old": space}}).status_code == 201
        texts = [f"document {i} about subject{i % 97} and object{i % 89}" for i in range(CHUNKS)]
        for start in range(0, CHUNKS, 500):
            rows = [{"file_id": "d", "chunk_index": i, "text": texts[i]} for i in range(start, start + 500)]
            assert http.post("/collections/c/ingest", json={"chunks": rows, "wait_s": 30}).status_code == 200
        http.post("/collections/c/vector-spaces", json={"name": "new", "dims": 96, "model": "words-b"})
        started = http.post("/collections/c/vector-spaces/new/rebuild", json={"embed_endpoint": endpoint.url})
        assert started.status_code == 202, started.text
        writer = Writer(f"{service.url}/collections/c")
        writer.start()
        durable = Durable(service.data, since)
        durable.start()
        epochs = []

        def status() -> dict[str, Any] | None:
            try:
                answer = http.get("/collections/c/vector-spaces/new/status")
            except httpx.HTTPError:
                return None
            return dict(answer.json()) if answer.status_code == 200 else None

        for number, kind in enumerate(KINDS):
            reached = (number + 1) / (len(KINDS) + 2)
            wait_until(lambda r=reached: (s := status()) and s["progress"] >= r, 90, f"progress {reached:.2f}")
            assert service.kill(kind) >= 1, f"no process {kind}"
            epochs.append(wait_until(lambda: _epoch(http), 30, f"an answer after the death of {kind}"))
        wait_until(lambda: (s := status()) and s["status"] == "active", 120, "the activation")
        writer.stopped.set()
        writer.join(30)
        assert epochs == sorted(epochs)
        durable.stopped.set()
        durable.join(10)
        assert len(since) >= CHUNKS, "the watcher saw the files"
        again = [(t, at) for t, at in arrived if t in since and at > since[t]]
        assert again == [], "a vector that was durable was embedded again"
        assert http.put("/collections/c/default-vector-space", json={"name": "new"}).status_code == 200
        info = http.get("/collections/c").json()
        assert info["chunk_count"] == CHUNKS + len(writer.written)
        wait_until(lambda: (s := status()) and s["lag"] == 0, 30, "the follower")
        found = status()
        assert found is not None
        assert found["embedded"] == info["chunk_count"]
        for text in [*writer.written.values(), *texts[::250]]:
            hits = http.post("/collections/c/search", json={"query": text, "top_k": 20}).json()["results"]
            assert any(h["chunk"]["text"] == text for h in hits), text


def _epoch(http: httpx.Client) -> int | None:
    try:
        answer = http.post("/collections/c/search", json={"query": "document about subject5"})
    except httpx.HTTPError:
        return None
    return int(answer.json()["epoch"]) if answer.status_code == 200 else None


class Durable(threading.Thread):
    """Notes when each vector of the new space was first seen durable in a file, by its text."""

    def __init__(self, data: Path, since: dict[str, float]) -> None:
        super().__init__(daemon=True)
        self.root = Root(open_objects(data), data / "cache")
        self.since, self.stopped, self.read = since, threading.Event(), set[str]()

    def run(self) -> None:
        uuid = self.root.collections()["c"]
        view = self.root.view(uuid)
        space = next(s for s in view.state().spaces.values() if s.name == "new")
        vectors = self.root.space_vectors(uuid, space.id, space.config.dims)
        while not self.stopped.wait(0.02):
            for key in set(vectors.files()) - self.read:
                with contextlib.suppress(MissingObjectError):  # compacted away: its successor is listed
                    vids, _ = vectors.read(key)
                    now = time.time()
                    for text in view.texts(vids).values():
                        self.since.setdefault(text, now)
                    self.read.add(key)
