"""The router's voice: carries out what the publication's state machine says, on one event loop."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from compass.clock import Clock
from compass.domain.routing.publication import (
    DRAIN_S,
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
from compass.domain.routing.table import RoutingTable
from compass.errors import TakenOverError

log = logging.getLogger(__name__)

Commit = Callable[[], Awaitable[Update]]

LONGEST_SLEEP_S = 1.0  # the loop's own timers stand still while the machine is suspended, the clock does not


@dataclass(frozen=True, slots=True)
class _Open:
    commit: Commit
    done: asyncio.Future[None]


class Publisher:
    """Publishes the routing table to the gateways, and changes it so that no two of them ever disagree.

    Not thread-safe: everything happens on the loop of the first call.
    """

    def __init__(
        self,
        incarnation: int,
        lease_s: float,
        clock: Clock,
        first: bool,
        table: RoutingTable | None = None,
        *,
        latest: Callable[[], Awaitable[int]] | None = None,
        drain_s: float = DRAIN_S,
    ) -> None:
        """Begin to publish; nobody is answered before the first poll.

        Args:
            incarnation: Claimed by the caller before this; greater than any before.
            lease_s: How long a gateway may answer without a word from here; not shorter than a predecessor's.
            clock: Seconds, CLOCK_BOOTTIME in production.
            first: Whether no router was ever before. Otherwise the first transition waits `lease_s`.
            table: What the logs say, read after the claim; or nothing yet, and then `replace` before the
                first poll.
            latest: Reads the greatest incarnation that anyone has claimed. It is asked every eighth of a
                lease; while it fails, leases end `lease_s` after the last success. Without it nothing ends a
                superseded router that still reaches a gateway.
            drain_s: How long `drained` waits for queries that are still on a removed space.
        """
        self._incarnation, self._lease_s, self._clock, self._latest = incarnation, lease_s, clock, latest
        self._confirmed_at = clock()
        self._core = Publication(
            incarnation,
            table or RoutingTable(),
            lease_s,
            self._confirmed_at,
            first=first,
            checked=latest is not None,
            drain_s=drain_s,
        )
        self._numbers = itertools.count(1)
        self._polls: dict[int, asyncio.Future[Directive]] = {}
        self._transitions: dict[int, _Open] = {}
        self._drains: dict[int, asyncio.Future[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._confirming: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._superseded_by: int | None = None

    @property
    def table(self) -> RoutingTable:
        """The newest table, published or about to be."""
        return self._core.table

    @property
    def superseded(self) -> bool:
        """Whether a newer router has taken over; this one refuses everything from then on."""
        return self._superseded_by is not None

    @property
    def last_renewal(self) -> float:
        """When the last poll arrived, on the clock given; the start before the first."""
        return self._core.last_renewal

    def gateways(self) -> set[str]:
        """The gateways that may hold a lease now."""
        return self._core.gateways(self._clock())

    async def poll(self, gateway: str, ack: Ack) -> Directive:
        """Answer a gateway's long poll, at once if there is news for it, else after a quarter of a lease.

        Args:
            gateway: Unique to one life of one gateway process; a restarted one has another.
            ack: What it has applied.

        Raises:
            TakenOverError: another router has taken over.
        """
        await self._confirm_claim()
        self._refuse_if_superseded()
        number = next(self._numbers)
        answer: asyncio.Future[Directive] = asyncio.get_running_loop().create_future()
        self._polls[number] = answer
        try:
            self._handle(PollArrived(number, gateway, ack, self._clock()))
            return await answer
        finally:
            if self._polls.pop(number, None):
                self._handle(PollGone(number, self._clock()))

    def leave(self, gateway: str) -> None:
        """Wait no more for a gateway that has stopped answering for good; it must not poll any more."""
        self._handle(Left(gateway, self._clock()))

    async def transition(self, scope: Scope, commit: Commit) -> None:
        """Fence a scope at every gateway, commit, publish; on return nobody answers from the table before.

        One at a time per collection, others queue; several collections go side by side. It goes on to its end
        when the caller is cancelled.

        Args:
            scope: Which queries wait meanwhile. An empty one: none.
            commit: Makes the change durable and returns what it does to the table. It is called once, when
                all gateways are fenced. If it raises, the change must be certain never to happen, for the
                fence is lifted then: it settles a lost answer itself.

        Raises:
            TakenOverError: another router has taken over; the change may have happened.
            CompassError: what `commit` raised; nothing has changed.
        """
        self._refuse_if_superseded()
        op = next(self._numbers)
        done = asyncio.get_running_loop().create_future()
        done.add_done_callback(lambda future: future.cancelled() or future.exception())  # a caller may be gone
        self._transitions[op] = _Open(commit, done)
        self._handle(Begin(op, scope, self._clock()))
        await asyncio.shield(done)

    async def drained(self, spaces: frozenset[str]) -> None:
        """Wait for the queries in flight on spaces, by id, that a transition has taken away; at most `drain_s`.

        Transitions go on meanwhile.

        Raises:
            TakenOverError: another router has taken over.
        """
        self._refuse_if_superseded()
        op = next(self._numbers)
        self._drains[op] = asyncio.get_running_loop().create_future()
        try:
            done = self._drains[op]
            self._handle(Drain(op, spaces, self._clock()))
            await done
        finally:
            self._drains.pop(op, None)

    def replace(self, update: Update) -> None:
        """Publish a change without holding or awaiting anyone: at start-up, or where no query can tell."""
        self._handle(Replace(update, self._clock()))

    def tick(self) -> None:
        """Look at the clock; the loop's timer does it, and a test that moves the clock by hand."""
        self._handle(Tick(self._clock()))

    # ---- carrying out

    def _handle(self, event: Event) -> None:
        for instruction in self._core.handle(event):
            self._carry_out(instruction)
        self._arm(event.now)

    def _carry_out(self, instruction: Instruction) -> None:
        match instruction:
            case Answer(poll, directive):
                answer = self._polls.pop(poll, None)
                if answer and not answer.done():
                    answer.set_result(directive)
            case RunCommit(op):
                self._spawn(self._commit(op))
            case Finished(op):
                self._finish(op, None)
            case Drained(op, still):
                if still:
                    log.warning("queries on a removed space are still under way at %s", sorted(still))
                if (drain := self._drains.get(op)) is not None and not drain.done():
                    drain.set_result(None)
            case Superseded(incarnation):
                self._give_way(incarnation)

    async def _commit(self, op: int) -> None:
        if op not in self._transitions:  # given up: another router has taken over
            self._handle(CommitFailed(op, self._clock()))
            return
        try:
            update = await self._transitions[op].commit()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the caller's of `transition`
            self._handle(CommitFailed(op, self._clock()))
            self._finish(op, error)
        else:
            self._handle(Committed(op, update, self._clock()))

    def _finish(self, op: int, error: Exception | None) -> None:
        opened = self._transitions.pop(op, None)
        if opened is None or opened.done.done():
            return
        if error is None:
            opened.done.set_result(None)
        else:
            opened.done.set_exception(error)

    def _spawn(self, work: Awaitable[None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _arm(self, handled: float) -> None:
        """Wake up when the state machine next depends on the time.

        What is due up to `handled` has been done, what is due since then has not: to ask with a newer reading of
        the clock would skip it, and whoever waits for it would wait for ever.
        """
        if self._timer:
            self._timer.cancel()
            self._timer = None
        due = self._core.next_tick(handled)
        if due < float("inf"):
            delay = min(max(0.0, due - self._clock()), LONGEST_SLEEP_S)
            self._timer = asyncio.get_running_loop().call_later(delay, self.tick)

    # ---- authority

    async def _confirm_claim(self) -> None:
        """Re-read the claim when it is getting old; wait for the answer only if leases would become short."""
        if self._latest is None:
            return
        age = self._clock() - self._confirmed_at
        if age > self._lease_s / 8 and self._confirming is None:
            self._confirming = self._spawn(self._confirm(self._latest))
            self._confirming.add_done_callback(lambda _: setattr(self, "_confirming", None))
        if age > self._lease_s / 2 and self._confirming is not None:
            await asyncio.wait([self._confirming], timeout=self._lease_s / 8)

    async def _confirm(self, latest: Callable[[], Awaitable[int]]) -> None:
        at = self._clock()
        try:
            greatest = await latest()
        except Exception as error:  # noqa: BLE001 - a store that does not answer shortens the leases, no more
            log.warning("the router's claim could not be read again: %s", error)
            return
        if greatest > self._incarnation:
            self._give_way(greatest)
            return
        self._confirmed_at = at
        self._handle(Confirmed(at, self._clock()))

    def _give_way(self, incarnation: int) -> None:
        """A newer router is there: refuse everybody, so that they find it."""
        if self._superseded_by is None:
            log.warning("router %d has taken over from router %d", incarnation, self._incarnation)
        self._superseded_by = incarnation
        for op in list(self._transitions):
            self._finish(op, self._taken_over())
        for drain in self._drains.values():
            if not drain.done():
                drain.set_exception(self._taken_over())
        for poll in list(self._polls):
            answer = self._polls.pop(poll)
            if not answer.done():
                answer.set_exception(self._taken_over())

    def _refuse_if_superseded(self) -> None:
        if self.superseded:
            raise self._taken_over()

    def _taken_over(self) -> TakenOverError:
        return TakenOverError(
            f"router {self._superseded_by} has taken over from router {self._incarnation}; ask again",
            {"incarnation": self._superseded_by, "retry_after": 1},
        )
