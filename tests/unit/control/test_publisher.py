"""The publisher carries out what the state machine says: polls, commits, time, and its own claim."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from compass.clock import boot_clock
from compass.control.publisher import Publisher
from compass.domain.routing.lease import Ack, Directive, Scope
from compass.domain.routing.publication import Update
from compass.domain.routing.table import CollectionRoute, RoutingTable
from compass.domain.space import Space, SpaceConfig
from compass.errors import ConflictError, TakenOverError
from compass.testing.clock import ManualClock

LEASE_S = 8.0
DEFAULT = Scope("c", default=True)


def put(default: str, name: str = "c") -> Update:
    spaces = {n: Space(f"{name}-{n}", n, SpaceConfig(4, "m"), "active", 0.0) for n in ("old", "new")}
    return lambda table: table.with_route(CollectionRoute("u", name, 1, default, spaces))


def commit(default: str = "new", name: str = "c") -> Callable[[], Awaitable[Update]]:
    async def run() -> Update:
        return put(default, name)

    return run


async def settle() -> None:
    """Let everything that is ready run."""
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(100.0)


@pytest.fixture
def publisher(clock: ManualClock) -> Publisher:
    made = Publisher(1, LEASE_S, clock, True)
    made.replace(put("old"))
    return made


async def joined(publisher: Publisher, gateway: str = "g") -> tuple[Directive, asyncio.Task[Directive]]:
    """A gateway that has the table and waits for more."""
    directive = await publisher.poll(gateway, Ack())
    waiting = asyncio.ensure_future(publisher.poll(gateway, Ack(directive.stamp)))
    await settle()
    return directive, waiting


async def test_first_poll_is_answered_at_once_with_the_table(publisher: Publisher) -> None:
    """A gateway that has nothing gets everything."""
    directive, waiting = await joined(publisher)
    assert directive.table is not None
    assert directive.table.route("c").default == "old"
    assert publisher.gateways() == {"g"}
    assert not waiting.done()


async def test_transition_fences_commits_and_publishes(publisher: Publisher) -> None:
    """The commit runs after all have acknowledged the fence; it returns after all have the table."""
    ran = asyncio.Event()

    async def run() -> Update:
        ran.set()
        return put("new")

    _, waiting = await joined(publisher)
    transition = asyncio.ensure_future(publisher.transition(DEFAULT, run))
    fenced = await waiting
    assert [fence.scope for fence in fenced.fences] == [DEFAULT]
    assert not ran.is_set()
    published = await publisher.poll("g", Ack(fenced.stamp))
    assert ran.is_set()
    assert published.table is not None
    assert published.table.route("c").default == publisher.table.route("c").default == "new"
    assert not transition.done()
    last = asyncio.ensure_future(publisher.poll("g", Ack(published.stamp)))
    await transition
    last.cancel()


async def test_a_gateway_that_leaves_is_not_waited_for(publisher: Publisher) -> None:
    """A swap after a gateway has ended in good order returns at once; its open poll is answered without a lease."""
    _, waiting = await joined(publisher)
    publisher.leave("g")
    assert (await waiting).lease_s == 0.0
    assert publisher.gateways() == set()
    await asyncio.wait_for(publisher.transition(DEFAULT, commit()), 60)
    assert publisher.table.route("c").default == "new"


async def test_commit_that_fails_changes_nothing(publisher: Publisher) -> None:
    """The caller gets the commit's own error, and the gateways their queries back."""

    async def fail() -> Update:
        raise ConflictError("lost the race")

    _, waiting = await joined(publisher)
    transition = asyncio.ensure_future(publisher.transition(DEFAULT, fail))
    fenced = await waiting
    lifted = await publisher.poll("g", Ack(fenced.stamp))
    assert lifted.fences == ()
    with pytest.raises(ConflictError, match="lost the race"):
        await transition
    assert publisher.table.route("c").default == "old"


async def test_transition_goes_on_when_its_caller_has_gone(publisher: Publisher) -> None:
    """A client that hangs up does not leave a fence behind."""
    _, waiting = await joined(publisher)
    transition = asyncio.ensure_future(publisher.transition(DEFAULT, commit()))
    fenced = await waiting
    transition.cancel()
    published = await publisher.poll("g", Ack(fenced.stamp))
    assert published.fences == ()
    assert publisher.table.route("c").default == "new"


async def test_updates_of_concurrent_transitions_compose(publisher: Publisher) -> None:
    """Each commit answers what it does to the table, not a whole table."""
    await asyncio.gather(
        publisher.transition(DEFAULT, commit("new", "c")),
        publisher.transition(Scope("d", default=True), commit("new", "d")),
    )
    assert {name: route.default for name, route in publisher.table.collections.items()} == {"c": "new", "d": "new"}


async def test_silent_gateway_costs_its_lease_and_no_more(publisher: Publisher, clock: ManualClock) -> None:
    """The transition ends when the lease of a gateway that never answers has run out."""
    _, waiting = await joined(publisher)
    transition = asyncio.ensure_future(publisher.transition(DEFAULT, commit()))
    await waiting
    clock.advance(LEASE_S - 0.1)
    publisher.tick()
    await settle()
    assert not transition.done()
    clock.advance(0.2)
    publisher.tick()
    await transition


