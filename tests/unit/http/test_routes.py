"""The HTTP interface: each route's status, answer and refusals, as its reference says."""

from __future__ import annotations

import asyncio
import base64
import logging
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from compass import __version__
from compass.domain.routing.swap import SwapOrder
from compass.errors import EndpointUnavailableError, UnavailableError
from compass.http.openapi import openapi_document

CHUNKS = [
    {"client_id": "a", "file_id": "f", "chunk_index": 0, "text": "rotate a log", "metadata": {"kind": "x", "n": 3}},
    {"client_id": 7, "file_id": "f", "chunk_index": 1, "text": "parse a date", "page": 2, "group_id": "g"},
    {"file_id": "g", "chunk_index": 0, "text": "compress bytes", "metadata": {"tags": ["x", "y"]}},
]


async def test_health_tells_of_the_process(http: Any, docs: Any) -> None:
    """/health answers 200 with the number of collections and the version."""
    answer = await http.get("/health")
    assert answer.status_code == 200
    assert answer.json() == {"status": "ok", "collections": 1, "version": __version__}
    assert answer.headers["content-type"] == "application/json"


async def test_ready_needs_a_lease(http: Any, docs: Any) -> None:
    """/ready is 200 with a valid table, 503 with Retry-After without."""
    assert (await http.get("/ready")).status_code == 200
    docs.table.ready = False
    answer = await http.get("/ready")
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert (await http.get("/health")).status_code == 200


@pytest.mark.parametrize(("retry_after_s", "header"), [(0.3, "1"), (5.0, "5"), (1.2, "2")])
async def test_retry_after_is_whole_seconds(http: Any, docs: Any, retry_after_s: float, header: str) -> None:
    """The header has digits only (RFC 9110), and never asks to come back too early; the body has the exact time."""

    async def search(queries: Any) -> Any:
        raise UnavailableError("restarting", {"retry_after": retry_after_s})

    docs.index("docs", "old").search = search
    answer = await http.post("/collections/docs/search", json={"query": "x"})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, header)
    assert answer.json()["retry_after"] == retry_after_s


async def test_ready_needs_every_default_space(http: Any, docs: Any) -> None:
    """/ready is 503 while a default space does not answer; other spaces do not matter."""

    def down() -> None:
        raise EndpointUnavailableError("down")

    docs.index("docs", "fed").on_follow = down
    assert (await http.get("/ready")).status_code == 200
    docs.index("docs", "old").on_follow = down
    assert (await http.get("/ready")).status_code == 503


async def test_a_collection_without_spaces_has_the_builtin_one(http: Any, service: Any) -> None:
    """POST /collections with a name only: one active space `default`, built-in embedder, 384 dims."""
    answer = await http.post("/collections", json={"name": "first"})
    assert answer.status_code == 201
    info = answer.json()
    assert (info["name"], info["embedding_dims"], info["chunk_count"], info["epoch"]) == ("first", 384, 0, 1)
    assert info["default_vector_space"] == "default"
    space = info["vector_spaces"]["default"]
    assert (space["dims"], space["model"], space["status"], space["embed_endpoint"]) == (
        384,
        "compass-builtin",
        "active",
        "builtin",
    )
    assert info["created_at"].endswith("Z")


async def test_embedding_dims_sizes_the_builtin_space(http: Any, service: Any) -> None:
    """`embedding_dims` without `vector_spaces` gives the one space that many dims."""
    info = (await http.post("/collections", json={"name": "small", "embedding_dims": 64})).json()
    assert info["vector_spaces"]["default"]["dims"] == 64


async def test_the_first_space_named_is_the_default_unless_said(http: Any, service: Any) -> None:
    """Order decides the default; `default_vector_space` overrides it."""
    spaces = {"b": {"dims": 8, "model": "b"}, "a": {"dims": 4, "model": "a"}}
    one = (await http.post("/collections", json={"name": "one", "vector_spaces": spaces})).json()
    body = {"name": "two", "vector_spaces": spaces, "default_vector_space": "a"}
    two = (await http.post("/collections", json=body)).json()
    assert (one["default_vector_space"], one["embedding_dims"]) == ("b", 8)
    assert (two["default_vector_space"], two["embedding_dims"]) == ("a", 4)


