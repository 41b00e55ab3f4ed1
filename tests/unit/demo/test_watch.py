"""What the demo's querier takes for a right answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from compass.demo.watch import Answer, Querier, Tally, read_answer, why_wrong

RIGHT = Answer(200, 0.01, results=3, space="old", epoch=1)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (RIGHT, None),
        (Answer(503, 0.01, detail="starting"), "status 503: starting"),
        (Answer(0, 0.01, detail="ConnectError"), "status 0: ConnectError"),
        (Answer(200, 0.01, results=0, space="old", epoch=1), "no results"),
        (Answer(200, 0.01, results=3, space="new", epoch=1), "answered by 'new', expected old"),
        (Answer(200, 0.01, results=3, space=None, epoch=1), "answered by None, expected old"),
        (Answer(200, 0.01, results=3, space="old", epoch=0), "of epoch 0, after epoch 1 had been seen"),
        (Answer(200, 0.01, results=3, space="old"), "of epoch None, after epoch 1 had been seen"),
    ],
)
def test_only_a_full_answer_of_the_default_space_is_right(answer: Answer, why: str | None) -> None:
    """A 200 with results, from the space that was the default, of no epoch older than one seen."""
    assert why_wrong(answer, {"old"}, min_epoch=1) == why


def test_every_answer_is_counted_and_the_first_failures_are_kept() -> None:
    """Failures count in full, words are kept for a few, and a failed answer moves no epoch."""
    tally = Tally()
    for _ in range(7):
        tally.add(Answer(200, 0.02, results=3, space="new", epoch=9), {"old"}, 0)
    tally.add(RIGHT, {"old"}, 0)
    assert (tally.asked, tally.failed, len(tally.failures), tally.epoch) == (8, 7, 5, 1)
    assert tally.answered == {"old": 1}
    assert tally.percentile_ms(50) == pytest.approx(20)


def test_a_body_that_is_not_json_is_a_failure_in_words() -> None:
    """A proxy's page is quoted, not raised."""
    answer = read_answer(httpx.Response(200, text="<html>"), 0.1)
    assert why_wrong(answer, {"old"}, 0) == "no results"
    assert answer.detail == "<html>"


class _Service:
    """Answers each search when the test says so, from the default of that moment."""

    def __init__(self) -> None:
        self.default, self.epoch = "old", 1
        self.gate = asyncio.Event()
        self.arrived = asyncio.Semaphore(0)

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.arrived.release()
        await self.gate.wait()
        return httpx.Response(200, json={"results": [1], "vector_space": self.default, "epoch": self.epoch})


@pytest.fixture
def service() -> _Service:
    return _Service()


@pytest.fixture
async def querier(service: _Service) -> AsyncIterator[Querier]:
    async with httpx.AsyncClient(base_url="http://service", transport=httpx.MockTransport(service)) as client:
        yield Querier(client, "docs", ["what"], "old")


async def test_a_query_in_flight_over_a_swap_may_be_answered_by_either(service: _Service, querier: Querier) -> None:
    """What was asked before the swap and answered after it may come from both spaces."""
    asked = asyncio.create_task(querier.ask())
    await service.arrived.acquire()
    with querier.swapping("new"):
        service.default, service.epoch = "new", 2
    service.gate.set()
    await asked
    assert querier.tally.failures == []
    assert querier.tally.answered == {"new": 1}


async def test_a_query_after_a_swap_must_not_be_answered_by_the_old_space(
    service: _Service, querier: Querier
) -> None:
    """Once the call has returned, an answer of the old space is a failure."""
    service.gate.set()
    with querier.swapping("new"):
        pass
    await querier.ask()
    assert querier.tally.failures == ["answered by 'old', expected new"]


async def test_an_unswapped_query_must_not_be_answered_by_another_space(service: _Service, querier: Querier) -> None:
    """Before any swap the new space must not answer unnamed queries."""
    service.gate.set()
    service.default = "new"
    await querier.ask()
    assert querier.tally.failed == 1


async def test_an_epoch_must_not_fall(service: _Service, querier: Querier) -> None:
    """An answer of an older epoch than one seen before the question is a failure."""
    service.gate.set()
    service.epoch = 5
    await querier.ask()
    service.epoch = 4
    await querier.ask()
    assert querier.tally.failures == ["of epoch 4, after epoch 5 had been seen"]


async def test_leaving_waits_for_what_was_asked(service: _Service, querier: Querier) -> None:
    """No query is forgotten: each one asked is counted when the context ends."""
    async with querier.running(rate=200) as tally:
        for _ in range(3):
            await service.arrived.acquire()
        assert tally.asked == 0
        service.gate.set()
    assert tally.asked >= 3
    assert tally.failed == 0


async def test_a_dead_service_is_a_failed_query_and_no_exception(service: _Service) -> None:
    """A refused connection is counted, so that the demo goes on and tells."""

    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    async with httpx.AsyncClient(base_url="http://service", transport=httpx.MockTransport(refuse)) as client:
        querier = Querier(client, "docs", ["what"], "old")
        await querier.ask()
    assert querier.tally.failures == ["status 0: ConnectError refused"]
