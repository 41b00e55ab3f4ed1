"""A gateway's routing table: leases, fences, drains, and a router that comes and goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest

from compass.control.publisher import Publisher
from compass.domain.routing.lease import Ack, Directive, Fence, Scope
from compass.domain.routing.publication import Update
from compass.domain.routing.table import CollectionRoute, RoutingTable
from compass.domain.space import Space, SpaceConfig
from compass.errors import NotFoundError, UnavailableError
from compass.gateway.routing import RouteTable
from compass.testing.clock import ManualClock

LEASE_S, LONG_S, DEADLINE_S = 8.0, 3_600.0, 60.0
HOLD_S = 0.05  # in tests of what is not waited for any longer
DEFAULT = Scope("c", default=True)


def route(default: str = "old", *names: str) -> CollectionRoute:
    spaces = {n: Space(f"{n}-1", n, SpaceConfig(4, "m"), "active", 0.0) for n in names or ("old", "new")}
    return CollectionRoute("u", "c", 1 if default == "old" else 2, default, spaces)


def table(default: str = "old", version: int = 1, incarnation: int = 1) -> RoutingTable:
    return RoutingTable(incarnation, version, {"c": route(default)})


class ScriptedRouter:
    """Answers each poll with what the test puts into its queue."""

    def __init__(self) -> None:
        self.acks: list[Ack] = []
        self.answers: asyncio.Queue[Directive | Exception] = asyncio.Queue()

    async def poll(self, ack: Ack) -> Directive:
        self.acks.append(ack)
        answer = await self.answers.get()
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def say(self, *answers: Directive | Exception) -> None:
        for answer in answers:
            self.answers.put_nowait(answer)
        await until(self.answers.empty)


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until a condition holds, and a little further."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - the conditions are of several objects, none of which tells
            await asyncio.sleep(0.001)
    await turns()


async def turns() -> None:
    """Let every task that can go on do so: none here waits for more than another task."""
    for _ in range(10):
        await asyncio.sleep(0)


@asynccontextmanager
async def running(held: RouteTable) -> AsyncIterator[RouteTable]:
    loop = asyncio.ensure_future(held.run())
    try:
        yield held
    finally:
        loop.cancel()
        with suppress(asyncio.CancelledError):
            await loop


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(100.0)


@pytest.fixture
def router() -> ScriptedRouter:
    return ScriptedRouter()


@pytest.fixture
async def held(router: ScriptedRouter, clock: ManualClock) -> AsyncIterator[RouteTable]:
    async with running(RouteTable("g", router.poll, clock, LEASE_S, hold_s=LONG_S)) as routes:
        await router.say(Directive((1, 1), LEASE_S, (), table()))
        yield routes


@pytest.fixture
async def impatient(router: ScriptedRouter, clock: ManualClock) -> AsyncIterator[RouteTable]:
    """As `held`, but a query is turned away after a moment."""
    async with running(RouteTable("g", router.poll, clock, LEASE_S, hold_s=HOLD_S)) as routes:
        await router.say(Directive((1, 1), LEASE_S, (), table()))
        yield routes


async def test_query_goes_to_the_default_or_to_a_name(held: RouteTable) -> None:
    """The route and the space come out of one table."""
    assert held.ready
    async with held.route("c") as routed:
        assert (routed.space.name, routed.route.epoch) == ("old", 1)
    async with held.route("c", "new") as routed:
        assert routed.space.name == "new"
    assert held.epoch_of("c") == 1
    with pytest.raises(NotFoundError):
        async with held.route("c", "nowhere"):
            pass


async def test_gateway_without_a_lease_does_not_answer(impatient: RouteTable, clock: ManualClock) -> None:
    """A gateway that has had no word for a whole lease says 503, with when to try again."""
    clock.advance(LEASE_S)
    assert not impatient.ready
    with pytest.raises(UnavailableError) as caught:
        async with impatient.route("c"):
            pass
    assert caught.value.fields["retry_after"] == 1


async def test_joining_waits_for_the_router_but_not_for_ever(router: ScriptedRouter, clock: ManualClock) -> None:
    """A gateway knows when it has its first lease, and can give up waiting for a router that is not there."""
    async with running(RouteTable("g", router.poll, clock, LEASE_S, hold_s=HOLD_S)) as routes:
        assert not await routes.joined(0.01)
        joining = asyncio.ensure_future(routes.joined(DEADLINE_S))
        await router.say(Directive((1, 1), LEASE_S, (), table()))
        assert await joining


async def test_gateway_that_leaves_answers_nothing_any_more(impatient: RouteTable) -> None:
    """However long its lease would have run: the router will be told that nobody needs to wait for it."""
    assert impatient.ready
    impatient.leave()
    with pytest.raises(UnavailableError):
        await enter(impatient)


async def test_query_waits_for_a_lease_that_is_being_renewed(
    held: RouteTable, router: ScriptedRouter, clock: ManualClock
) -> None:
    """A gateway that was stopped answers as soon as the router has spoken again."""
    clock.advance(LEASE_S)
    query = asyncio.ensure_future(enter(held))
    await asyncio.sleep(0)
    await router.say(Directive((1, 1), LEASE_S), Directive((1, 1), LEASE_S))  # the first was asked for long ago
    assert await query == "old"


async def enter(held: RouteTable, space: str | None = None) -> str:
    async with held.route("c", space) as routed:
        return routed.space.name


async def test_fenced_query_waits_and_goes_by_the_new_table(held: RouteTable, router: ScriptedRouter) -> None:
    """What a fence held goes on with the table that lifts it; searches by name never waited."""
    await router.say(Directive((1, 2), LEASE_S, (Fence(2, DEFAULT),)))
    query = asyncio.ensure_future(enter(held))
    await turns()
    assert not query.done()
    assert await enter(held, "old") == "old"
    await router.say(Directive((1, 3), LEASE_S, (), table("new", 3)))
    assert await query == "new"


async def test_fenced_query_does_not_wait_for_ever(impatient: RouteTable, router: ScriptedRouter) -> None:
    """A query that is impatient for too long is turned away, to be tried again."""
    await router.say(Directive((1, 2), LEASE_S, (Fence(2, DEFAULT),)))
    with pytest.raises(UnavailableError, match="'c'"):
        await enter(impatient)


async def test_lease_begins_before_the_poll_was_sent(router: ScriptedRouter, clock: ManualClock) -> None:
    """An answer that was long under way brings a short lease."""
    async with running(RouteTable("g", router.poll, clock, LEASE_S, hold_s=HOLD_S)) as held:
        await until(lambda: bool(router.acks))
        clock.advance(LEASE_S)
        await router.say(Directive((1, 1), LEASE_S, (), table()))
        assert held.table.stamp == (1, 1)
        assert not held.ready


async def test_polling_survives_whatever_a_poll_raises(held: RouteTable, router: ScriptedRouter) -> None:
    """A router that dies, of whatever, is asked again."""
    await router.say(OSError("gone"), RuntimeError("odd"), Directive((2, 1), LEASE_S, (), table("new", 1, 2)))
    assert await enter(held) == "new"


async def test_older_router_is_not_believed(held: RouteTable, router: ScriptedRouter, clock: ManualClock) -> None:
    """Not its table and not its lease; the gateway goes on asking, at the pace of a failure."""
    await router.say(Directive((2, 1), LEASE_S, (), table("new", 1, 2)))
    clock.advance(LEASE_S)
    await router.say(Directive((1, 9), LEASE_S, (), table("old", 9)))
    assert held.table.stamp == (2, 1)
    assert not held.ready
    await router.say(Directive((2, 1), LEASE_S))
    assert held.ready


async def test_silent_router_is_asked_again(router: ScriptedRouter, clock: ManualClock) -> None:
    """A poll without an answer is given up after half a lease."""
    async with running(RouteTable("g", router.poll, clock, 0.05, hold_s=HOLD_S)):
        await until(lambda: len(router.acks) >= 2)


async def test_end_of_a_drain_is_said_at_once(held: RouteTable, router: ScriptedRouter) -> None:
    """The last query on a removed space cuts the long poll short: a drop waits for this word."""
    async with AsyncExitStack() as query:
        await query.enter_async_context(held.route("c", "old"))
        gone = RoutingTable(1, 2, {"c": route("new", "new")})
        await router.say(Directive((1, 2), LEASE_S, (), gone))
        await until(lambda: router.acks[-1] == Ack((1, 2), frozenset({"old-1"})))
        polls = len(router.acks)
        await turns()
        assert len(router.acks) == polls
    await until(lambda: router.acks[-1] == Ack((1, 2)))


# ---- with the publisher itself at the other end


def put(new: CollectionRoute) -> Update:
    return lambda table: table.with_route(new)


def commit(new: CollectionRoute) -> Callable[[], Awaitable[Update]]:
    async def run() -> Update:
        return put(new)

    return run


async def test_swap_under_load_shows_no_old_answer_after_a_new_one(clock: ManualClock) -> None:
    """Two gateways, queries all the time, twenty swaps: what anyone sees never goes back."""
    publisher = Publisher(1, LEASE_S, clock, True, RoutingTable(collections={"c": route()}))
    async with AsyncExitStack() as stack:
        gateways = [
            await stack.enter_async_context(
                running(RouteTable(name, lambda ack, name=name: publisher.poll(name, ack), clock, LEASE_S))  # type: ignore[misc]
            )
            for name in ("g", "h")
        ]
        await until(lambda: all(gateway.ready for gateway in gateways))
        newest = 0
        answered = 0

        async def ask(gateway: RouteTable) -> None:
            nonlocal newest, answered
            while True:
                known = newest
                async with gateway.route("c") as routed:
                    assert routed.route.epoch >= known
                    newest = max(newest, routed.route.epoch)
                answered += 1
                await asyncio.sleep(0)

        asking = [asyncio.ensure_future(ask(gateway)) for gateway in gateways for _ in range(3)]
        for epoch in range(2, 22):
            swapped = CollectionRoute("u", "c", epoch, "old" if epoch % 2 else "new", route().spaces)
            await publisher.transition(DEFAULT, commit(swapped))
            newest = max(newest, epoch)
        await until(lambda: answered > 100 or any(task.done() for task in asking))
        for task in asking:
            assert not task.done(), task.exception()
            task.cancel()
        assert newest == 21


async def test_a_drain_ends_with_the_last_query_on_the_space(clock: ManualClock) -> None:
    """The publisher waits for a query in flight at a gateway, and no longer."""
    publisher = Publisher(1, LEASE_S, clock, True, RoutingTable(collections={"c": route()}))
    held = RouteTable("g", lambda ack: publisher.poll("g", ack), clock, LEASE_S)
    async with running(held):
        await until(lambda: held.ready)
        async with held.route("c", "new"):
            await publisher.transition(Scope("c", frozenset({"new"})), commit(route("old", "old")))
            drop = asyncio.ensure_future(publisher.drained(frozenset({"new-1"})))
            await until(lambda: "new" not in held.table.route("c").spaces)
            await turns()
            assert not drop.done()
        async with asyncio.timeout(DEADLINE_S):
            await drop
