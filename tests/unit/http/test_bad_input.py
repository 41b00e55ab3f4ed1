"""Bad input: the right status, every flaw by its place, and nothing written."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

CHUNK = {"file_id": "f", "chunk_index": 0, "text": "a text"}
PROBLEM = "application/problem+json"


@pytest.fixture(autouse=True)
async def nothing_is_written(docs: Any) -> AsyncIterator[None]:
    """Whatever a test of this module sends, no log and no table has changed afterwards."""
    table = docs.table.table
    yield
    assert docs.table.table is table
    assert [c.writes for c in docs.collections.values()] == [0]
    assert docs.router.rebuilds == {}


def packed(*numbers: float) -> str:
    """base64 of float32."""
    return base64.b64encode(np.array(numbers, "<f4").tobytes()).decode()


async def refused(http: Any, path: str, body: Any, status: int = 422, method: str = "POST") -> dict[str, Any]:
    """Send a body (bytes as they are), expect a problem of this status, and return it."""
    headers = {"content-type": "application/json"}
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = await http.request(method, path, content=content, headers=headers)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == PROBLEM
    problem: dict[str, Any] = answer.json()
    assert problem["status"] == status
    assert {"type", "title", "detail"} <= problem.keys()
    return problem


async def test_names_outside_the_pattern(http: Any) -> None:
    """Collections and spaces: lower-case, 1 to 63 characters, beginning with a letter or a digit."""
    for name in ("", "Docs", "-a", "_a", "a b", "a/b", "ä", "a" * 64, "a\n"):
        assert (await refused(http, "/collections", {"name": name}))["errors"][0]["field"] == "name"
        await refused(http, "/collections", {"name": "ok", "vector_spaces": {name: {"dims": 4, "model": "m"}}})
        await refused(http, "/collections/docs/vector-spaces", {"name": name, "dims": 4, "model": "m"})


async def test_dims_out_of_range(http: Any) -> None:
    """1..16384, wherever they are said."""
    for dims in (0, -1, 16_385):
        await refused(http, "/collections", {"name": "ok", "embedding_dims": dims})
        await refused(http, "/collections", {"name": "ok", "vector_spaces": {"a": {"dims": dims, "model": "m"}}})
        await refused(http, "/collections/docs/vector-spaces", {"name": "n", "dims": dims, "model": "m"})
    for wrong in ("4", 4.5, None, True):
        await refused(http, "/collections/docs/vector-spaces", {"name": "n", "dims": wrong, "model": "m"})


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"vector_spaces": {}}, "vector_spaces"),
        ({"vector_spaces": {"a": {"dims": 4}}}, "vector_spaces[...].model"),
        ({"vector_spaces": {"a": {"dims": 4, "model": "m", "metric": "hamming"}}}, "vector_spaces[...].metric"),
        ({"vector_spaces": {"a": {"dims": 4, "model": "m"}}, "default_vector_space": "b"}, "default_vector_space"),
        ({"default_vector_space": "b"}, "default_vector_space"),
        ({"vector_spaces": {"a": {"dims": 4, "model": "m"}}, "embedding_dims": 5}, "embedding_dims"),
        ({"config": {"bare_vectors": "whatever"}}, "config.bare_vectors"),
        ({"config": {"other": 1}}, "config.other"),
        ({"vector_space": {}}, "vector_space"),
    ],
)
async def test_collections_that_do_not_fit(http: Any, fields: dict[str, Any], field: str) -> None:
    """Each names the field."""
    problem = await refused(http, "/collections", {"name": "ok", **fields})
    assert problem["errors"][0]["field"] == field


@pytest.mark.parametrize(
    "endpoint", ["ftp://host/embed", "http://user:pw@host/", "http://169.254.169.254/", "nonsense", ""]
)
async def test_endpoints_that_are_not_called(http: Any, endpoint: str) -> None:
    """Other schemes, credentials and metadata addresses are refused in every body that names an endpoint."""
    config = {"dims": 4, "model": "m", "embed_endpoint": endpoint}
    await refused(http, "/collections", {"name": "ok", "vector_spaces": {"a": config}})
    await refused(http, "/collections/docs/vector-spaces", {"name": "n", **config})
    await refused(http, "/collections/docs/vector-spaces/fed", {"embed_endpoint": endpoint}, method="PATCH")
    await refused(http, "/collections/docs/vector-spaces/fed/rebuild", {"embed_endpoint": endpoint})
    await refused(http, "/collections/docs/vector-spaces/fed/rebuild", {"embed_endpoint": ["builtin", endpoint]})


async def test_key_variables_of_another_prefix(http: Any) -> None:
    """A request must not be able to send the server's secrets to a URL of its choice."""
    for name in ("HOME", "COMPASS_API_KEY", "COMPASS_EMBED_KEY_", "COMPASS_EMBED_KEY_a b"):
        body = {"embed_endpoint": "http://127.0.0.1:9", "api_key_env": name}
        await refused(http, "/collections/docs/vector-spaces/fed/rebuild", body)
        await refused(http, "/collections/docs/vector-spaces", {"name": "n", "dims": 4, "model": "m", **body})


