"""How the endpoints of a run do, put together from what each stage last said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Fleet:
    """The latest word of each stage about each endpoint: {url, in_flight, docs_per_s, errors, last_error}."""

    def __init__(self) -> None:
        self._said: dict[str, Sequence[dict[str, Any]]] = {}

    def hear(self, stage: str, endpoints: Sequence[dict[str, Any]]) -> None:
        """Take what a stage says now instead of what it said before."""
        self._said[stage] = endpoints

    def endpoints(self) -> tuple[dict[str, Any], ...]:
        """One entry for each URL: the sums over the stages, and an error if any has one."""
        by_url: dict[str, dict[str, Any]] = {}
        for said in (endpoint for stage in self._said.values() for endpoint in stage):
            entry = by_url.setdefault(
                said["url"],
                {"url": said["url"], "in_flight": 0, "docs_per_s": 0.0, "errors": 0, "last_error": None},
            )
            for name in ("in_flight", "docs_per_s", "errors"):
                entry[name] += said[name]
            entry["last_error"] = said["last_error"] or entry["last_error"]
        return tuple(by_url.values())
