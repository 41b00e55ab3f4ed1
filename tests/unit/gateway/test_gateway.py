"""The gateway's rules: what an acknowledgement means, bare vectors, freshness."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fake_service import FakeService

from compass.domain.space import SpaceChanges
from compass.errors import (
    BareVectorError,
    EndpointUnavailableError,
    EpochMismatchError,
    InvalidRequestError,
    NotFoundError,
    UnavailableError,
)

DEADLINE_S = 30.0  # for what takes milliseconds
CHUNK: dict[str, Any] = {"client_id": "a", "file_id": "f", "chunk_index": 0, "text": "a text"}


async def ingest(docs: FakeService, *chunks: dict[str, Any], **fields: Any) -> Any:
    return await docs.call("ingest", collection="docs", body={"chunks": [*chunks], **fields})


async def search(docs: FakeService, **fields: Any) -> Any:
    return await docs.call("search", collection="docs", body=fields)


# ---- acknowledgements


async def test_an_ingest_waits_for_the_default_space_and_reports_the_others(docs: FakeService) -> None:
    """The default gets `wait_s`, the other active ones are only asked; what each lacks is `pending`."""
    docs.index("docs", "old").lacks = 2
    docs.index("docs", "fed").lacks = 5
    answer = await ingest(docs, CHUNK, wait_s=0.5)
    assert answer["pending"] == {"old": 2, "fed": 5}
    (seq, waited_s) = docs.index("docs", "old").followed[0]
    assert (seq, waited_s) == (answer["seq"], 0.5)
    assert docs.index("docs", "fed").followed == [(answer["seq"], 0.0)]


async def test_each_write_names_its_attempt(docs: FakeService) -> None:
    """A call that is sent again, for its answer was lost, is known by it; another call has another one."""
    await ingest(docs, CHUNK)
    await ingest(docs, CHUNK)
    await docs.call("delete", collection="docs", body={"ids": [1]})
    attempts = docs.collection("docs").attempts
    assert len(set(attempts)) == len(attempts) == 3
    assert None not in attempts


async def test_an_ingest_waits_ten_seconds_unless_said(docs: FakeService) -> None:
    """The reference's clients expect to find what they wrote; 0 answers once durable."""
    await ingest(docs, CHUNK)
    await ingest(docs, CHUNK, wait_s=0)
    waits = [waited_s for _, waited_s in docs.index("docs", "old").followed]
    assert waits == [10.0, 0.0]


async def test_a_space_that_does_not_follow_is_not_pending(docs: FakeService) -> None:
    """One that is building follows once its rebuild has been started or callers feed it, not before."""
    await docs.router.add_space("docs", "new", docs.router.states["docs"].by_name("fed").config)
    docs.index("docs", "new").lacks = 7
    assert (await ingest(docs, CHUNK))["pending"] == {}
    route = docs.table.table.collections["docs"]
    following = {**route.spaces, "new": replace(route.spaces["new"], follows=True)}
    docs.table.put(replace(route, spaces=following))
    assert (await ingest(docs, CHUNK))["pending"] == {"new": 7}


@pytest.mark.parametrize("error", [EndpointUnavailableError("down"), UnavailableError("gone"), TimeoutError()])
async def test_a_durable_write_is_acknowledged_whatever_its_followers_say(
    docs: FakeService, error: Exception
) -> None:
    """An index that fails makes the write pending in it; the write itself has happened."""

    def fail() -> None:
        raise error

    docs.index("docs", "old").on_follow = fail
    blank = {"file_id": "f", "chunk_index": 1, "text": ""}
    answer = await ingest(docs, CHUNK, blank)
    assert (answer["indexed"], answer["pending"]) == (2, {"old": 1})
    assert docs.collection("docs").writes == 1


async def test_a_silent_index_does_not_hold_up_an_acknowledgement() -> None:
    """It gets `wait_s` and a grace, then the write counts as pending there."""
    service = FakeService(grace_s=0.01)
    await service.call("create_collection", body={"name": "docs"})
    service.index("docs", "default").on_follow = asyncio.Event().wait
    async with asyncio.timeout(DEADLINE_S):
        answer = await ingest(service, CHUNK, wait_s=0)
    assert answer["pending"] == {"default": 1}


async def test_while_a_swap_is_under_way_acknowledgements_wait_for_both_spaces(docs: FakeService) -> None:
    """The default and the next default, each with the time that is left."""
    route = docs.table.table.collections["docs"]
    docs.table.put(replace(route, next_default="fed"))
    docs.index("docs", "fed").lacks = 1
    assert (await ingest(docs, CHUNK))["pending"] == {"fed": 1}
    for space in ("old", "fed"):
        assert [w for _, w in docs.index("docs", space).followed] == [10.0]


@pytest.mark.parametrize("step", ["announced", "swapped"])
async def test_an_acknowledgement_that_a_swap_overtakes_holds_for_the_new_default(
    docs: FakeService, step: str
) -> None:
    """The table is read again after the wait: whoever is acknowledged late finds the chunk in the new space."""
    route = docs.table.table.collections["docs"]

    def overtake() -> None:
        docs.table.put(replace(route, next_default="fed") if step == "announced" else replace(route, default="fed"))

    docs.index("docs", "old").on_follow = overtake
    await ingest(docs, CHUNK)
    ((_, waited_s),) = docs.index("docs", "fed").followed
    assert waited_s == 10.0


