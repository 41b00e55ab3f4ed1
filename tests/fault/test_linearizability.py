"""Many clients, several gateways, one default: no answer is older than one that somebody had before.

In one process with a network that delays whatever it likes, where the fence can be taken out; and through a real
service with two gateways whose processes are killed and stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import httpx
import psutil
import pytest

from compass.clock import boot_clock
from compass.control.publisher import Publisher
from compass.domain.routing.lease import Scope
from compass.domain.routing.publication import Update
from compass.domain.routing.table import CollectionRoute, RoutingTable
from compass.domain.space import Space, SpaceConfig
from compass.errors import UnavailableError
from compass.gateway.routing import RouteTable

# ---- the judge


@pytest.mark.parametrize(
    "answers",
    [
        [("a", 0, 1, 2, "new"), ("a", 2, 3, 1, "old")],  # one client saw new, then old
        [("a", 0, 1, 2, "new"), ("b", 2, 3, 1, "old")],  # so did two that talk to each other
        [("swap", 0, 5, 2, "new"), ("a", 6, 7, 1, "old")],  # a stale answer after the swap had returned
        [("a", 0, 1, 2, "new"), ("b", 0, 1, 2, "old")],  # one epoch, two spaces
        [("a", 0, 9, 3, "new"), ("swap", 1, 2, 3, "new"), ("b", 3, 4, 2, "old")],
    ],
)
def test_the_judge_finds_planted_violations(judge: Any, seen: Any, answers: list[Any]) -> None:
    """It would be worth nothing otherwise."""
    assert judge([seen(*one) for one in answers])


def test_the_judge_lets_overlapping_answers_differ(judge: Any, seen: Any) -> None:
    """Two answers that were under way at once may be in either order."""
    answers = [("swap", 0, 5, 2, "new"), ("a", 1, 6, 1, "old"), ("b", 2, 3, 2, "new"), ("a", 7, 8, 2, "new")]
    assert judge([seen(*one) for one in answers]) == []


# ---- one process, any network

LEASE_S = 0.8


class Network:
    """Carries polls to the router and directives back, each after a time of its own."""

    def __init__(self, rng: random.Random, longest_s: float) -> None:
        self._rng, self._longest_s = rng, longest_s

    def poll(self, publisher: Publisher, gateway: str) -> Callable[[Any], Awaitable[Any]]:
        async def ask(ack: Any) -> Any:
            await asyncio.sleep(self._rng.random() * self._longest_s)
            directive = await publisher.poll(gateway, ack)
            await asyncio.sleep(self._rng.random() * self._longest_s)
            return directive

        return ask


def _route(epoch: int) -> CollectionRoute:
    spaces = {n: Space(f"c-{n}", n, SpaceConfig(4, "m"), "active", 0.0) for n in ("old", "new")}
    return CollectionRoute("u", "c", epoch, "new" if epoch % 2 == 0 else "old", spaces)


async def _history(seen: Any, *, fenced: bool, seconds: float, seed: int) -> list[Any]:
    """Three gateways, six clients and a swapper for so long."""
    rng = random.Random(seed)
    publisher = Publisher(1, LEASE_S, boot_clock, True, RoutingTable().with_route(_route(1)))
    network = Network(rng, 0.05)
    tables = [
        RouteTable(f"g{i}", network.poll(publisher, f"g{i}"), boot_clock, LEASE_S, hold_s=2 * LEASE_S)
        for i in range(3)
    ]
    history: list[Any] = []
    running = [asyncio.create_task(table.run()) for table in tables]
    until = time.monotonic() + seconds

    async def query(client: str) -> None:
        while time.monotonic() < until:
            began = time.monotonic()
            with contextlib.suppress(UnavailableError):
                async with rng.choice(tables).route("c") as routed:
                    told = routed.route.epoch, routed.space.name
                    await asyncio.sleep(rng.random() * 0.003)  # the index searches
                history.append(seen(client, began, time.monotonic(), *told))
            await asyncio.sleep(0)

    async def swap() -> None:
        epoch = 1
        while time.monotonic() < until:
            await asyncio.sleep(rng.random() * 0.1)
            epoch, began = epoch + 1, time.monotonic()

            async def commit(route: CollectionRoute) -> Update:
                return lambda table: table.with_route(route)

            scope = Scope("c", default=True) if fenced else Scope("c")
            await publisher.transition(scope, partial(commit, _route(epoch)))
            history.append(seen("swap", began, time.monotonic(), epoch, _route(epoch).default))

    await asyncio.gather(swap(), *(query(f"client {i}") for i in range(6)))
    for task in running:
        task.cancel()
    return history


@pytest.mark.parametrize("seed", range(3))
async def test_gateways_agree_over_a_slow_network(judge: Any, seen: Any, seed: int) -> None:
    """Whatever the delays, the history is that of one register."""
    history = await _history(seen, fenced=True, seconds=3.0, seed=seed)
    assert sum(one.client == "swap" for one in history) >= 5
    assert len(history) > 500
    assert judge(history) == []


async def test_without_the_fence_they_do_not(judge: Any, seen: Any) -> None:
    """The same gateways, the same network: with nothing held, somebody sees new and then old."""
    assert judge(await _history(seen, fenced=False, seconds=3.0, seed=1))


async def _between_two_pushes(seen: Any, *, fenced: bool) -> list[Any]:
    """A swap whose table has reached one gateway and waits before the other: what a client sees that asks both."""
    publisher = Publisher(1, 30.0, boot_clock, True, RoutingTable().with_route(_route(1)))
    published, barrier = asyncio.Event(), asyncio.Event()

    def told(table: RoutingTable) -> None:
        if table.route("c").epoch == 2:
            published.set()

    async def late(ack: Any) -> Any:
        directive = await publisher.poll("late", ack)
        if directive.table is not None and directive.table.route("c").epoch == 2:
            await barrier.wait()
        return directive

    first = RouteTable("first", lambda ack: publisher.poll("first", ack), boot_clock, 30.0, on_table=told)
    second = RouteTable("late", late, boot_clock, 30.0, hold_s=10.0)
    history: list[Any] = []

    async def ask(table: RouteTable) -> None:
        began = time.monotonic()
        async with table.route("c") as routed:
            history.append(seen("client", began, time.monotonic(), routed.route.epoch, routed.space.name))

    async def commit() -> Update:
        return lambda table: table.with_route(_route(2))

    running = [asyncio.create_task(table.run()) for table in (first, second)]
    async with asyncio.timeout(10):
        assert await first.joined(5)
        assert await second.joined(5)
        swap = asyncio.create_task(publisher.transition(Scope("c", default=fenced), commit))
        await published.wait()
        await ask(first)
        asked = asyncio.create_task(ask(second))
        await asyncio.wait([asked], timeout=0.1 if fenced else 5)
        assert asked.done() != fenced, "a fence holds the query until the table is there; without one it is answered"
        barrier.set()
        await asked
        await swap
    for task in running:
        task.cancel()
    return history


async def test_between_the_two_pushes_the_fence_holds(judge: Any, seen: Any) -> None:
    """While one gateway has the new table and the other has not, the other holds its queries, and answers by it."""
    history = await _between_two_pushes(seen, fenced=True)
    assert [one.epoch for one in history] == [2, 2]
    assert judge(history) == []


async def test_between_the_two_pushes_of_a_swap_without_a_fence_a_client_sees_new_and_then_old(
    judge: Any, seen: Any
) -> None:
    """The same barrier, nothing held: the violation happens each time, and is found."""
    history = await _between_two_pushes(seen, fenced=False)
    assert [one.epoch for one in history] == [2, 1]
    assert len(judge(history)) == 1


@pytest.mark.long
@pytest.mark.parametrize("seed", range(20))
async def test_gateways_agree_for_long(judge: Any, seen: Any, seed: int) -> None:
    """Ten minutes of it."""
    assert judge(await _history(seen, fenced=True, seconds=30.0, seed=seed)) == []


# ---- a real service

FAULTS_S = 20.0
RECOVERY_S = 10.0
HOLE_S = 60.0  # in which nothing is answered: whoever has not come back by then never does
BUSY_S = 300.0  # for what should have happened long before


def _faults(service: Any, seconds: float, rng: random.Random) -> list[str]:
    """Kill or stop one process after the other; what was done."""
    done: list[str] = []
    ends = time.monotonic() + seconds
    kinds = ["ServeReplica", "RouterProcess", "IndexProcess", "stop a gateway", "CollectionProcess"]
    for turn in range(10_000):
        if time.monotonic() > ends and turn >= len(kinds):
            return done
        kind = kinds[turn % len(kinds)]
        found = service.actor_processes("ServeReplica:compass" if "gateway" in kind else kind)
        if not found:
            time.sleep(0.2)
            continue
        victim: psutil.Process = rng.choice(found)
        with contextlib.suppress(psutil.NoSuchProcess):
            if "gateway" in kind:
                victim.send_signal(signal.SIGSTOP)
                time.sleep(rng.uniform(0.5, 4.0))  # beyond the lease, and not
                victim.send_signal(signal.SIGCONT)
            else:
                victim.kill()
        done.append(kind)
        time.sleep(rng.uniform(2.0, 5.0))
    return done


def _swaps_under_faults(new_service: Any, traffic: Any, wait_until: Any, seconds: float) -> None:
    with new_service(gateways="2", lease_s="2") as service:
        load = traffic(service.url)
        load.fill()
        load.start()
        done = _faults(service, seconds, random.Random(7))
        time.sleep(RECOVERY_S)
        # On a busy machine it takes its time: a swap waits for the process that another change starts.
        wait_until(lambda: len(load.swapper.history) >= 10, BUSY_S, "swaps")
        wait_until(lambda: len(load.writer.acknowledged) >= 50, BUSY_S, "writes")
        wait_until(lambda: load.dropper.dropped >= 2, BUSY_S, "drops")
        wait_until(lambda: max(one.epoch for one in list(load.history)) >= 5, BUSY_S, "epochs")
        load.stop()
        assert load.wrong() == [], done
        assert load.longest_wait() < HOLE_S, done
        with service.client() as http:
            told = http.get("/collections/docs/history").json()["events"]
            epochs = [event["epoch"] for event in told]
            assert epochs == sorted(epochs)
            swaps = {e["epoch"]: e["space"] for e in told if e["kind"] == "swap"}
            assert all(swaps[one.epoch] == one.space for one in load.history if one.epoch > 1)
            assert _epochs_shown(http) == [epochs[-1]] * 2


def _epochs_shown(http: httpx.Client) -> list[int]:
    """The epoch that each living gateway says it routes by, whichever of them is asked."""
    shown = http.get("/metrics").text.splitlines()
    return [int(float(line.rsplit(" ", 1)[1])) for line in shown if line.startswith("compass_router_epoch{")]


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_swaps_under_faults_are_linearizable(new_service: Any, traffic: Any, wait_until: Any) -> None:
    """Two gateways, processes killed and stopped: no stale answer, nobody sees new and then old, all recovers."""
    _swaps_under_faults(new_service, traffic, wait_until, FAULTS_S)


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(1_200)
def test_swaps_under_faults_are_linearizable_for_long(new_service: Any, traffic: Any, wait_until: Any) -> None:
    """Ten minutes of it."""
    _swaps_under_faults(new_service, traffic, wait_until, 600)
