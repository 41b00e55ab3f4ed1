"""A world for the swap's protocol: a log, routers, gateways, and everything that can happen between them.

There is one router at a time, or an old one that does not know it. The machines are those that ship, `Publication`
and `Holding`; the world only delivers, loses, delays, duplicates, kills and lets time pass. After every step each
gateway that would answer is looked at.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from compass.domain.collection import Change, CollectionState, RestartSpace, SwapDefault, apply
from compass.domain.routing.lease import Ack, Directive, Holding, Routed, Scope
from compass.domain.routing.publication import (
    Answer,
    Begin,
    CommitFailed,
    Committed,
    Confirmed,
    Drain,
    Drained,
    Event,
    Finished,
    Left,
    PollArrived,
    Publication,
    RunCommit,
    Superseded,
    Tick,
)
from compass.domain.routing.table import CollectionRoute, RoutingTable
from compass.domain.space import Space, SpaceConfig
from compass.errors import CompassError

LEASE_S, DRAIN_S, PATIENCE_S = 8.0, 6.0, 1.0
COLLECTIONS, NAMES = ("a", "b"), ("x", "y")
GATEWAYS = 2
CONFIG = SpaceConfig(4, "m")

small = st.integers(0, 7)
gateway_numbers = st.integers(0, GATEWAYS - 1)
mostly_newest = st.sampled_from([0, 0, 0, 1, 2])
collection_names = st.sampled_from(COLLECTIONS)


@dataclass
class Log:
    """What is durable: the claims of the routers, and each collection's state with all it ever was."""

    claimed: int = 0
    fencing: bool = True  # whether a commit of a router that has a successor is refused
    history: dict[str, list[CollectionState]] = field(default_factory=dict)

    def commit(self, incarnation: int, collection: str, change: Change) -> CollectionState | None:
        if self.fencing and incarnation < self.claimed:
            return None
        try:
            state = apply(self.history[collection][-1], change)
        except CompassError:
            return None
        self.history[collection].append(state)
        return state

    def table(self) -> RoutingTable:
        return RoutingTable(
            collections={name: CollectionRoute.of(states[-1]) for name, states in self.history.items()}
        )

    def age(self, collection: str, name: str, space_id: str) -> int:
        """Which of the spaces that ever had this name it is."""
        seen: dict[str, int] = {}
        for state in self.history[collection]:
            seen.setdefault(state.by_name(name).id, len(seen))
        return seen[space_id]


@dataclass
class Router:
    core: Publication
    incarnation: int
    skew: float  # how much its clock differs from the world's
    polls: dict[int, PollMessage] = field(default_factory=dict)
    operations: dict[int, Operation] = field(default_factory=dict)
    drains: dict[int, Drain] = field(default_factory=dict)


@dataclass
class Operation:
    collection: str
    change: Change
    removed: frozenset[str]
    committed: CollectionState | None = None


@dataclass
class Gateway:
    holding: Holding
    skew: float
    life: int = 0
    queries: list[Routed] = field(default_factory=list)


@dataclass(frozen=True)
class PollMessage:
    router: int  # incarnation
    gateway: int
    life: int
    sent_at: float  # the gateway's clock
    ack: Ack


@dataclass(frozen=True)
class AnswerMessage:
    poll: PollMessage
    directive: Directive


def space(collection: str, name: str, number: int) -> Space:
    return Space(f"{collection}-{name}{number}", name, CONFIG, "active", 0.0)


