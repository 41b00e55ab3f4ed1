"""A gateway's routing table: kept up to date by long polls, answered from under a lease."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from compass.clock import Clock
from compass.domain.routing.lease import Ack, Directive, Holding, Routed
from compass.domain.routing.table import RoutingTable
from compass.errors import TakenOverError, UnavailableError

log = logging.getLogger(__name__)

HOLD_S = 1.0  # how long a query waits for a fence to fall, or for a lease
FIRST_BACKOFF_S, LAST_BACKOFF_S = 0.05, 0.25  # well below HOLD_S: a query in need of a lease waits for these

Poll = Callable[[Ack], Awaitable[Directive]]


class RouteTable:
    """Routes queries by the newest table, as long as the router says that it still is the newest."""

    def __init__(
        self,
        gateway_id: str,
        poll: Poll,
        clock: Clock,
        lease_s: float,
        *,
        hold_s: float = HOLD_S,
        on_table: Callable[[RoutingTable], None] = lambda table: None,
    ) -> None:
        """Begin with nothing; `run` fills it.

        Args:
            gateway_id: For the log; the same as `poll` gives the router, and unique to this process.
            poll: Asks the router. It looks the router up each time, for a restarted one is another actor.
            clock: Seconds, CLOCK_BOOTTIME in production.
            lease_s: The router's; a poll without an answer is given up after half of it.
            hold_s: How long a query waits, for a fence or a lease, before it is turned away.
            on_table: Called with each new table.
        """
        self._on_table = on_table
        self._id, self._poll, self._clock = gateway_id, poll, clock
        self._lease_s, self._hold_s = lease_s, hold_s
        self._holding = Holding()
        self._news = asyncio.Event()  # replaced at each directive: who waits on one is woken by the next
        self._drained = asyncio.Event()

    @property
    def table(self) -> RoutingTable:
        """The newest table that has arrived, whether or not the lease still runs."""
        return self._holding.table

    @property
    def ready(self) -> bool:
        """Whether a query would be answered from the table now."""
        return self._holding.leased(self._clock())

    def epoch_of(self, collection: str) -> int:
        """The epoch of a collection.

        Raises:
            NotFoundError: there is none of this name.
        """
        return self._holding.table.route(collection).epoch

    async def current(self) -> RoutingTable:
        """The table, under a lease; for what no change of it need hold up.

        Raises:
            UnavailableError: the lease has run out and the router does not renew it in time.
        """
        if not self.ready:
            await self._wait(self._without_lease)
        return self._holding.table

    async def joined(self, wait_s: float) -> bool:
        """Wait for the first word of the router, but not for ever; whether it has come."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                while not self.ready:
                    await self._news.wait()
        return self.ready

    @asynccontextmanager
    async def route(self, collection: str, space: str | None = None) -> AsyncIterator[Routed]:
        """Where a query goes, to a space by name or to the default for None; in flight until the block ends.

        Raises:
            UnavailableError: the lease has run out and the router does not renew it, or the change that the
                query waits for takes longer than a query may wait.
            NotFoundError: there is no such collection or space.
            SpaceNotActiveError: the space is building or failed.
        """
        if self._obstacle(collection, space):
            await self._wait(lambda: self._obstacle(collection, space))
        routed = self._holding.begin(collection, space)
        try:
            yield routed
        finally:
            if self._holding.end(routed):
                self._drained.set()  # a drop waits for this word

    async def run(self) -> None:
        """Poll for ever; whatever a poll raises is logged and tried again."""
        backoff_s = 0.0
        while True:
            try:
                await self._renew()
            except Exception as error:  # noqa: BLE001 - this loop is the gateway's life line
                if not backoff_s:
                    log.warning("gateway %s has lost the router, and goes on asking: %r", self._id, error)
                backoff_s = min(max(2 * backoff_s, FIRST_BACKOFF_S), LAST_BACKOFF_S)
                await asyncio.sleep(backoff_s)
            else:
                if backoff_s:
                    log.info("gateway %s has found the router again", self._id)
                backoff_s = 0.0

    def leave(self) -> None:
        """Answer nothing any more. Call it when `run` has ended, before the router is told."""
        self._holding = Holding()

    # ---- the query's side

    def _obstacle(self, collection: str, space: str | None) -> str | None:
        """Why a query has to wait, or None."""
        if why := self._without_lease():
            return why
        if self._holding.fenced(collection, space):
            return f"waits for a change of collection {collection!r} to be known everywhere"
        return None

    def _without_lease(self) -> str | None:
        return None if self.ready else "has no word from the router"

    async def _wait(self, obstacle: Callable[[], str | None]) -> None:
        why: str | None = None
        try:
            async with asyncio.timeout(self._hold_s):
                while why := obstacle():
                    await self._news.wait()
        except TimeoutError:
            raise UnavailableError(f"this gateway {why}; try again", {"retry_after": 1}) from None

    # ---- the router's side

    async def _renew(self) -> None:
        """One poll, and what it answers; cut short when a removed space is drained, for that is news."""
        self._drained.clear()
        sent_at, ack = self._clock(), self._holding.ack()
        poll = asyncio.ensure_future(self._poll(ack))
        drained = asyncio.ensure_future(self._drained.wait())
        try:
            async with asyncio.timeout(self._lease_s / 2):
                await asyncio.wait([poll, drained], return_when=asyncio.FIRST_COMPLETED)
            if poll.done():
                self._receive(poll.result(), sent_at)
        finally:
            poll.cancel()
            drained.cancel()

    def _receive(self, directive: Directive, sent_at: float) -> None:
        if directive.stamp[0] < self._holding.stamp[0]:
            raise TakenOverError(f"router {directive.stamp[0]} has answered, there is {self._holding.stamp[0]} now")
        self._holding.receive(directive, sent_at)
        if directive.table is not None:
            self._on_table(self._holding.table)
        self._news.set()
        self._news = asyncio.Event()