async def test_fields_of_the_references_clients_have_no_effect(http: Any, service: Any) -> None:
    """`status` in a SpaceConfig and `config.embed_model` are accepted and ignored."""
    spaces = {"a": {"dims": 4, "model": "a", "status": "building"}}
    body = {"name": "ref", "vector_spaces": spaces, "config": {"embed_model": "x"}}
    answer = await http.post("/collections", json=body)
    assert answer.status_code == 201
    assert answer.json()["vector_spaces"]["a"]["status"] == "active"


async def test_collections_are_listed_read_and_deleted(http: Any, docs: Any) -> None:
    """GET lists and reads, DELETE answers 204 without a body, then 404."""
    listed = await http.get("/collections")
    assert listed.status_code == 200
    assert [c["name"] for c in listed.json()] == ["docs"]
    assert (await http.get("/collections/docs")).json() == listed.json()[0]
    gone = await http.delete("/collections/docs")
    assert (gone.status_code, gone.content) == (204, b"")
    assert (await http.get("/collections/docs")).status_code == 404
    assert (await http.delete("/collections/docs")).status_code == 404
    assert (await http.get("/collections")).json() == []


async def test_a_second_collection_of_a_name_is_a_conflict(http: Any, docs: Any) -> None:
    """409 with its own type."""
    answer = await http.post("/collections", json={"name": "docs"})
    assert answer.status_code == 409
    assert answer.json()["type"] == "collection-exists"


async def test_ingest_answers_ids_by_client_id(http: Any, docs: Any) -> None:
    """{indexed, id_map, took_ms, seq, pending}; chunks without client_id are not in the map."""
    answer = await http.post("/collections/docs/ingest", json={"chunks": CHUNKS})
    assert answer.status_code == 200
    body = answer.json()
    assert (body["indexed"], body["id_map"], body["seq"], body["pending"]) == (3, {"a": 1, "7": 2}, 2, {})
    assert body["took_ms"] >= 0
    again = (await http.post("/collections/docs/ingest", json={"chunks": CHUNKS})).json()
    assert again["id_map"] == body["id_map"]


async def test_nulls_count_as_left_out(http: Any, docs: Any) -> None:
    """A client that sends null for an optional field means that it has none."""
    names = ("client_id", "page", "parent_id", "parent_ref", "group_id", "embeddings", "embedding")
    chunk = {**CHUNKS[2], **dict.fromkeys(names)}
    assert (await http.post("/collections/docs/ingest", json={"chunks": [chunk]})).status_code == 200
    body = {"query": "bytes", "vector": None, "query_vector": None, "filters": None, "min_seq": None}
    assert (await http.post("/collections/docs/search", json=body)).status_code == 200


async def test_chunks_are_read_by_id_and_by_page(http: Any, docs: Any) -> None:
    """One chunk shows what was sent; pages go by id, `next` leads on and is null at the end."""
    await http.post("/collections/docs/ingest", json={"chunks": CHUNKS})
    one = await http.get("/collections/docs/chunks/2")
    assert one.status_code == 200
    assert one.json() == {
        "id": 2,
        "file_id": "f",
        "chunk_index": 1,
        "text": "parse a date",
        "metadata": {},
        "doc_type": "chunk",
        "page": 2,
        "group_id": "g",
    }
    first = (await http.get("/collections/docs/chunks?limit=2")).json()
    assert ([c["id"] for c in first["chunks"]], first["next"]) == ([1, 2], 2)
    rest = (await http.get(f"/collections/docs/chunks?limit=2&after={first['next']}")).json()
    assert ([c["id"] for c in rest["chunks"]], rest["next"]) == ([3], None)


