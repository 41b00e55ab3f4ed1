"""How a change of the routing table becomes true everywhere at once: the router's side, pure.

Events in, instructions out; no clock, no sockets, no asyncio. A transition goes through

    gather ─▶ fence ─▶ commit ─▶ publish ─▶ finished
       ▲        │ a gateway is silent: do not hold queries for its sake, wait without the fence
       └────────┘

and there is one at a time per collection. A change that takes a space away is followed by a drain, which holds up no
other change. `docs/swap-protocol.md` says why each step is there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from compass.domain.routing.lease import Ack, Directive, Fence, Holding, Leases, Routed, Scope, Stamp
from compass.domain.routing.table import RoutingTable

__all__ = [
    "Ack",
    "Answer",
    "Begin",
    "CommitFailed",
    "Committed",
    "Confirmed",
    "Directive",
    "Drain",
    "Drained",
    "Event",
    "Fence",
    "Finished",
    "Holding",
    "Instruction",
    "PollArrived",
    "PollGone",
    "Publication",
    "Replace",
    "Routed",
    "RunCommit",
    "Scope",
    "Stamp",
    "Superseded",
    "Tick",
    "Update",
]

Update = Callable[[RoutingTable], RoutingTable]

DRAIN_S = 30.0  # how long a drop that is published waits for the queries that are still on the space
PATIENCE_S = 0.5  # how long queries are held for a gateway that does not acknowledge; below what a query waits
ATTEMPTS = 3  # fences of one transition; the last one stays up, so that every transition ends


@dataclass(frozen=True, slots=True)
class PollArrived:
    """A gateway asks for the next directive; `poll` is a number of the shell's, new for each."""

    poll: int
    gateway: str
    ack: Ack
    now: float


@dataclass(frozen=True, slots=True)
class PollGone:
    """Nobody waits for the answer of this poll any more."""

    poll: int
    now: float


@dataclass(frozen=True, slots=True)
class Left:
    """A gateway has stopped answering for good; it will take no lease any more."""

    gateway: str
    now: float


@dataclass(frozen=True, slots=True)
class Begin:
    """A transition is wanted."""

    op: int
    scope: Scope
    now: float


@dataclass(frozen=True, slots=True)
class Drain:
    """A finished transition has taken these spaces, by id, away: who asks them still is waited for."""

    op: int
    spaces: frozenset[str]
    now: float


@dataclass(frozen=True, slots=True)
class Committed:
    """The change is in the log; `update` gives the table that says so."""

    op: int
    update: Update
    now: float


@dataclass(frozen=True, slots=True)
class CommitFailed:
    """The change is not in the log, and never will be."""

    op: int
    now: float


@dataclass(frozen=True, slots=True)
class Replace:
    """The table changes without a fence: at start-up, or where no query can tell."""

    update: Update
    now: float


@dataclass(frozen=True, slots=True)
class Confirmed:
    """A reading of the claimed incarnation that began `at` found this router the newest."""

    at: float
    now: float


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""

    now: float


