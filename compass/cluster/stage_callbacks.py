"""What a stage of a rebuild asks of the rebuild's actor, from the actor's own process or another one.

All of it is pickled with the stage that it goes with. An actor is `Any` here: for mypy, a method of an `ActorHandle`
never returns.
"""

from __future__ import annotations

from typing import Any

from ray.exceptions import RayError

from compass.domain.embedding.endpoint_stats import EndpointStats
from compass.errors import BudgetSpentError, UnavailableError


class ActorReport:
    """Reports how a stage's endpoints do."""

    def __init__(self, actor: Any) -> None:
        """Report to this rebuild."""
        self._actor = actor

    def __call__(self, attempt: str, stage: str, endpoints: tuple[EndpointStats, ...]) -> None:
        """Send the report, and wait for nothing."""
        self._actor.report.remote(attempt, stage, endpoints)


class ActorMeter:
    """The meter of an attempt: the account is with the rebuild's actor."""

    def __init__(self, actor: Any, attempt: str) -> None:
        """Reserve from the account of this rebuild."""
        self._actor, self._attempt = actor, attempt

    async def reserve(self, tokens: int) -> int:
        """Hold what a request of at most so many tokens may cost; the tokens that are held.

        Raises:
            BudgetSpentError: it might cost more than is left.
            UnavailableError: the rebuild does not answer.
        """
        try:
            held = int(await self._actor.reserve.remote(self._attempt, tokens))
        except RayError as error:
            raise UnavailableError(f"the account of the rebuild does not answer ({type(error).__name__})") from error
        if not held:
            raise BudgetSpentError("the next request might pass the budget of the rebuild")
        return held

    def settle(self, held: int, tokens: int) -> None:
        """The request that `held` was for has cost so many tokens."""
        self._actor.settle.remote(self._attempt, held, tokens)


class ActorMeters:
    """Makes the meters of a rebuild's attempts."""

    def __init__(self, actor: Any) -> None:
        """Their account is with this rebuild."""
        self._actor = actor

    def __call__(self, attempt: str) -> ActorMeter:
        """The meter of an attempt."""
        return ActorMeter(self._actor, attempt)
