"""The way back stays open: the old space follows with its own model, as long as that is served."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from compass.embedding.builtin import HashingModel

pytestmark = pytest.mark.ray

DIMS = 96


@contextlib.contextmanager
def _embed_server(port: int, wait_until: Any) -> Iterator[subprocess.Popen[bytes]]:
    """`compass embed-server` in a process of its own, which a test may kill."""
    command = [sys.executable, "-m", "compass.cli.main", "embed-server", "--model", "words-a"]
    with subprocess.Popen([*command, "--dims", str(DIMS), "--port", str(port)], stdout=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: _answers(f"http://127.0.0.1:{port}/health"), 20, "the embed server")
            yield process
        finally:
            process.kill()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False, timeout=60).status_code == 200
    except httpx.TransportError:
        return False


def test_an_old_endpoint_that_was_switched_off(
    http: httpx.Client, name: str, free_port: Callable[[], int], wait_until: Any
) -> None:
    """Its space says that it lags and by how many, answers by name for what it has, and is refused as the target of
    a rollback with that number; once the endpoint is back it catches up by itself, changed texts included.
    """
    base, port = f"/collections/{name}", free_port()
    own = {"dims": DIMS, "model": "words-a", "embed_endpoint": f"http://127.0.0.1:{port}"}
    new = {"dims": 128, "model": "words-b", "embed_endpoint": "builtin"}

    def write(index: int, text: str) -> None:
        chunk = {"file_id": "f", "chunk_index": index, "text": text}
        answer = http.post(f"{base}/ingest", json={"chunks": [chunk]})
        assert answer.status_code == 200, answer.text

    def found(text: str) -> list[str]:
        vector = HashingModel("words-a", DIMS).embed([text])[0].tolist()
        answer = http.post(f"{base}/search", json={"query_vector": vector, "vector_space": "old"})
        assert (answer.status_code, answer.json()["vector_space"]) == (200, "old"), answer.text
        return [hit["chunk"]["text"] for hit in answer.json()["results"]]

    def old() -> Any:
        return http.get(f"{base}/vector-spaces/old/status").json()

    with _embed_server(port, wait_until) as server:
        spaces = {"old": own, "new": new}
        assert http.post("/collections", json={"name": name, "vector_spaces": spaces}).status_code == 201
        write(0, "an otter swims")
        write(1, "a heron wades")
        swapped = http.put(f"{base}/default-vector-space", json={"name": "new"})
        assert swapped.status_code == 200, swapped.text
        write(2, "a badger digs")
        wait_until(lambda: old()["lag"] == 0)
        server.kill()
        server.wait(10)

    write(3, "a zebra grazes")
    write(1, "a walrus sleeps")
    lagging = wait_until(lambda: old()["lag"] == 2 and old(), 30, "the lag")
    assert lagging["status"] == "active"
    assert set(found("a badger digs")) == {"an otter swims", "a badger digs"}
    by_text = http.post(f"{base}/search", json={"query": "a badger digs", "vector_space": "old"})
    assert (by_text.status_code, by_text.json()["type"]) == (503, "endpoint-unavailable")
    assert by_text.headers["retry-after"].isdecimal()
    refused = http.put(f"{base}/default-vector-space", json={"rollback": True, "wait_s": 0.2})
    assert (refused.status_code, refused.json()["type"], refused.json()["lag"]) == (409, "space-lags", 2)
    assert http.get(base).json()["default_vector_space"] == "new"

    with _embed_server(port, wait_until):
        wait_until(lambda: old()["lag"] == 0, 60, "catching up")
        assert set(found("x")) == {"an otter swims", "a badger digs", "a zebra grazes", "a walrus sleeps"}
        rolled = http.put(f"{base}/default-vector-space", json={"rollback": True})
        assert (rolled.status_code, rolled.json()["current"]) == (200, "old")
        answer = http.post(f"{base}/search", json={"query": "a walrus sleeps", "top_k": 1}).json()
        assert (answer["vector_space"], answer["epoch"]) == ("old", 3)
        assert answer["results"][0]["chunk"]["text"] == "a walrus sleeps"
