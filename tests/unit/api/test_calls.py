"""A Python handle: plain values and arrays in, the same answers and the same errors as over HTTP."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx
import numpy as np
import pytest
from fake_service import FakeService

from compass.errors import CollectionExistsError, CompassError, InvalidRequestError

CHUNK: dict[str, Any] = {"client_id": "a", "file_id": "f", "chunk_index": 0, "text": "a text"}
SPACES = {"old": {"dims": 4, "model": "m-old", "embed_endpoint": "builtin"}, "fed": {"dims": 3, "model": "m-fed"}}
RANDOM = {"id", "created_at"}  # of a space, which is named by chance, and made at another instant


class Untouched(np.ndarray[tuple[int, ...], np.dtype[np.float32]]):
    """An array that must not be taken to pieces."""

    def _refuse(self, *_: object, **__: object) -> Any:
        raise AssertionError("the array was encoded")

    tobytes = tolist = tofile = dumps = __iter__ = __getitem__ = __reduce__ = _refuse


def untouched(*numbers: float) -> Untouched:
    return np.array(numbers, np.float32).view(Untouched)


def packed(*numbers: float) -> str:
    return base64.b64encode(np.array(numbers, "<f4").tobytes()).decode()


async def ingest(docs: FakeService, *chunks: dict[str, Any], **fields: Any) -> Any:
    return await docs.call("ingest", collection="docs", body={"chunks": [*chunks], **fields})


async def search(docs: FakeService, **fields: Any) -> Any:
    return await docs.call("search", collection="docs", body=fields)


async def test_a_handle_takes_arrays_and_answers_plain_values(docs: FakeService) -> None:
    """Vectors of numpy and scalars in, dicts and lists out: the same checks, the same answers as over HTTP."""
    vector = np.array([0, 0, 3, 4], np.float64)
    chunk = {**CHUNK, "embedding": vector, "metadata": {"n": np.int64(3), "x": np.float32(0.5), "y": np.float64(2)}}
    answer = await ingest(docs, chunk)
    assert answer["id_map"] == {"a": 1}
    response = await search(docs, vector=vector, include_vectors=True, top_k=np.int64(3), exact=np.bool_(True))
    assert type(response) is dict
    assert response["results"][0]["chunk"]["metadata"] == {"n": 3, "x": 0.5, "y": 2.0}
    assert await docs.call("delete_collection", collection="docs") is None


async def test_an_array_is_never_encoded(docs: FakeService) -> None:
    """In each field that holds a vector: neither its bytes nor its numbers are taken."""
    await ingest(
        docs,
        {**CHUNK, "embedding": untouched(0, 0, 3, 4)},
        {**CHUNK, "chunk_index": 1, "client_id": "b", "embeddings": {"fed": untouched(0, 3, 4)}},
    )
    ids = {name: docs.router.states["docs"].by_name(name).id for name in SPACES}
    sent = docs.collection("docs").sent
    np.testing.assert_allclose(sent[1][ids["old"]], [0, 0, 0.6, 0.8], rtol=1e-6)
    np.testing.assert_allclose(sent[2][ids["fed"]], [0, 0.6, 0.8], rtol=1e-6)
    for field in ("vector", "query_vector"):
        await search(docs, **{field: untouched(0, 0, 3, 4)})
        await search(docs, **{field: {"old": untouched(0, 0, 3, 4)}})
        for query in docs.index("docs", "old").queries[-2:]:
            np.testing.assert_allclose(query.vector, [0, 0, 0.6, 0.8], rtol=1e-6)


@pytest.mark.parametrize(
    "vector",
    [
        np.array([0, 0, 3, 4], np.float64),
        np.array([0, 0, 3, 4], np.int16),
        np.array([0, 0, 3, 4], np.float16),
        np.array([9, 0, 9, 0, 9, 3, 9, 4], np.float32)[1::2],
        [0, 0, 3, 4.0],
        (0, 0, 3, 4),
        [np.float32(0), np.int8(0), 3, 4],
        packed(0, 0, 3, 4),
    ],
    ids=str,
)
async def test_a_vector_has_many_forms(docs: FakeService, vector: object) -> None:
    """Arrays of any numbers, lists of numbers, base64: the same row is stored and searched."""
    await ingest(docs, {**CHUNK, "embedding": vector})
    (row,) = docs.collection("docs").sent[1].values()
    assert row.dtype == np.float32
    np.testing.assert_allclose(row, [0, 0, 0.6, 0.8], rtol=1e-6)
    await search(docs, vector=vector)
    np.testing.assert_array_equal(docs.index("docs", "old").queries[-1].vector, row)


@pytest.mark.parametrize(
    ("vector", "detail"),
    [
        (np.full(4, np.nan), "holds NaN or infinity"),
        (np.full(4, 1e39), "holds NaN or infinity"),
        (np.zeros(4), "is a zero vector"),
        (np.ones(3), "expected 4 dims, got 3"),
        (np.ones((1, 4)), "is neither an array of numbers nor base64 of float32"),
        (np.array(1.0), "is neither an array of numbers nor base64 of float32"),
        (np.array([1, 2, 3, None]), "holds something that is not a number"),
        (np.array(["1", "2", "3", "4"]), "holds something that is not a number"),
        (np.ones(4, bool), "holds something that is not a number"),
        (np.ones(4, complex), "holds something that is not a number"),
        ([1, 2, 3, float("nan")], "holds something that is not a number"),
        ([[1, 2, 3, 4]], "is neither an array of numbers nor base64 of float32"),
        ([10**30, 2, 3, 4], "holds a number that is out of range"),
    ],
    ids=str,
)
async def test_arrays_that_do_not_fit(docs: FakeService, vector: object, detail: str) -> None:
    """They are refused by their place, and nothing is written."""
    for chunk, field in (
        ({**CHUNK, "embedding": vector}, "embedding"),
        ({**CHUNK, "embeddings": {"old": vector}}, "embeddings.old"),
    ):
        with pytest.raises(InvalidRequestError) as refused:
            await ingest(docs, chunk)
        assert refused.value.fields["errors"] == [{"index": 0, "field": field, "detail": detail}]
    with pytest.raises(InvalidRequestError) as refused:
        await search(docs, vector=vector)
    (flaw,) = refused.value.fields["errors"]
    assert (flaw["field"], flaw["detail"].removesuffix(" (space 'old')")) == ("vector", detail)
    assert docs.collection("docs").writes == 0


async def test_a_handle_refuses_what_http_refuses(docs: FakeService) -> None:
    """Unknown operations, arguments and fields, NaN, values that JSON does not have."""
    calls: list[tuple[str, dict[str, Any]]] = [
        ("drop_everything", {}),
        ("__init__", {}),
        ("search", {"collection": "docs"}),
        ("search", {"body": {"query": "x"}}),
        ("search", {"collection": "docs", "body": {"query": "x"}, "space": "old"}),
        ("search", {"collection": 3, "body": {"query": "x"}}),
        ("search", {"collection": "docs", "body": {"query": "x", "topk": 3}}),
        ("search", {"collection": "docs", "body": {"query": "\ud800"}}),
        ("search", {"collection": "docs", "body": {"query": "x", "timeout_s": float("nan")}}),
        ("search", {"collection": "docs", "body": {"vector": [float("nan"), 0, 0, 1]}}),
        ("search", {"collection": "docs", "body": {"vector": np.full(4, np.nan)}}),
        ("search", {"collection": "docs", "body": {"query": "x", "filters": {"a": {1, 2}}}}),
        ("search", {"collection": "docs", "body": {"query": "x", "filters": {"a": np.ones(2)}}}),
        ("search", {"collection": "docs", "body": {"query": np.array(["x"])}}),
        ("chunks", {"collection": "docs", "limit": 0}),
        ("ingest", {"collection": "docs", "body": {"chunks": [{**CHUNK, "metadata": {"a": object()}}]}}),
        ("ingest", {"collection": "docs", "body": {"chunks": [{**CHUNK, "metadata": {"a": float("inf")}}]}}),
        ("ingest", {"collection": "docs", "body": {"chunks": [{**CHUNK, "metadata": {(1, 2): "a"}}]}}),
    ]
    for operation, arguments in calls:
        with pytest.raises(InvalidRequestError):
            await docs.call(operation, **arguments)
    with pytest.raises(CollectionExistsError):
        await docs.call("create_collection", body={"name": "docs"})
    assert docs.collection("docs").writes == 0


async def test_values_that_contain_themselves_are_refused(docs: FakeService) -> None:
    """As a body without end is."""
    endless: dict[str, Any] = {}
    endless["a"] = endless
    with pytest.raises(InvalidRequestError):
        await search(docs, query="x", filters=endless)


# ---- the same as HTTP

VECTOR_INPUTS: list[Any] = [
    [0, 0, 3, 4],
    [0.5, 0, 3, 4e-3],
    packed(0, 0, 3, 4),
    [1, 2, 3],
    [],
    [0, 0, 0, 0],
    [1e39, 0, 0, 0],
    [10**30, 0, 0, 0],
    [2**64, 0, 0, 0],
    [2**64 - 1, 0, 0, -(2**63)],
    [True, 1, 1, 1],
    ["1", 1, 1, 1],
    [None, 1, 1, 1],
    [{"a": 1}, 1, 1, 1],
    [[1, 2, 3, 4]],
    [1, [2], 3, 4],
    4,
    True,
    None,
    "",
    "AAAA",
    "not base64!",
    {},
    {"old": [0, 0, 3, 4]},
    {"old": None},
    {"old": [1, 2]},
    {"fed": [1, 2, 3]},
    {"old": [0, 0, 3, 4], "fed": [1, 2, 3]},
]
CHUNKS = [{**CHUNK, "embedding": vector} for vector in VECTOR_INPUTS] + [
    {**CHUNK, "embeddings": {"old": vector}} for vector in VECTOR_INPUTS
]
BATCHES: list[Any] = [
    {"chunks": CHUNKS},
    {"chunks": [CHUNK, {**CHUNK, "embedding": [1]}, {**CHUNK, "embeddings": {"nowhere": "?"}}]},
    {"chunks": [CHUNK, {**CHUNK, "page": "two"}, {**CHUNK, "txt": ""}, {"file_id": "f"}, 7, None]},
    {"chunks": [{**CHUNK, "embeddings": 3}, {**CHUNK, "metadata": {"a": None}}]},
    {"chunks": [{**CHUNK, "embedding": [1, 2, 3, 4], "embeddings": {"old": "?", "x": [1]}, "text": " "}]},
    {"chunks": [{**CHUNK, "metadata": {"$a": 1, "n": 2**63, "tags": ["x"]}}, {**CHUNK, "client_id": "b"}]},
    {"chunks": [{**CHUNK, "metadata": {"n": 2**63 - 1, "x": 0.5, "b": True}}], "wait_s": 0},
    {"chunks": [CHUNK], "wait_s": -1},
    {"chunks": [{**CHUNK, "page": ""}], "wait_s": "x"},
    {"chunks": []},
    {"chunks": None},
    {"chunks": "x"},
    {},
    [],
    "x",
    None,
    {"chunks": [CHUNK], "expected_epoch": 7},
]
SEARCHES: list[Any] = [
    {"query": "a text"},
    {"query": "a text", "vector_space": "fed"},
    {"query": "a text", "vector_space": []},
    {"query": "a text", "filters": {"a": {"b": 1}}},
    {"query": "a text", "mode": "hybrid"},
    {"query": "a text", "top_k": 0},
    {"query": "a text", "min_seq": 10**6},
    {"vector": [1, 2, 3, 4], "query_vector": [1, 2, 3, 4]},
    {"topk": 1},
    {},
    3,
]
INPUTS: list[tuple[str, str, str, dict[str, Any]]] = [
    *(("ingest", "POST", "/collections/docs/ingest", {"body": {"chunks": [chunk]}}) for chunk in CHUNKS),
    *(
        ("search", "POST", "/collections/docs/search", {"body": {field: vector, "include_vectors": True}})
        for vector in VECTOR_INPUTS
        for field in ("vector", "query_vector")
    ),
    *(("ingest", "POST", "/collections/docs/ingest", {"body": body}) for body in BATCHES),
    *(("search", "POST", "/collections/docs/search", {"body": body}) for body in SEARCHES),
    ("create_collection", "POST", "/collections", {"body": {"name": "docs"}}),
    ("create_collection", "POST", "/collections", {"body": {"name": "Docs"}}),
    ("create_collection", "POST", "/collections", {"body": {"name": "x", "vector_spaces": {"a": {"dims": 3}}}}),
    ("create_collection", "POST", "/collections", {"body": {"name": "other", "embedding_dims": 8}}),
    ("list_collections", "GET", "/collections", {}),
    ("collection_info", "GET", "/collections/docs", {}),
    ("chunks", "GET", "/collections/docs/chunks", {}),
    ("chunks", "GET", "/collections/docs/chunks", {"query": {"limit": 1, "after": 0}}),
    ("chunk", "GET", "/collections/docs/chunks/1", {}),
    ("chunk", "GET", "/collections/docs/chunks/99", {}),
    ("delete", "POST", "/collections/docs/delete", {"body": {}}),
    ("delete", "POST", "/collections/docs/delete", {"body": {"ids": [1, 2], "filters": {"a": 1}}}),
    ("delete", "POST", "/collections/docs/delete", {"body": {"filters": {"file_id": "nowhere"}}}),
    ("add_space", "POST", "/collections/docs/vector-spaces", {"body": {"name": "new", "dims": 8, "model": "m"}}),
    ("list_spaces", "GET", "/collections/docs/vector-spaces", {}),
    ("set_space", "PATCH", "/collections/docs/vector-spaces/new", {"body": {}}),
    ("set_space", "PATCH", "/collections/docs/vector-spaces/new", {"body": {"query_prompt_name": None}}),
    ("rebuild", "POST", "/collections/docs/vector-spaces/new/rebuild", {"body": {}}),
    ("rebuild", "POST", "/collections/docs/vector-spaces/no/rebuild", {"body": {"embed_endpoint": "ftp://x"}}),
    ("rebuild", "POST", "/collections/docs/vector-spaces/old/rebuild", {"body": {"dry_run": True}}),
    ("rebuild", "POST", "/collections/docs/vector-spaces/old/rebuild", {"body": {"budget": 1}}),
    ("rebuild", "POST", "/collections/docs/vector-spaces/old/rebuild", {"body": {"batch_size": 4}}),
    ("rebuild_status", "GET", "/collections/docs/vector-spaces/old/status", {}),
    ("quarantine", "GET", "/collections/docs/vector-spaces/old/quarantine", {"query": {"limit": 5}}),
    ("cancel_rebuild", "DELETE", "/collections/docs/vector-spaces/old/rebuild", {"query": {"reason": "stop"}}),
    ("cancel_rebuild", "DELETE", "/collections/docs/vector-spaces/old/rebuild", {}),
    ("swap", "PUT", "/collections/docs/default-vector-space", {"body": {}}),
    ("swap", "PUT", "/collections/docs/default-vector-space", {"body": {"name": "no"}}),
    ("swap", "PUT", "/collections/docs/default-vector-space", {"body": {"name": "fed"}}),
    ("ingest", "POST", "/collections/docs/ingest", {"body": {"chunks": [{**CHUNK, "embedding": [1, 2, 3]}]}}),
    ("search", "POST", "/collections/docs/search", {"body": {"vector": [1, 2, 3]}}),
    ("history", "GET", "/collections/docs/history", {}),
    ("drop_space", "DELETE", "/collections/docs/vector-spaces/new", {"query": {"confirm": "new"}}),
    ("drop_space", "DELETE", "/collections/docs/vector-spaces/fed", {}),
    ("delete_chunk", "DELETE", "/collections/docs/chunks/1", {}),
    ("delete_chunk", "DELETE", "/collections/docs/chunks/1", {}),
    ("delete_collection", "DELETE", "/collections/other", {}),
    ("delete_collection", "DELETE", "/collections/other", {}),
]


async def over_http(http: httpx.AsyncClient, method: str, path: str, arguments: dict[str, Any]) -> Any:
    content = json.dumps(arguments["body"]) if "body" in arguments else None
    headers = {"content-type": "application/json"} if content else {}
    answer = await http.request(method, path, content=content, headers=headers, params=arguments.get("query"))
    return answer.json() if answer.content else None


async def by_handle(service: FakeService, operation: str, path: str, arguments: dict[str, Any]) -> Any:
    parts = [*path.split("/")[2:], "", "", ""]
    names = {"collection": parts[0]} if parts[0] else {}
    if parts[1] == "vector-spaces" and parts[2]:
        names["space"] = parts[2]
    if parts[1] == "chunks" and parts[2]:
        names["chunk_id"] = parts[2]
    body = {"body": arguments["body"]} if "body" in arguments else {}
    try:
        return await service.call(operation, **names, **arguments.get("query", {}), **body)
    except CompassError as error:
        return error.problem()


def comparable(answer: Any) -> Any:
    """An answer without what is made by chance."""
    if isinstance(answer, dict):
        return {k: comparable(v) for k, v in answer.items() if not (k in RANDOM and isinstance(v, str))}
    return [comparable(item) for item in answer] if isinstance(answer, list) else answer


async def test_a_handle_and_http_answer_the_same() -> None:
    """Good and bad inputs of each operation, one after the other: the same answers, the same errors."""
    one, other = FakeService(), FakeService()
    async with one.http() as http:
        await over_http(http, "POST", "/collections", {"body": {"name": "docs", "vector_spaces": SPACES}})
        await other.call("create_collection", body={"name": "docs", "vector_spaces": SPACES})
        for operation, method, path, arguments in INPUTS:
            expected = comparable(await over_http(http, method, path, arguments))
            assert comparable(await by_handle(other, operation, path, arguments)) == expected, (path, arguments)
