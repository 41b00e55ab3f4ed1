"""The account of a run lets a request go when it is paid for, waits while that may change, and then says no."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from compass.domain.rebuild.budget import Spending
from compass.domain.rebuild.order import RebuildOrder
from compass.errors import BudgetSpentError
from compass.rebuild.ledger import Ledger


class Saved:
    """What was stored of a ledger, and when."""

    def __init__(self) -> None:
        self.marks: list[float] = []
        self.ledger: Ledger | None = None

    async def __call__(self) -> None:
        assert self.ledger is not None
        self.marks.append(self.ledger.account.mark)


def ledger_of(spent: float = 0.0, settled_s: float = 120.0, **prices: Any) -> tuple[Ledger, Saved]:
    saved = Saved()
    order = RebuildOrder(("http://a", "http://b"), "j", **prices)
    saved.ledger = Ledger(order, spent, saved, settled_s=settled_s)
    return saved.ledger, saved


def by_token(budget: float, spent: float = 0.0) -> tuple[Ledger, Saved]:
    """A token costs 1."""
    return ledger_of(spent, cost_per_million_tokens=1e6, budget=budget)


def figures(spending: Spending | None) -> tuple[float, float | None, float]:
    assert spending is not None
    return spending.spent, spending.budget, spending.at_most


async def test_a_request_that_does_not_fit_waits_for_those_under_way() -> None:
    """One that turns out cheaper makes room; when nothing is under way any more, the answer is no."""
    ledger, _ = by_token(100)
    assert await ledger.reserve(80) == 80
    waiting = asyncio.create_task(ledger.reserve(50))
    await asyncio.sleep(0)
    assert not waiting.done()
    await ledger.settle(80, 30)
    assert await waiting == 50
    another = asyncio.create_task(ledger.reserve(50))
    await asyncio.sleep(0)
    await ledger.settle(50, 50)
    assert await another == 0
    assert ledger.account.spent == 80


async def test_the_mark_is_stored_before_what_it_covers_is_held() -> None:
    """And not for each request: it goes ahead by a share of the budget."""
    ledger, saved = by_token(10_000)
    for _ in range(20):
        held = await ledger.reserve(10)
        await ledger.settle(held, 10)
        assert saved.marks[-1] >= ledger.account.spent
    assert 1 < len(saved.marks) < 8


async def test_what_an_earlier_attempt_spent_counts() -> None:
    """A resumed run has what is left."""
    ledger, _ = by_token(100, spent=60)
    assert await ledger.reserve(50) == 0
    assert await ledger.reserve(40) == 40


async def test_a_server_that_counts_more_than_the_most_is_believed() -> None:
    """From then on more is held for each request."""
    ledger, _ = by_token(1_000)
    await ledger.settle(await ledger.reserve(10), 15)
    assert await ledger.reserve(10) == 15


async def test_requests_lost_with_their_process_do_not_hold_up_the_end() -> None:
    """What is never settled stays held, and after a while nobody waits for it."""
    ledger, _ = ledger_of(settled_s=0.05, cost_per_million_tokens=1e6, budget=100)
    await ledger.reserve(80)
    async with asyncio.timeout(60):
        assert await ledger.reserve(50) == 0
    ledger.close(0.0)
    assert ledger.account.spent == 80


async def test_by_the_hour_every_endpoint_of_the_order_is_paid() -> None:
    """The last fifth of the time, or half a minute, is for what is under way; then the run ends."""
    ledger, _ = ledger_of(cost_per_hour=3_600.0, budget=200.0)  # 2 a second: for 100 s
    assert ledger.pay(1_000.0) == pytest.approx(100 - 0.5 - 20)
    assert await ledger.reserve(10) == 10
    assert ledger.pay(1_079.6) == pytest.approx(19.9)
    assert await ledger.reserve(10) == 0
    assert ledger.account.spent == pytest.approx(159.2)
    with pytest.raises(BudgetSpentError, match=r"199\.2 of 200"):
        ledger.pay(1_099.6)
    ledger.close(1_099.9)
    assert figures(ledger.spending()) == pytest.approx((199.8, 200.0, 199.8))


async def test_without_a_budget_nothing_ends() -> None:
    """The price is counted all the same."""
    ledger, _ = ledger_of(cost_per_hour=3_600.0)
    assert ledger.pay(0.0) == ledger.pay(10.0) == math.inf
    spending = ledger.spending()
    assert spending is not None
    assert (spending.spent, spending.at_most) == pytest.approx((20.0, 20.0))
    assert spending.budget is None
    assert ledger_of()[0].spending() is None