Event = PollArrived | PollGone | Left | Begin | Drain | Committed | CommitFailed | Replace | Confirmed | Tick


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer a poll."""

    poll: int
    directive: Directive


@dataclass(frozen=True, slots=True)
class RunCommit:
    """Run the commit of a transition, then say `Committed` or `CommitFailed`."""

    op: int


@dataclass(frozen=True, slots=True)
class Finished:
    """A transition is over: all who may answer know."""

    op: int


@dataclass(frozen=True, slots=True)
class Drained:
    """Nobody who holds a lease has a query on the removed spaces any more, or the drain's time is up.

    Attributes:
        still: Gateways that have one nevertheless.
    """

    op: int
    still: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Superseded:
    """A gateway has heard of a newer router: this one has nothing to say any more."""

    incarnation: int


Instruction = Answer | RunCommit | Finished | Drained | Superseded


class Phase(Enum):
    """Where a transition is."""

    GATHER = auto()
    FENCE = auto()
    COMMIT = auto()
    PUBLISH = auto()


@dataclass(slots=True)
class _Transition:
    op: int
    scope: Scope
    phase: Phase = Phase.GATHER
    fence: Fence | None = None
    attempts: int = 0
    waiting: set[str] = field(default_factory=set)  # gateways that have to acknowledge `revision`
    revision: int = 0
    deadline: float = float("inf")


@dataclass(frozen=True, slots=True)
class _Poll:
    id: int
    stamp: Stamp
    arrived: float


class Publication:
    """The router's state machine: who holds which table under which lease, and what is being changed.

    Attributes:
        table: The newest table; its version is the revision that published it.
        last_renewal: When the last poll arrived; the start before the first.
    """

    def __init__(
        self,
        incarnation: int,
        table: RoutingTable,
        lease_s: float,
        now: float,
        *,
        first: bool,
        checked: bool = False,
        drain_s: float = DRAIN_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """Begin as the router of an incarnation.

        Args:
            incarnation: Greater than that of any router before.
            table: What the log says, read after the incarnation was claimed.
            lease_s: How long a gateway may answer without a word; the same as the predecessor's or longer.
            now: An instant after the claim.
            first: Whether there never was another router. Otherwise no transition begins before every lease
                has run out that a predecessor may have given.
            checked: Whether `Confirmed` will be told; see `Leases`.
            drain_s: How long to wait for the queries on a removed space.
            patience_s: How long to hold queries for a gateway that is silent.
        """
        self._incarnation, self._revision = incarnation, 1
        self.table = replace(table, incarnation=incarnation, version=self._revision)
        self.last_renewal = now
        self._alone_from = now if first else now + lease_s
        self._hold_s, self._drain_s, self._patience_s = lease_s / 4, drain_s, patience_s
        self._leases = Leases(lease_s, now, checked=checked)
        self._acks: dict[str, Ack] = {}
        self._polls: dict[str, _Poll] = {}
        self._queues: dict[str, deque[_Transition]] = {}
        self._drains: dict[int, Drain] = {}

    @property
    def stamp(self) -> Stamp:
        """What a gateway that knows everything has acknowledged."""
        return (self._incarnation, self._revision)

    @property
    def fences(self) -> tuple[Fence, ...]:
        """The fences in force."""
        return tuple(queue[0].fence for queue in self._queues.values() if queue[0].fence)

    def gateways(self, now: float) -> set[str]:
        """Those that may hold a lease of this router's."""
        return self._leases.live(now)

    def handle(self, event: Event) -> list[Instruction]:
        """Take an event; what is to be done now, in order."""
        out: list[Instruction] = []
        match event:
            case PollArrived():
                out += self._arrive(event)
            case PollGone(poll):
                self._polls = {g: p for g, p in self._polls.items() if p.id != poll}
            case Left(gateway):
                self._leases.release(gateway)
                self._acks.pop(gateway, None)
                if left := self._polls.pop(gateway, None):
                    out.append(Answer(left.id, Directive(self.stamp, 0.0)))
            case Begin(op, scope):
                self._queues.setdefault(scope.collection, deque()).append(_Transition(op, scope))
            case Drain(op):
                self._drains[op] = event
            case Committed(op, update):
                self._publish(self._find(op), update, event.now)
            case CommitFailed(op):
                self._abandon(self._find(op))
            case Replace(update):
                self._update(update)
            case Confirmed(at):
                self._leases.confirm(at)
            case Tick():
                known = self._leases.live(event.now) | self._polls.keys()
                self._acks = {g: ack for g, ack in self._acks.items() if g in known}
        return out + self._advance(event.now) + self._drained(event.now) + self._answer(event.now)

    def next_tick(self, now: float) -> float:
        """When to say `Tick` next; infinity if only other events can change anything."""
        times = [poll.arrived + self._hold_s for poll in self._polls.values()]
        for transition in (queue[0] for queue in self._queues.values()):
            times += [self._leases.until(gateway) for gateway in transition.waiting]
            times += [transition.deadline, self._alone_from]
        for drain in self._drains.values():
            times += [self._leases.until(gateway) for gateway in self._still(drain)]
            times.append(drain.now + self._drain_s)
        return min((time for time in times if time > now), default=float("inf"))

    # ---- polls

    def _arrive(self, event: PollArrived) -> list[Instruction]:
        self.last_renewal = event.now
        if event.ack.stamp[0] > self._incarnation:
            return [Superseded(event.ack.stamp[0])]
        older = self._polls.pop(event.gateway, None)
        out = [self._directive(event.gateway, older)] if older else []
        if event.ack.stamp >= self._acks.get(event.gateway, Ack()).stamp:
            self._acks[event.gateway] = event.ack
        self._polls[event.gateway] = _Poll(event.poll, event.ack.stamp, event.now)
        return out

    def _answer(self, now: float) -> list[Instruction]:
        """Answer the polls of those who lack something, and those that have waited long enough."""
        due = {
            gateway: poll
            for gateway, poll in self._polls.items()
            if poll.stamp < self.stamp or now >= poll.arrived + self._hold_s
        }
        for gateway in due:
            del self._polls[gateway]
        return [self._directive(gateway, poll) for gateway, poll in due.items()]

    def _directive(self, gateway: str, poll: _Poll) -> Instruction:
        lease_s = self._leases.grant(gateway, poll.arrived)
        table = self.table if poll.stamp < self.table.stamp else None
        return Answer(poll.id, Directive(self.stamp, lease_s, self.fences, table))

    # ---- transitions

    def _advance(self, now: float) -> list[Instruction]:
        """Let every collection's transition go as far as it can."""
        out: list[Instruction] = []
        for collection in list(self._queues):
            while self._queues[collection] and self._step(self._queues[collection], now, out):
                pass
            if not self._queues[collection]:
                del self._queues[collection]
        return out

    def _step(self, queue: deque[_Transition], now: float, out: list[Instruction]) -> bool:
        """Take the first transition of a queue one phase on, if it can go."""
        t = queue[0]
        t.waiting = {gateway for gateway in t.waiting if self._awaited(gateway, t, now)}
        match t.phase:
            case Phase.GATHER if not t.waiting and now >= self._alone_from:
                self._raise_fence(t, now)
            case Phase.FENCE if not t.waiting:
                t.phase = Phase.COMMIT
                out.append(RunCommit(t.op))
            case Phase.FENCE if now >= t.deadline and t.attempts < ATTEMPTS:
                self._lower_fence(t)
            case Phase.PUBLISH if not t.waiting:
                out.append(Finished(t.op))
                queue.popleft()
            case _:
                return False
        return True

    def _awaited(self, gateway: str, t: _Transition, now: float) -> bool:
        """Whether a transition has to wait for a gateway: it may hold a lease and has not acknowledged."""
        if now >= self._leases.until(gateway):
            return False
        return self._acks.get(gateway, Ack()).stamp < (self._incarnation, t.revision)

    def _require_acks(self, t: _Transition, now: float) -> None:
        # Only of those who hold a lease now: who comes later gets this revision with its first lease.
        t.revision, t.waiting = self._revision, self._leases.live(now)

    def _raise_fence(self, t: _Transition, now: float) -> None:
        t.phase, t.attempts = Phase.FENCE, t.attempts + 1
        t.deadline = now + self._patience_s
        if t.scope.empty:
            return
        self._revision += 1
        t.fence = Fence(self._revision, t.scope)
        self._require_acks(t, now)

    def _lower_fence(self, t: _Transition) -> None:
        """Let queries go on while a silent gateway's lease runs out; nothing has been committed yet."""
        self._revision += 1
        t.phase, t.fence, t.revision = Phase.GATHER, None, self._revision

    def _publish(self, t: _Transition, update: Update, now: float) -> None:
        t.phase, t.fence = Phase.PUBLISH, None
        self._update(update)
        self._require_acks(t, now)

    def _abandon(self, t: _Transition) -> None:
        if t.fence:
            self._revision += 1
        self._queues[t.scope.collection].popleft()

    def _update(self, update: Update) -> None:
        table = update(self.table)
        self._revision += 1
        self.table = replace(table, incarnation=self._incarnation, version=self._revision)

    def _find(self, op: int) -> _Transition:
        return next(q[0] for q in self._queues.values() if q[0].op == op and q[0].phase is Phase.COMMIT)

    # ---- drains

    def _drained(self, now: float) -> list[Instruction]:
        """The drains that are over: a gateway without a lease is not waited for, as in a transition."""
        done: list[Instruction] = []
        for op, drain in list(self._drains.items()):
            still = self._still(drain)
            if now >= drain.now + self._drain_s or all(now >= self._leases.until(gateway) for gateway in still):
                done.append(Drained(op, still))
                del self._drains[op]
        return done

    def _still(self, drain: Drain) -> frozenset[str]:
        return frozenset(g for g, ack in self._acks.items() if not drain.spaces.isdisjoint(ack.draining))