@pytest.mark.parametrize("chunk_id", ["99", "abc", "-1", "1.5", "9" * 30])
async def test_an_unknown_chunk_is_not_found(http: Any, docs: Any, chunk_id: str) -> None:
    """Whatever stands in its place, read or deleted: 404, and no commit for what is no id."""
    await http.post("/collections/docs/ingest", json={"chunks": CHUNKS})
    assert (await http.get(f"/collections/docs/chunks/{chunk_id}")).status_code == 404
    assert (await http.delete(f"/collections/docs/chunks/{chunk_id}")).status_code == 404
    assert len(docs.collection("docs").rows) == 3


async def test_deletes_by_id_by_ids_and_by_filters(http: Any, docs: Any) -> None:
    """Each answers {deleted, seq}."""
    await http.post("/collections/docs/ingest", json={"chunks": CHUNKS})
    assert (await http.delete("/collections/docs/chunks/1")).json() == {"deleted": 1, "seq": 3}
    assert (await http.post("/collections/docs/delete", json={"ids": [2, 99]})).json()["deleted"] == 1
    answer = await http.post("/collections/docs/delete", json={"filters": {"file_id": "g"}})
    assert (answer.status_code, answer.json()["deleted"]) == (200, 1)
    assert docs.collection("docs").rows == {}


async def test_search_names_its_space_and_epoch(http: Any, docs: Any) -> None:
    """{results: [{chunk, score, source}], total, took_us, mode, vector_space, epoch}, without vectors."""
    await http.post("/collections/docs/ingest", json={"chunks": CHUNKS})
    answer = await http.post("/collections/docs/search", json={"query": "parse a date", "top_k": 2})
    assert answer.status_code == 200
    body = answer.json()
    assert (body["mode"], body["vector_space"], body["epoch"], body["total"]) == ("semantic", "old", 1, 2)
    assert body["took_us"] >= 0
    best = body["results"][0]
    assert (best["chunk"]["id"], best["source"]) == (2, "semantic")
    assert best["score"] == pytest.approx(1.0, abs=1e-5)
    assert "embeddings" not in best["chunk"]


@pytest.mark.parametrize("space", ["fed", ["fed"]])
@pytest.mark.parametrize("field", ["vector", "query_vector"])
async def test_search_by_a_vector_and_a_space(http: Any, docs: Any, space: Any, field: str) -> None:
    """A vector as numbers, as base64 and by its space finds the same; vectors are shown where asked for."""
    fed = {**CHUNKS[0], "embeddings": {"fed": [0, 3, 4]}}
    await http.post("/collections/docs/ingest", json={"chunks": [fed]})
    packed = base64.b64encode(np.array([0, 3, 4], "<f4").tobytes()).decode()
    for sent in ([0, 3, 4], packed, {"fed": [0.0, 3.0, 4.0]}, {"fed": packed}):
        body = {field: sent, "vector_space": space, "include_vectors": True}
        answer = (await http.post("/collections/docs/search", json=body)).json()
        assert answer["vector_space"] == "fed"
        hit = answer["results"][0]
        assert hit["score"] == pytest.approx(1.0)
        assert hit["chunk"]["embeddings"]["fed"] == pytest.approx([0.0, 0.6, 0.8])


async def test_filters_and_search_options_reach_the_index(http: Any, docs: Any) -> None:
    """`filters`, `exact`, `ef_search`, `min_seq` become the query's."""
    await http.post("/collections/docs/ingest", json={"chunks": CHUNKS})
    body = {"query": "a", "filters": {"kind": "x"}, "exact": True, "ef_search": 77, "min_seq": 1}
    answer = (await http.post("/collections/docs/search", json=body)).json()
    assert [h["chunk"]["id"] for h in answer["results"]] == [1]
    query = docs.index("docs", "old").queries[-1]
    assert (query.exact, query.ef_search, query.min_seq) == (True, 77, 2)


