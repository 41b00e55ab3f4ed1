"""How the endpoints of a run do, put together from what each stage last said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compass.clock import Clock

FRESH_S = 5.0  # a stage that works says how its endpoints do each second
COUNTS, LEVELS = ("docs", "tokens", "errors"), ("in_flight", "window", "docs_per_s")
STATES = ("up", "paused", "new", "down", "refused")  # the best that any stage says counts


class Fleet:
    """The latest word of each stage about each endpoint, see `FleetEmbedder.endpoints`.

    What was counted stays counted; how an endpoint does now is for those to say who still ask it. A stage that has
    ended, or died, is heard no more.
    """

    def __init__(self, clock: Clock) -> None:
        """`clock` gives seconds that only grow."""
        self._clock = clock
        self._said: dict[str, tuple[float, Sequence[dict[str, Any]]]] = {}

    def report(self, stage: str, endpoints: Sequence[dict[str, Any]]) -> None:
        """Take what a stage says now instead of what it said before."""
        self._said[stage] = self._clock(), endpoints

    def endpoints(self) -> tuple[dict[str, Any], ...]:
        """One entry for each URL: the sums over the stages, and an error if any has one."""
        by_url: dict[str, list[tuple[bool, dict[str, Any]]]] = {}
        newest = max((at_s for at_s, _ in self._said.values()), default=0.0)
        for at_s, endpoints in self._said.values():
            for said in endpoints:
                by_url.setdefault(said["url"], []).append((at_s > newest - FRESH_S, said))
        return tuple(_together(url, said) for url, said in by_url.items())

    def waiting(self) -> str | None:
        """Why nothing goes on: no endpoint answers; None while one does, or none was asked yet."""
        endpoints = self.endpoints()
        if not endpoints or any(e["state"] in ("up", "paused", "new") for e in endpoints):
            return None
        said = "; ".join(f"{e['url']}: {e['last_error'] or e['state']}" for e in endpoints)
        return f"no endpoint answers, the rebuild waits: {said}"


def _together(url: str, said: Sequence[tuple[bool, dict[str, Any]]]) -> dict[str, Any]:
    every, now = [one for _, one in said], [one for fresh, one in said if fresh] or [one for _, one in said]
    sums = {name: sum(one.get(name, 0) for one in now) for name in LEVELS}
    sums |= {name: sum(one.get(name, 0) for one in every) for name in COUNTS}
    state = min((one.get("state", "up") for one in now), key=STATES.index)
    error = next((one["last_error"] for one in reversed(now) if one.get("last_error")), None)
    sums["docs_per_s"] = round(sums["docs_per_s"], 1)
    return {"url": url, "state": state, **sums, "batch_size": now[-1].get("batch_size"), "last_error": error}
