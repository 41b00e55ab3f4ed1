"""The service as a process: its doors, its stop and start, what it leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

import httpx
import psutil
import pytest

from compass.testing.embed_server import served

pytestmark = pytest.mark.ray

CHUNKS = [
    {"client_id": "a", "file_id": "f", "chunk_index": 0, "text": "rotate a log file", "metadata": {"kind": "x"}},
    {"client_id": "b", "file_id": "f", "chunk_index": 1, "text": "parse a date string", "metadata": {"kind": "y"}},
    {"client_id": "c", "file_id": "g", "chunk_index": 0, "text": "compress some bytes", "metadata": {"kind": "x"}},
]


def test_both_doors_answer_the_same(service: Any, http: httpx.Client, name: str) -> None:
    """Our own socket and Serve's proxy lead to one application."""
    assert http.post("/collections", json={"name": name}).status_code == 201
    http.post(f"/collections/{name}/ingest", json={"chunks": CHUNKS})
    body = {"query": "rotate a log file", "top_k": 2}
    own = http.post(f"/collections/{name}/search", json=body).json()
    through_serve = httpx.post(
        f"{service.serve_url}/collections/{name}/search", json=body, trust_env=False, timeout=60
    ).json()
    assert own["results"] == through_serve["results"]
    assert own["results"][0]["chunk"]["text"] == "rotate a log file"


def test_a_write_is_found_at_once_and_a_delete_is_gone_at_once(http: httpx.Client, name: str) -> None:
    """An acknowledged write is in the next search, an update replaces it, a delete hides it."""
    http.post("/collections", json={"name": name})
    base = f"/collections/{name}"
    for turn in range(30):
        text = f"unique marker number{turn}"
        chunk = {"client_id": "m", "file_id": "m", "chunk_index": 0, "text": text}
        ingested = http.post(f"{base}/ingest", json={"chunks": [chunk]}).json()
        assert ingested["pending"] == {}, ingested
        hits = http.post(f"{base}/search", json={"query": text}).json()["results"]
        assert [h["chunk"]["text"] for h in hits] == [text]
        if turn % 3 == 2:
            assert http.delete(f"{base}/chunks/{ingested['id_map']['m']}").status_code == 200
            assert http.post(f"{base}/search", json={"query": text}).json()["results"] == []


def test_filters_are_hard_constraints(http: httpx.Client, name: str) -> None:
    """Equality on metadata, on file_id and on doc_type, together and alone."""
    http.post("/collections", json={"name": name})
    base = f"/collections/{name}"
    http.post(f"{base}/ingest", json={"chunks": CHUNKS})

    def found(filters: dict[str, Any]) -> set[str]:
        body = {"query": "file", "filters": filters}
        return {h["chunk"]["text"] for h in http.post(f"{base}/search", json=body).json()["results"]}

    assert found({"kind": "x"}) == {"rotate a log file", "compress some bytes"}
    assert found({"file_id": "f"}) == {"rotate a log file", "parse a date string"}
    assert found({"file_id": "f", "kind": "x"}) == {"rotate a log file"}
    assert found({"doc_type": "chunk"}) == {c["text"] for c in CHUNKS}
    assert found({"kind": "z"}) == set()


def test_spaces_fed_by_callers_turn_active_when_complete(http: httpx.Client, name: str, wait_until: Any) -> None:
    """A space without endpoint is active once every live chunk has its vector; then it answers vectors."""
    http.post("/collections", json={"name": name})
    base = f"/collections/{name}"
    http.post(f"{base}/ingest", json={"chunks": CHUNKS})
    http.post(f"{base}/vector-spaces", json={"name": "own", "dims": 3, "model": "mine"})
    vectors = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]

    def status() -> str:
        return str(http.get(f"{base}/vector-spaces/own/status").json()["status"])

    for chunk, vector in zip(CHUNKS[:2], vectors[:2], strict=True):
        fed = {**chunk, "embeddings": {"own": vector}}
        assert http.post(f"{base}/ingest", json={"chunks": [fed]}).status_code == 200
    assert status() == "building"
    fed = {**CHUNKS[2], "embeddings": {"own": vectors[2]}}
    assert http.post(f"{base}/ingest", json={"chunks": [fed]}).status_code == 200
    wait_until(lambda: status() == "active", 20, "the activation")
    answer = http.post(f"{base}/search", json={"vector": [0, 1, 0.1], "vector_space": "own", "top_k": 1}).json()
    assert answer["results"][0]["chunk"]["text"] == "parse a date string"


