"""A swap at the router: what it waits for, what it refuses, what it leaves behind."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from waiting import until
from world import DIMS, NEW, Faulty, World, raises

from compass.domain.chunk import ChunkInput
from compass.domain.history import By
from compass.domain.rebuild.order import RebuildOrder
from compass.domain.routing.swap import SwapOrder, Swapped
from compass.domain.search.query import Query
from compass.domain.space import Lag, Space
from compass.embedding.builtin import HashingModel
from compass.errors import (
    ConfirmationNeededError,
    DefaultSpaceError,
    EpochMismatchError,
    NotFoundError,
    RebuildRunningError,
    SpaceLagsError,
    SpaceNotActiveError,
    SpaceQuarantinedError,
    TakenOverError,
    UnavailableError,
)
from compass.index.service import SpaceIndex
from compass.storage.log import router_epoch as incarnation
from compass.storage.service import CollectionService


async def test_swap_and_rollback_lose_nothing(world: World) -> None:
    """The default changes everywhere, epochs grow, and what was written in between is in both spaces."""
    await world.create("one", new=NEW)
    assert await world.router.swap("docs", SwapOrder("new", expected_epoch=1)) == Swapped("old", "new", 2)
    assert (world.route().default, world.route().epoch, world.route().next_default) == ("new", 2, None)
    await world.ingest("two")
    assert await world.router.swap("docs", SwapOrder("old")) == Swapped("new", "old", 3)
    assert sorted(await world.found("two")) == ["one", "two"]
    assert sorted(await world.found("two", "new")) == ["one", "two"]


async def test_a_rollback_goes_to_the_previous_default(world: World) -> None:
    """Without a name it goes back and forth between the last two; what was dropped is no way back."""
    await world.create(new=NEW, third=NEW)
    with pytest.raises(NotFoundError, match="no previous default"):
        await world.router.swap("docs", SwapOrder(None, rollback=True))
    await world.router.swap("docs", SwapOrder("new"))
    await world.router.swap("docs", SwapOrder("third"))
    for name in ("new", "third"):
        assert (await world.router.swap("docs", SwapOrder(None, rollback=True))).current == name
    await world.router.drop_space("docs", "new")
    assert (await world.router.swap("docs", SwapOrder(None, rollback=True))).current == "old"


async def test_a_swap_waits_no_longer_than_it_is_told(world: World) -> None:
    """`wait_s` bounds the wait for a target that lags."""
    await world.create("one", new=NEW)
    await world.level(world.space("new"))
    world.cluster.models["b"].down = True
    await world.ingest("two")
    waits: list[float] = []

    def noted(real: SpaceIndex, space: Space) -> Any:
        async def lag_at(seq: int, wait_s: float) -> Lag:
            waits.append(wait_s)
            return await real.lag_at(seq, wait_s)

        return Faulty(real, lag_at=lag_at)

    world.cluster.wrap_index = noted
    began = time.monotonic()
    with pytest.raises(SpaceLagsError, match=r"0\.2 s"):
        await world.router.swap("docs", SwapOrder("new", wait_s=0.2))
    assert waits == [0.2]
    assert time.monotonic() - began >= 0.2


async def test_quarantined_chunks_that_nobody_accepted_refuse_a_swap(world: World) -> None:
    """The count is in the answer; what the last run accepted does not count, and force overrides."""
    await world.create("one", new=NEW)
    known = {"quarantined": 2, "accepted": 1}

    async def lag_at(seq: int, wait_s: float) -> Lag:
        return Lag(0, **known)

    world.cluster.wrap_index = lambda real, space: Faulty(real, lag_at=lag_at) if space.name == "new" else real
    with pytest.raises(SpaceQuarantinedError) as refused:
        await world.router.swap("docs", SwapOrder("new"))
    assert refused.value.fields == {"space": "new", **known}
    known["accepted"] = 2
    assert (await world.router.swap("docs", SwapOrder("new"))).epoch == 2
    known.update(accepted=0)
    await world.router.swap("docs", SwapOrder("old"))
    assert (await world.router.swap("docs", SwapOrder("new", force=True))).epoch == 4


async def test_a_chunk_that_is_refused_during_the_swap_refuses_it(world: World) -> None:
    """What the target lacked at the call counts however its wait ends: found, late, or quarantined meanwhile."""
    await world.create("one", new=NEW)
    before = world.route()

    async def lag_at(seq: int, wait_s: float) -> Lag:
        return Lag(0, 1, 0)  # its endpoint has refused the text that the wait was for

    world.cluster.wrap_index = lambda real, space: Faulty(real, lag_at=lag_at)
    with pytest.raises(SpaceQuarantinedError):
        await world.router.swap("docs", SwapOrder("new"))
    assert world.route() == before


async def test_a_space_that_is_being_rebuilt_is_no_target(world: World) -> None:
    """Not by force either: what it holds is changing."""
    await world.create(new=NEW)
    await world.router.start_rebuild("docs", "new", RebuildOrder(("http://127.0.0.1:1/embed",)))
    for force in (False, True):
        with pytest.raises(RebuildRunningError):
            await world.router.swap("docs", SwapOrder("new", force=force))
    assert world.route().default == "old"


async def test_a_former_default_is_dropped_on_confirmation(world: World) -> None:
    """Within the guard's time its name must be said again; other spaces, and later, want nothing."""
    await world.end()
    world.drop_guard_s = 60.0
    world.begin()
    await world.create(new=NEW, third=NEW)
    await world.router.swap("docs", SwapOrder("new"))
    for confirm in (None, "new", ""):
        with pytest.raises(ConfirmationNeededError, match="confirm=old"):
            await world.router.drop_space("docs", "old", confirm)
    await world.router.drop_space("docs", "third")
    await world.router.drop_space("docs", "old", "old")
    await world.router.add_space("docs", "other", NEW)
    await world.router.activate("docs", world.space("other").id)
    await world.router.swap("docs", SwapOrder("other"))
    world.later_s = 61.0
    await world.router.drop_space("docs", "new")
    assert list(world.route().spaces) == ["other"]