async def test_successor_publishes_at_once_and_changes_later(clock: ManualClock) -> None:
    """A restarted router answers polls, but waits for leases it knows nothing of before its first change."""
    publisher = Publisher(2, LEASE_S, clock, False, RoutingTable())
    transition = asyncio.ensure_future(publisher.transition(DEFAULT, commit()))
    assert (await publisher.poll("g", Ack())).stamp == (2, 1)
    await settle()
    assert not transition.done()
    clock.advance(LEASE_S)
    publisher.tick()
    await transition


async def test_cancelled_poll_is_forgotten(publisher: Publisher, clock: ManualClock) -> None:
    """No lease is given for an answer that nobody takes."""
    _, waiting = await joined(publisher)
    waiting.cancel()
    await settle()
    clock.advance(LEASE_S)
    publisher.tick()
    assert publisher.gateways() == set()


async def test_last_renewal_is_the_last_poll(publisher: Publisher, clock: ManualClock) -> None:
    """The idle rule counts from the last word of any gateway, or from the start."""
    assert publisher.last_renewal == 100.0
    clock.advance(3.0)
    await publisher.poll("g", Ack())
    assert publisher.last_renewal == 103.0


async def test_superseded_by_a_newer_claim(clock: ManualClock) -> None:
    """A router that reads a newer claim than its own refuses everybody, those who wait too."""
    claimed = 1

    async def latest() -> int:
        return claimed

    publisher = Publisher(1, LEASE_S, clock, True, RoutingTable(), latest=latest)
    _, waiting = await joined(publisher)
    transition = asyncio.ensure_future(publisher.transition(DEFAULT, commit()))
    await waiting
    claimed = 2
    clock.advance(LEASE_S * 0.75)
    with pytest.raises(TakenOverError):
        await publisher.poll("h", Ack(publisher.table.stamp))
    assert publisher.superseded
    with pytest.raises(TakenOverError):
        await transition
    with pytest.raises(TakenOverError):
        await publisher.transition(DEFAULT, commit())


async def test_superseded_by_word_of_a_gateway(publisher: Publisher) -> None:
    """A gateway that has heard of a newer router is told to look for it."""
    with pytest.raises(TakenOverError):
        await publisher.poll("g", Ack((2, 1)))
    assert publisher.superseded


async def test_superseded_router_commits_nothing(publisher: Publisher, clock: ManualClock) -> None:
    """A fence that was under way when the successor came does not end in a commit."""
    ran = False

    async def run() -> Update:
        nonlocal ran
        ran = True
        return put("new")

    _, waiting = await joined(publisher)
    transition = asyncio.ensure_future(publisher.transition(DEFAULT, run))
    await waiting
    with pytest.raises(TakenOverError):
        await publisher.poll("h", Ack((2, 1)))
    with pytest.raises(TakenOverError):
        await transition
    clock.advance(2 * LEASE_S)
    publisher.tick()
    await settle()
    assert not ran


async def test_claim_that_cannot_be_read_shortens_the_leases(clock: ManualClock) -> None:
    """A store that does not answer is no reason to believe that one is still the newest."""

    async def latest() -> int:
        raise OSError("the store is away")

    publisher = Publisher(1, LEASE_S, clock, True, RoutingTable(), latest=latest)
    clock.advance(LEASE_S * 0.75)
    directive = await publisher.poll("g", Ack())
    assert directive.lease_s == pytest.approx(LEASE_S / 4, rel=0.01)
    clock.advance(LEASE_S)
    assert (await publisher.poll("g", Ack())).lease_s == 0.0


async def test_claim_is_read_again_before_leases_become_short(clock: ManualClock) -> None:
    """After a pause without polls, the first gateway gets a whole lease."""

    async def latest() -> int:
        return 1

    publisher = Publisher(1, LEASE_S, clock, True, RoutingTable(), latest=latest)
    clock.advance(10 * LEASE_S)
    assert (await publisher.poll("g", Ack())).lease_s == pytest.approx(LEASE_S, rel=0.01)


async def test_real_clock_wakes_the_publisher() -> None:
    """With no poll and no test to call `tick`, time alone ends a transition and answers a long poll."""
    publisher = Publisher(1, 0.2, boot_clock, True, RoutingTable())
    directive = await publisher.poll("g", Ack())
    again = await publisher.poll("g", Ack(directive.stamp))
    assert again.stamp == directive.stamp
    await asyncio.wait_for(publisher.transition(DEFAULT, commit()), 60)
    assert publisher.table.route("c").default == "new"


async def test_a_poll_that_falls_due_between_two_readings_of_the_clock_is_answered() -> None:
    """A timer may fire a little early: what falls due right after it was looked at is looked at again."""
    readings = Readings()
    publisher = Publisher(1, LEASE_S, readings, True)
    publisher.replace(put("old"))
    _, waiting = await joined(publisher)
    readings.now = readings.answered_at + LEASE_S / 4 - 0.0005
    readings.step = 0.001
    publisher.tick()  # reads half a millisecond before the poll is due; the next reading is after it
    assert await asyncio.wait_for(waiting, 60)


class Readings:
    """A clock that goes on by `step` with each reading."""

    def __init__(self) -> None:
        self.now, self.step, self.answered_at = 100.0, 0.0, 100.0

    def __call__(self) -> float:
        self.now += self.step
        return self.now - self.step
