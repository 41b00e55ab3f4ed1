"""kill -9 in the bulk of a rebuild that Ray Data carries: of a process that embeds, then of everything at once."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from compass.embedding.builtin import HashingModel
from compass.index.backfill import SAMPLES
from compass.storage.objects import open_objects
from compass.storage.root import Root
from compass.storage.snapshot.parts import MissingObjectError
from compass.testing.embed_server import served

pytestmark = pytest.mark.ray

MODEL, DIMS = "words-b", 32
CHUNKS, LOCAL = 8_000, 2_000  # the rest is embedded by Ray Data's actors
PER_S = 1_500.0  # of the endpoint: long enough to be killed in the middle


def durable(data: Path) -> set[str]:
    """The texts whose vector in the new space is in a file by now."""
    root = Root(open_objects(data), data / "cache")
    uuid = root.collections()["c"]
    view = root.view(uuid)
    space = next(s for s in view.state().spaces.values() if s.name == "new")
    vectors = root.space_vectors(uuid, space.id, space.config.dims)
    found: set[str] = set()
    for key in vectors.files():
        with contextlib.suppress(MissingObjectError):  # compacted away: its successor is listed the next time
            found |= set(view.texts(vectors.read(key)[0]).values())
    return found


def kill_all(service: Any) -> None:
    """The power fails: nobody of the service is left to notice that another one has died."""
    root = psutil.Process(service.process.pid)
    family = [root, *root.children(recursive=True)]
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.suspend()  # so that none of them acts on the death of another
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(family, timeout=10)
    service.process.wait(10)
    service.log.write_text("")


def test_the_bulk_survives_the_death_of_one_and_of_all(new_service: Any, wait_until: Any) -> None:
    """It goes on by itself, ends with every chunk, and no vector that was durable at a death is embedded again."""
    arrived: list[tuple[float, str]] = []

    def note(inputs: list[str]) -> None:
        if len(inputs) > SAMPLES:  # a few stored texts are embedded again to see whether the model is still the same
            arrived.extend((time.time(), text) for text in inputs)

    with (
        served(MODEL, DIMS, docs_per_s=PER_S, reply=note) as endpoint,
        new_service(rebuild_local_rows=str(LOCAL)) as service,
        service.client() as http,
    ):
        texts = fill(http)
        order = http.post("/collections/c/vector-spaces/new/rebuild", json={"embed_endpoint": endpoint.url})
        assert order.status_code == 202, order.text
        deaths: list[tuple[float, set[str]]] = []
        wait_until(lambda: progress(http) > 0.4, 60, "a part of Ray Data's work")
        embedders = service.actor_processes("MapWorker")
        assert embedders, "Ray Data carries the bulk"
        kept = durable(service.data)
        embedders[0].kill()
        deaths.append((time.time(), kept))

        wait_until(lambda: progress(http) > 0.7, 90, "more of it after the death of a process that embeds")
        kept = durable(service.data)
        kill_all(service)
        deaths.append((time.time(), kept))
        assert len(kept) > CHUNKS / 4

        service.start()
        end = wait_until(
            lambda: (s := status(http)) and s["run"]["state"] != "running" and s, 90, "the end of the run"
        )
        assert (end["status"], end["run"]["state"], end["embedded"], end["failed"]) == ("active", "done", CHUNKS, 0)
        assert end["run"]["job_id"] == order.json()["job_id"]
        for at, kept in deaths:
            assert {text for time_s, text in arrived if time_s > at} & kept == set()
        assert {text for _, text in arrived} == set(texts)
        sample = texts[:: CHUNKS // 50]
        wanted = HashingModel(MODEL, DIMS).embed(sample)
        for text, vector in zip(sample, wanted, strict=True):
            body = {"query": text, "vector_space": "new", "top_k": 1, "include_vectors": True}
            hit = http.post("/collections/c/search", json=body).json()["results"][0]["chunk"]
            assert hit["text"] == text
            np.testing.assert_allclose(hit["embeddings"]["new"], vector, atol=1e-5)


def fill(http: httpx.Client) -> list[str]:
    """A collection with a small default, and a space beside it; its texts."""
    space = {"dims": 8, "model": "m", "embed_endpoint": "builtin"}
    assert http.post("/collections", json={"name": "c", "vector_spaces": {"old": space}}).status_code == 201
    texts = [f"document {i} about subject{i % 97} and object{i % 89}" for i in range(CHUNKS)]
    for start, rows in batches(texts):
        chunks = [{"file_id": "d", "chunk_index": start + i, "text": text} for i, text in enumerate(rows)]
        assert http.post("/collections/c/ingest", json={"chunks": chunks, "wait_s": 0}).status_code == 200
    added = http.post("/collections/c/vector-spaces", json={"name": "new", "dims": DIMS, "model": MODEL})
    assert added.status_code == 201, added.text
    return texts


def batches(texts: list[str]) -> Iterator[tuple[int, list[str]]]:
    return ((start, texts[start : start + 1_000]) for start in range(0, len(texts), 1_000))


def status(http: httpx.Client) -> dict[str, Any]:
    """The status, or nothing while nobody answers."""
    with contextlib.suppress(httpx.HTTPError):
        answer = http.get("/collections/c/vector-spaces/new/status")
        if answer.status_code == 200:
            return dict(answer.json())
    return {}


def progress(http: httpx.Client) -> float:
    return float(status(http).get("progress", 0.0))