async def test_a_rebuild_without_an_endpoint_anywhere(http: Any) -> None:
    """The space has none, the request names none."""
    assert (await refused(http, "/collections/docs/vector-spaces/fed/rebuild", {}))["errors"][0]["field"] == (
        "embed_endpoint"
    )
    for fields in ({"batch_size": 0}, {"concurrency": 0}, {"max_docs_per_s": 0}, {"embed_endpoint": 3}):
        await refused(http, "/collections/docs/vector-spaces/old/rebuild", fields)


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize(
    ("prices", "field"),
    [
        ({"budget": 5}, "budget"),
        ({"budget": 0, "cost_per_hour": 1}, "budget"),
        ({"cost_per_hour": 1, "cost_per_million_tokens": 1}, "cost_per_hour"),
        ({"cost_per_hour": -1}, "cost_per_hour"),
        ({"cost_per_million_tokens": "1"}, "cost_per_million_tokens"),
    ],
)
async def test_a_budget_wants_one_price(http: Any, prices: Any, field: str, dry_run: bool) -> None:
    """None, or two: nobody would know what is counted."""
    problem = await refused(http, "/collections/docs/vector-spaces/old/rebuild", {**prices, "dry_run": dry_run})
    assert problem["errors"][0]["field"].endswith(field)


async def test_a_patch_that_changes_nothing_or_too_much(http: Any) -> None:
    """Only embed_endpoint, query_prompt_name and hnsw.ef_search can change."""
    bodies: list[dict[str, Any]] = [
        {},
        {"dims": 4},
        {"hnsw": {"m": 4}},
        {"hnsw": {}},
        {"embed_endpoint": None},
        {"hnsw": {"ef_search": 0}},
    ]
    for body in bodies:
        await refused(http, "/collections/docs/vector-spaces/old", body, method="PATCH")


async def test_empty_batches(http: Any) -> None:
    """No chunks, no `chunks`, no object: refused."""
    bodies: list[Any] = [{"chunks": []}, {}, {"chunks": None}, [], "x", {"chunks": [CHUNK], "wait_s": -1}]
    for body in bodies:
        await refused(http, "/collections/docs/ingest", body)