async def test_a_collection_deleted_meanwhile_is_not_confused_with_its_successor(docs: FakeService) -> None:
    """The acknowledgement asks the spaces of the collection that was written, not those of its name."""

    async def replaced() -> None:
        docs.index_of(written).on_follow = lambda: None
        state = docs.router.states["docs"]
        collection = docs.collections[state.uuid]
        await docs.router.delete_collection("docs")
        docs.collections[state.uuid] = collection
        await docs.call("create_collection", body={"name": "docs"})

    written = docs.router.states["docs"].by_name("old")
    docs.index("docs", "fed")
    docs.index_of(written).on_follow = replaced
    assert (await ingest(docs, CHUNK))["pending"] == {}
    assert docs.index("docs", "default").followed == []


async def test_a_delete_is_seen_by_every_space_before_it_is_acknowledged(docs: FakeService) -> None:
    """Building ones too; nothing is asked where nothing was deleted."""
    await docs.router.add_space("docs", "new", docs.router.states["docs"].by_name("fed").config)
    await ingest(docs, CHUNK)
    for space in ("old", "fed", "new"):
        docs.index("docs", space).followed.clear()
    deleted = await docs.call("delete", collection="docs", body={"ids": [1]})
    assert deleted["deleted"] == 1
    for space in ("old", "fed", "new"):
        assert docs.index("docs", space).followed == [(deleted["seq"], 0.0)]
    await docs.call("delete", collection="docs", body={"ids": [1]})
    assert len(docs.index("docs", "old").followed) == 1


# ---- freshness


async def test_no_answer_is_older_than_what_this_gateway_has_acknowledged(docs: FakeService) -> None:
    """Ingests and deletes raise the `min_seq` of every later search, in every space; a caller may ask for more."""
    await search(docs, query="x")
    written = await ingest(docs, CHUNK)
    await search(docs, query="x")
    deleted = await docs.call("delete_chunk", collection="docs", chunk_id=1)
    await search(docs, query="x", min_seq=1)
    docs.collection("docs").seq += 3  # through another gateway
    await search(docs, query="x", min_seq=deleted["seq"] + 2)
    await search(docs, vector=[1, 0, 0], vector_space="fed")
    min_seqs = [q.min_seq for q in docs.index("docs", "old").queries]
    assert min_seqs == [0, written["seq"], deleted["seq"], deleted["seq"] + 2]
    assert [q.min_seq for q in docs.index("docs", "fed").queries] == [deleted["seq"]]


async def test_a_commit_that_is_not_there_is_not_waited_for(docs: FakeService) -> None:
    """A `min_seq` beyond the log's end is refused: an index that waited for it would hold up everybody."""
    with pytest.raises(InvalidRequestError, match="min_seq"):
        await search(docs, query="x", min_seq=docs.collection("docs").seq + 1)
    assert docs.index("docs", "old").queries == []


async def test_without_a_lease_nothing_is_answered_from_the_table(docs: FakeService) -> None:
    """Lists and statuses would be old news: 503, and a retry helps."""
    docs.table.ready = False
    for operation in ("list_collections", "list_spaces", "rebuild_status"):
        arguments = {} if operation == "list_collections" else {"collection": "docs"}
        arguments |= {"space": "old"} if operation == "rebuild_status" else {}
        with pytest.raises(UnavailableError) as raised:
            await docs.call(operation, **arguments)
        assert raised.value.retryable


async def test_a_collection_deleted_while_the_list_is_made_is_left_out(docs: FakeService) -> None:
    """The list is of what is there at its end."""
    await docs.call("create_collection", body={"name": "other"})

    def gone() -> None:
        raise NotFoundError("gone")

    docs.collection("other").on_stats = gone
    assert [c["name"] for c in await docs.call("list_collections")] == ["docs"]


# ---- bare vectors


@pytest.fixture
async def swapped(docs: FakeService) -> FakeService:
    """`docs` after a swap: the default is `fed` (3 dims), the epoch 2."""
    await docs.call("swap", collection="docs", body={"name": "fed"})
    return docs


async def test_before_a_swap_a_bare_vector_means_the_default(docs: FakeService) -> None:
    """Epoch 1: as in the reference."""
    await ingest(docs, {**CHUNK, "embedding": [0, 0, 3, 4]})
    (hit,) = (await search(docs, vector=[0, 0, 3, 4], include_vectors=True))["results"]
    assert hit["chunk"]["embeddings"]["old"] == pytest.approx([0, 0, 0.6, 0.8])


async def test_after_a_swap_a_bare_vector_is_refused(swapped: FakeService) -> None:
    """It may come from the old model; the message says how to go on, and nothing is written."""
    for field in ("vector", "query_vector"):
        with pytest.raises(BareVectorError, match="vector_space"):
            await search(swapped, **{field: [1, 0, 0]})
    with pytest.raises(BareVectorError, match="embeddings"):
        await ingest(swapped, {**CHUNK, "embedding": [1, 0, 0]})
    assert swapped.collection("docs").writes == 0


