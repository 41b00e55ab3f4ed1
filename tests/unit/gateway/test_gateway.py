"""The gateway's rules: what an acknowledgement means, bare vectors, freshness, and the Python door."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from compass.domain.space import SpaceChanges
from compass.errors import (
    BareVectorError,
    CollectionExistsError,
    EndpointUnavailableError,
    EpochMismatchError,
    InvalidRequestError,
    NotFoundError,
    UnavailableError,
)
from compass.gateway.visibility import GRACE_S

CHUNK = {"client_id": "a", "file_id": "f", "chunk_index": 0, "text": "a text"}


@pytest.fixture
def gateway(docs: Any) -> Any:
    """The gateway of the service with the collection `docs`."""
    return docs.gateway


async def ingest(gateway: Any, *chunks: dict[str, Any], **fields: Any) -> Any:
    return await gateway.call("ingest", {"collection": "docs", "body": {"chunks": [*chunks], **fields}})


async def search(gateway: Any, **fields: Any) -> Any:
    return await gateway.call("search", {"collection": "docs", "body": fields})


# ---- acknowledgements


async def test_an_ingest_waits_for_the_default_space_and_reports_the_others(docs: Any, gateway: Any) -> None:
    """The default gets `wait_s`, the other active ones are only asked; what each lacks is `pending`."""
    docs.index("docs", "old").lacks = 2
    docs.index("docs", "fed").lacks = 5
    answer = await ingest(gateway, CHUNK, wait_s=0.5)
    assert answer["pending"] == {"old": 2, "fed": 5}
    (seq, waited_s) = docs.index("docs", "old").followed[0]
    assert (seq, waited_s) == (answer["seq"], pytest.approx(0.5, abs=0.1))
    assert docs.index("docs", "fed").followed == [(answer["seq"], 0.0)]


async def test_an_ingest_waits_ten_seconds_unless_said(docs: Any, gateway: Any) -> None:
    """The reference's clients expect to find what they wrote; 0 answers once durable."""
    await ingest(gateway, CHUNK)
    await ingest(gateway, CHUNK, wait_s=0)
    waits = [waited_s for _, waited_s in docs.index("docs", "old").followed]
    assert waits == [pytest.approx(10, abs=0.1), 0.0]


async def test_a_space_that_does_not_follow_is_not_pending(docs: Any, gateway: Any) -> None:
    """One that is building follows once its rebuild has been started or callers feed it, not before."""
    await docs.router.add_space("docs", "new", docs.router.states["docs"].by_name("fed").config)
    docs.index("docs", "new").lacks = 7
    assert (await ingest(gateway, CHUNK))["pending"] == {}
    route = docs.table.table.collections["docs"]
    following = {**route.spaces, "new": replace(route.spaces["new"], follows=True)}
    docs.table.put(replace(route, spaces=following))
    assert (await ingest(gateway, CHUNK))["pending"] == {"new": 7}


@pytest.mark.parametrize("error", [EndpointUnavailableError("down"), UnavailableError("gone"), TimeoutError()])
async def test_a_durable_write_is_acknowledged_whatever_its_followers_say(
    docs: Any, gateway: Any, error: Exception
) -> None:
    """An index that fails makes the write pending in it; the write itself has happened."""

    def fail() -> None:
        raise error

    docs.index("docs", "old").on_follow = fail
    blank = {"file_id": "f", "chunk_index": 1, "text": ""}
    answer = await ingest(gateway, CHUNK, blank)
    assert (answer["indexed"], answer["pending"]) == (2, {"old": 1})
    assert docs.collection("docs").writes == 1