def test_a_deleted_collection_leaves_no_byte_and_its_name_is_free(
    service: Any, http: httpx.Client, name: str
) -> None:
    """DELETE of a collection removes its folder; made again it is empty."""
    http.post("/collections", json={"name": name})
    http.post(f"/collections/{name}/ingest", json={"chunks": CHUNKS})
    before = {p.name for p in service.data.iterdir()}
    assert http.delete(f"/collections/{name}").status_code == 204
    assert http.get(f"/collections/{name}").status_code == 404
    gone = before - {p.name for p in service.data.iterdir()}
    assert len(gone) == 1, "exactly the collection's folder is gone"
    assert http.post("/collections", json={"name": name}).status_code == 201
    assert http.get(f"/collections/{name}").json()["chunk_count"] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
def test_stopped_and_started_everything_is_there(new_service: Any, number: int) -> None:
    """Chunks, spaces, the default and its epoch survive a stop; no process of the service is left."""
    with new_service() as service:
        with service.client() as http:
            spaces = {
                "a": {"dims": 64, "model": "a", "embed_endpoint": "builtin"},
                "b": {"dims": 96, "model": "b", "embed_endpoint": "builtin"},
            }
            http.post("/collections", json={"name": "kept", "vector_spaces": spaces})
            http.post("/collections/kept/ingest", json={"chunks": CHUNKS})
            swapped = http.put("/collections/kept/default-vector-space", json={"name": "b"})
            assert swapped.status_code == 200, swapped.text
            before = http.post("/collections/kept/search", json={"query": "parse a date"}).json()
            info = http.get("/collections/kept").json()
        family = [service.process, *psutil.Process(service.process.pid).children(recursive=True)]
        pids = {p.pid for p in family}
        assert service.stop(number) == 0
        left = [p for p in pids if psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE]
        assert left == []
        service.start()
        with service.client() as http:
            after = http.post("/collections/kept/search", json={"query": "parse a date"}).json()
            again = http.get("/collections/kept").json()
        assert (after["results"], after["vector_space"], after["epoch"]) == (before["results"], "b", 2)
        assert again["chunk_count"] == info["chunk_count"] == 3
        assert again["default_vector_space"] == "b"


def test_a_second_service_on_the_same_data_says_so_and_ends(service: Any) -> None:
    """One writer: the second `compass serve` names the first and changes nothing."""
    command = [sys.executable, "-m", "compass.cli.main", "serve", "--data", str(service.data)]
    second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode != 0
    assert "in use" in second.stderr