async def test_a_space_is_added_listed_changed_and_dropped(http: Any, docs: Any) -> None:
    """201 building; 200 lists; PATCH 200; DELETE 204, then 404."""
    space = {"name": "new", "dims": 8, "model": "m", "embed_endpoint": "http://127.0.0.1:9/embed", "metric": "dot"}
    added = await http.post("/collections/docs/vector-spaces", json=space)
    assert added.status_code == 201
    assert added.json() == {"name": "new", "dims": 8, "model": "m", "status": "building"}
    listed = (await http.get("/collections/docs/vector-spaces")).json()
    assert [(s["name"], s["status"]) for s in listed] == [("old", "active"), ("fed", "active"), ("new", "building")]
    assert "embed_endpoint" not in listed[1]
    change = {"embed_endpoint": "http://127.0.0.1:10", "query_prompt_name": "q", "hnsw": {"ef_search": 99}}
    changed = await http.patch("/collections/docs/vector-spaces/new", json=change)
    assert (changed.status_code, changed.json()["embed_endpoint"]) == (200, "http://127.0.0.1:10/embed")
    config = docs.router.states["docs"].by_name("new").config
    assert (config.query_prompt_name, config.hnsw.ef_search, config.metric) == ("q", 99, "dot")
    gone = await http.delete("/collections/docs/vector-spaces/new")
    assert (gone.status_code, gone.content) == (204, b"")
    assert (await http.delete("/collections/docs/vector-spaces/new")).status_code == 404
    assert (await http.patch("/collections/docs/vector-spaces/new", json=change)).status_code == 404


async def test_a_second_space_of_a_name_and_the_default_are_conflicts(http: Any, docs: Any) -> None:
    """409 space-exists, 409 default-space."""
    again = await http.post("/collections/docs/vector-spaces", json={"name": "old", "dims": 4, "model": "m"})
    assert (again.status_code, again.json()["type"]) == (409, "space-exists")
    default = await http.delete("/collections/docs/vector-spaces/old")
    assert (default.status_code, default.json()["type"]) == (409, "default-space")


async def test_a_rebuild_starts_conflicts_and_is_cancelled(http: Any, docs: Any) -> None:
    """202 {status, job_id}; 409 while one runs; DELETE 202, then 404."""
    await http.post("/collections/docs/vector-spaces", json={"name": "new", "dims": 8, "model": "m"})
    path = "/collections/docs/vector-spaces/new/rebuild"
    body = {
        "cost_per_hour": 2.5,
        "budget": 10,
        "embed_endpoint": ["http://127.0.0.1:9", "http://127.0.0.1:10/embed", "http://127.0.0.1:9/embed"],
        "batch_size": 16,
        "api_key_env": "COMPASS_EMBED_KEY_A",
        "concurrency": 4,
        "max_docs_per_s": 100,
    }
    started = await http.post(path, json=body)
    assert (started.status_code, started.json()) == (202, {"status": "building", "job_id": "job-1"})
    (spec,) = docs.router.rebuilds.values()
    assert spec.endpoints == ("http://127.0.0.1:9/embed", "http://127.0.0.1:10/embed")
    assert (spec.batch_size, spec.api_key_env, spec.concurrency) == (16, "COMPASS_EMBED_KEY_A", 4)
    assert (spec.budget, spec.cost_per_hour) == (10, 2.5)
    assert (await http.post(path, json=body)).json()["type"] == "rebuild-running"
    assert (await http.delete(path)).status_code == 202
    assert (await http.delete(path)).status_code == 404
    assert (await http.post("/collections/docs/vector-spaces/no/rebuild", json=body)).status_code == 404


