"""The loop of an index: one step again and again, whatever goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from compass.errors import CompassError, ConflictError
from compass.index.pace import Pace

log = logging.getLogger(__name__)


class Poller:
    """Repeats a step: as soon as it is due, and at the latest after `poll_s`.

    Attributes:
        error: What went wrong in the last step, for a person; None when it went well.
    """

    def __init__(self, name: str, step: Callable[[], Awaitable[None]], due: asyncio.Event, pace: Pace) -> None:
        """Begin.

        Args:
            name: The beginning of what is logged.
            step: What is repeated; it may raise.
            due: Set by whoever wants a step at once.
            pace: How long to wait between steps, and after one that failed.
        """
        self.error: str | None = None
        self._name, self._step, self._due, self._pace = name, step, due, pace
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Stop, in the middle of a step if need be."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pace.poll_s):  # `wait_for` of Python 3.11 may swallow a cancellation
                    await self._due.wait()
            self._due.clear()
            try:
                await self._step()
                self.error = None
            except CompassError as error:
                self._note(error.detail)
                await asyncio.sleep(self._pace.poll_s if isinstance(error, ConflictError) else self._pace.retry_s)
            except Exception as error:
                log.exception("%s", self._name)
                self._note(f"unexpected: {type(error).__name__}: {error}")
                await asyncio.sleep(self._pace.retry_s)

    def _note(self, error: str) -> None:
        if error != self.error:
            log.warning("%s lags: %s", self._name, error)
        self.error = error
