"""The publication's state machine: events in, instructions out."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from compass.domain.routing.publication import (
    ATTEMPTS,
    Ack,
    Answer,
    Begin,
    CommitFailed,
    Committed,
    Confirmed,
    Directive,
    Drain,
    Drained,
    Event,
    Fence,
    Finished,
    Instruction,
    Left,
    PollArrived,
    PollGone,
    Publication,
    Replace,
    RunCommit,
    Scope,
    Superseded,
    Tick,
    Update,
)
from compass.domain.routing.table import CollectionRoute, RoutingTable
from compass.domain.space import Space, SpaceConfig

LEASE_S, DRAIN_S, PATIENCE_S = 8.0, 20.0, 0.5
DEFAULT = Scope("c", default=True)


def route(default: str = "old", name: str = "c") -> CollectionRoute:
    spaces = {n: Space(f"{n}-1", n, SpaceConfig(4, "m"), "active", 0.0) for n in ("old", "new")}
    return CollectionRoute("u", name, 1 if default == "old" else 2, default, spaces)


def put(default: str, name: str = "c") -> Update:
    return lambda table: table.with_route(route(default, name))


class Play:
    """A publication and its gateways' polls, by hand."""

    def __init__(self, *, first: bool = True, incarnation: int = 1, checked: bool = False) -> None:
        table = RoutingTable(collections={"c": route(), "d": route(name="d")})
        self.core = Publication(
            incarnation,
            table,
            LEASE_S,
            0.0,
            first=first,
            checked=checked,
            drain_s=DRAIN_S,
            patience_s=PATIENCE_S,
        )
        self.now, self.polls = 0.0, 0
        self.waiting: dict[int, str] = {}
        self.heard: dict[str, Directive] = {}

    def do(self, make: Callable[[float], Event]) -> list[Instruction]:
        """Hand in an event of now; what is to be done besides answering."""
        rest: list[Instruction] = []
        for instruction in self.core.handle(make(self.now)):
            if isinstance(instruction, Answer):
                self.heard[self.waiting.pop(instruction.poll)] = instruction.directive
            else:
                rest.append(instruction)
        return rest

    def poll(self, gateway: str, draining: frozenset[str] = frozenset()) -> list[Instruction]:
        """A gateway polls, and acknowledges what it has heard."""
        self.polls += 1
        self.waiting[self.polls] = gateway
        ack = Ack(self.heard[gateway].stamp if gateway in self.heard else (0, 0), draining)
        return self.do(lambda now: PollArrived(self.polls, gateway, ack, now))

    def join(self, *gateways: str) -> None:
        """Gateways hear the table and wait for more."""
        for gateway in gateways:
            self.poll(gateway)
            self.poll(gateway)

    def fences(self) -> tuple[Fence, ...]:
        """The fences in force."""
        return self.core.fences

    def default_of(self, gateway: str) -> str | None:
        """The default in the table that a gateway has heard last; None: there was no table."""
        table = self.heard[gateway].table
        return None if table is None else table.route("c").default

    def fences_of(self, gateway: str) -> tuple[Fence, ...]:
        """Those that a gateway has heard of."""
        return self.heard[gateway].fences

    def begin(self, op: int = 1, scope: Scope = DEFAULT) -> list[Instruction]:
        return self.do(lambda now: Begin(op, scope, now))

    def drain(self, op: int, *spaces: str) -> list[Instruction]:
        return self.do(lambda now: Drain(op, frozenset(spaces), now))

    def committed(self, op: int = 1, collection: str = "c") -> list[Instruction]:
        return self.do(lambda now: Committed(op, put("new", collection), now))

    def pass_time(self, seconds: float) -> list[Instruction]:
        self.now += seconds
        return self.do(Tick)


