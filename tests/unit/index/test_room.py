"""A space takes no more memory than its node has: it says so before it begins, or stops where it would grow."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from waiting import until
from world import DIMS, NEW, Model, World

from compass.domain.chunk import Chunk, ChunkInput
from compass.domain.memory import FIRST_CAPACITY, Footprint, Room
from compass.domain.rebuild.order import RebuildOrder
from compass.domain.search.query import Query
from compass.domain.space import SpaceConfig, prepare_vectors
from compass.errors import DefaultSpaceError, InsufficientMemoryError
from compass.index.vector.search import SpaceSearch
from compass.rebuild.run import RebuildRun
from compass.rebuild.stage import EmbedStage
from compass.storage.objects import LocalObjects

MANY = FIRST_CAPACITY + 400  # a graph of so many has grown once
ROOMY = 1 << 40


class Node:
    """A node whose free memory a test sets. Every space counts as large here."""

    def __init__(self) -> None:
        self.free_bytes = ROOMY
        self.looks = 0
        self.room = Room(self._look, "node-7", small_bytes=0)

    def _look(self) -> int:
        self.looks += 1
        return self.free_bytes


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.fixture
def full(world: World, node: Node) -> Iterator[Node]:
    """The node of `world`'s indexes."""
    world.cluster.room = node.room
    yield node
    node.free_bytes = ROOMY


class EveryChunk:
    """A view to which every vid is live."""

    def seq(self) -> int:
        return 1

    def by_vids(self, vids: Any) -> dict[int, Chunk]:
        return {v: Chunk(v, v, v, "f", v, "t", {}, "chunk", None, None, None, None) for v in vids.tolist()}

    def matching(self, where: Any) -> Any:
        raise NotImplementedError


def rows(count: int) -> Any:
    return prepare_vectors(np.random.default_rng(0).standard_normal((count, DIMS)).astype(np.float32), "cosine")


def first(search: SpaceSearch, vector: Any) -> list[int]:
    return [hit.chunk.vid for hit in search.search([Query(vector, top_k=1)])[0]]


# ---- the index


def test_a_build_stops_where_the_graph_would_grow(node: Node) -> None:
    """Without room for the growth the build is refused before anything is changed; what is there is found, and
    with room the same call goes on.
    """
    vectors = rows(MANY)
    search = SpaceSearch(SpaceConfig(DIMS, "m"), EveryChunk(), node.room)
    search.build(np.arange(FIRST_CAPACITY), vectors[:FIRST_CAPACITY], 1)
    held, node.free_bytes = search.memory_bytes(), 1_000
    with pytest.raises(InsufficientMemoryError) as refused:
        search.build(np.arange(FIRST_CAPACITY, MANY), vectors[FIRST_CAPACITY:], 1)
    footprint = Footprint(DIMS, 16)
    grows_by = footprint.graph_bytes(int(1.5 * FIRST_CAPACITY)) - footprint.graph_bytes(FIRST_CAPACITY)
    assert refused.value.fields == {"needed_bytes": grows_by, "free_bytes": 1_000, "node": "node-7"}
    assert (len(search), search.memory_bytes()) == (FIRST_CAPACITY, held)
    assert first(search, vectors[7]) == [7]
    node.free_bytes = grows_by
    search.build(np.arange(FIRST_CAPACITY, MANY), vectors[FIRST_CAPACITY:], 1)
    assert first(search, vectors[MANY - 1]) == [MANY - 1]


def test_the_memory_is_looked_at_only_where_something_grows(node: Node) -> None:
    """A row for which there is a place asks nobody, so a full node takes writes as long as it can."""
    vectors = rows(100)
    search = SpaceSearch(SpaceConfig(DIMS, "m"), EveryChunk(), node.room)
    search.add(np.arange(50), vectors[:50])
    node.free_bytes = 0
    search.add(np.arange(50, 100), vectors[50:])
    assert first(search, vectors[99]) == [99]


def test_new_rows_for_exact_search_want_room_too(node: Node) -> None:
    """An add that needs a further block of rows is refused, and nothing of it is there."""
    node.free_bytes = 0
    search = SpaceSearch(SpaceConfig(DIMS, "m"), EveryChunk(), node.room)
    with pytest.raises(InsufficientMemoryError):
        search.add(np.arange(3), rows(3))
    assert len(search) == 0