def test_compass_stop_ends_the_service(new_service: Any) -> None:
    """`compass stop` returns when the service is gone; without one it says so."""
    with new_service() as service:
        command = [sys.executable, "-m", "compass.cli.main", "stop", "--data", str(service.data)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
        assert done.returncode == 0, done.stderr
        assert service.process.wait(10) == 0
        again = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert again.returncode != 0
        assert "no `compass serve` runs" in again.stderr


def test_bad_input_reaches_no_log(http: httpx.Client, name: str) -> None:
    """Through the real stack too: the right status, and nothing was written."""
    assert http.post("/collections", json={"name": "Wrong Name"}).status_code == 422
    http.post("/collections", json={"name": name})
    base = f"/collections/{name}"
    before = http.get(base).json()["seq"]
    bad = [
        ("/ingest", {"chunks": []}, 422),
        ("/ingest", {"chunks": [{**CHUNKS[0], "embedding": [1.0, 2.0]}]}, 422),
        ("/search", {"query": "x", "top_k": 0}, 422),
        ("/search", {"query": "x", "top_k": 1001}, 422),
        ("/search", {"query": "x", "vector_space": "nowhere"}, 404),
        ("/search", {"query": "x", "mode": "fts"}, 501),
        ("/vector-spaces", {"name": "s", "dims": 0, "model": "m"}, 422),
        ("/vector-spaces", {"name": "s", "dims": 8, "model": "m", "embed_endpoint": "ftp://x"}, 422),
        ("/vector-spaces", {"name": "s", "dims": 8, "model": "m", "embed_endpoint": "http://169.254.169.254"}, 422),
        ("/vector-spaces/default/rebuild", {"api_key_env": "HOME"}, 422),
    ]
    for path, body, status in bad:
        answer = http.post(base + path, json=body)
        assert answer.status_code == status, (path, body, answer.text)
        assert answer.headers["content-type"] == "application/problem+json"
    assert http.get(base).json()["seq"] == before


def test_the_api_key_is_wanted_and_never_shown(new_service: Any) -> None:
    """With COMPASS_API_KEY set, whoever lacks it gets nothing; no log of the service holds it."""
    key = "k-" + os.urandom(8).hex()
    with new_service(api_key=key) as service:
        with service.client() as http:
            assert http.get("/collections").status_code == 401
            assert http.get("/health").status_code == 200
            http.headers["authorization"] = f"Bearer {key}"
            assert http.get("/collections").status_code == 200
        assert key.encode() not in service.logs()


def test_the_key_of_an_endpoint_is_sent_and_never_shown(service: Any, http: httpx.Client, name: str) -> None:
    """A space names the variable; its value reaches the endpoint, and no answer, file or log."""
    key = os.environ["COMPASS_EMBED_KEY_TEST"]
    with served("words-a", 64, api_key=key) as server:
        space = {"dims": 64, "model": "m", "embed_endpoint": server.url, "api_key_env": "COMPASS_EMBED_KEY_TEST"}
        http.post("/collections", json={"name": name, "vector_spaces": {"old": space}})
        base = f"/collections/{name}"
        ingested = http.post(f"{base}/ingest", json={"chunks": CHUNKS})
        assert ingested.json()["pending"] == {}, ingested.text
        http.post(f"{base}/vector-spaces", json={"name": "new", "dims": 64, "model": "m"})
        body = {"embed_endpoint": server.url, "api_key_env": "COMPASS_EMBED_KEY_TEST"}
        http.post(f"{base}/vector-spaces/new/rebuild", json=body)
        answers = [http.get(base).text, http.get(f"{base}/vector-spaces/new/status").text]
        answers.append(http.post(f"{base}/search", json={"query": "date"}).text)
    files = [p.read_bytes() for p in service.data.rglob("*") if p.is_file()]
    assert any(b"COMPASS_EMBED_KEY_TEST" in content for content in files), "the variable's name is stored"
    assert not any(key in answer for answer in answers)
    assert not any(key.encode() in content for content in files)
    assert key.encode() not in service.logs()


def test_bodies_and_hosts_through_both_doors(service: Any, http: httpx.Client, name: str) -> None:
    """Malformed, too large, of another type, for another host: the right status at each socket."""
    http.post("/collections", json={"name": name})
    json = {"content-type": "application/json"}
    large = b'{"query": "' + b"x" * 64_000_001 + b'"}'
    for door in (service.url, service.serve_url):
        url = f"{door}/collections/{name}/search"
        cases: list[tuple[int, dict[str, Any]]] = [
            (400, {"content": b'{"query": ', "headers": json}),
            (413, {"content": large, "headers": json}),
            (415, {"content": b'{"query": "x"}', "headers": {"content-type": "text/plain"}}),
            (421, {"content": b'{"query": "x"}', "headers": {**json, "host": "evil.example"}}),
            (421, {"content": b'{"query": "x"}', "headers": {**json, "origin": "https://evil.example"}}),
        ]
        for status, request in cases:
            answer = httpx.post(url, trust_env=False, timeout=60, **request)
            assert (answer.status_code, answer.json()["status"]) == (status, status), answer.text