async def test_after_a_swap_a_vector_that_names_its_space_is_taken(swapped: FakeService) -> None:
    """By `vector_space`, by its own key, by `embeddings`; texts need no space."""
    await ingest(swapped, {**CHUNK, "embeddings": {"fed": [1, 0, 0], "old": [1, 0, 0, 0]}})
    assert (await search(swapped, vector=[1, 0, 0], vector_space="fed"))["total"] == 1
    assert (await search(swapped, vector={"fed": [1, 0, 0]}))["epoch"] == 2
    assert (await search(swapped, query="a text", vector_space="old"))["vector_space"] == "old"


async def test_the_expected_epoch_vouches_for_a_bare_vector_of_an_ingest(swapped: FakeService) -> None:
    """Equal to the epoch of now it is taken; another one is a mismatch, with or without vectors."""
    await ingest(swapped, {**CHUNK, "embedding": [1, 0, 0]}, expected_epoch=2)
    assert swapped.collection("docs").writes == 1
    for chunk in (CHUNK, {**CHUNK, "embedding": [1, 0, 0]}):
        with pytest.raises(EpochMismatchError) as raised:
            await ingest(swapped, chunk, expected_epoch=1)
        assert raised.value.fields["epoch"] == 2
    assert swapped.collection("docs").writes == 1


async def test_the_expected_epoch_vouches_for_a_bare_vector_of_a_search(swapped: FakeService) -> None:
    """As for an ingest; it is compared for a query by text and by name, too."""
    await ingest(swapped, {**CHUNK, "embeddings": {"fed": [1, 0, 0], "old": [1, 0, 0, 0]}})
    response = await search(swapped, vector=[1, 0, 0], expected_epoch=2)
    assert (response["vector_space"], response["total"]) == ("fed", 1)
    for fields in ({"vector": [1, 0, 0]}, {"query": "a text", "vector_space": "old"}):
        with pytest.raises(EpochMismatchError):
            await search(swapped, **fields, expected_epoch=1)


async def test_the_guard_can_be_switched_off(docs: FakeService) -> None:
    """`config.bare_vectors: "follow-default"` of the collection."""
    spaces = {"a": {"dims": 3, "model": "a"}, "b": {"dims": 3, "model": "b"}}
    body = {"name": "loose", "vector_spaces": spaces, "config": {"bare_vectors": "follow-default"}}
    await docs.call("create_collection", body=body)
    await docs.call("swap", collection="loose", body={"name": "b"})
    response = await docs.call("search", collection="loose", body={"vector": [1, 0, 0]})
    assert (response["vector_space"], response["epoch"]) == ("b", 2)


async def test_an_embeddings_key_of_the_default_is_no_bare_vector(swapped: FakeService) -> None:
    """A null `embedding` is none either."""
    await ingest(swapped, {**CHUNK, "embedding": None, "embeddings": {"fed": [1, 0, 0]}})
    assert swapped.collection("docs").writes == 1


# ---- vectors


async def test_callers_vectors_are_stored_by_space_id_and_normalised_for_cosine_only(docs: FakeService) -> None:
    """float32 rows of length 1 for cosine; as they came for dot and l2."""
    metrics = {m: {"dims": 2, "model": m, "metric": m} for m in ("cosine", "dot", "l2")}
    await docs.call("create_collection", body={"name": "three", "vector_spaces": metrics})
    chunk = {**CHUNK, "embeddings": {name: [3, 4] for name in metrics}}
    await docs.call("ingest", collection="three", body={"chunks": [chunk]})
    spaces = docs.router.states["three"].spaces
    stored = {spaces[space_id].name: row for space_id, row in docs.collection("three").sent[1].items()}
    assert {row.dtype for row in stored.values()} == {np.dtype(np.float32)}
    np.testing.assert_allclose(stored["cosine"], [0.6, 0.8], rtol=1e-6)
    np.testing.assert_array_equal(stored["dot"], [3, 4])
    np.testing.assert_array_equal(stored["l2"], [3, 4])


async def test_a_query_text_is_embedded_by_the_model_of_its_space(docs: FakeService) -> None:
    """Never by another space's: the dims tell."""
    await docs.router.set_space("docs", "fed", SpaceChanges(embed_endpoint="builtin"))
    await search(docs, query="a text")
    await search(docs, query="a text", vector_space="fed")
    assert docs.index("docs", "old").queries[-1].vector.shape == (4,)
    assert docs.index("docs", "fed").queries[-1].vector.shape == (3,)


async def test_in_a_semantic_search_a_vector_goes_before_the_text(docs: FakeService) -> None:
    """Both may be sent; the vector is what is searched with."""
    await search(docs, query="a text", vector=[0, 0, 0, 2])
    np.testing.assert_array_equal(docs.index("docs", "old").queries[-1].vector, [0, 0, 0, 1])