async def test_a_silent_index_does_not_hold_up_an_acknowledgement(
    docs: Any, gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets `wait_s` and a grace, then the write counts as pending there."""
    assert GRACE_S < 10
    monkeypatch.setattr("compass.gateway.visibility.GRACE_S", 0.01)
    docs.index("docs", "old").on_follow = asyncio.Event().wait
    answer = await asyncio.wait_for(ingest(gateway, CHUNK, wait_s=0), 2)
    assert answer["pending"] == {"old": 1}


async def test_while_a_swap_is_under_way_acknowledgements_wait_for_both_spaces(docs: Any, gateway: Any) -> None:
    """The default and the next default, each with the time that is left."""
    route = docs.table.table.collections["docs"]
    docs.table.put(replace(route, next_default="fed"))
    docs.index("docs", "fed").lacks = 1
    assert (await ingest(gateway, CHUNK))["pending"] == {"fed": 1}
    for space in ("old", "fed"):
        assert [w for _, w in docs.index("docs", space).followed] == [pytest.approx(10, abs=0.1)]


@pytest.mark.parametrize("step", ["announced", "swapped"])
async def test_an_acknowledgement_that_a_swap_overtakes_holds_for_the_new_default(
    docs: Any, gateway: Any, step: str
) -> None:
    """The table is read again after the wait: whoever is acknowledged late finds the chunk in the new space."""
    route = docs.table.table.collections["docs"]

    def overtake() -> None:
        docs.table.put(replace(route, next_default="fed") if step == "announced" else replace(route, default="fed"))

    docs.index("docs", "old").on_follow = overtake
    await ingest(gateway, CHUNK)
    ((_, waited_s),) = docs.index("docs", "fed").followed
    assert waited_s > 9


async def test_a_collection_deleted_meanwhile_is_not_confused_with_its_successor(docs: Any, gateway: Any) -> None:
    """The acknowledgement asks the spaces of the collection that was written, not those of its name."""

    async def replaced() -> None:
        docs.index_of(written).on_follow = lambda: None
        state = docs.router.states["docs"]
        collection = docs.collections[state.uuid]
        await docs.router.delete_collection("docs")
        docs.collections[state.uuid] = collection
        await gateway.call("create_collection", {"body": {"name": "docs"}})

    written = docs.router.states["docs"].by_name("old")
    docs.index("docs", "fed")
    docs.index_of(written).on_follow = replaced
    assert (await ingest(gateway, CHUNK))["pending"] == {}
    assert docs.index("docs", "default").followed == []


async def test_a_delete_is_seen_by_every_space_before_it_is_acknowledged(docs: Any, gateway: Any) -> None:
    """Building ones too; nothing is asked where nothing was deleted."""
    await docs.router.add_space("docs", "new", docs.router.states["docs"].by_name("fed").config)
    await ingest(gateway, CHUNK)
    for space in ("old", "fed", "new"):
        docs.index("docs", space).followed.clear()
    deleted = await gateway.call("delete", {"collection": "docs", "body": {"ids": [1]}})
    assert deleted["deleted"] == 1
    for space in ("old", "fed", "new"):
        assert docs.index("docs", space).followed == [(deleted["seq"], 0.0)]
    await gateway.call("delete", {"collection": "docs", "body": {"ids": [1]}})
    assert len(docs.index("docs", "old").followed) == 1


# ---- freshness


async def test_no_answer_is_older_than_what_this_gateway_has_acknowledged(docs: Any, gateway: Any) -> None:
    """Ingests and deletes raise the `min_seq` of every later search, in every space; a caller may ask for more."""
    await search(gateway, query="x")
    written = await ingest(gateway, CHUNK)
    await search(gateway, query="x")
    deleted = await gateway.call("delete_chunk", {"collection": "docs", "chunk_id": 1})
    await search(gateway, query="x", min_seq=1)
    docs.collection("docs").seq += 3  # through another gateway
    await search(gateway, query="x", min_seq=deleted["seq"] + 2)
    await search(gateway, vector=[1, 0, 0], vector_space="fed")
    asked = [q.min_seq for q in docs.index("docs", "old").queries]
    assert asked == [0, written["seq"], deleted["seq"], deleted["seq"] + 2]
    assert [q.min_seq for q in docs.index("docs", "fed").queries] == [deleted["seq"]]


async def test_a_commit_that_is_not_there_is_not_waited_for(docs: Any, gateway: Any) -> None:
    """A `min_seq` beyond the log's end is refused: an index that waited for it would hold up everybody."""
    with pytest.raises(InvalidRequestError, match="min_seq"):
        await search(gateway, query="x", min_seq=docs.collection("docs").seq + 1)
    assert docs.index("docs", "old").queries == []


async def test_without_a_lease_nothing_is_answered_from_the_table(docs: Any, gateway: Any) -> None:
    """Lists and statuses would be old news: 503, and a retry helps."""
    docs.table.ready = False
    for operation in ("list_collections", "list_spaces", "rebuild_status"):
        arguments = {} if operation == "list_collections" else {"collection": "docs"}
        arguments |= {"space": "old"} if operation == "rebuild_status" else {}
        with pytest.raises(UnavailableError) as raised:
            await gateway.call(operation, arguments)
        assert raised.value.retryable


async def test_a_collection_deleted_while_the_list_is_made_is_left_out(docs: Any, gateway: Any) -> None:
    """The list is of what is there at its end."""
    await gateway.call("create_collection", {"body": {"name": "other"}})

    def gone() -> None:
        raise NotFoundError("gone")

    docs.collection("other").stats = gone
    assert [c["name"] for c in await gateway.call("list_collections", {})] == ["docs"]


# ---- bare vectors


@pytest.fixture
async def swapped(docs: Any, gateway: Any) -> Any:
    """`docs` after a swap: the default is `fed` (3 dims), the epoch 2."""
    await gateway.call("swap", {"collection": "docs", "body": {"name": "fed"}})
    return docs


async def test_before_a_swap_a_bare_vector_means_the_default(docs: Any, gateway: Any) -> None:
    """Epoch 1: as in the reference."""
    await ingest(gateway, {**CHUNK, "embedding": [0, 0, 3, 4]})
    (hit,) = (await search(gateway, vector=[0, 0, 3, 4], include_vectors=True))["results"]
    assert hit["chunk"]["embeddings"]["old"] == pytest.approx([0, 0, 0.6, 0.8])


async def test_after_a_swap_a_bare_vector_is_refused(swapped: Any, gateway: Any) -> None:
    """It may come from the old model; the message says how to go on, and nothing is written."""
    for field in ("vector", "query_vector"):
        with pytest.raises(BareVectorError, match="vector_space"):
            await search(gateway, **{field: [1, 0, 0]})
    with pytest.raises(BareVectorError, match="embeddings"):
        await ingest(gateway, {**CHUNK, "embedding": [1, 0, 0]})
    assert swapped.collection("docs").writes == 0


async def test_after_a_swap_a_vector_that_names_its_space_is_taken(swapped: Any, gateway: Any) -> None:
    """By `vector_space`, by its own key, by `embeddings`; texts need no space."""
    await ingest(gateway, {**CHUNK, "embeddings": {"fed": [1, 0, 0], "old": [1, 0, 0, 0]}})
    assert (await search(gateway, vector=[1, 0, 0], vector_space="fed"))["total"] == 1
    assert (await search(gateway, vector={"fed": [1, 0, 0]}))["epoch"] == 2
    assert (await search(gateway, query="a text", vector_space="old"))["vector_space"] == "old"


async def test_the_expected_epoch_vouches_for_a_bare_vector_of_an_ingest(swapped: Any, gateway: Any) -> None:
    """Equal to the epoch of now it is taken; another one is a mismatch, with or without vectors."""
    await ingest(gateway, {**CHUNK, "embedding": [1, 0, 0]}, expected_epoch=2)
    assert swapped.collection("docs").writes == 1
    for chunk in (CHUNK, {**CHUNK, "embedding": [1, 0, 0]}):
        with pytest.raises(EpochMismatchError) as raised:
            await ingest(gateway, chunk, expected_epoch=1)
        assert raised.value.fields["epoch"] == 2
    assert swapped.collection("docs").writes == 1


async def test_the_expected_epoch_vouches_for_a_bare_vector_of_a_search(swapped: Any, gateway: Any) -> None:
    """As for an ingest; it is compared for a query by text and by name, too."""
    await ingest(gateway, {**CHUNK, "embeddings": {"fed": [1, 0, 0], "old": [1, 0, 0, 0]}})
    found = await search(gateway, vector=[1, 0, 0], expected_epoch=2)
    assert (found["vector_space"], found["total"]) == ("fed", 1)
    for asked in ({"vector": [1, 0, 0]}, {"query": "a text", "vector_space": "old"}):
        with pytest.raises(EpochMismatchError):
            await search(gateway, **asked, expected_epoch=1)


async def test_the_guard_can_be_switched_off(docs: Any, gateway: Any) -> None:
    """`config.bare_vectors: "follow-default"` of the collection."""
    spaces = {"a": {"dims": 3, "model": "a"}, "b": {"dims": 3, "model": "b"}}
    body = {"name": "loose", "vector_spaces": spaces, "config": {"bare_vectors": "follow-default"}}
    await gateway.call("create_collection", {"body": body})
    await gateway.call("swap", {"collection": "loose", "body": {"name": "b"}})
    found = await gateway.call("search", {"collection": "loose", "body": {"vector": [1, 0, 0]}})
    assert (found["vector_space"], found["epoch"]) == ("b", 2)


async def test_an_embeddings_key_of_the_default_is_no_bare_vector(swapped: Any, gateway: Any) -> None:
    """A null `embedding` is none either."""
    await ingest(gateway, {**CHUNK, "embedding": None, "embeddings": {"fed": [1, 0, 0]}})
    assert swapped.collection("docs").writes == 1


# ---- vectors


async def test_callers_vectors_are_stored_by_space_id_and_normalised_for_cosine_only(docs: Any, gateway: Any) -> None:
    """float32 rows of length 1 for cosine; as they came for dot and l2."""
    metrics = {m: {"dims": 2, "model": m, "metric": m} for m in ("cosine", "dot", "l2")}
    await gateway.call("create_collection", {"body": {"name": "three", "vector_spaces": metrics}})
    chunk = {**CHUNK, "embeddings": {name: [3, 4] for name in metrics}}
    await gateway.call("ingest", {"collection": "three", "body": {"chunks": [chunk]}})
    spaces = docs.router.states["three"].spaces
    stored = {spaces[space_id].name: row for space_id, row in docs.collection("three").sent[1].items()}
    assert {row.dtype for row in stored.values()} == {np.dtype(np.float32)}
    np.testing.assert_allclose(stored["cosine"], [0.6, 0.8], rtol=1e-6)
    np.testing.assert_array_equal(stored["dot"], [3, 4])
    np.testing.assert_array_equal(stored["l2"], [3, 4])


async def test_a_query_text_is_embedded_by_the_model_of_its_space(docs: Any, gateway: Any) -> None:
    """Never by another space's: the dims tell."""
    await docs.router.set_space("docs", "fed", SpaceChanges(embed_endpoint="builtin"))
    await search(gateway, query="a text")
    await search(gateway, query="a text", vector_space="fed")
    assert docs.index("docs", "old").queries[-1].vector.shape == (4,)
    assert docs.index("docs", "fed").queries[-1].vector.shape == (3,)


async def test_in_a_semantic_search_a_vector_goes_before_the_text(docs: Any, gateway: Any) -> None:
    """Both may be sent; the vector is what is searched with."""
    await search(gateway, query="a text", vector=[0, 0, 0, 2])
    np.testing.assert_array_equal(docs.index("docs", "old").queries[-1].vector, [0, 0, 0, 1])


# ---- the Python door


async def test_the_python_door_takes_arrays_and_answers_plain_values(docs: Any, gateway: Any) -> None:
    """Vectors of numpy and scalars in, dicts and lists out: the same checks, the same answers as over HTTP."""
    vector = np.array([0, 0, 3, 4], np.float64)
    chunk = {**CHUNK, "embedding": vector, "metadata": {"n": np.int64(3), "x": np.float32(0.5)}}
    answer = await ingest(gateway, chunk)
    assert answer["id_map"] == {"a": 1}
    found = await search(gateway, vector=vector, include_vectors=True, top_k=np.int64(3))
    assert type(found) is dict
    assert found["results"][0]["chunk"]["metadata"] == {"n": 3, "x": 0.5}
    assert await gateway.call("delete_collection", {"collection": "docs"}) is None


async def test_the_python_door_refuses_what_http_refuses(docs: Any, gateway: Any) -> None:
    """Unknown operations, arguments and fields, NaN, values that JSON does not have."""
    for operation, arguments in [
        ("drop_everything", {}),
        ("__init__", {}),
        ("search", {"collection": "docs"}),
        ("search", {"body": {"query": "x"}}),
        ("search", {"collection": "docs", "body": {"query": "x", "topk": 3}}),
        ("search", {"collection": "docs", "body": {"vector": [float("nan"), 0, 0, 1]}}),
        ("search", {"collection": "docs", "body": {"vector": np.full(4, np.nan)}}),
        ("search", {"collection": "docs", "body": {"query": "x", "filters": {"a": {1, 2}}}}),
        ("chunks", {"collection": "docs", "limit": 0}),
        ("ingest", {"collection": "docs", "body": {"chunks": [{**CHUNK, "metadata": {"a": object()}}]}}),
    ]:
        with pytest.raises(InvalidRequestError):
            await gateway.call(operation, arguments)
    with pytest.raises(CollectionExistsError):
        await gateway.call("create_collection", {"body": {"name": "docs"}})
    assert docs.collection("docs").writes == 0
