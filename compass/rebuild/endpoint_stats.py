"""How the endpoints of a run do, put together from what each stage last reported."""

from __future__ import annotations

from collections.abc import Sequence

from compass.clock import Clock
from compass.domain.embedding.endpoint_stats import EndpointState, EndpointStats

FRESH_S = 5.0  # a stage that works reports each second
BEST_FIRST: tuple[EndpointState, ...] = ("up", "paused", "new", "down", "refused")  # what any stage sees counts


class RunEndpoints:
    """The latest report of each stage about each endpoint.

    What was counted stays counted; how an endpoint does now is for those to say who still ask it. A stage that has
    ended, or died, is heard no more.
    """

    def __init__(self, clock: Clock) -> None:
        """`clock` gives seconds that only grow."""
        self._clock = clock
        self._reports: dict[str, tuple[float, Sequence[EndpointStats]]] = {}

    def report(self, stage: str, endpoints: Sequence[EndpointStats]) -> None:
        """Take what a stage reports now instead of what it reported before."""
        self._reports[stage] = self._clock(), endpoints

    def endpoints(self) -> tuple[EndpointStats, ...]:
        """One entry for each URL: the sums over the stages, and an error if any has one."""
        by_url: dict[str, list[tuple[bool, EndpointStats]]] = {}
        newest = max((at_s for at_s, _ in self._reports.values()), default=0.0)
        for at_s, endpoints in self._reports.values():
            for stats in endpoints:
                by_url.setdefault(stats.url, []).append((at_s > newest - FRESH_S, stats))
        return tuple(_together(url, reports) for url, reports in by_url.items())

    def waiting(self) -> str | None:
        """Why nothing goes on: no endpoint answers; None while one does, or none was asked yet."""
        endpoints = self.endpoints()
        if not endpoints or any(e.state in ("up", "paused", "new") for e in endpoints):
            return None
        reasons = "; ".join(f"{e.url}: {e.last_error or e.state}" for e in endpoints)
        return f"no endpoint answers, the rebuild waits: {reasons}"


def _together(url: str, reports: Sequence[tuple[bool, EndpointStats]]) -> EndpointStats:
    every = [stats for _, stats in reports]
    now = [stats for fresh, stats in reports if fresh] or every
    return EndpointStats(
        url,
        min((stats.state for stats in now), key=BEST_FIRST.index),
        in_flight=sum(stats.in_flight for stats in now),
        window=sum(stats.window for stats in now),
        batch_size=now[-1].batch_size,
        docs_per_s=round(sum(stats.docs_per_s for stats in now), 1),
        docs=sum(stats.docs for stats in every),
        tokens=sum(stats.tokens for stats in every),
        errors=sum(stats.errors for stats in every),
        last_error=next((stats.last_error for stats in reversed(now) if stats.last_error), None),
    )