async def test_the_history_tells_what_was_done(world: World) -> None:
    """Who, why, when, at which epoch and commit, how long: in the commit of the change, so no crash parts them."""
    uuid = await world.create()
    anna = By("anna", "a better model")
    await world.router.add_space("docs", "new", NEW, anna)
    await world.router.start_rebuild("docs", "new", RebuildOrder(), anna)
    world.cluster.rebuilds.clear()
    await world.router.fail("docs", world.space("new").id, "no endpoint")
    await world.router.activate("docs", world.space("new").id)
    await world.router.swap("docs", SwapOrder("new", force=True), anna)
    await world.router.swap("docs", SwapOrder(None, rollback=True), By("ben", "worse"))
    with pytest.raises(DefaultSpaceError):
        await world.router.drop_space("docs", "old", by=anna)
    await world.router.drop_space("docs", "new", by=anna)
    events = await world.cluster.collection(uuid).history()
    assert [(e.kind, e.space, e.epoch, e.who) for e in events] == [
        ("create", None, 1, None),
        ("add", "new", 1, "anna"),
        ("rebuild", "new", 1, "anna"),
        ("fail", "new", 1, None),
        ("activate", "new", 1, None),
        ("swap", "new", 2, "anna"),
        ("rollback", "old", 3, "ben"),
        ("drop", "new", 3, "anna"),
    ]
    assert events[5].details == {"previous": "old", "forced": True}
    assert events[6].reason == "worse"
    assert events[3].details["error"] == "no endpoint"
    assert [e.seq for e in events] == sorted({e.seq for e in events})
    assert all(e.took_s >= 0 and abs(e.at - time.time()) < 60 for e in events)