async def test_each_bad_chunk_is_named_by_its_index(http: Any) -> None:
    """All of them, in order, with field and reason; a good one among them is not written either."""
    chunks = [
        {**CHUNK, "embeddings": {"old": [1, 2, 3]}},
        CHUNK,
        {**CHUNK, "chunk_index": 1, "embedding": [0, 0, 0, 0]},
        {**CHUNK, "chunk_index": 2, "embeddings": {"nowhere": [1]}},
        {**CHUNK, "chunk_index": 3, "metadata": {"$and": 1}},
        {**CHUNK, "chunk_index": 4, "embedding": packed(1, 2, float("nan"), 4)},
        {**CHUNK, "chunk_index": 5, "embedding": [1, "2", 3, 4]},
        {**CHUNK, "chunk_index": 6, "text": " ", "embedding": [1, 2, 3, 4]},
    ]
    problem = await refused(http, "/collections/docs/ingest", {"chunks": chunks})
    assert [(e["index"], e["field"]) for e in problem["errors"]] == [
        (0, "embeddings.old"),
        (2, "embedding"),
        (3, "embeddings.nowhere"),
        (4, "metadata.$and"),
        (5, "embedding"),
        (6, "embedding"),
        (7, "embeddings"),
    ]
    assert (problem["expected_dims"], problem["got_dims"]) == (4, 3)
    assert "zero" in problem["errors"][1]["detail"]
    assert "NaN" in problem["errors"][4]["detail"]


async def test_each_chunk_of_wrong_types_is_named_by_its_index(http: Any) -> None:
    """Types, missing and unknown fields: found in every chunk, not only in the first."""
    chunks = [
        CHUNK,
        {**CHUNK, "page": "two"},
        {**CHUNK, "txt": ""},
        {"file_id": "f", "chunk_index": 0},
        {**CHUNK, "metadata": {"a": None}},
        {**CHUNK, "metadata": {"a": {"nested": 1}}},
        {**CHUNK, "chunk_index": -1},
        {**CHUNK, "chunk_index": 2**63},
        {**CHUNK, "file_id": ""},
        7,
    ]
    problem = await refused(http, "/collections/docs/ingest", {"chunks": chunks})
    assert [(e["index"], e["field"]) for e in problem["errors"]] == [
        (1, "page"),
        (2, "txt"),
        (3, "text"),
        (4, "metadata[...]"),
        (5, "metadata[...]"),
        (6, "chunk_index"),
        (7, "chunk_index"),
        (8, "file_id"),
        (9, "body"),
    ]


@pytest.mark.parametrize(
    "vector",
    [
        b"[1e999, 0, 0, 0]",
        b"[1e39, 0, 0, 0]",
        b"[-1e39, 0, 0, 0]",
        b"[99999999999999999999999, 0, 0, 0]",
        b"[0, 0, 0, 0]",
        b"[1e-60, 0, 0, 0]",
        b"[1, 2, 3]",
        b"[1, 2, 3, 4, 5]",
        b"[]",
        b"[[1, 2, 3, 4]]",
        b"[1, [2, 3], 4]",
        b"[1, null, 3, 4]",
        b"[true, 1, 1, 1]",
        b'["1", 1, 1, 1]',
        b"4",
        b"true",
        b'"not base64!"',
        b'"AAAA"',
        b'""',
        json.dumps(packed(1, 2, 3, float("inf"))).encode(),
        json.dumps(packed(float("nan"), 0, 0, 0)).encode(),
        json.dumps(packed(1, 2, 3)).encode(),
    ],
)
async def test_vectors_that_must_not_be_stored_or_searched(http: Any, vector: bytes) -> None:
    """NaN, infinity, overflow, zeros, wrong dims, no numbers: in a chunk with its index, in a search too."""
    chunk = b'{"chunks":[{"file_id":"f","chunk_index":0,"text":"t"},{"file_id":"f","chunk_index":1,"text":"t",%s}]}'
    for field in (b'"embedding":%s', b'"embeddings":{"old":%s}'):
        problem = await refused(http, "/collections/docs/ingest", chunk % (field % vector))
        assert [e["index"] for e in problem["errors"]] == [1]
    for field in (b'"vector":%s', b'"query_vector":%s', b'"vector":{"old":%s}'):
        problem = await refused(http, "/collections/docs/search", b"{%s}" % (field % vector))
        assert problem["errors"][0]["field"] in ("vector", "query_vector")


async def test_wrong_dims_say_what_was_expected(http: Any) -> None:
    """`expected_dims` and `got_dims` are members of the problem."""
    problem = await refused(http, "/collections/docs/search", {"vector": [1, 2]})
    assert (problem["expected_dims"], problem["got_dims"]) == (4, 2)