async def test_a_dry_run_answers_200_with_the_estimate(http: Any, docs: Any) -> None:
    """The same call with dry_run: the report as the document promises it, and nothing is started."""
    path = "/collections/docs/vector-spaces/old/rebuild"
    body = {"dry_run": True, "cost_per_million_tokens": 0.5, "budget": 5}
    answer = await http.post(path, json=body)
    assert answer.status_code == 200
    operation = openapi_document()["paths"]["/collections/{collection}/vector-spaces/{space}/rebuild"]["post"]
    schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
    Draft202012Validator({**openapi_document(), **schema}).validate(answer.json())
    assert answer.json()["failures"][0]["chunks"][0]["reason"] == "too long"
    (spec,) = docs.router.estimated
    assert (spec.cost_per_million_tokens, spec.cost_per_hour, spec.budget) == (0.5, None, 5.0)
    assert docs.router.rebuilds == {}
    assert (await http.post("/collections/docs/vector-spaces/no/rebuild", json=body)).status_code == 404


async def test_a_rebuild_needs_no_body_where_the_space_has_an_endpoint(http: Any, docs: Any) -> None:
    """All its fields are optional."""
    assert (await http.post("/collections/docs/vector-spaces/old/rebuild")).status_code == 202


async def test_status_progress_is_one_exactly_when_active(http: Any, docs: Any) -> None:
    """Whatever the index says, 1.0 and `active` appear together, and never apart."""
    await http.post("/collections/docs/vector-spaces", json={"name": "new", "dims": 8, "model": "m"})
    docs.index("docs", "new").progress = 1.0
    status = await http.get("/collections/docs/vector-spaces/new/status")
    assert status.status_code == 200
    body = status.json()
    assert (body["status"], body["embedded"], body["total"]) == ("building", 1, 4)
    assert body["run"]["state"] == "running"
    assert 0.99 < body["progress"] < 1.0
    docs.index("docs", "new").progress = 0.5
    await docs.router.activate("docs", "new")
    body = (await http.get("/collections/docs/vector-spaces/new/status")).json()
    assert (body["status"], body["progress"], body["percent"]) == ("active", 1.0, 100.0)
    assert (await http.get("/collections/docs/vector-spaces/no/status")).status_code == 404


async def test_a_swap_changes_the_default_and_its_epoch(http: Any, docs: Any) -> None:
    """200 {previous, current, epoch}; the next search is answered by the new default."""
    swapped = await http.put("/collections/docs/default-vector-space", json={"name": "fed", "expected_epoch": 1})
    assert (swapped.status_code, swapped.json()) == (200, {"previous": "old", "current": "fed", "epoch": 2})
    body = {"vector": [1, 0, 0], "vector_space": "fed"}
    assert (await http.post("/collections/docs/search", json=body)).json()["epoch"] == 2
    stale = await http.put("/collections/docs/default-vector-space", json={"name": "old", "expected_epoch": 1})
    assert (stale.status_code, stale.json()["type"]) == (409, "epoch-mismatch")
    same = await http.put("/collections/docs/default-vector-space", json={"name": "fed"})
    assert (same.status_code, same.json()["epoch"]) == (200, 2)


async def test_who_and_why_reach_the_history(new_service: Any) -> None:
    """Each call that changes spaces tells the router whose key it was and the reason given; never the key."""
    for settings, headers, who in (
        ({}, {}, "anyone"),
        ({"api_key": "s3cret"}, {"authorization": "Bearer s3cret"}, "api-key"),
    ):
        service = new_service(**settings)
        async with service.http(headers=headers) as http:
            space = {"dims": 4, "model": "m", "embed_endpoint": "builtin"}
            await http.post("/collections", json={"name": "docs", "vector_spaces": {"old": space}})
            await http.post("/collections/docs/vector-spaces", json={"name": "new", **space, "reason": "add"})
            await http.patch("/collections/docs/vector-spaces/new", json={"hnsw": {"ef_search": 9}, "reason": "set"})
            await http.post("/collections/docs/vector-spaces/new/rebuild", json={"reason": "build"})
            await http.delete("/collections/docs/vector-spaces/new/rebuild", params={"reason": "stop"})
            await service.router.activate("docs", "new")
            await http.put("/collections/docs/default-vector-space", json={"name": "new", "reason": "swap"})
            await http.delete("/collections/docs/vector-spaces/old", params={"reason": "drop", "confirm": "old"})
        assert [(name, by.reason) for name, by in service.router.calls] == [
            ("create_collection", None),
            ("add_space", "add"),
            ("set_space", "set"),
            ("start_rebuild", "build"),
            ("cancel_rebuild", "stop"),
            ("swap", "swap"),
            ("drop_space", "drop"),
        ]
        assert {by.who for _, by in service.router.calls} == {who}
        assert service.router.confirmed == ["old"]