async def test_a_swap_to_the_default_changes_nothing(world: World) -> None:
    """PUT of the present default answers it, and neither epoch nor log move."""
    uuid = await world.create()
    before = (world.publisher.table, (await world.cluster.collection(uuid).stats()).seq)
    assert await world.router.swap("docs", SwapOrder("old")) == Swapped("old", "old", 1)
    assert (world.publisher.table, (await world.cluster.collection(uuid).stats()).seq) == before


async def test_a_swap_to_what_may_not_answer_is_refused(world: World) -> None:
    """A space that is building or not there, or an epoch that is not the present one, changes nothing."""
    await world.create(ready=NEW)
    await world.router.add_space("docs", "new", NEW)
    before = world.route()
    with pytest.raises(SpaceNotActiveError):
        await world.router.swap("docs", SwapOrder("new", force=True))
    with pytest.raises(NotFoundError):
        await world.router.swap("docs", SwapOrder("nothing"))
    with pytest.raises(EpochMismatchError) as mismatch:
        await world.router.swap("docs", SwapOrder("ready", force=True, expected_epoch=2))
    assert mismatch.value.fields == {"epoch": 1, "expected_epoch": 2}
    assert world.route() == before


async def test_a_lagging_target_is_refused_unless_forced(world: World) -> None:
    """While the target's endpoint is down a swap is refused with the lag; by force it goes; the rest heals."""
    await world.create("one", new=NEW)
    assert await world.level(world.space("new")) == 0
    world.cluster.models["b"].down = True
    await world.ingest("two", "three")
    with pytest.raises(SpaceLagsError) as lags:
        await world.router.swap("docs", SwapOrder("new", wait_s=0.1))
    assert lags.value.fields["lag"] == 2
    assert (world.route().default, world.route().next_default) == ("old", None)
    assert (await world.router.swap("docs", SwapOrder("new", force=True))).epoch == 2
    world.cluster.models["b"].down = False
    assert await world.level(world.space("new")) == 0
    assert sorted(await world.found("two")) == ["one", "three", "two"]


async def test_an_old_model_that_is_no_longer_served(world: World) -> None:
    """The old space says how many chunks it lacks, answers by name for what it has and without what has changed; a
    rollback to it is refused with the lag. Once its model is back it catches up by itself, and the way is open.
    """
    uuid = await world.create("one", "two", new=NEW)
    await world.router.swap("docs", SwapOrder("new"))
    assert await world.level(world.space("old")) == 0
    world.cluster.models["a"].down = True
    await world.cluster.collection(uuid).ingest(
        [ChunkInput("two", 0, "two has changed"), ChunkInput("f", 0, "three")]
    )
    index = world.cluster.indexes[world.space("old").id]
    await until(lambda: len(index.follower.missing) == 2 and index.error)
    known = await index.stats()
    assert (known.lag, known.error) == (2, "the endpoint is down")
    vector = HashingModel("a", DIMS).embed(["two"])[0]
    assert [hit.chunk.text for hit in (await index.search([Query(vector)]))[0]] == ["one"]
    with pytest.raises(SpaceLagsError) as refused:
        await world.router.swap("docs", SwapOrder(None, rollback=True, wait_s=0.1))
    assert refused.value.fields == {"space": "old", "lag": 2}
    assert world.route().default == "new"
    world.cluster.models["a"].down = False
    assert await world.level(world.space("old")) == 0
    assert (await world.router.swap("docs", SwapOrder(None, rollback=True))).current == "old"
    assert sorted(await world.found("three")) == ["one", "three", "two has changed"]


async def test_acknowledgements_wait_for_both_while_a_swap_is_under_way(world: World) -> None:
    """Every gateway knows the target before the frontier is read, and forgets it when the swap is over."""
    await world.create(new=NEW)
    asked, go_on = asyncio.Event(), asyncio.Event()

    def held(real: Any, space: Space) -> Any:
        async def lag_at(seq: int, wait_s: float) -> Lag:
            asked.set()
            await go_on.wait()
            lag: Lag = await real.lag_at(seq, wait_s)
            return lag

        return Faulty(real, lag_at=lag_at) if space.name == "new" else real

    world.cluster.wrap_index = held
    swap = asyncio.create_task(world.router.swap("docs", SwapOrder("new")))
    await asked.wait()
    assert (world.route().default, world.route().next_default) == ("old", "new")
    go_on.set()
    await swap
    assert (world.route().default, world.route().next_default) == ("new", None)


