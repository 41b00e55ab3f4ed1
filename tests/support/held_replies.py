"""Answers of an embed server that a test lets go when it wants."""

from __future__ import annotations

import asyncio
from collections import deque


class HeldReplies:
    """As the `reply` of an embed server: requests stand still until they are let go; then they have their vectors."""

    def __init__(self) -> None:
        self._held: deque[asyncio.Future[None]] = deque()
        self._open = False

    async def __call__(self, texts: list[str]) -> None:
        """Hold one request, in the server's own event loop."""
        if not self._open:
            future = asyncio.get_running_loop().create_future()
            self._held.append(future)
            if not self._open:  # nobody may have opened meanwhile
                await future

    @property
    def count(self) -> int:
        """Requests that stand still now."""
        return len(self._held)

    def release(self, count: int = 1) -> None:
        """Let so many go, the oldest first."""
        for _ in range(count):
            future = self._held.popleft()
            future.get_loop().call_soon_threadsafe(_finish, future)

    def open(self) -> None:
        """Let all go, and hold no more."""
        self._open = True
        self.release(self.count)


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
