"""The main job over real HTTP on both sides: add, rebuild, search by name, swap, roll back, drop."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.responses import JSONResponse

from compass.demo.corpus import read_corpus
from compass.embedding.builtin import HashingModel
from compass.testing.embed_server import served

pytestmark = pytest.mark.ray

CHUNKS = 1_200


def _chunks(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [dict(c) for c in read_corpus(6_000)][start : start + count]


def _create(http: httpx.Client, name: str, url: str, dims: int = 96) -> None:
    space = {"dims": dims, "model": "words-a", "embed_endpoint": url}
    answer = http.post("/collections", json={"name": name, "vector_spaces": {"old": space}})
    assert answer.status_code == 201, answer.text


def _ingest(http: httpx.Client, name: str, chunks: list[dict[str, Any]]) -> dict[str, Any]:
    answer = http.post(f"/collections/{name}/ingest", json={"chunks": chunks, "wait_s": 30})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def _rebuilt(http: httpx.Client, name: str, space: str, wait_s: float = 120) -> dict[str, Any]:
    """Follow the status until the space is active; progress never falls on the way."""
    deadline, seen = time.monotonic() + wait_s, 0.0
    while time.monotonic() < deadline:
        status = http.get(f"/collections/{name}/vector-spaces/{space}/status").json()
        assert status["progress"] >= seen, status
        seen = status["progress"]
        assert (seen == 1.0) == (status["status"] == "active"), status
        assert status["run"]["state"] != "failed", status
        if status["status"] == "active":
            return dict(status)
        time.sleep(0.1)
    raise AssertionError(f"not active after {wait_s} s: {status}")


class Load(threading.Thread):
    """Queries and writes without a pause through a whole migration; keeps what went wrong."""

    def __init__(self, url: str, name: str, file_id: str) -> None:
        super().__init__(daemon=True)
        self.url, self.name_, self.file_id, self.stopped = url, name, file_id, threading.Event()
        self.answers: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.written: dict[tuple[str, int], str] = {}

    def run(self) -> None:
        with httpx.Client(base_url=f"{self.url}/collections/{self.name_}", timeout=30, trust_env=False) as http:
            turn = 0
            while not self.stopped.is_set():
                turn += 1
                try:
                    self._query(http, turn)
                    if turn % 3 == 0:
                        self._write(http, turn)
                except (httpx.HTTPError, KeyError, AssertionError) as error:
                    self.wrong.append(repr(error))

    def _query(self, http: httpx.Client, turn: int) -> None:
        words = ["read a file", "parse a date", "compress bytes", "open a socket"][turn % 4]
        answer = http.post("/search", json={"query": words, "include_vectors": True})
        if answer.status_code != 200:
            self.wrong.append(f"{answer.status_code} {answer.text}")
            return
        body = answer.json()
        self.answers[body["vector_space"]] += 1
        if not body["results"]:
            self.wrong.append(f"an empty answer: {body}")
        dims = {"old": 96, "new": 128}[body["vector_space"]]  # what tells one space's hits from the other's
        for hit in body["results"]:
            got = len(hit["chunk"]["embeddings"][body["vector_space"]])
            if got != dims:
                self.wrong.append(f"{body['vector_space']} answers with a vector of {got} dims")

    def _write(self, http: httpx.Client, turn: int) -> None:
        key = (self.file_id, turn % 50)
        if turn % 7 == 0 and key in self.written:
            found = http.post("/delete", json={"filters": {"file_id": key[0], "chunk_index": key[1]}})
            assert found.status_code == 200, found.text
            self.written.pop(key)
            return
        text = f"written during the migration, turn {turn}, marker {self.file_id}zq{turn}"
        chunk = {"file_id": key[0], "chunk_index": key[1], "text": text}
        answer = http.post("/ingest", json={"chunks": [chunk]})
        assert answer.status_code == 200, answer.text
        self.written[key] = text


def test_a_migration_under_load_loses_nothing_and_nobody_notices(
    service: Any, http: httpx.Client, embed_servers: tuple[Any, Any], name: str
) -> None:
    """Rebuild, swap, roll back, swap, drop under queries and writes: no error, no empty answer, no lost write."""
    first, second = embed_servers
    _create(http, name, first.url)
    _ingest(http, name, _chunks(CHUNKS))
    loads = [Load(service.url, name, f"load{number}") for number in range(3)]
    for load in loads:
        load.start()
    try:
        base = f"/collections/{name}"
        new = {"name": "new", "dims": 128, "model": "words-b"}
        added = http.post(f"{base}/vector-spaces", json=new)
        assert (added.status_code, added.json()["status"]) == (201, "building")
        refused = http.put(f"{base}/default-vector-space", json={"name": "new"})
        assert (refused.status_code, refused.json()["type"]) == (409, "space-not-active")

        started = http.post(f"{base}/vector-spaces/new/rebuild", json={"embed_endpoint": second.url})
        assert started.status_code == 202, started.text
        status = _rebuilt(http, name, "new")
        assert status["run"]["job_id"] == started.json()["job_id"]

        by_name = http.post(f"{base}/search", json={"query": "read a file", "vector_space": "new"})
        assert by_name.json()["vector_space"] == "new"
        assert by_name.json()["results"]

        for turn, space in enumerate(("new", "old", "new"), start=2):
            time.sleep(0.5)
            swap = {"rollback": True, "reason": "try the way back"} if space == "old" else {"name": space}
            swapped = http.put(f"{base}/default-vector-space", json=swap)
            assert swapped.status_code == 200, swapped.text
            assert (swapped.json()["current"], swapped.json()["epoch"]) == (space, turn)
            answer = http.post(f"{base}/search", json={"query": "read a file"}).json()
            assert (answer["vector_space"], answer["epoch"]) == (space, turn)
        time.sleep(0.5)
        refused = http.delete(f"{base}/vector-spaces/new")
        assert (refused.status_code, refused.json()["type"]) == (409, "default-space")
        old = next(s for s in http.get(f"{base}/vector-spaces").json() if s["name"] == "old")
        folders = list(Path(service.data).rglob(old["id"]))
        assert folders, "the old space has a folder"
        dropped = http.delete(f"{base}/vector-spaces/old")
        assert dropped.status_code == 204, dropped.text
        assert not list(Path(service.data).rglob(old["id"])), "its bytes are gone"
        time.sleep(0.5)
    finally:
        for load in loads:
            load.stopped.set()
        for load in loads:
            load.join(30)
    written = {key: text for load in loads for key, text in load.written.items()}
    assert [wrong for load in loads for wrong in load.wrong] == []
    for load in loads:
        assert load.answers["old"] > 0
        assert load.answers["new"] > 0
    stored = {(c["file_id"], c["chunk_index"]): c["text"] for c in _all_chunks(http, name)}
    assert {k: v for k, v in stored.items() if k[0].startswith("load")} == written
    for key, text in written.items():
        hits = http.post(f"{base}/search", json={"query": text, "top_k": 50}).json()["results"]
        assert any(h["chunk"]["text"] == text for h in hits), key
    events = http.get(f"{base}/history").json()["events"]
    assert [(e["kind"], e["space"], e["epoch"]) for e in events] == [
        ("create", None, 1),
        ("add", "new", 1),
        ("rebuild", "new", 1),
        ("activate", "new", 1),
        ("swap", "new", 2),
        ("rollback", "old", 3),
        ("swap", "new", 4),
        ("drop", "old", 4),
    ]
    assert (events[5]["reason"], events[5]["who"]) == ("try the way back", "anyone")


def _all_chunks(http: httpx.Client, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    after: int | None = 0
    while after is not None:
        page = http.get(f"/collections/{name}/chunks", params={"after": after, "limit": 1000}).json()
        found += page["chunks"]
        after = page["next"]
    return found


def test_rollback_finds_what_was_written_after_the_swap(
    http: httpx.Client, embed_servers: tuple[Any, Any], name: str
) -> None:
    """The old space follows every write until it is dropped, also one that changed a text."""
    first, second = embed_servers
    _create(http, name, first.url)
    _ingest(http, name, _chunks(50))
    base = f"/collections/{name}"
    http.post(f"{base}/vector-spaces", json={"name": "new", "dims": 128, "model": "words-b"})
    http.post(f"{base}/vector-spaces/new/rebuild", json={"embed_endpoint": second.url})
    _rebuilt(http, name, "new")
    assert http.put(f"{base}/default-vector-space", json={"name": "new"}).status_code == 200
    after = {"file_id": "after", "chunk_index": 0, "text": "a xylophone quartet practises"}
    _ingest(http, name, [after])
    _ingest(http, name, [{**after, "text": "a zeppelin lands softly"}])
    assert http.put(f"{base}/default-vector-space", json={"name": "old"}).status_code == 200
    found = http.post(f"{base}/search", json={"query": "zeppelin lands softly", "top_k": 1}).json()
    assert found["vector_space"] == "old"
    assert found["results"][0]["chunk"]["text"] == "a zeppelin lands softly"
    stale = http.post(f"{base}/search", json={"query": "a xylophone quartet practises", "top_k": 50}).json()
    assert all("xylophone" not in h["chunk"]["text"] for h in stale["results"])


def test_a_rebuilt_space_finds_what_exact_search_finds(
    http: httpx.Client, embed_servers: tuple[Any, Any], name: str
) -> None:
    """On 5,000 real chunks, recall@10 of a rebuilt space against exact search with fresh queries is >= 0.95."""
    first, second = embed_servers
    chunks = _chunks(5_000)
    assert len(chunks) == 5_000
    _create(http, name, first.url)
    for start in range(0, len(chunks), 1_000):
        _ingest(http, name, chunks[start : start + 1_000])
    base = f"/collections/{name}"
    http.post(f"{base}/vector-spaces", json={"name": "new", "dims": 128, "model": "words-b"})
    http.post(f"{base}/vector-spaces/new/rebuild", json={"embed_endpoint": second.url})
    _rebuilt(http, name, "new")
    model = HashingModel("words-b", 128)
    stored = {c["id"]: c["text"] for c in _all_chunks(http, name)}
    ids = np.array(list(stored))
    matrix = model.embed(list(stored.values()))
    queries = [c["text"][20:140] for c in _chunks(100, start=5_000)]
    assert len(queries) == 100
    shares = []
    for text, vector in zip(queries, model.embed(queries), strict=True):
        exact = set(ids[np.argsort(-(matrix @ vector))[:10]].tolist())
        answer = http.post(f"{base}/search", json={"query": text, "vector_space": "new"}).json()
        shares.append(len(exact & {h["chunk"]["id"] for h in answer["results"]}) / 10)
    assert np.mean(shares) >= 0.95


def test_a_poison_text_is_quarantined_and_holds_up_nothing(http: httpx.Client, name: str) -> None:
    """In live ingest a text that the endpoint refuses is listed in the status; all others are found."""
    with served("words-a", 96, reply=_refuse_poison) as server:
        _create(http, name, server.url)
        texts = [f"harmless text number {i} about topic{i}" for i in range(40)]
        texts[17] = "a POISON text"
        chunks = [{"file_id": "f", "chunk_index": i, "text": t} for i, t in enumerate(texts)]
        _ingest(http, name, chunks)
        base = f"/collections/{name}"
        status = http.get(f"{base}/vector-spaces/old/status").json()
        assert (status["failed"], status["lag"]) == (1, 0)
        listed = [(q["file_id"], q["chunk_index"]) for q in status["quarantined"]]
        assert listed == [("f", 17)]
        assert "poison" in status["quarantined"][0]["reason"]
        _ingest(http, name, [{"file_id": "g", "chunk_index": 0, "text": "a later walrus"}])
        found = http.post(f"{base}/search", json={"query": "a later walrus", "top_k": 1}).json()
        assert found["results"][0]["chunk"]["text"] == "a later walrus"


def _refuse_poison(inputs: list[str]) -> JSONResponse | None:
    if any("POISON" in text for text in inputs):
        said = {"error": "Input validation error: poison", "error_type": "Validation"}
        return JSONResponse(said, status_code=422)
    return None


LIES: dict[str, Callable[[int], list[list[float | None]]]] = {
    "count": lambda n: [[0.5] * 128] * (n - 1),
    "dims": lambda n: [[0.5] * 64] * n,
    "null": lambda n: [[None] + [0.5] * 127] * n,
    "zeros": lambda n: [[0.0] * 128] * n,
}


@pytest.mark.parametrize(
    "lie", ["zeros", *(pytest.param(lie, marks=pytest.mark.long) for lie in LIES if lie != "zeros")]
)
def test_an_endpoint_that_lies_fails_the_rebuild_and_stores_nothing(
    http: httpx.Client, embed_servers: tuple[Any, Any], name: str, lie: str, wait_until: Any
) -> None:
    """A wrong count, wrong dims, a null or zeros makes the run failed, with the reason in the status."""
    with served("words-b", 128, reply=lambda inputs: JSONResponse(LIES[lie](len(inputs)))) as liar:
        _create(http, name, embed_servers[0].url)
        _ingest(http, name, _chunks(20))
        base = f"/collections/{name}"
        http.post(f"{base}/vector-spaces", json={"name": "new", "dims": 128, "model": "words-b"})
        http.post(f"{base}/vector-spaces/new/rebuild", json={"embed_endpoint": liar.url})

        def ended() -> Any:
            answer = http.get(f"{base}/vector-spaces/new/status")
            assert answer.status_code == 200, answer.text
            status = answer.json()
            return status if status["run"]["state"] == "failed" else None

        status = wait_until(ended, 60, "the run's failure")
        assert status["status"] == "failed"
        assert status["embedded"] == 0
        assert "127.0.0.1" in status["error"]
    http.post(f"{base}/vector-spaces/new/rebuild", json={"embed_endpoint": embed_servers[1].url})
    assert _rebuilt_after_failure(http, name)["embedded"] == 20


def _rebuilt_after_failure(http: httpx.Client, name: str) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        status = http.get(f"/collections/{name}/vector-spaces/new/status").json()
        if status["status"] == "active":
            return dict(status)
        time.sleep(0.1)
    raise AssertionError(status)
