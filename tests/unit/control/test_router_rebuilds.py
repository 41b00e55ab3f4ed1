"""Rebuilds at the router: ordered, estimated, cancelled, restarted."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from records import run_record
from waiting import until
from world import DIMS, NEW, FakeRebuild, Faulty, World

from compass.domain.embedding.contract import ServerInfo
from compass.domain.memory import SMALL_BYTES, Room
from compass.domain.rebuild.order import RebuildOrder, RebuildStarted
from compass.domain.space import Space, SpaceConfig
from compass.errors import DefaultSpaceError, InvalidRequestError, NotFoundError, RebuildRunningError


async def test_a_rebuild_starts_with_its_endpoints(world: World) -> None:
    """The job names the endpoints of this run; the first becomes the space's own if it has none."""
    await world.create()
    await world.router.add_space("docs", "new", SpaceConfig(DIMS, "b"))
    with pytest.raises(InvalidRequestError):
        await world.router.start_rebuild("docs", "new", RebuildOrder())
    answer = await world.router.start_rebuild(
        "docs", "new", RebuildOrder(("http://b1", "http://b2"), api_key_env="COMPASS_EMBED_KEY_B", batch_size=8)
    )
    space = world.space("new")
    order = world.cluster.rebuilds[space.id].orders[0]
    assert answer == RebuildStarted("building", order.job_id)
    assert order.job_id.startswith("rebuild-")
    assert (order.endpoints, order.batch_size) == (("http://b1", "http://b2"), 8)
    assert (space.config.embed_endpoint, space.config.api_key_env) == ("http://b1", "COMPASS_EMBED_KEY_B")
    assert space.follows


async def test_a_second_rebuild_is_refused(world: World) -> None:
    """One rebuild of a space at a time; an ended one is in nobody's way, and its process is ended."""
    await world.create()
    await world.router.add_space("docs", "new", NEW)
    await world.router.start_rebuild("docs", "new", RebuildOrder())
    space_id = world.space("new").id
    with pytest.raises(RebuildRunningError):
        await world.router.start_rebuild("docs", "new", RebuildOrder())
    world.cluster.rebuilds[space_id].runs = False
    await until(lambda: world.cluster.ended_rebuilds == [space_id])
    await world.router.start_rebuild("docs", "new", RebuildOrder())
    assert await world.cluster.rebuilds[space_id].running()


async def test_an_estimate_is_asked_of_a_pilot_and_leaves_no_trace(world: World) -> None:
    """It is given the order; no run starts, the space does not follow, the log has no further commit."""
    uuid = await world.create("one")
    await world.router.add_space("docs", "new", SpaceConfig(DIMS, "b"))
    before = world.space("new"), (await world.cluster.collection(uuid).stats()).seq
    spec = RebuildOrder(("http://b1", "http://b2"), batch_size=8, budget=5.0, cost_per_hour=1.0)
    assert (await world.router.estimate_rebuild("docs", "new", spec)).failures == ()
    ((space, order, known),) = world.cluster.estimated
    assert (space, order.endpoints, order.batch_size, known) == ("new", ("http://b1", "http://b2"), 8, ())
    assert (order.budget, order.cost_per_hour, order.restart) == (5.0, 1.0, False)
    assert (world.space("new"), (await world.cluster.collection(uuid).stats()).seq) == before
    assert world.cluster.rebuilds == {}


async def test_an_estimate_tells_of_memory_that_is_not_there(world: World) -> None:
    """As something that ends the run, with both numbers; an order would be refused for it."""
    world.cluster.room = Room(lambda: 1_000, "node-7")
    await world.create("one")
    await world.router.add_space("docs", "wide", SpaceConfig(16_384, "b"))

    def full(real: Any, space: Space) -> Any:
        async def ensure_memory(afresh: bool) -> None:
            world.cluster.room.require("a vector space", 2 * SMALL_BYTES, 0)

        return Faulty(real, ensure_memory=ensure_memory) if space.name == "wide" else real

    world.cluster.wrap_index = full
    (failure,) = (await world.router.estimate_rebuild("docs", "wide", RebuildOrder(("http://b1",)))).failures
    assert (failure.type, failure.ends_run) == ("insufficient-memory", True)
    assert (failure.needed_bytes, failure.free_bytes, failure.node) == (2 * SMALL_BYTES, 1_000, "node-7")


async def test_an_estimate_is_refused_where_the_order_would_be(world: World) -> None:
    """An unknown space, no endpoint, a running rebuild, a restart of the default; and while another is made."""
    await world.create()
    await world.router.add_space("docs", "new", SpaceConfig(DIMS, "b"))
    spec = RebuildOrder(("http://b1",))
    for name, order, kind in [
        ("none", spec, NotFoundError),
        ("new", RebuildOrder(), InvalidRequestError),
        ("old", RebuildOrder(restart=True), DefaultSpaceError),
    ]:
        with pytest.raises(kind):
            await world.router.estimate_rebuild("docs", name, order)
    world.cluster.estimators_go.clear()
    first = asyncio.create_task(world.router.estimate_rebuild("docs", "new", spec))
    await until(lambda: world.cluster.estimated)
    with pytest.raises(RebuildRunningError, match="estimated already"):
        await world.router.estimate_rebuild("docs", "new", spec)
    world.cluster.estimators_go.set()
    await first
    await world.router.start_rebuild("docs", "new", spec)
    with pytest.raises(RebuildRunningError, match="is running"):
        await world.router.estimate_rebuild("docs", "new", spec)
    assert len(world.cluster.estimated) == 1


