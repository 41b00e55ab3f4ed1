"""A space is served by the model that built it, or not at all: a real service, real endpoints whose model changes."""

from __future__ import annotations

import time
from typing import Any

import httpx

from compass.embedding.builtin import HashingModel
from compass.testing.embed_server import served

DIMS = 64
CHUNKS = 600


def _create(http: httpx.Client, name: str, url: str) -> str:
    space = {"dims": DIMS, "model": "words", "embed_endpoint": url}
    assert http.post("/collections", json={"name": name, "vector_spaces": {"old": space}}).status_code == 201
    chunks = [{"file_id": "f", "chunk_index": i, "text": f"a walrus number {i}"} for i in range(CHUNKS)]
    assert http.post(f"/collections/{name}/ingest", json={"chunks": chunks, "wait_s": 60}).status_code == 200
    return f"/collections/{name}"


def _fingerprint(http: httpx.Client, base: str, space: str) -> str | None:
    spaces = {s["name"]: s for s in http.get(f"{base}/vector-spaces").json()}
    found = spaces[space].get("fingerprint")
    return None if found is None else str(found)


def test_an_endpoint_moves_to_its_own_model_and_to_no_other(http: httpx.Client, name: str, wait_until: Any) -> None:
    """PATCH is 409 with both fingerprints at another model, and at one that says nothing if its vectors differ."""
    with (
        served("words", DIMS) as first,
        served("words", DIMS, tei=False) as silent,
        served("others", DIMS) as other,
        served("others", DIMS, tei=False) as silent_other,
    ):
        base = _create(http, name, first.url)
        wait_until(lambda: _fingerprint(http, base, "old"), 20, "the fingerprint")
        before = _fingerprint(http, base, "old")
        refused = http.patch(f"{base}/vector-spaces/old", json={"embed_endpoint": other.url})
        assert (refused.status_code, refused.json()["type"]) == (409, "fingerprint-mismatch")
        assert refused.json()["recorded"]["model_id"] == "words"
        assert refused.json()["found"]["model_id"] == "others"
        for accept in (False, True):
            body = {"embed_endpoint": silent_other.url, "accept_new_fingerprint": accept}
            refused = http.patch(f"{base}/vector-spaces/old", json=body)
            assert refused.status_code == 409
            assert refused.json()["cosine"] < 0.9
        assert http.patch(f"{base}/vector-spaces/old", json={"embed_endpoint": silent.url}).status_code == 200
        assert _fingerprint(http, base, "old") == before
        found = http.post(f"{base}/search", json={"query": "a walrus number 7", "top_k": 1}).json()
        assert found["results"][0]["chunk"]["text"] == "a walrus number 7"


def test_a_model_that_is_changed_behind_its_url_is_caught(http: httpx.Client, name: str, wait_until: Any) -> None:
    """The run fails, a resume is refused because two models have built the space, a restart builds it anew."""
    with served("words", DIMS) as first, served("new", DIMS, tei=False, docs_per_s=150) as second:
        base = _create(http, name, first.url)
        http.post(f"{base}/vector-spaces", json={"name": "new", "dims": DIMS, "model": "new"})
        rebuild = {"embed_endpoint": second.url, "batch_size": 8}
        assert http.post(f"{base}/vector-spaces/new/rebuild", json=rebuild).status_code == 202
        wait_until(lambda: second.server.stats()["inputs"] > CHUNKS / 3, 60, "a third of the work")
        second.server._model = HashingModel("another", DIMS)

        def ended() -> Any:
            status = http.get(f"{base}/vector-spaces/new/status").json()
            return status if status["run"]["state"] != "running" else None

        status = wait_until(ended, 90, "the end of the run")
        assert (status["run"]["state"], status["status"]) == ("failed", "failed")
        assert "embeds stored texts otherwise" in status["error"]
        refused = http.post(f"{base}/vector-spaces/new/rebuild", json=rebuild)
        assert (refused.status_code, refused.json()["type"]) == (409, "fingerprint-mismatch")
        assert "more than one model" in refused.json()["detail"]
        second.server._set["docs_per_s"] = 0.0
        again = http.post(f"{base}/vector-spaces/new/rebuild", json={**rebuild, "restart": True})
        assert again.status_code == 202
        status = wait_until(ended, 90, "the second run")
        assert (status["run"]["state"], status["status"]) == ("done", "active")


def test_a_query_is_not_embedded_by_another_model(http: httpx.Client, name: str, wait_until: Any) -> None:
    """The endpoint says that it is another model now: 409 for a text, and an answer for a vector."""
    with served("words", DIMS) as server:
        base = _create(http, name, server.url)
        wait_until(lambda: _fingerprint(http, base, "old"), 20, "the fingerprint")
        server.server._model = HashingModel("others", DIMS)

        def refused() -> Any:
            answer = http.post(f"{base}/search", json={"query": f"a walrus {time.monotonic()}", "top_k": 1})
            return answer if answer.status_code != 200 else None

        answer = wait_until(refused, 40, "the refusal")
        assert (answer.status_code, answer.json()["type"]) == (409, "fingerprint-mismatch")
        vector = HashingModel("words", DIMS).embed(["a walrus number 3"])[0].tolist()
        found = http.post(f"{base}/search", json={"vector": vector, "vector_space": "old", "top_k": 1})
        assert found.json()["results"][0]["chunk"]["text"] == "a walrus number 3"