async def test_a_rollback_needs_no_name(http: Any, docs: Any) -> None:
    """What a swap asks for reaches the router as it was said, with the defaults for the rest."""
    await http.put("/collections/docs/default-vector-space", json={"rollback": True, "wait_s": 1.5, "force": True})
    await http.put("/collections/docs/default-vector-space", json={"name": "fed"})
    assert docs.router.swaps == [SwapOrder(None, True, True, None, 1.5), SwapOrder("fed", False, False, None, 5.0)]


async def test_the_history_is_shown(http: Any, docs: Any) -> None:
    """Each event with all of its fields, the time in ISO 8601."""
    answer = await http.get("/collections/docs/history")
    assert (answer.status_code, answer.json()) == (
        200,
        {
            "events": [
                {
                    "seq": 2,
                    "at": "2023-11-14T22:13:20.500Z",
                    "epoch": 1,
                    "kind": "add",
                    "space": "new",
                    "who": "anyone",
                    "reason": "why not",
                    "took_s": 0.25,
                    "details": {"model": "m"},
                }
            ]
        },
    )


async def test_a_swap_to_what_is_not_ready_is_refused(http: Any, docs: Any) -> None:
    """Unknown 404; building 409 space-not-active; lagging 409 space-lags."""
    path = "/collections/docs/default-vector-space"
    assert (await http.put(path, json={"name": "no"})).status_code == 404
    await http.post("/collections/docs/vector-spaces", json={"name": "new", "dims": 8, "model": "m"})
    assert (await http.put(path, json={"name": "new"})).json()["type"] == "space-not-active"
    docs.router.swap_lags = True
    assert (await http.put(path, json={"name": "fed"})).json()["type"] == "space-lags"


async def test_a_building_space_says_how_far_it_is(http: Any, docs: Any) -> None:
    """A search by its name is 409 with the progress."""
    await http.post("/collections/docs/vector-spaces", json={"name": "new", "dims": 8, "model": "m"})
    answer = await http.post("/collections/docs/search", json={"query": "x", "vector_space": "new"})
    assert answer.status_code == 409
    assert answer.json()["type"] == "space-not-active"
    assert answer.json()["progress"] == 0.25


async def test_what_a_later_version_brings_is_501(http: Any, docs: Any) -> None:
    """A field, a mode or a route of a later version is refused by its name, never ignored."""
    requests: list[dict[str, Any]] = [
        {"mode": "hybrid"},
        {"mode": "fts"},
        {"boosts": [{"field": "kind", "value": "x", "weight": 2}]},
        {"recency": {"field": "at", "half_life_days": 3}},
        {"recency_preset": "mild"},
        {"recency_field": "at"},
        {"score_weights": {"fts_weight": 2}},
        {"relationship_boost": {"parent_weight": 1}},
        {"explain": True},
        {"vector_space": ["old", "fed"]},
    ]
    for fields in requests:
        answer = await http.post("/collections/docs/search", json={"query": "x", **fields})
        assert answer.status_code == 501, fields
        assert answer.json()["field"] == next(iter(fields))
        assert next(iter(fields)) in answer.json()["detail"]
    for path in ("facets?fields=kind", "segments/at?asset=a&time_ms=1"):
        assert (await http.get(f"/collections/docs/{path}")).status_code == 501