async def test_an_estimate_tells_of_another_model(world: World) -> None:
    """With both fingerprints, as something that ends the run; a restart asks only that the endpoints agree."""
    await world.create_built_by_a()
    world.cluster.models["a"].says = ServerInfo(model_id="other")
    (failure,) = (await world.router.estimate_rebuild("docs", "old", RebuildOrder())).failures
    assert (failure.type, failure.ends_run) == ("fingerprint-mismatch", True)
    assert failure.recorded is not None
    assert failure.found is not None
    assert (failure.recorded["model_id"], failure.found["model_id"]) == ("a", "other")
    await world.router.add_space("docs", "new", NEW)
    restart = RebuildOrder(restart=True)
    assert (await world.router.estimate_rebuild("docs", "new", restart)).failures == ()


async def test_a_run_that_is_about_to_begin_is_not_taken_for_an_ended_one(world: World) -> None:
    """Who ends the processes of ended runs waits until a starting one runs."""
    await world.create()
    await world.router.add_space("docs", "new", NEW)
    space_id, starting, go_on = world.space("new").id, asyncio.Event(), asyncio.Event()
    looks: list[bool] = []

    class SlowRebuild(FakeRebuild):
        """It does not run before a test lets it."""

        async def start(self, order: RebuildOrder) -> None:
            starting.set()
            await go_on.wait()
            await super().start(order)

        async def running(self) -> bool:
            looks.append(self.runs)
            return self.runs

    await world.router.start_rebuild("docs", "new", RebuildOrder())
    ended, slow = world.cluster.rebuilds[space_id], SlowRebuild()
    world.cluster.new_rebuild = lambda: slow
    ended.runs = False
    order = asyncio.create_task(world.router.start_rebuild("docs", "new", RebuildOrder()))
    await asyncio.wait_for(starting.wait(), 30)  # from here on a process is there whose run has not begun
    await asyncio.sleep(5 * world.timings.stop_check_s)
    go_on.set()
    await order
    await until(lambda: looks)
    assert all(looks)
    assert world.cluster.rebuilds.get(space_id) is slow


async def test_restart_empties_a_space_under_a_new_id(world: World) -> None:
    """The name stays, the id is new, it is building again, and the old one's bytes are gone."""
    uuid = await world.create("one", new=NEW)
    before = world.space("new")
    assert await world.level(before) == 0
    answer = await world.router.start_rebuild("docs", "new", RebuildOrder(restart=True))
    after = world.space("new")
    assert (answer.status, after.status, after.config) == ("building", "building", before.config)
    assert after.id != before.id
    assert not world.folder_of(before, uuid).exists()
    assert world.cluster.rebuilds.keys() == {after.id}
    assert await world.found("one") == ["one"]


async def test_cancel_ends_the_run(world: World) -> None:
    """A cancelled rebuild's process ends; without a run it is a 404."""
    await world.create()
    await world.router.add_space("docs", "new", NEW)
    with pytest.raises(NotFoundError):
        await world.router.cancel_rebuild("docs", "new")
    await world.router.start_rebuild("docs", "new", RebuildOrder())
    await world.router.cancel_rebuild("docs", "new")
    assert world.cluster.ended_rebuilds == [world.space("new").id]
    with pytest.raises(NotFoundError):
        await world.router.cancel_rebuild("docs", "new")


async def test_a_run_that_does_not_answer_is_cancelled_nevertheless(world: World) -> None:
    """When its process hangs, it is ended and the record says cancelled, so that no restart resumes it."""
    uuid = await world.create()
    await world.router.add_space("docs", "new", NEW)
    await world.router.start_rebuild("docs", "new", RebuildOrder())
    space = world.space("new")
    vectors = world.root.space_vectors(uuid, space.id, DIMS)
    vectors.write_run(run_record())
    world.cluster.rebuilds[space.id].hangs = True
    await world.router.cancel_rebuild("docs", "new")
    record = vectors.read_run()
    assert record is not None
    assert record.state == "cancelled"
    assert world.cluster.rebuilds == {}


async def test_a_drop_ends_the_rebuild_first(world: World) -> None:
    """No run is left that could write into what was dropped."""
    await world.create()
    await world.router.add_space("docs", "new", NEW)
    await world.router.start_rebuild("docs", "new", RebuildOrder())
    space_id = world.space("new").id
    await world.router.drop_space("docs", "new")
    assert world.cluster.ended_rebuilds == [space_id]