def test_healthy_swap_takes_two_round_trips() -> None:
    """Fence, acknowledgement, commit, table, acknowledgement, done: no waiting for any clock."""
    play = Play()
    play.join("g", "h")
    assert play.begin() == []
    assert play.fences_of("g") == play.fences_of("h") == (Fence(2, DEFAULT),)
    assert play.default_of("g") is None
    assert play.poll("g") == []
    assert play.poll("h") == [RunCommit(1)]
    assert play.committed() == []
    assert play.fences_of("g") == ()
    assert play.default_of("g") == "new"
    assert play.poll("g") == []
    assert play.poll("h") == [Finished(1)]


def test_poll_without_news_waits_a_quarter_of_a_lease() -> None:
    """A long poll renews the lease before the lease is in danger."""
    play = Play()
    play.join("g")
    play.heard.clear()
    assert play.core.next_tick(play.now) == LEASE_S / 4
    play.pass_time(LEASE_S / 4 - 0.1)
    assert play.heard == {}
    play.pass_time(0.1)
    assert play.heard["g"].table is None
    assert play.heard["g"].stamp == play.core.stamp


def test_gateway_that_has_said_farewell_is_not_waited_for() -> None:
    """Its lease is void, before a transition and in the middle of one; the poll that it left open is closed."""
    play = Play()
    play.join("g", "h", "i")
    play.do(lambda now: Left("h", now))
    assert play.heard["h"].lease_s == 0.0
    assert play.core.gateways(play.now) == {"g", "i"}
    play.begin()
    assert play.poll("g") == []
    assert play.do(lambda now: Left("i", now)) == [RunCommit(1)]
    play.committed()
    assert play.poll("g") == [Finished(1)]


def test_farewell_that_a_late_poll_overtakes_costs_no_more_than_a_lease() -> None:
    """A poll of before that arrives after the farewell is given a lease in the book, and that runs out."""
    play = Play()
    play.join("g")
    play.do(lambda now: Left("g", now))
    play.heard.clear()
    play.poll("g")
    assert play.heard["g"].lease_s > 0
    assert play.begin() == []
    assert play.pass_time(LEASE_S + 0.01) == [RunCommit(1)]


def test_silent_gateway_is_waited_for_until_its_lease_has_run_out() -> None:
    """Not answering does not mean not alive: only the lease's end frees the transition."""
    play = Play()
    play.join("g")
    play.begin()  # its waiting poll is answered, and that is the last we hear
    for _ in range(20):
        assert play.pass_time(0.39) == []
    assert play.pass_time(0.21) == [RunCommit(1)]
    assert play.now == pytest.approx(LEASE_S + 0.01)


def test_queries_are_not_held_while_a_silent_gateways_lease_runs_out() -> None:
    """After `patience_s` the fence is lowered; it comes back when the silent one has spoken or expired."""
    play = Play()
    play.join("g", "silent")
    play.begin()
    play.poll("g")
    play.poll("g")
    play.pass_time(PATIENCE_S)
    assert play.fences_of("g") == ()
    for _ in range(4):
        play.poll("g")
        assert play.pass_time(1.6) == []
        assert play.fences_of("g") == ()
    play.poll("g")
    play.pass_time(1.6)
    assert [fence.scope for fence in play.fences_of("g")] == [DEFAULT]
    assert play.poll("g") == [RunCommit(1)]


def test_acknowledging_a_lowered_fence_does_not_count_for_the_next_one() -> None:
    """Each fence has its own revision, and only that is acknowledged."""
    play = Play()
    play.join("g", "h")
    play.begin()
    play.poll("g")
    play.pass_time(PATIENCE_S)
    play.poll("g")
    assert play.poll("h") == []  # late: it has heard of the first fence only
    assert play.poll("h") == []  # and now that it was lowered: the second is raised
    assert play.poll("g") == []
    assert play.poll("h") == [RunCommit(1)]


