"""Files reach the index once each, one call at a time, while others land."""

from __future__ import annotations

import asyncio

import pytest

from compass.errors import UnavailableError
from compass.rebuild.backlog import AT_ONCE, Backlog
from compass.rebuild.stage import StageResult


class SlowIndex:
    """Takes files when the test lets it."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.gate = asyncio.Event()
        self.at_once = self.most = 0

    async def load_files(self, keys: list[str]) -> None:
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        await self.gate.wait()
        self.calls.append(keys)
        self.at_once -= 1


async def test_landing_does_not_wait_for_the_index() -> None:
    """While the index is busy files queue up; then each is handed over once, in order, never two calls at once."""
    index = SlowIndex()
    counts: list[int] = []
    backlog = Backlog(index.load_files, counts.append, [StageResult("old", 0)])
    for i in range(10):
        await asyncio.wait_for(backlog.put(StageResult(f"k{i}", 2)), 60)
    index.gate.set()
    await backlog.drain()
    assert [key for call in index.calls for key in call] == ["old", *(f"k{i}" for i in range(10))]
    assert max(map(len, index.calls)) <= AT_ONCE
    assert index.most == 1
    assert sum(counts) == 20


async def test_the_queue_is_bounded() -> None:
    """When too many files wait, landing waits too."""
    index = SlowIndex()
    backlog = Backlog(index.load_files, lambda count: None, limit=3)
    for i in range(3):
        await asyncio.wait_for(backlog.put(StageResult(f"k{i}", 1)), 60)
    blocked = asyncio.create_task(backlog.put(StageResult("k3", 1)))
    await asyncio.sleep(0.02)
    assert not blocked.done()
    index.gate.set()
    await asyncio.wait_for(blocked, 60)
    await backlog.drain()


async def test_a_refusal_of_the_index_reaches_the_run() -> None:
    """An error of the index is raised by the next put or by the drain, not swallowed."""

    async def load_files(keys: list[str]) -> None:
        raise UnavailableError("the index is gone")

    backlog = Backlog(load_files, lambda count: None)
    await backlog.put(StageResult("k", 1))
    with pytest.raises(UnavailableError):
        await backlog.drain()