async def test_integers_that_no_store_can_hold(http: Any) -> None:
    """Metadata beyond 64 bits."""
    problem = await refused(http, "/collections/docs/ingest", {"chunks": [{**CHUNK, "metadata": {"n": 2**63}}]})
    assert problem["errors"] == [{"index": 0, "field": "metadata.n", "detail": "an integer must fit in 64 bits"}]


async def test_a_client_id_twice_in_a_batch(http: Any) -> None:
    """Both chunks are named; 1 and "1" are one key of the answer's map."""
    chunks = [{**CHUNK, "client_id": "1"}, {**CHUNK, "chunk_index": 1}, {**CHUNK, "chunk_index": 2, "client_id": 1}]
    problem = await refused(http, "/collections/docs/ingest", {"chunks": chunks})
    assert [(e["index"], e["field"]) for e in problem["errors"]] == [(0, "client_id"), (2, "client_id")]


async def test_an_embedding_beside_the_default_spaces(http: Any) -> None:
    """`embedding` and `embeddings[default]` mean the same space: which one would count?"""
    chunk = {**CHUNK, "embedding": [1, 2, 3, 4], "embeddings": {"old": [1, 2, 3, 4]}}
    problem = await refused(http, "/collections/docs/ingest", {"chunks": [chunk]})
    assert problem["errors"][0]["field"] == "embedding"


@pytest.mark.parametrize("top_k", [0, -1, 1001, 1.5, "10", None])
async def test_top_k_out_of_range(http: Any, top_k: Any) -> None:
    """1..1000, an integer."""
    assert (await refused(http, "/collections/docs/search", {"query": "x", "top_k": top_k}))["errors"][0][
        "field"
    ] == ("top_k")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "query"),
        ({"query": ""}, "query"),
        ({"query": "  \n"}, "query"),
        ({"query": "x", "vector_space": "fed"}, "query"),
        ({"vector": [1, 0, 0, 0], "query_vector": [1, 0, 0, 0]}, "vector"),
        ({"vector": {"fed": [1, 0, 0]}}, "vector"),
        ({"vector": {"old": [1, 0, 0, 0], "fed": [1, 0, 0]}}, "vector"),
        ({"vector": {}}, "vector"),
        ({"query": "x", "vector_space": []}, "vector_space"),
        ({"query": "x", "filters": {"priority": {"gtt": 3}}}, "filters.priority"),
        ({"query": "x", "filters": {"priority": None}}, "filters.priority"),
        ({"query": "x", "filters": {"$nor": []}}, "filters.$nor"),
        ({"query": "x", "filters": []}, "filters"),
        ({"query": "x", "ef_search": 0}, "ef_search"),
        ({"query": "x", "min_seq": -1}, "min_seq"),
        ({"query": "x", "mode": "dense"}, "mode"),
        ({"query": "x", "topk": 3}, "topk"),
    ],
)
async def test_searches_that_do_not_fit(http: Any, body: dict[str, Any], field: str) -> None:
    """Each names the field; what is misspelt is never ignored."""
    assert (await refused(http, "/collections/docs/search", body))["errors"][0]["field"] == field


@pytest.mark.parametrize("field", ["allow_partial", "min_score", "offset"])
async def test_fields_of_later_versions_are_unknown_in_a_search(http: Any, field: str) -> None:
    """They are accepted from the version that brings them, 422 before."""
    assert (await refused(http, "/collections/docs/search", {"query": "x", field: 1}))["errors"][0]["field"] == field


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "name"),
        ({"rollback": False}, "name"),
        ({"name": "fed", "wait_s": -1}, "wait_s"),
        ({"name": "fed", "wait_s": 601}, "wait_s"),
        ({"name": "fed", "reason": 1}, "reason"),
        ({"name": "fed", "reason": "x" * 1001}, "reason"),
        ({"name": "fed", "rolback": True}, "rolback"),
    ],
)
async def test_swaps_that_do_not_fit(http: Any, body: dict[str, Any], field: str) -> None:
    """A swap that names nothing, a wait out of range or a misspelt field is refused with the field's name."""
    problem = await refused(http, "/collections/docs/default-vector-space", body, method="PUT")
    assert problem["errors"][0]["field"] == field