@pytest.mark.parametrize("error", [UnavailableError("gone"), RuntimeError("a bug")])
async def test_a_failed_swap_leaves_no_trace(world: World, error: Exception) -> None:
    """Whatever breaks a swap before its commit, acknowledgements stop waiting for its target."""
    await world.create(new=NEW)
    before = world.route()
    world.cluster.wrap_index = lambda real, space: Faulty(real, lag_at=raises(error))
    with pytest.raises(type(error)):
        await world.router.swap("docs", SwapOrder("new"))
    assert world.route() == before


async def test_a_committed_swap_is_never_reported_as_failed(world: World) -> None:
    """An index that does not answer after the commit neither fails the swap nor brings the old table back."""
    await world.create(new=NEW)
    world.cluster.wrap_index = lambda real, space: Faulty(real, configure=raises(UnavailableError("restarting")))
    assert (await world.router.swap("docs", SwapOrder("new"))).epoch == 2
    assert (world.route().default, world.route().epoch) == ("new", 2)


async def test_a_lost_answer_is_settled_by_the_log(world: World) -> None:
    """A change whose answer was lost has happened if the log has it."""
    await world.create(new=NEW)

    def losing(real: CollectionService) -> Any:
        async def change(change: Any, router: int, note: Any = None) -> Any:
            await real.change(change, router, note)
            raise UnavailableError("the connection broke")

        return Faulty(real, change=change)

    world.cluster.wrap_collection = losing
    assert (await world.router.swap("docs", SwapOrder("new"))).epoch == 2
    assert (world.route().default, world.route().epoch) == ("new", 2)


async def test_a_change_that_never_was_committed_is_an_error(world: World) -> None:
    """A change that the log does not have is reported as failed, and nothing changes."""
    await world.create(new=NEW)
    before = world.route()
    world.cluster.wrap_collection = lambda real: Faulty(real, change=raises(UnavailableError("it was not there")))
    with pytest.raises(UnavailableError, match="it was not there"):
        await world.router.swap("docs", SwapOrder("new"))
    assert world.route() == before


async def test_nobody_answers_while_it_is_not_known_what_is_true(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the log can be asked the fence stays up: no gateway answers from the default, old or new."""
    await world.create(new=NEW)
    reachable = True

    def losing(real: CollectionService) -> Any:
        async def change(change: Any, router: int, note: Any = None) -> Any:
            nonlocal reachable
            reachable = False
            await real.change(change, router, note)
            raise UnavailableError("the connection broke")

        async def state(router: int) -> Any:
            if not reachable:
                raise UnavailableError("the connection broke")
            return await real.state(router)

        return Faulty(real, change=change, state=state)

    world.cluster.wrap_collection = losing
    swap = asyncio.create_task(world.router.swap("docs", SwapOrder("new")))
    await until(lambda: not reachable)
    query = asyncio.create_task(world.found("one"))
    by_name = await world.found("one", "old")
    await asyncio.sleep(0.2)
    assert by_name == []
    assert not query.done()
    assert not swap.done()
    reachable = True
    assert (await swap).epoch == 2
    await query


async def test_an_older_router_can_change_nothing(world: World) -> None:
    """Once a newer router has asked a collection, the older one's swap is refused and nothing is committed."""
    uuid = await world.create(new=NEW)
    before = world.route()
    newer = incarnation.claim(world.root.objects)
    state = await world.cluster.collection(uuid).state(newer)
    with pytest.raises(TakenOverError):
        await world.router.swap("docs", SwapOrder("new", force=True))
    assert await world.cluster.collection(uuid).state(newer) == state
    assert world.route() == before