class World(RuleBasedStateMachine):
    """The protocol as it is; subclasses plant faults by overriding the hooks."""

    publication: type[Publication] = Publication
    holding: type[Holding] = Holding
    log_fences_routers = True
    routers_check_claims = True
    successors_wait = True

    def sent_directive(self, directive: Directive) -> Directive:
        return directive

    def lease_begins(self, gateway: Gateway, poll: PollMessage) -> float:
        return poll.sent_at

    def __init__(self) -> None:
        super().__init__()
        self.now, self.numbers = 0.0, 0
        self.log = Log(fencing=self.log_fences_routers)
        for c in COLLECTIONS:
            spaces = {s.id: s for s in (space(c, name, 0) for name in NAMES)}
            self.log.history[c] = [CollectionState(f"uuid-{c}", c, 0.0, spaces, f"{c}-x0")]
        self.routers: dict[int, Router] = {}
        self.gateways = [Gateway(self.holding(), 1000.0 * (i + 1)) for i in range(GATEWAYS)]
        self.polls: list[PollMessage] = []
        self.answers: list[AnswerMessage] = []
        self.farewells: list[tuple[int, str]] = []  # (incarnation of the router, the gateway's name)
        self.commits: list[tuple[int, int, Operation]] = []  # (incarnation, op): the log has not seen it yet
        self.results: list[tuple[int, int, Operation]] = []  # the router has not heard of it yet
        self.seen_epoch = dict.fromkeys(COLLECTIONS, 1)
        self.seen_age = {(c, name): 0 for c in COLLECTIONS for name in NAMES}
        self.start_router()
        for number in range(GATEWAYS):
            self.exchange(number, 0)

    # ---- how the world carries things out

    def number(self) -> int:
        self.numbers += 1
        return self.numbers

    def start_router(self) -> None:
        self.log.claimed += 1
        incarnation, skew = self.log.claimed, 100.0 * self.log.claimed
        core = self.publication(
            incarnation,
            self.log.table(),
            LEASE_S,
            self.now + skew,
            first=incarnation == 1 or not self.successors_wait,
            checked=self.routers_check_claims,
            drain_s=DRAIN_S,
            patience_s=PATIENCE_S,
        )
        self.routers[incarnation] = Router(core, incarnation, skew)

    @property
    def newest(self) -> Router:
        return self.routers[self.log.claimed]

    def some_router(self, number: int) -> Router:
        return list(self.routers.values())[-1 - number % len(self.routers)]

    def handle(self, router: Router, event: Event) -> None:
        for instruction in router.core.handle(event):
            match instruction:
                case Answer(poll, directive):
                    self.answers.append(AnswerMessage(router.polls[poll], self.sent_directive(directive)))
                case RunCommit(op):
                    self.commits.append((router.incarnation, op, router.operations[op]))
                case Finished(op):
                    self.finished(router, router.operations.pop(op))
                case Drained(op):
                    self.drained(router, router.drains.pop(op))
                case Superseded():
                    self.routers.pop(router.incarnation, None)
        del self.answers[:-24], self.polls[:-24]

    def send_poll(self, gateway: int, router: Router) -> None:
        g = self.gateways[gateway]
        self.polls.append(PollMessage(router.incarnation, gateway, g.life, self.now + g.skew, g.holding.ack()))

    def poll_arrives(self, message: PollMessage) -> None:
        router = self.routers.get(message.router)
        if router is None:
            return
        number = self.number()
        router.polls[number] = message
        name = f"{message.gateway}/{message.life}"
        self.handle(router, PollArrived(number, name, message.ack, self.now + router.skew))

    def answer_arrives(self, message: AnswerMessage) -> None:
        gateway = self.gateways[message.poll.gateway]
        if gateway.life != message.poll.life:
            return
        before = gateway.holding.table
        gateway.holding.receive(message.directive, self.lease_begins(gateway, message.poll))
        after = gateway.holding.table
        assert after.stamp >= before.stamp, "a gateway went back to an older table"
        for c in before.collections:
            assert after.route(c).epoch >= before.route(c).epoch, "an epoch fell at one gateway"

    def log_decides(self, incarnation: int, op: int, operation: Operation) -> None:
        operation.committed = self.log.commit(incarnation, operation.collection, operation.change)
        self.results.append((incarnation, op, operation))

    def result_arrives(self, incarnation: int, op: int, operation: Operation) -> None:
        router = self.routers.get(incarnation)
        if router is None:
            return
        now = self.now + router.skew
        if operation.committed is None:
            router.operations.pop(op)
            self.handle(router, CommitFailed(op, now))
            return
        route = CollectionRoute.of(operation.committed)
        self.handle(router, Committed(op, lambda table: table.with_route(route), now))

    def begin(self, router: Router, change: Change, scope: Scope, removed: frozenset[str]) -> None:
        op = self.number()
        router.operations[op] = Operation(scope.collection, change, removed)
        self.handle(router, Begin(op, scope, self.now + router.skew))

    # ---- what must hold

    def finished(self, router: Router, operation: Operation) -> None:
        """The caller has been told: whoever answers from now on answers by the new table."""
        state, c = operation.committed, operation.collection
        assert state is not None
        self.seen_epoch[c] = max(self.seen_epoch[c], state.epoch)
        for name in NAMES:
            self.saw(c, name, state.by_name(name).id)
        if operation.removed:
            op = self.number()
            router.drains[op] = Drain(op, operation.removed, self.now + router.skew)
            self.handle(router, router.drains[op])

    def drained(self, router: Router, drain: Drain) -> None:
        """A dropped space is about to be ended, unless its time is up nobody is on it any more."""
        if self.now + router.skew < drain.now + DRAIN_S:
            for gateway in self.gateways:
                follows = gateway.holding.stamp[0] == router.incarnation
                if follows and gateway.holding.leased(self.now + gateway.skew):
                    on = {routed.space.id for routed in gateway.queries}
                    assert not on & drain.spaces, "a drop returned while queries were on the space"

    def saw(self, collection: str, name: str, space_id: str) -> None:
        age = self.log.age(collection, name, space_id)
        assert age >= self.seen_age[collection, name], f"{name} answered from a dropped space"
        self.seen_age[collection, name] = age

    def teardown(self) -> None:
        self.look()

    def look(self) -> None:
        """Ask every gateway, in the same instant, for every default and every name."""
        for _ in range(2):  # twice: whoever is asked first may be the one that is ahead
            for gateway in self.gateways:
                holding = gateway.holding
                if not holding.leased(self.now + gateway.skew):
                    continue
                for c in COLLECTIONS:
                    self.look_at(holding, c)

    def look_at(self, holding: Holding, c: str) -> None:
        route = holding.table.route(c)
        if not holding.fenced(c, None):
            assert route.epoch >= self.seen_epoch[c], "an old default answered after a new one"
            self.seen_epoch[c] = route.epoch
        for name in NAMES:
            if not holding.fenced(c, name):
                self.saw(c, name, route.space(name).id)

    # ---- what may happen

    @rule(gateway=gateway_numbers, router=mostly_newest)
    def exchange(self, gateway: int, router: int) -> None:
        """A healthy gateway hears what there is to hear, and says so to the router that it can reach."""
        self.report(gateway)
        self.send_poll(gateway, self.some_router(router))
        self.poll_arrives(self.polls.pop())
        self.report(gateway)

    @rule(reached=st.sampled_from([(0,), (1,), (0, 1)]))
    def carry_on(self, reached: tuple[int, ...]) -> None:
        """All goes well for a while, but perhaps not for all gateways."""
        for gateway in reached:
            self.exchange(gateway, 0)
        while self.commits:
            self.commit(0, True)
        for gateway in reached:
            self.exchange(gateway, 0)

    def report(self, gateway: int) -> None:
        """All answers to a gateway arrive, in the order of their sending."""
        arriving = [a for a in self.answers if a.poll.gateway == gateway]
        self.answers = [a for a in self.answers if a.poll.gateway != gateway]
        for message in arriving:
            self.answer_arrives(message)
        self.look()

    @rule(gateway=gateway_numbers, router=mostly_newest)
    def poll(self, gateway: int, router: int) -> None:
        """A gateway sends a poll, perhaps to a router that is not the newest."""
        self.send_poll(gateway, self.some_router(router))

    @precondition(lambda self: self.polls)
    @rule(which=small, again=st.booleans())
    def deliver_poll(self, which: int, again: bool) -> None:
        """A poll arrives, in any order, perhaps more than once; what is never delivered is lost."""
        which = -1 - which % len(self.polls)
        self.poll_arrives(self.polls[which] if again else self.polls.pop(which))
        self.look()

    @precondition(lambda self: self.answers)
    @rule(which=small, again=st.booleans())
    def deliver_answer(self, which: int, again: bool) -> None:
        """An answer arrives, in any order, perhaps more than once."""
        which = -1 - which % len(self.answers)
        self.answer_arrives(self.answers[which] if again else self.answers.pop(which))
        self.look()

    @rule(seconds=st.sampled_from([1.0, 3.0, 5.0, 8.0]), router=mostly_newest)
    def time_passes(self, seconds: float, router: int) -> None:
        """Time passes, for a stopped process too; one router looks at its clock."""
        self.now += seconds
        awake = self.some_router(router)
        self.handle(awake, Tick(self.now + awake.skew))
        self.look()

    @rule(router=mostly_newest)
    def read_claim(self, router: int) -> None:
        """A router reads whether it still is the newest, and ends if it is not."""
        reader = self.some_router(router)
        if reader.incarnation < self.log.claimed:
            del self.routers[reader.incarnation]
        else:
            self.handle(reader, Confirmed(self.now + reader.skew, self.now + reader.skew))
        self.look()

    @rule(collection=collection_names, router=mostly_newest)
    def swap(self, collection: str, router: int) -> None:
        """Someone asks a router to make the other space the default, by what that router knows."""
        asked = self.some_router(router)
        route = asked.core.table.route(collection)
        target = next(name for name in NAMES if name != route.default)
        change = SwapDefault(route.space(None).id, route.epoch, route.space(target).id)
        self.begin(asked, change, Scope(collection, default=True), frozenset())
        self.look()

    @rule(collection=collection_names, router=mostly_newest, asked_at=st.none() | gateway_numbers)
    def drop(self, collection: str, router: int, asked_at: int | None) -> None:
        """Someone drops a space that is not the default, perhaps in the middle of a query; another takes its name."""
        asked = self.some_router(router)
        route = asked.core.table.route(collection)
        name = next(name for name in NAMES if name != route.default)
        old = route.space(name).id
        if asked_at is not None:
            self.begin_query(asked_at, collection, name)
        change = RestartSpace(old, space(collection, name, self.number()))
        self.begin(asked, change, Scope(collection, frozenset({name})), frozenset({old}))
        self.look()

    @precondition(lambda self: self.commits)
    @rule(which=small, heard=st.sampled_from([True, True, False]))
    def commit(self, which: int, heard: bool) -> None:
        """The log decides about a commit, whether or not its router still lives or will ever hear."""
        self.log_decides(*self.commits.pop(which % len(self.commits)))
        if heard:
            self.result_arrives(*self.results.pop())
        self.look()

    @precondition(lambda self: self.results)
    @rule(which=small)
    def hear_result(self, which: int) -> None:
        """A router hears at last what became of its commit."""
        self.result_arrives(*self.results.pop(which % len(self.results)))
        self.look()

    @precondition(lambda self: self.log.claimed < 4)
    @rule(old_lives=st.booleans())
    def new_router(self, old_lives: bool) -> None:
        """The router is killed, or only cut off; another one takes over."""
        if not old_lives:
            del self.routers[self.log.claimed]
        self.start_router()
        self.look()

    @rule(gateway=gateway_numbers)
    def restart_gateway(self, gateway: int) -> None:
        """A gateway is killed, and another one begins in its place."""
        old = self.gateways[gateway]
        self.gateways[gateway] = Gateway(self.holding(), old.skew, old.life + 1)

    @rule(gateway=gateway_numbers, router=mostly_newest)
    def leave(self, gateway: int, router: int) -> None:
        """A gateway ends and says so to the router that it knows; another one begins in its place."""
        self.farewells.append((self.some_router(router).incarnation, f"{gateway}/{self.gateways[gateway].life}"))
        self.ends(gateway)

    def ends(self, gateway: int) -> None:
        self.restart_gateway(gateway)

    @precondition(lambda self: self.farewells)
    @rule(which=small, again=st.booleans())
    def deliver_farewell(self, which: int, again: bool) -> None:
        """A farewell arrives, before or after polls that were sent earlier, perhaps more than once, perhaps never."""
        which %= len(self.farewells)
        incarnation, name = self.farewells[which] if again else self.farewells.pop(which)
        if router := self.routers.get(incarnation):
            self.handle(router, Left(name, self.now + router.skew))
        self.look()

    @rule(gateway=gateway_numbers, collection=collection_names, name=st.sampled_from([None, *NAMES]))
    def begin_query(self, gateway: int, collection: str, name: str | None) -> None:
        """A query is routed, and stays in flight."""
        g = self.gateways[gateway]
        if g.holding.leased(self.now + g.skew) and not g.holding.fenced(collection, name):
            g.queries.append(g.holding.begin(collection, name))

    @rule(gateway=gateway_numbers)
    def end_query(self, gateway: int) -> None:
        """A query is answered."""
        g = self.gateways[gateway]
        if g.queries:
            g.holding.end(g.queries.pop(0))
