"""What keeps a space's graph fast and its restart short; queries and writes never wait for it."""

from __future__ import annotations

import asyncio

from compass.index.follower import Follower
from compass.index.pace import Pace
from compass.index.vector.search import SpaceSearch
from compass.storage.spaces.vectors import SpaceVectors

SETTLED_ROWS = 256  # of the exact tail, in one go


class Housekeeping:
    """Tidies the owner's index, and saves its graph."""

    def __init__(self, follower: Follower, vectors: SpaceVectors, pace: Pace) -> None:
        self._follower, self._vectors, self._pace = follower, vectors, pace
        self._saved_rows: int | None = None
        self._tidying: asyncio.Task[None] | None = None

    def tidy_aside(self) -> None:
        """Begin to tidy, unless that is under way; raises what went wrong the last time."""
        before = self._tidying
        if before is None or before.done():
            self._tidying = asyncio.get_running_loop().create_task(self._tidy())
            if before is not None:
                before.result()

    async def close(self, keep: bool) -> None:
        """Tidy no more, and save the graph if it is to be kept and has changed."""
        if self._tidying is not None:
            self._tidying.cancel()
            await asyncio.gather(self._tidying, return_exceptions=True)
        if keep and self._follower.is_open and await self._grown():
            await self._save()

    async def _tidy(self) -> None:
        """Move the exact tail into the graph, build a graph full of dead rows anew, save what has grown."""
        search = await self._follower.ready()
        while await asyncio.to_thread(search.settle, SETTLED_ROWS):
            pass
        if search.compact_due():
            await self._follower.run_in_builder(SpaceSearch.compact)
        grown, saved_rows = await self._grown(), self._rows_in_snapshot()
        is_due = grown > self._pace.save_rows and grown > self._pace.save_growth * saved_rows
        if is_due and not self._follower.is_rebuilding:
            await self._save()

    async def _grown(self) -> int:
        """How many rows the index has more than its saved graph; negative where it has fewer."""
        return len(await self._follower.ready()) - self._rows_in_snapshot()

    def _rows_in_snapshot(self) -> int:
        return self._follower.saved_rows if self._saved_rows is None else self._saved_rows

    async def _save(self) -> None:
        search = await self._follower.ready()
        rows = len(search)
        await asyncio.to_thread(self._vectors.save_index, search.save, {"rows": rows, "seq": self._follower.seq})
        self._saved_rows = rows