async def test_defaults_of_later_fields_may_be_said(http: Any, docs: Any) -> None:
    """A client that spells out the defaults is not refused for it."""
    weights = {"rrf_k": 60, "fts_weight": 1, "semantic_weight": 1}
    body = {
        "query": "x",
        "mode": "semantic",
        "boosts": [],
        "explain": False,
        "score_weights": weights,
        "recency": None,
    }
    assert (await http.post("/collections/docs/search", json=body)).status_code == 200


async def test_every_route_of_a_missing_collection_is_not_found(http: Any, service: Any) -> None:
    """404 as a problem document, whatever is asked of it."""
    for method, path, body in [
        ("GET", "", None),
        ("DELETE", "", None),
        ("POST", "/ingest", {"chunks": CHUNKS}),
        ("GET", "/chunks", None),
        ("GET", "/chunks/1", None),
        ("DELETE", "/chunks/1", None),
        ("POST", "/delete", {"ids": [1]}),
        ("POST", "/search", {"query": "x"}),
        ("POST", "/vector-spaces", {"name": "s", "dims": 4, "model": "m"}),
        ("GET", "/vector-spaces", None),
        ("PATCH", "/vector-spaces/s", {"query_prompt_name": "q"}),
        ("DELETE", "/vector-spaces/s", None),
        ("POST", "/vector-spaces/s/rebuild", {}),
        ("DELETE", "/vector-spaces/s/rebuild", None),
        ("GET", "/vector-spaces/s/status", None),
        ("PUT", "/default-vector-space", {"name": "s"}),
        ("GET", "/history", None),
    ]:
        answer = await http.request(method, f"/collections/none{path}", json=body)
        assert answer.status_code == 404, (method, path, answer.text)
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["collection"] == "none"


async def test_an_unknown_route_is_a_problem(http: Any) -> None:
    """404 with the path in it."""
    answer = await http.get("/colections")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert "/colections" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "/health", "GET, HEAD"),
        ("PUT", "/collections", "GET, HEAD, POST"),
        ("GET", "/collections/docs/search", "POST"),
        ("POST", "/openapi.json", "GET, HEAD"),
    ],
)
async def test_a_wrong_method_says_which_are_right(http: Any, method: str, path: str, allow: str) -> None:
    """405 as a problem document, with Allow."""
    answer = await http.request(method, path)
    assert answer.status_code == 405
    assert answer.headers["allow"] == allow
    assert answer.headers["content-type"] == "application/problem+json"


async def test_head_is_get_without_the_body(http: Any) -> None:
    """The same status and headers."""
    answer = await http.head("/health")
    assert (answer.status_code, answer.content) == (200, b"")
    assert int(answer.headers["content-length"]) > 0


async def test_a_bug_shows_nothing_of_the_inside(http: Any, docs: Any, caplog: pytest.LogCaptureFixture) -> None:
    """An unexpected exception is a 500 problem; the log has the traceback, the client has not."""

    def broken() -> None:
        raise ZeroDivisionError("secret detail")

    docs.collection("docs").ingest = lambda chunks, attempt: broken()
    with caplog.at_level(logging.ERROR):
        answer = await http.post("/collections/docs/ingest", json={"chunks": CHUNKS})
    assert answer.status_code == 500
    assert answer.json()["type"] == "internal"
    assert "secret" not in answer.text
    assert "ZeroDivisionError" in caplog.text


async def test_the_application_lives_with_and_without_lifespan(service: Any) -> None:
    """Lifespan events are answered; other protocols are turned away."""
    events = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return next(events)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await asyncio.wait_for(service.app({"type": "lifespan"}, receive, send), 30)
    assert [m["type"] for m in sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    await service.app({"type": "websocket", "path": "/"}, receive, send)
    assert sent[-1]["type"] == "websocket.close"


async def test_a_prefix_that_the_application_is_mounted_at_is_no_part_of_its_paths(service: Any) -> None:
    """`root_path` is cut off, as an ASGI server under a route prefix sends it."""
    import httpx

    transport = httpx.ASGITransport(service.app, root_path="/compass")
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
        assert (await client.get("/compass/health")).status_code == 200