def test_last_attempt_keeps_the_fence_up() -> None:
    """Gateways that stay slow cannot keep a transition from ending."""
    play = Play()
    play.join("g", "h")
    play.begin()
    for _ in range(ATTEMPTS - 1):
        play.pass_time(PATIENCE_S)  # both slow
        play.join("g", "h")
    assert play.fences()
    play.pass_time(PATIENCE_S)
    assert play.fences()
    play.poll("g")
    assert play.poll("h") == [RunCommit(1)]


def test_gateway_that_joins_gets_the_fences_in_force() -> None:
    """A first poll is answered with the table and the fences, and the transition does not wait for it."""
    play = Play()
    play.join("g")
    play.begin()
    play.poll("late")
    assert play.heard["late"].fences == (Fence(2, DEFAULT),)
    assert play.heard["late"].table is not None
    assert play.poll("g") == [RunCommit(1)]


def test_failed_commit_lifts_the_fence() -> None:
    """Gateways get a newer directive of the same table, without the fence."""
    play = Play()
    play.join("g")
    play.begin()
    play.poll("g")
    before = play.heard["g"].stamp
    assert play.do(lambda now: CommitFailed(1, now)) == []
    assert play.fences_of("g") == ()
    assert play.heard["g"].table is None
    assert play.heard["g"].stamp > before


def test_transitions_of_one_collection_follow_each_other() -> None:
    """The second fence is raised when the first transition is over."""
    play = Play()
    play.join("g")
    assert play.begin(1) == []
    assert play.begin(2) == []
    assert play.poll("g") == [RunCommit(1)]
    play.committed(1)
    assert play.poll("g") == [Finished(1)]
    assert play.fences() == play.fences_of("g")
    assert play.poll("g") == [RunCommit(2)]


def test_transitions_of_several_collections_go_side_by_side() -> None:
    """Two fences at once, two commits in any order, and both updates in the table."""
    play = Play()
    play.join("g")
    play.begin(1)
    play.begin(2, Scope("d", default=True))
    assert play.poll("g") == [RunCommit(1)]
    assert {fence.scope.collection for fence in play.fences_of("g")} == {"c", "d"}
    assert play.poll("g") == [RunCommit(2)]
    play.committed(2, "d")
    play.committed(1, "c")
    assert {name: r.default for name, r in play.core.table.collections.items()} == {"c": "new", "d": "new"}


def test_empty_scope_is_published_and_awaited_without_a_fence() -> None:
    """A change that no query can notice holds nobody."""
    play = Play()
    play.join("g")
    assert play.begin(scope=Scope("c")) == [RunCommit(1)]
    assert play.fences() == ()
    assert play.committed() == []
    assert play.poll("g") == [Finished(1)]


def test_no_gateway_means_no_waiting() -> None:
    """At the very first start a change is done when it is committed."""
    play = Play()
    assert play.begin() == [RunCommit(1)]
    assert play.committed() == [Finished(1)]


def dropped(*gateways: str) -> Play:
    """A drop that all gateways know of, of a space that the first one still has a query on."""
    play = Play()
    play.join(*gateways)
    play.begin(scope=Scope("c", frozenset({"old"})))
    for gateway in gateways:
        play.poll(gateway)
    play.committed()
    for gateway in gateways[1:]:
        play.poll(gateway)
    assert play.poll(gateways[0], frozenset({"old-1"})) == [Finished(1)]
    assert play.drain(2, "old-1") == []
    return play


def test_a_drain_waits_for_the_queries_on_the_space() -> None:
    """It is over when no gateway has a query in flight on a removed space."""
    play = dropped("g")
    for _ in range(6):  # longer than a lease: a gateway that goes on renewing is waited for
        play.pass_time(2.0)
        assert play.poll("g", frozenset({"old-1"})) == []
    assert play.poll("g") == [Drained(2)]


def test_a_drain_does_not_wait_for_ever() -> None:
    """After `drain_s` it is over, and says who is still at it."""
    play = dropped("g")
    done: list[Instruction] = []
    while not done:
        play.poll("g", frozenset({"old-1"}))
        done = play.pass_time(2.0)
    assert done == [Drained(2, frozenset({"g"}))]
    assert play.now == pytest.approx(DRAIN_S)