def test_a_worn_graph_is_built_anew_only_where_both_fit(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    """Without room for a second graph the worn one goes on answering, and the log says so once."""
    vectors = rows(4_000)
    search = SpaceSearch(SpaceConfig(DIMS, "m"), EveryChunk(), node.room)
    search.build(np.arange(4_000), vectors, 1)
    search.remove(np.arange(1_500))
    node.free_bytes = 1_000
    with caplog.at_level(logging.WARNING):
        assert [search.compact_due(), search.compact_due()] == [False, False]
    assert [r.message for r in caplog.records if "no room" in r.message] != []
    assert len([r for r in caplog.records if "no room" in r.message]) == 1
    node.free_bytes = ROOMY
    assert search.compact_due()


def test_a_saved_graph_is_loaded_whatever_room_there_is(tmp_path: Path, node: Node) -> None:
    """What answered before a restart answers after it."""
    vectors = rows(MANY)
    search = SpaceSearch(SpaceConfig(DIMS, "m"), EveryChunk(), node.room)
    search.build(np.arange(MANY), vectors, 1)
    search.save(tmp_path / "graph")
    node.free_bytes = 0
    loaded = SpaceSearch.load(tmp_path / "graph", SpaceConfig(DIMS, "m"), EveryChunk(), node.room)
    assert loaded.vids().tolist() == list(range(MANY))
    assert first(loaded, vectors[MANY - 1]) == [MANY - 1]


# ---- the router


async def _wide(world: World, count: int = 2_000) -> str:
    """`docs` with a building space `wide` beside the default, and many chunks."""
    await world.create(wide=NEW)
    uuid = str(world.route().uuid)
    await world.router.drop_space("docs", "wide")
    await world.router.add_space("docs", "wide", NEW)
    await world.cluster.collection(uuid).ingest([ChunkInput("f", i, f"text {i}") for i in range(count)])
    assert await world.level(world.space("old")) == 0
    return uuid


async def test_a_rebuild_that_does_not_fit_is_refused_before_it_starts(world: World, full: Node) -> None:
    """507 with what is needed and free, and nothing has changed: no commit, no run, no process."""
    uuid = await _wide(world)
    before = world.route(), (await world.cluster.collection(uuid).stats()).seq
    needed = Footprint(DIMS, 16).space_bytes(2_000)
    full.free_bytes = needed // 2
    with pytest.raises(InsufficientMemoryError) as refused:
        await world.router.start_rebuild("docs", "wide", RebuildOrder(("http://b",)))
    assert refused.value.fields == {"needed_bytes": needed, "free_bytes": needed // 2, "node": "node-7"}
    assert refused.value.status == 507
    assert (world.route(), (await world.cluster.collection(uuid).stats()).seq) == before
    assert world.cluster.rebuilds == {}
    full.free_bytes = needed
    assert (await world.router.start_rebuild("docs", "wide", RebuildOrder(("http://b",)))).status == "building"


async def test_a_restart_that_does_not_fit_empties_nothing(world: World, full: Node) -> None:
    """What the space holds is given back first and counts as free; beyond that it is 507, and it keeps its id."""
    await world.create(*(f"text {i}" for i in range(50)), new=NEW)
    assert await world.level(world.space("new")) == 0
    before = world.route()
    full.free_bytes = 0
    chunks = [ChunkInput("more", i, f"other {i}") for i in range(FIRST_CAPACITY)]
    world.cluster.models["b"].down = True
    await world.cluster.collection(before.uuid).ingest(chunks)
    with pytest.raises(InsufficientMemoryError):
        await world.router.start_rebuild("docs", "new", RebuildOrder(restart=True))
    assert world.route() == before
    with pytest.raises(DefaultSpaceError):
        await world.router.start_rebuild("docs", "old", RebuildOrder(restart=True))
    full.free_bytes = ROOMY
    world.cluster.models["b"].down = False
    await world.router.start_rebuild("docs", "new", RebuildOrder(restart=True))
    assert world.space("new").id != before.spaces["new"].id


# ---- a node that fills up on the way


def _run(world: World, model: Model) -> RebuildRun:
    """The rebuild of the space `wide`, over the world's real index, collection and router."""
    space, uuid = world.space("wide"), world.route().uuid
    objects = LocalObjects(world.folder / "data")
    vectors = world.root.space_vectors(uuid, space.id, DIMS)
    return RebuildRun(
        "docs",
        space.id,
        collection=world.cluster.collection(uuid),
        index=world.cluster.index(uuid, space),
        router=world.router,
        vectors=vectors,
        objects=objects,
        open_stage=lambda job, attempt: EmbedStage(objects, vectors, model, attempt),
    )


async def test_a_rebuild_that_meets_a_full_node_fails_and_goes_on_later(world: World, full: Node) -> None:
    """The run ends with the words of the 507 instead of being killed; what it embedded is not embedded again."""
    await _wide(world)
    sent: list[str] = []
    left = [1_000]

    class Counting(Model):
        async def embed(self, texts: Any) -> Any:
            sent.extend(texts)
            full.free_bytes = left[0]  # somebody else takes it
            return await super().embed(texts)

    await world.router.start_rebuild("docs", "wide", RebuildOrder(("http://b",)))
    run = _run(world, Counting("b"))
    await run.start(RebuildOrder(("http://b",), "job-1"))
    record = await run.wait()
    assert record is not None
    assert record.state == "failed"
    assert record.error is not None
    assert "node-7 has 0 MB to give" in record.error
    assert world.space("wide").status == "failed"
    assert len(sent) <= 2_000

    full.free_bytes = left[0] = ROOMY
    first_try = list(sent)
    world.cluster.rebuilds.clear()
    await world.router.start_rebuild("docs", "wide", RebuildOrder(("http://b",)))
    again = _run(world, Counting("b"))
    await again.start(RebuildOrder(("http://b",), "job-2"))
    assert (await again.wait()).state == "done"  # type: ignore[union-attr]
    assert world.space("wide").status == "active"
    assert set(first_try).isdisjoint(sent[len(first_try) :])
    assert (await world.found("text 1999", "wide"))[0] == "text 1999"
    await run.close()
    await again.close()


async def test_an_active_space_on_a_full_node_answers_and_lags(world: World, full: Node) -> None:
    """It keeps what it has, says how many it lacks and why, embeds nothing in vain, and catches up by itself."""
    await world.create("one", new=NEW)
    assert await world.level(world.space("new")) == 0
    index = world.cluster.indexes[world.space("new").id]
    sent: list[str] = []
    model = world.cluster.models["b"]
    real = model.embed

    async def counted(texts: Any) -> Any:
        sent.extend(texts)
        return await real(texts)

    model.embed = counted  # type: ignore[method-assign]
    full.free_bytes = 0
    await world.cluster.collection(world.route().uuid).ingest([ChunkInput("f", i, f"text {i}") for i in range(2_000)])
    await until(lambda: len(index.follower.missing) and "more memory" in (index.error or ""), 30)
    lag, seen = (await index.stats()).lag, len(sent)
    assert 0 < lag <= 2_000
    vector = (await real(["one"]))[0]
    assert (await index.search([Query(vector, top_k=1)]))[0][0].chunk.text == "one"
    looks = full.looks
    await until(lambda: full.looks >= looks + 6, 30)  # several more tries
    assert len(sent) == seen
    full.free_bytes = ROOMY
    assert await world.level(world.space("new")) == 0
    assert len(sent) == len(set(sent))
    assert (await index.stats()).error is None


async def test_vectors_that_are_sent_to_a_full_node_wait_in_their_file(world: World, full: Node) -> None:
    """They are durable and not yet found; queries that want that very commit are answered nevertheless, deletes are
    seen at once, and with room they are taken from the file, not embedded.
    """
    uuid = await world.create("one", "two", new=NEW)
    space = world.space("new")
    assert await world.level(space) == 0
    index, collection = world.cluster.indexes[space.id], world.cluster.collection(uuid)
    full.free_bytes = 0
    world.cluster.models["b"].down = True  # nothing can be embedded
    vectors = rows(2_000)
    await collection.ingest([ChunkInput("f", i, f"text {i}", vectors={space.id: vectors[i]}) for i in range(2_000)])
    gone = (await collection.page(0, 1))[0]
    seq = (await collection.delete([gone.id], None)).seq
    hits = (await index.search([Query(vectors[1_999], top_k=2_100, min_seq=seq)]))[0]
    assert gone.text not in [hit.chunk.text for hit in hits]
    assert {"one", "two"} - {gone.text} <= {hit.chunk.text for hit in hits}
    known = await index.stats()
    assert known.lag > 0
    await until(lambda: "more memory" in (index.error or ""), 30)
    full.free_bytes = ROOMY
    async with asyncio.timeout(60):  # whoever waits is told
        assert await index.follow(seq, 120) == 0
    assert (await index.search([Query(vectors[1_999], top_k=1)]))[0][0].chunk.text == "text 1999"
