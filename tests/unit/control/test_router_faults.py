"""The router restarts, and parts of it fail: it finds what is true, and says what is not there."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import Any

import pytest
from records import run_record
from waiting import until
from world import DIMS, NEW, OLD, Faulty, World, raises

from compass.domain.collection import CollectionSpec, CollectionStats
from compass.domain.routing.swap import SwapOrder
from compass.domain.space import SpaceChanges
from compass.errors import StorageError, UnavailableError
from compass.storage.service import CollectionService


@pytest.mark.parametrize("actors_survive", [True, False])
async def test_a_restarted_router_finds_everything(world: World, actors_survive: bool) -> None:
    """The logs tell a new router all: collections, default, epoch, spaces, and the rebuild that was running."""
    uuid = await world.create("one", new=NEW)
    await world.router.swap("docs", SwapOrder("new"))
    await world.router.add_space("docs", "third", NEW)
    world.root.space_vectors(uuid, world.space("third").id, DIMS).write_run(run_record())
    before = world.route()
    await world.end()
    if not actors_survive:
        await world.cluster.close()
    world.begin()
    await until(lambda: all(table.ready for table in world.tables))
    assert world.route() == before
    assert await world.found("one") == ["one"]
    assert world.cluster.rebuilds.keys() == {before.spaces["third"].id}
    assert (await world.router.swap("docs", SwapOrder("old"))).epoch == 3


async def test_one_collection_that_does_not_open_leaves_the_others_alone(world: World) -> None:
    """The service comes up without it and opens it as soon as that can be done."""
    uuid = await world.create("one")
    await world.router.create_collection(CollectionSpec("other", {"old": OLD}, "old"))
    await world.end()
    broken = True

    def wrap(real: CollectionService) -> CollectionService:
        if broken and real is world.cluster.collections[uuid]:
            raise OSError("the disk is gone")
        return real

    world.cluster.wrap_collection = wrap
    world.begin()
    await until(lambda: all(table.ready for table in world.tables))
    assert world.tables[0].table.collections.keys() == {"other"}
    broken = False
    await until(lambda: all("docs" in table.table.collections for table in world.tables))
    assert await world.found("one") == ["one"]


async def test_an_index_that_does_not_open_leaves_the_service_up(world: World) -> None:
    """With one space's file damaged its queries fail and say why; the other space answers."""
    uuid = await world.create("one", new=NEW)
    assert await world.level(world.space("new")) == 0
    await world.end()
    await world.cluster.close()
    (damaged,) = world.folder_of(world.publisher.table.route("docs").spaces["new"], uuid).rglob("*.arrow")
    damaged.write_bytes(b"nonsense")
    world.begin()
    await until(lambda: all(table.ready for table in world.tables))
    assert await world.found("one") == ["one"]
    with pytest.raises(StorageError):
        await world.found("one", "new")


async def test_a_root_that_cannot_be_read_is_said_and_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A router that cannot open tells each caller so within its time, and opens once it can."""
    await world.create("one")
    await world.end()
    world.timings = replace(world.timings, open_wait_s=0.05)
    with monkeypatch.context() as patched:
        patched.setattr(world.root, "sweep", lambda: (_ for _ in ()).throw(OSError("no such disk")))
        world.begin()
        with pytest.raises(UnavailableError, match="still opening"):
            await world.router.add_space("docs", "new", NEW)
    assert "no such disk" in caplog.text
    await until(lambda: all(table.ready for table in world.tables))
    assert await world.found("one") == ["one"]


async def test_a_part_that_ended_for_good_is_started_again(world: World) -> None:
    """Nobody but the router starts writers and indexes, so it looks after them."""
    uuid = await world.create("one")
    space_id = world.space("old").id
    await world.cluster.stop_index(space_id)
    await world.cluster.stop_collection(uuid)
    await until(lambda: space_id in world.cluster.indexes and uuid in world.cluster.collections)
    assert await world.found("one") == ["one"]


async def test_a_collection_is_deleted_though_its_writer_is_dead(world: World) -> None:
    """Deleting asks nothing of the writer."""
    uuid = await world.create("one")
    world.cluster.wrap_collection = lambda real: Faulty(
        real, state=raises(UnavailableError("dead")), stats=raises(UnavailableError("dead"))
    )
    await world.router.delete_collection("docs")
    assert uuid not in world.root.collections().values()
    assert not (world.folder / "data" / uuid).exists()


async def test_other_collections_never_notice(world: World) -> None:
    """While one collection's change hangs another one's goes through."""
    await world.create(new=NEW)
    await world.router.create_collection(CollectionSpec("other", {"old": OLD, "new": NEW}, "old"))
    go_on = asyncio.Event()
    uuid = world.route().uuid

    def held(real: CollectionService) -> Any:
        async def stats() -> CollectionStats:
            if real is world.cluster.collections[uuid]:
                await go_on.wait()
            return await real.stats()

        return Faulty(real, stats=stats)

    world.cluster.wrap_collection = held
    hanging = asyncio.create_task(world.router.swap("docs", SwapOrder("new")))
    async with asyncio.timeout(60):
        await world.router.swap("other", SwapOrder("new"))
    assert not hanging.done()
    go_on.set()
    await hanging


async def test_a_late_answer_brings_nothing_back(world: World) -> None:
    """A caller that goes away in the middle of a swap changes neither its outcome nor the table after it."""
    uuid = await world.create(new=NEW)
    committing, go_on = asyncio.Event(), asyncio.Event()

    def slow(real: CollectionService) -> Any:
        async def change(change: Any, router: int, note: Any = None) -> Any:
            committing.set()
            await go_on.wait()
            return await real.change(change, router, note)

        return Faulty(real, change=change)

    world.cluster.wrap_collection = slow
    swap = asyncio.create_task(world.router.swap("docs", SwapOrder("new")))
    await committing.wait()
    swap.cancel()
    go_on.set()
    with contextlib.suppress(asyncio.CancelledError):
        await swap
    await until(lambda: world.publisher.table.route("docs").epoch == 2)
    await world.router.set_space("docs", "old", SpaceChanges(ef_search=70))
    assert (world.route().default, world.route().next_default) == ("new", None)
    assert (await world.cluster.collections[uuid].state(world.publisher.table.incarnation)).epoch == 2
