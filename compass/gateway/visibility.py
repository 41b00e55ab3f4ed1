"""What an acknowledgement waits for: the spaces that follow a collection's log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from compass.clock import Clock
from compass.domain.routing.table import CollectionRoute
from compass.domain.space import Space
from compass.errors import CompassError
from compass.gateway import ports

log = logging.getLogger(__name__)

GRACE_S = 2.0  # how much longer than asked an index may take to answer after a durable write


class Followers:
    """Asks spaces how far they have come; a silent one delays nothing but itself, for the write is durable."""

    def __init__(
        self,
        table: ports.Table,
        indexes: Callable[[Space], ports.SpaceIndex],
        clock: Clock,
        grace_s: float = GRACE_S,
    ) -> None:
        """Ask the spaces of `table`; see `Gateway`."""
        self._table, self._indexes, self._clock, self._grace_s = table, indexes, clock, grace_s

    async def until_findable(self, route: CollectionRoute, seq: int, texts: int, wait_s: float) -> dict[str, int]:
        """Wait for the default space, and for the one that a swap is making the default.

        The table is read again after each wait: an acknowledgement that overlaps a swap holds for both.
        """
        deadline = self._clock() + wait_s
        lacking: dict[str, int] = {}
        while True:
            route = self._newest(route)
            wanted = {route.default, route.next_default} - lacking.keys()
            spaces = [space for space in route.spaces.values() if space.name in wanted]
            if not spaces:
                break
            lacking |= await self.lacking(spaces, seq, texts, max(0.0, deadline - self._clock()))
        others = [s for s in route.spaces.values() if s.name not in lacking and (s.status == "active" or s.follows)]
        lacking |= await self.lacking(others, seq, texts, 0.0)
        return {name: count for name, count in lacking.items() if count}

    def _newest(self, route: CollectionRoute) -> CollectionRoute:
        """The route as it is now; the one that was, once the collection is gone."""
        now = self._table.table.collections.get(route.name, route)
        return now if now.uuid == route.uuid else route

    async def lacking(self, spaces: Iterable[Space], seq: int, texts: int, wait_s: float) -> dict[str, int]:
        """By space, how many chunks it lacks after `wait_s`; all of this write where it does not answer.

        The write is durable: an index that is silent delays nothing but itself.
        """

        async def lag_at(space: Space) -> tuple[str, int]:
            try:
                async with asyncio.timeout(wait_s + self._grace_s):
                    return space.name, await self._indexes(space).follow(seq, wait_s)
            except (TimeoutError, CompassError) as error:
                log.warning("vector space %s has not confirmed commit %d: %s", space.name, seq, error or "timeout")
                return space.name, texts

        return dict(await asyncio.gather(*(lag_at(space) for space in spaces)))