async def test_an_unknown_space_is_not_found_in_a_search(http: Any) -> None:
    """404, and the message lists those that are there."""
    problem = await refused(http, "/collections/docs/search", {"query": "x", "vector_space": "nowhere"}, 404)
    assert "'old'" in problem["detail"]


async def test_a_delete_of_everything_or_of_two_things(http: Any) -> None:
    """An empty body never means all; ids and filters are two calls."""
    empty: list[dict[str, Any]] = [
        {},
        {"ids": []},
        {"filters": {}},
        {"ids": None, "filters": None},
        {"ids": [], "filters": {}},
    ]
    for body in empty:
        await refused(http, "/collections/docs/delete", body)
    await refused(http, "/collections/docs/delete", {"ids": [1], "filters": {"file_id": "f"}})
    for body in ({"ids": ["1"]}, {"ids": [2**63]}, {"id": [1]}, {"filters": {"a": {"gte": 1}}}):
        await refused(http, "/collections/docs/delete", body)
    await refused(http, "/collections/docs/delete", b"", 400)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"{'name': 1}",
        b'{"name": NaN}',
        b'{"name": "a",}',
        b"\xff\xfe",
        b'{"name": "\xff"}',
        b'{"name": "\\ud800"}',
    ],
)
async def test_malformed_json(http: Any, body: bytes) -> None:
    """400 on every route that takes a body, the one whose body is optional too if there is one."""
    for method, path in [
        ("POST", "/collections"),
        ("POST", "/collections/docs/ingest"),
        ("POST", "/collections/docs/search"),
        ("POST", "/collections/docs/delete"),
        ("POST", "/collections/docs/vector-spaces"),
        ("PATCH", "/collections/docs/vector-spaces/old"),
        ("PUT", "/collections/docs/default-vector-space"),
        *([("POST", "/collections/docs/vector-spaces/old/rebuild")] if body else []),
    ]:
        problem = await refused(http, path, body, 400, method)
        assert problem["type"] == "malformed-body"


async def test_json_nested_without_end(http: Any) -> None:
    """A body that would overflow the stack is refused like any other."""
    body = b'{"query": "x", "filters": {"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}"
    await refused(http, "/collections/docs/search", body, 400)


@pytest.mark.parametrize(
    "content_type", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonx"]
)
async def test_a_wrong_content_type(http: Any, content_type: str | None) -> None:
    """415, so that a web page's simple form cannot write."""
    headers = {} if content_type is None else {"content-type": content_type}
    for method, path in [("POST", "/collections"), ("POST", "/collections/docs/ingest")]:
        answer = await http.request(method, path, content=b'{"name": "x"}', headers=headers)
        assert answer.status_code == 415
        assert answer.headers["content-type"] == PROBLEM


async def test_a_content_type_with_a_charset_is_json(http: Any) -> None:
    """Parameters and capitals do not matter."""
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    answer = await http.post("/collections/docs/search", content=b'{"query": "x"}', headers=headers)
    assert answer.status_code == 200


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "after=x", "offset=3", "limit="])
async def test_pages_that_do_not_fit(http: Any, query: str) -> None:
    """422 with the parameter's name; unknown parameters are refused too."""
    answer = await http.get(f"/collections/docs/chunks?{query}")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == query.partition("=")[0]


async def test_many_flaws_are_counted_not_listed(http: Any) -> None:
    """An answer names at most a hundred of them."""
    chunks = [{**CHUNK, "chunk_index": i, "embedding": [1]} for i in range(150)]
    problem = await refused(http, "/collections/docs/ingest", {"chunks": chunks})
    assert len(problem["errors"]) == 100
    assert "149 more" in problem["detail"]