def test_a_drain_does_not_wait_for_the_dead() -> None:
    """A gateway whose lease has run out answers nobody; the clock is looked at when it does."""
    play = dropped("g", "h")
    due = play.core.next_tick(play.now)
    while due < LEASE_S:
        play.pass_time(due - play.now)
        play.poll("h")
        due = play.core.next_tick(play.now)
    assert play.pass_time(due - play.now) == [Drained(2)]
    assert play.now < DRAIN_S


def test_a_change_does_not_wait_for_a_drain() -> None:
    """A slow query on a dropped space does not keep the default where it is."""
    play = dropped("g")
    play.begin(3)
    assert play.poll("g", frozenset({"old-1"})) == [RunCommit(3)]
    play.committed(3)
    assert play.poll("g", frozenset({"old-1"})) == [Finished(3)]
    assert play.poll("g") == [Drained(2)]


def test_successor_waits_for_the_leases_that_it_does_not_know() -> None:
    """No transition of a restarted router begins before its predecessor's last lease has run out."""
    play = Play(first=False, incarnation=2)
    play.join("g")
    assert play.heard["g"].table is not None, "it publishes at once"
    assert play.begin() == []
    assert play.fences() == ()
    assert play.core.next_tick(7.9) == LEASE_S
    play.pass_time(2.0)
    play.poll("g")
    play.pass_time(5.9)
    assert play.fences() == ()
    play.poll("g")
    play.pass_time(0.1)
    assert play.fences()
    assert play.poll("g") == [RunCommit(1)]


def test_gateway_of_a_predecessor_gets_the_whole_table() -> None:
    """What an older router's stamp says of tables means nothing here."""
    play = Play(incarnation=2)
    play.heard["g"] = Directive((1, 99), 1.0)
    play.poll("g")
    assert play.heard["g"].stamp == (2, 1)
    assert play.heard["g"].table is not None


def test_router_learns_from_a_gateway_that_it_is_superseded() -> None:
    """A gateway that has heard of a newer router is not answered."""
    play = Play()
    play.heard["g"] = Directive((2, 1), 1.0)
    assert play.poll("g") == [Superseded(2)]
    assert play.core.gateways(play.now) == set()


def test_second_poll_of_a_gateway_frees_the_first() -> None:
    """A gateway that has more to say does not leave a poll behind."""
    play = Play()
    play.join("g")
    first = set(play.waiting)
    play.poll("g")
    assert len(play.waiting) == 1
    assert not first & set(play.waiting)


def test_poll_that_nobody_waits_for_gives_no_lease() -> None:
    """A cancelled poll is forgotten."""
    play = Play()
    play.join("g")
    play.do(lambda now: PollGone(play.polls, now))
    play.pass_time(LEASE_S)
    assert play.core.gateways(play.now) == set()


def test_replace_publishes_at_once() -> None:
    """At start-up collections come into the table one by one, without a fence."""
    play = Play()
    play.join("g")
    play.do(lambda now: Replace(put("new"), now))
    assert play.heard["g"].table is not None
    assert play.heard["g"].table.stamp == play.core.stamp


def test_unconfirmed_router_gives_no_leases_any_more() -> None:
    """Who cannot read its own claim must assume that it is superseded."""
    play = Play(checked=True)
    play.pass_time(LEASE_S)
    play.poll("g")
    assert play.heard["g"].lease_s == 0.0
    play.do(lambda now: Confirmed(now, now))
    play.poll("g")
    play.poll("g")
    assert play.heard["g"].lease_s > 0.0


def test_version_of_a_table_only_grows() -> None:
    """Whatever version an update answers, the published one is the revision that published it."""
    play = Play()
    play.do(lambda now: Replace(lambda table: RoutingTable(7, -5, table.collections), now))
    assert play.core.table.stamp == play.core.stamp == (1, 2)
