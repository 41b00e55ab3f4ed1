"""Queries that queue while a call is out travel together; each gets its own answer, or its call's error."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
from waiting import until

from compass.domain.chunk import Chunk
from compass.domain.rebuild.status import QuarantinedChunk, RebuildStatus
from compass.domain.search.query import Hit, Query
from compass.domain.space import SpaceStats
from compass.errors import UnavailableError
from compass.gateway.batching import MAX_BATCH, BatchedIndex


class Index:
    """Answers each query by its own `top_k`, when the gate is open."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.short = False

    async def search(self, queries: Sequence[Query]) -> list[list[Hit]]:
        self.calls.append([q.top_k for q in queries])
        await self.gate.wait()
        if self.error:
            raise self.error
        return [[hit(q.top_k)] for q in queries][: -1 if self.short else None]

    async def follow(self, seq: int, wait_s: float) -> int:
        return seq

    async def stats(self) -> SpaceStats:
        return SpaceStats(1, 0, 0, 0, 0)

    async def quarantine(self, after: int, limit: int) -> list[QuarantinedChunk]:
        return []

    async def rebuild_status(self) -> RebuildStatus:
        return RebuildStatus(progress=1.0)


def query(number: int) -> Query:
    return Query(np.ones(2, np.float32), top_k=number)


def hit(number: int) -> Hit:
    return Hit(Chunk(number, 0, 0, "f", 0, "", {}, "chunk", None, None, None, None), 1.0)


async def ask(batched: BatchedIndex, number: int) -> list[int]:
    """The number of a query, as its answer has it."""
    (hits,) = await batched.search([query(number)])
    return [one.chunk.id for one in hits]


def asking(batched: BatchedIndex, numbers: range) -> list[asyncio.Task[list[int]]]:
    return [asyncio.create_task(ask(batched, n)) for n in numbers]


async def turns() -> None:
    """Let every task that can go on do so: none here waits for more than another task."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_what_waits_goes_together() -> None:
    """The first query goes at once; those that come while it is out share the next call, each its own answer."""
    index = Index()
    batched = BatchedIndex(index, max_calls=1)
    index.gate.clear()
    first = asking(batched, range(1, 2))
    await until(lambda: index.calls)
    rest = asking(batched, range(2, 12))
    await turns()
    assert index.calls == [[1]]
    index.gate.set()
    assert await asyncio.gather(*first, *rest) == [[n] for n in range(1, 12)]
    assert index.calls == [[1], list(range(2, 12))]


async def test_a_call_is_bounded_and_nobody_is_forgotten() -> None:
    """However many wait, a call takes at most its share and at most so many calls are out; all are answered."""
    index = Index()
    batched = BatchedIndex(index, max_calls=2)
    index.gate.clear()
    waiting = asking(batched, range(1, 3 * MAX_BATCH))
    await turns()
    assert len(index.calls) == 2
    index.gate.set()
    assert await asyncio.gather(*waiting) == [[n] for n in range(1, 3 * MAX_BATCH)]
    assert max(map(len, index.calls)) <= MAX_BATCH
    assert await ask(batched, 7) == [7]


async def test_an_error_is_everybodys_who_was_in_the_call() -> None:
    """What the call raised reaches each who waited for it, and the next call goes as ever."""
    index = Index()
    batched = BatchedIndex(index)
    index.error = UnavailableError("restarting")
    answers = await asyncio.gather(*asking(batched, range(1, 4)), return_exceptions=True)
    assert [type(a) for a in answers] == [UnavailableError] * 3
    index.error = None
    assert await ask(batched, 5) == [5]


async def test_a_wrong_number_of_answers_leaves_nobody_waiting() -> None:
    """An index that answers too few is an error of the call, not a query that hangs for ever."""
    index = Index()
    batched = BatchedIndex(index)
    index.short = True
    with pytest.raises(ValueError, match="zip"):
        await asyncio.wait_for(batched.search([query(1), query(2)]), 30)
    index.short = False
    assert await ask(batched, 3) == [3]


async def test_who_went_away_is_not_asked_for() -> None:
    """A query that was given up while it waited costs the index nothing, and harms no other."""
    index = Index()
    batched = BatchedIndex(index, max_calls=1)
    index.gate.clear()
    tasks = asking(batched, range(1, 4))
    await turns()
    late = asking(batched, range(4, 6))
    await turns()
    late[0].cancel()
    await turns()
    index.gate.set()
    await asyncio.gather(*tasks, late[1])
    assert not any(4 in call for call in index.calls)


async def test_the_rest_is_the_indexes_own() -> None:
    """What is no search goes straight through."""
    batched = BatchedIndex(Index())
    assert await batched.follow(3, 0.0) == 3
    assert (await batched.stats()).vectors == 1
    assert (await batched.rebuild_status()).progress == 1.0
