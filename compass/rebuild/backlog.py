"""Files that have landed and wait for the index: embedding and building overlap, and memory stays flat."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from compass.rebuild.stage import Filled

AT_ONCE = 4  # files of one call: the progress moves with each
LIMIT = 64  # files that may wait before the embedding does


class Backlog:
    """Hands files to the index, one call at a time, while the next ones land."""

    def __init__(
        self,
        load_files: Callable[[list[str]], Awaitable[None]],
        loaded: Callable[[int], None],
        waiting: Sequence[Filled] = (),
    ) -> None:
        """Begin with what waits already.

        Args:
            load_files: Takes keys of files.
            loaded: Hears how many chunks became findable.
            waiting: Files of an earlier run; `put` and `drain` hand them over with the others.
        """
        self._load_files, self._loaded = load_files, loaded
        self._waiting = list(waiting)
        self._task: asyncio.Task[None] | None = None

    async def put(self, filled: Filled) -> None:
        """Queue a file; waits for the index only when too many wait.

        Raises:
            CompassError: the index has not taken an earlier file.
        """
        self._waiting.append(filled)
        if self._task is None or self._task.done() or len(self._waiting) >= LIMIT:
            await self._next()

    async def drain(self) -> None:
        """Return when the index has taken everything."""
        while self._waiting:
            await self._next()
        await self._settle()

    def drop(self) -> None:
        """Stop handing over; the files stay where they are."""
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()

    async def _next(self) -> None:
        await self._settle()
        taken, self._waiting = self._waiting[:AT_ONCE], self._waiting[AT_ONCE:]
        self._task = asyncio.create_task(self._take(taken))

    async def _settle(self) -> None:
        if self._task is not None:
            await self._task

    async def _take(self, files: list[Filled]) -> None:
        await self._load_files([f.key for f in files if f.key is not None])
        self._loaded(sum(f.count for f in files))
