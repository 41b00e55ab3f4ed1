"""A space that does not fit the memory of its node is refused before its rebuild starts."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.ray

CHUNKS = [{"file_id": "f", "chunk_index": i, "text": f"text number {i}"} for i in range(600)]


def test_a_space_that_does_not_fit_is_507_and_nothing_has_changed(new_service: Any, wait_until: Any) -> None:
    """On a node that keeps all its memory for others, a space of 600 × 16,384 is refused with what it needs and
    what is free, by rebuild and by restart; a small space beside it is built as ever.
    """
    with new_service(memory_reserve_bytes=str(10**15)) as service, service.client() as http:
        base = "/collections/docs"
        space = {"dims": 64, "model": "words", "embed_endpoint": "builtin"}
        http.post("/collections", json={"name": "docs", "vector_spaces": {"old": space}})
        assert http.post(f"{base}/ingest", json={"chunks": CHUNKS}).json()["pending"] == {}
        for name, dims in (("wide", 16_384), ("narrow", 96)):
            assert http.post(f"{base}/vector-spaces", json={**space, "name": name, "dims": dims}).status_code == 201

        def seen() -> Any:
            return [http.get(f"{base}{path}").json() for path in ("", "/history", "/vector-spaces/wide/status")]

        before = seen()
        for body in ({}, {"restart": True}):
            refused = http.post(f"{base}/vector-spaces/wide/rebuild", json=body)
            problem = refused.json()
            assert (refused.status_code, problem["type"]) == (507, "insufficient-memory")
            assert problem["needed_bytes"] > 600 * 2 * 16_384 * 4
            assert problem["free_bytes"] == 0
            assert problem["node"]
        assert seen() == before
        assert service.actor_processes("RebuildProcess") == []

        assert http.post(f"{base}/vector-spaces/narrow/rebuild", json={}).status_code == 202
        wait_until(lambda: http.get(f"{base}/vector-spaces/narrow/status").json()["status"] == "active")
        found = http.post(f"{base}/search", json={"query": "text number 599", "vector_space": "narrow", "top_k": 1})
        assert found.json()["results"][0]["chunk"]["text"] == "text number 599"
