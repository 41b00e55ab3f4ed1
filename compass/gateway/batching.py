"""Natural batching: queries that queue while a call is out travel together in the next; none waits on a timer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from compass.domain.rebuild.status import QuarantinedChunk, RebuildStatus
from compass.domain.search.query import Hit, Query
from compass.domain.space import SpaceStats
from compass.gateway.ports import SpaceIndex

MAX_BATCH = 64


class BatchedIndex:
    """A space index whose queries travel several in a call, at most `max_calls` calls at once."""

    def __init__(self, index: SpaceIndex, max_calls: int = 2) -> None:
        """Ask `index`."""
        self._index = index
        self._waiting: list[tuple[Query, asyncio.Future[list[Hit]]]] = []
        self._free = max_calls
        self._calls: set[asyncio.Task[None]] = set()

    async def search(self, queries: Sequence[Query]) -> list[list[Hit]]:
        """The hits of each query; raises what the call that carried it raised."""
        return list(await asyncio.gather(*(self._one(query) for query in queries)))

    async def follow(self, seq: int, wait_s: float) -> int:
        """As the index says."""
        return await self._index.follow(seq, wait_s)

    async def stats(self) -> SpaceStats:
        """As the index says."""
        return await self._index.stats()

    async def quarantine(self, after: int, limit: int) -> list[QuarantinedChunk]:
        """As the index says."""
        return await self._index.quarantine(after, limit)

    async def rebuild_status(self) -> RebuildStatus:
        """As the index says."""
        return await self._index.rebuild_status()

    async def _one(self, query: Query) -> list[Hit]:
        answer: asyncio.Future[list[Hit]] = asyncio.get_running_loop().create_future()
        self._waiting.append((query, answer))
        if self._free:
            self._free -= 1
            call = asyncio.get_running_loop().create_task(self._drain())
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)
        return await answer

    async def _drain(self) -> None:
        """Send what waits, until nothing does."""
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
                await self._send([(query, answer) for query, answer in batch if not answer.done()])
        finally:
            self._free += 1

    async def _send(self, batch: list[tuple[Query, asyncio.Future[list[Hit]]]]) -> None:
        if not batch:  # those who asked have gone
            return
        try:
            hits = await self._index.search([query for query, _ in batch])
            answered = list(zip(batch, hits, strict=True))
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to those who asked
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(error)
            return
        for (_, answer), own in answered:
            if not answer.done():
                answer.set_result(own)
