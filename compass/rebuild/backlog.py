"""Files that have landed and wait for the index: embedding and building overlap, and memory stays flat."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from compass.rebuild.stage import StageResult

AT_ONCE = 4  # files of one call: the progress moves with each


class Backlog:
    """Hands files to the index, one call at a time, while the next ones land."""

    def __init__(
        self,
        load_files: Callable[[list[str]], Awaitable[None]],
        loaded: Callable[[int], None],
        waiting: Sequence[StageResult] = (),
        *,
        limit: int = 64,
    ) -> None:
        """Begin with what waits already.

        Args:
            load_files: Takes keys of files.
            loaded: Hears how many chunks became findable.
            waiting: Files of an earlier run; `put` and `drain` hand them over with the others.
            limit: How many files may wait before the embedding does.
        """
        self._load_files, self._loaded, self._limit = load_files, loaded, limit
        self._waiting = list(waiting)
        self._task: asyncio.Task[None] | None = None

    async def put(self, result: StageResult) -> None:
        """Queue a file; waits for the index only when too many wait.

        Raises:
            CompassError: the index has not taken an earlier file.
        """
        self._waiting.append(result)
        if self._task is None or self._task.done() or len(self._waiting) >= self._limit:
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
        batch, self._waiting = self._waiting[:AT_ONCE], self._waiting[AT_ONCE:]
        self._task = asyncio.create_task(self._load(batch))

    async def _settle(self) -> None:
        if self._task is not None:
            await self._task

    async def _load(self, results: list[StageResult]) -> None:
        await self._load_files([result.key for result in results if result.key is not None])
        self._loaded(sum(result.count for result in results))
