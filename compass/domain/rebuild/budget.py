"""What a rebuild costs, and what it may still spend. Pure; money is a number without a currency.

Nothing is sent that might pass the budget: the most that a request can cost is held before it goes, and settled by
what it did cost. So that a crash forgets nothing, a mark is stored ahead of the spending: no more than the mark is
ever spent or held before a greater one is durable, and whoever goes on after a crash counts the mark as spent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

MILLION, HOUR_S = 1e6, 3_600.0
CHARS_PER_TOKEN = 4.0  # of a server that does not count tokens: English text, by the usual rule of thumb
FRAME_TOKENS = 8  # that a model may put around a text
STEP = 0.005  # of the budget: how far the mark is ahead


class Meter(Protocol):
    """Who lets requests to an endpoint go, one after the other, as long as they are paid for."""

    async def reserve(self, tokens: int) -> int:
        """Hold what a request of at most so many tokens may cost; the tokens that are held.

        Raises:
            BudgetSpentError: it might cost more than is left.
        """

    def settle(self, held: int, tokens: int) -> None:
        """The request that `held` was for has cost so many tokens."""


def most_tokens(texts: Sequence[str]) -> int:
    """The most that these texts can be: no common tokenizer makes more tokens of a text than it has bytes."""
    return sum(len(text.encode("utf-8", "replace")) + FRAME_TOKENS for text in texts)


def guessed_tokens(chars: float) -> float:
    """About how many tokens so many characters are."""
    return chars / CHARS_PER_TOKEN


@dataclass(frozen=True, slots=True)
class Price:
    """What embedding costs: by the token or by the hour of each endpoint; neither: nothing."""

    per_million_tokens: float | None = None
    per_hour: float | None = None

    @property
    def of_token(self) -> float:
        """Of one token."""
        return (self.per_million_tokens or 0.0) / MILLION

    def of_time(self, seconds: float, endpoints: int) -> float:
        """Of so many endpoints for so long, each of them, whether it answers or not."""
        return (self.per_hour or 0.0) * endpoints * seconds / HOUR_S


@dataclass(frozen=True, slots=True)
class Spending:
    """What an account says.

    Attributes:
        spent: Money.
        budget: The most; None: no limit.
        at_most: What may have been spent, whatever became of requests under way.
    """

    spent: float
    budget: float | None
    at_most: float

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Spending:
        """The inverse of `to_json`."""
        return Spending(data["spent"], data["budget"], data["at_most"])


class Account:
    """What one run has spent, holds, and may spend.

    Attributes:
        spent: Money.
        budget: The most; None: no limit.
        held: Of requests under way, the most that they may cost.
        mark: What is stored, or about to be, as the most that may have been spent.
    """

    def __init__(self, budget: float | None = None, spent: float = 0.0) -> None:
        """Begin with what an earlier attempt of the same run has spent."""
        self.budget, self.spent, self.held, self.mark = budget, spent, 0.0, spent

    @property
    def limit(self) -> float:
        """The budget, or infinity."""
        return math.inf if self.budget is None else self.budget

    def fits(self, amount: float) -> bool:
        """Whether so much more may be held."""
        return self.spent + self.held + amount <= self.limit

    def covers(self, amount: float) -> bool:
        """Whether it is below the mark too; where nothing is limited nothing need be stored ahead."""
        return self.budget is None or self.spent + self.held + amount <= self.mark

    def advance(self, amount: float) -> None:
        """Move the mark beyond this amount; store it before the amount is held."""
        self.mark = min(self.limit, self.spent + self.held + amount + STEP * (self.budget or 0.0))

    def hold(self, amount: float) -> None:
        """Hold an amount for a request that goes now."""
        self.held += amount

    def settle(self, held: float, amount: float) -> None:
        """A request that something was held for has cost this amount."""
        self.held = max(0.0, self.held - held)
        self.spend(amount)

    def spend(self, amount: float) -> None:
        """Count an amount as spent."""
        self.spent += amount
        self.mark = max(self.mark, self.spent)

    def close(self) -> None:
        """At the end of the run: what is still under way may have to be paid."""
        self.spent, self.held = self.spent + self.held, 0.0
        self.mark = self.spent

    def spending(self) -> Spending:
        """What is stored and shown."""
        return Spending(self.spent, self.budget, max(self.mark, self.spent + self.held))
