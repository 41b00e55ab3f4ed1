"""A collection that swaps and rolls back beside a twin that never does, in the real service."""

from __future__ import annotations

import random
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.ray

WORDS = ["ash", "beech", "cedar", "elm", "fir", "holly", "larch", "maple", "oak", "pine", "rowan", "yew"]
SPACES = {
    "old": {"dims": 64, "model": "words-a", "embed_endpoint": "builtin"},
    "new": {"dims": 96, "model": "words-b", "embed_endpoint": "builtin"},
}


def _write(http: httpx.Client, name: str, rng: random.Random) -> None:
    """One random request: an ingest of new and changed texts and metadata, or a delete."""
    if rng.random() < 0.2:
        body: dict[str, Any] = {"filters": {"chunk_index": rng.randrange(40)}}
        assert http.post(f"/collections/{name}/delete", json=body).status_code == 200
        return
    keys = rng.sample(range(40), 4)
    kinds = [rng.choice(["leaf", "needle"]) for _ in keys]
    texts = [" ".join(rng.choices(WORDS, k=3)) for _ in keys]
    chunks = [
        {"file_id": "f", "chunk_index": key, "text": text, "metadata": {"kind": kind}}
        for key, text, kind in zip(keys, texts, kinds, strict=True)
    ]
    answer = http.post(f"/collections/{name}/ingest", json={"chunks": chunks})
    assert answer.status_code == 200, answer.text


def _answers(http: httpx.Client, name: str) -> dict[str, Any]:
    """What each query finds: in the default and in each space, with and without a filter."""
    found = {}
    for query in (*WORDS, "ash oak", "pine fir larch"):
        for space in (None, *SPACES):
            for filters in ({}, {"kind": "leaf"}):
                body = {"query": query, "top_k": 1000, "filters": filters}
                named = body if space is None else {**body, "vector_space": space}
                answer = http.post(f"/collections/{name}/search", json=named).json()
                assert space in (None, answer["vector_space"])
                hits = {hit["chunk"]["id"]: hit for hit in answer["results"]}
                found[f"{query} {space} {filters}"] = (answer["vector_space"], hits)
    return found


def test_a_twin_that_never_swapped_answers_alike(http: httpx.Client, name: str, wait_until: Any) -> None:
    """After the same writes, with swaps and rollbacks among those of one of them, both find the same everywhere."""
    names = swapping, _ = f"{name[:50]}-a", f"{name[:50]}-b"
    for one in names:
        created = http.post("/collections", json={"name": one, "vector_spaces": SPACES})
        assert created.status_code == 201, created.text
    epoch = 1
    for turn in range(40):
        for one in names:
            _write(http, one, random.Random(turn))
        if turn % 4 == 3:
            body = {"rollback": True} if epoch % 2 == 0 else {"name": "new"}
            swapped = http.put(f"/collections/{swapping}/default-vector-space", json=body)
            epoch += 1
            assert (swapped.status_code, swapped.json()["epoch"]) == (200, epoch), swapped.text
    assert http.get(f"/collections/{swapping}").json()["default_vector_space"] == "old"
    for one in names:
        for space in SPACES:
            wait_until(lambda at=f"/collections/{one}/vector-spaces/{space}/status": http.get(at).json()["lag"] == 0)
    ours, twins = (_answers(http, one) for one in names)
    assert any(hits for _, hits in ours.values())
    for asked, (space, hits) in ours.items():
        other_space, others = twins[asked]
        assert (space, {i: h["chunk"] for i, h in hits.items()}) == (
            other_space,
            {i: h["chunk"] for i, h in others.items()},
        ), asked
        for chunk_id, hit in hits.items():
            assert hit["score"] == pytest.approx(others[chunk_id]["score"], abs=1e-5), asked
