"""The loop of an index goes on, whatever its step does."""

from __future__ import annotations

import asyncio

from waiting import until

from compass.errors import UnavailableError
from compass.index.pace import Pace
from compass.index.poller import Poller

NEVER_S = 3_600.0


async def test_a_step_is_made_when_it_is_due() -> None:
    """Nobody waits for the next poll who says that there is something to do."""
    due, steps = asyncio.Event(), list[int]()

    async def step() -> None:
        steps.append(len(steps))

    poller = Poller("it", step, due, Pace(poll_s=NEVER_S))
    for count in (1, 2):
        due.set()
        await until(lambda count=count: len(steps) == count, 30)  # type: ignore[misc]
    await poller.close()


async def test_an_error_is_told_until_a_step_goes_well() -> None:
    """The loop survives what its step raises, foreseen or not, and tells it as long as it lasts."""
    errors: list[Exception] = [UnavailableError("down"), ZeroDivisionError("oops")]
    seen: list[str | None] = []

    async def step() -> None:
        seen.append(poller.error)
        if errors:
            raise errors.pop(0)

    poller = Poller("it", step, asyncio.Event(), Pace(poll_s=0.001, retry_s=0.001))
    await until(lambda: len(seen) >= 4, 30)
    await poller.close()
    assert seen[:4] == [None, "down", "unexpected: ZeroDivisionError: oops", None]
    assert poller.error is None
