"""The account of a run: its stages ask here before they send a request that costs something."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable

from compass.domain.rebuild.budget import Account, Price, Spending
from compass.domain.rebuild.order import RebuildOrder
from compass.errors import BudgetSpentError

STOP_S = 0.5  # what an end takes: by the hour it is paid for too
LANDING_S, LANDING_SHARE = 30.0, 0.2  # of the time that is paid for: kept for what is under way then
AHEAD_S = 3.0  # of the price by the hour: stored as spent before it is


class Ledger:
    """Holds and settles what the requests of a run cost; one event loop, stages of any process ask."""

    def __init__(
        self, order: RebuildOrder, spent: float, save: Callable[[], Awaitable[None]], *, settled_s: float = 120.0
    ) -> None:
        """Begin with what earlier attempts have spent.

        Args:
            order: It names the prices and the budget.
            spent: Money, by earlier attempts of the same run.
            save: Stores the account before more of it is used.
            settled_s: After so long without a word, a request under way is taken for lost with its process.
        """
        self._settled_s = settled_s
        self.account = Account(order.budget, spent)
        self._price = Price(order.cost_per_million_tokens, order.cost_per_hour)
        self._endpoints, self._save = len(order.endpoints), save
        self._excess = 1.0  # times the most tokens: what a server counted beyond them
        self._changed = asyncio.Condition()
        self._paid_until_s: float | None = None
        self._ending = False  # the time that is left is for what is under way

    def spending(self) -> Spending | None:
        """What is stored and shown of the account; None where the order names no price."""
        return None if self._price == Price() else self.account.spending()

    def close(self, now_s: float) -> None:
        """Count what is under way, and the time until now."""
        if self._paid_until_s is not None:
            self._count_time(now_s)
        self.account.close()

    async def reserve(self, tokens: int) -> int:
        """Hold so many tokens, or a few more if servers were found to count more; 0: the budget does not allow it.

        What does not fit waits as long as something is under way, for that may turn out to be cheaper.
        """
        async with self._changed:
            while True:
                held = math.ceil(tokens * self._excess)
                amount = held * self._price.of_token
                if self._ending:
                    return 0
                if self.account.fits(amount):
                    if not self.account.covers(amount):
                        self.account.advance(amount)
                        await self._save()
                    self.account.hold(amount)
                    return held
                if not self.account.held or not await self._anything_settled():
                    return 0

    async def settle(self, held: int, tokens: int) -> None:
        """A request is through: so many tokens instead of those held."""
        async with self._changed:
            if held:
                self._excess = max(self._excess, tokens / held * self._excess)
            self.account.settle(held * self._price.of_token, tokens * self._price.of_token)
            self._changed.notify_all()

    def pay(self, now_s: float) -> float:
        """Count the time since the last call at the price by the hour; the seconds until the next call is due.

        Raises:
            BudgetSpentError: no time is left but for the end itself.
        """
        self._count_time(now_s)
        a_second = self._price.of_time(1.0, self._endpoints)
        if not a_second or self.account.budget is None:
            return math.inf
        left_s = (self.account.budget - self.account.spent) / a_second - STOP_S
        if left_s <= 0:
            raise self.spent_error()
        landing_s = min(LANDING_S, LANDING_SHARE * self.account.budget / a_second)
        self._ending = left_s <= landing_s
        self.account.advance(min(left_s + STOP_S, AHEAD_S) * a_second)
        return left_s if self._ending else left_s - landing_s

    def spent_error(self) -> BudgetSpentError:
        """Why the run ends, and how to go on."""
        spent, budget = self.account.spent + self.account.held, self.account.budget
        what = "the next text might" if self._price.per_million_tokens is not None else "the next seconds would"
        return BudgetSpentError(
            f"the budget is spent: {spent:.6g} of {budget:g}, and {what} pass it. What was embedded is kept: "
            "order the rebuild again, with a budget for the rest, to go on",
            {"spent": spent, "budget": budget},
        )

    def _count_time(self, now_s: float) -> None:
        began_s = now_s if self._paid_until_s is None else self._paid_until_s
        self._paid_until_s = now_s
        self.account.spend(self._price.of_time(now_s - began_s, self._endpoints))

    async def _anything_settled(self) -> bool:
        try:
            async with asyncio.timeout(self._settled_s):
                await self._changed.wait()
        except TimeoutError:
            return False
        return True
