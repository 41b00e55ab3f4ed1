"""The collections of the service: open or not yet, and each changed by one caller at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

from compass.control.indexes import Indexes
from compass.control.ports import Cluster
from compass.control.publisher import Publisher
from compass.control.timings import RouterTimings
from compass.control.transitions import CollectionChange
from compass.errors import UnavailableError


class Registry:
    """Hands out collections to be changed, once the service is open."""

    def __init__(self, cluster: Cluster, publisher: Publisher, indexes: Indexes, timings: RouterTimings) -> None:
        """Nothing is handed out before `mark_open`."""
        self._cluster, self._publisher, self._indexes, self._timings = cluster, publisher, indexes, timings
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._open = asyncio.Event()

    def mark_open(self) -> None:
        """Say that the table is whole."""
        self._open.set()

    async def until_open(self) -> None:
        """Wait for the table to be whole.

        Raises:
            UnavailableError: that takes long.
        """
        try:
            async with asyncio.timeout(self._timings.open_wait_s):
                await self._open.wait()
        except TimeoutError:
            raise UnavailableError("the service is still opening its collections", {"retry_after": 1}) from None

    @asynccontextmanager
    async def changing(self, name: str) -> AsyncIterator[CollectionChange]:
        """A collection, there or not, that nobody else changes meanwhile; other collections never notice.

        Raises:
            UnavailableError: the service is still opening.
        """
        await self.until_open()
        async with self._locks.setdefault(name, asyncio.Lock()):
            yield CollectionChange(name, self._cluster, self._publisher, self._indexes, self._timings.settle_s)
