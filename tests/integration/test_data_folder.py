"""A folder that version 0.1.0 has left is opened, searched and swapped by this version."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

FOLDER = Path(__file__).parents[1] / "data" / "v0.1.0"
BASE = "/collections/docs"
ROTATE = ("guide-rotate", 0, "Rotate a log file before the disk is full.")


@pytest.fixture(scope="module")
def old_http(new_service: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a service on a copy of the folder, which must stay as it was written."""
    data = tmp_path_factory.mktemp("v0.1.0") / "data"
    shutil.copytree(FOLDER, data)
    with new_service(data=data) as service, service.client() as client:
        yield client


def _json(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    return answer.json()


def _first(http: httpx.Client, **query: Any) -> tuple[str, int, str]:
    """The best chunk for what the folder's chunks say of log files."""
    answer = _json(http.post(f"{BASE}/search", json={"query": "rotate a log file", **query}))
    chunk = answer["results"][0]["chunk"]
    return chunk["file_id"], chunk["chunk_index"], chunk["text"]


def _default(http: httpx.Client) -> str:
    return str(_json(http.post(f"{BASE}/search", json={"query": "rotate a log file"}))["vector_space"])


def _keys(http: httpx.Client) -> list[tuple[str, int]]:
    """The keys of all chunks, in the order of their ids."""
    page = _json(http.get(f"{BASE}/chunks", params={"limit": 1_000}))
    return [(chunk["file_id"], chunk["chunk_index"]) for chunk in page["chunks"]]


def test_all_that_was_written_is_there(old_http: httpx.Client) -> None:
    """Sixty chunks and one without a text, less one that was deleted after the checkpoint; each space has its own."""
    info = _json(old_http.get(BASE))
    assert info["chunk_count"] == 60
    keys = _keys(old_http)
    assert len(keys) == 60
    assert ("empty", 0) in keys
    assert ("guide-compress", 3) not in keys
    spaces = {name: (space["dims"], space["status"]) for name, space in info["vector_spaces"].items()}
    assert spaces == {"old": (32, "active"), "given": (4, "active"), "new": (48, "active")}
    vectors = {name: space["vectors"] for name, space in info["vector_spaces"].items()}
    assert vectors == {"old": 59, "given": 29, "new": 59}


def test_vectors_that_callers_sent_are_found(old_http: httpx.Client) -> None:
    """In the space that has no endpoint, by a vector that one of its chunks was sent with."""
    body = {"query_vector": [0.5, 1.0, 1.0, 1.0], "vector_space": "given", "top_k": 30}
    results = _json(old_http.post(f"{BASE}/search", json=body))["results"]
    assert len(results) == 29
    best = {(hit["chunk"]["file_id"], hit["chunk"]["chunk_index"]) for hit in results if hit["score"] > 0.9999}
    assert ("guide-rotate", 2) in best


def test_the_run_of_then_is_told_as_done(old_http: httpx.Client) -> None:
    """From the record that it left."""
    status = _json(old_http.get(f"{BASE}/vector-spaces/new/status"))
    assert (status["status"], status["progress"], status["lag"]) == ("active", 1.0, 0)
    assert (status["run"]["state"], status["run"]["job_id"]) == ("done", "rebuild-59b3ea5774a6")


def test_it_is_searched_swapped_and_searched_again(old_http: httpx.Client) -> None:
    """The update after the checkpoint is found in each space; the history has the swap of then and that of now."""
    assert _default(old_http) == "old"
    assert _first(old_http) == _first(old_http, vector_space="new") == ROTATE
    swapped = _json(old_http.put(f"{BASE}/default-vector-space", json={"name": "new", "reason": "as before"}))
    assert (swapped["previous"], swapped["current"], swapped["epoch"]) == ("old", "new", 4)
    assert _default(old_http) == "new"
    assert _first(old_http) == _first(old_http, vector_space="old") == ROTATE
    events = _json(old_http.get(f"{BASE}/history"))["events"]
    swaps = sorted((event["epoch"], event["space"], event["reason"]) for event in events if event["kind"] == "swap")
    assert swaps == [(2, "new", "it knows verbs"), (4, "new", "as before")]
