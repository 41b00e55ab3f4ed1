"""How the endpoints of a run do, put together from what each stage last said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SUMS = ("in_flight", "window", "docs_per_s", "docs", "tokens", "errors")
STATES = ("up", "paused", "new", "down", "refused")  # the best that any stage says counts


class Fleet:
    """The latest word of each stage about each endpoint, see `FleetEmbedder.endpoints`."""

    def __init__(self) -> None:
        self._said: dict[str, Sequence[dict[str, Any]]] = {}

    def hear(self, stage: str, endpoints: Sequence[dict[str, Any]]) -> None:
        """Take what a stage says now instead of what it said before."""
        self._said[stage] = endpoints

    def endpoints(self) -> tuple[dict[str, Any], ...]:
        """One entry for each URL: the sums over the stages, and an error if any has one."""
        by_url: dict[str, list[dict[str, Any]]] = {}
        for said in (endpoint for stage in self._said.values() for endpoint in stage):
            by_url.setdefault(said["url"], []).append(said)
        return tuple(_together(url, said) for url, said in by_url.items())

    def waiting(self) -> str | None:
        """Why nothing goes on: no endpoint answers; None while one does, or none was asked yet."""
        endpoints = self.endpoints()
        if not endpoints or any(e["state"] in ("up", "paused", "new") for e in endpoints):
            return None
        said = "; ".join(f"{e['url']}: {e['last_error'] or e['state']}" for e in endpoints)
        return f"no endpoint answers, the rebuild waits: {said}"


def _together(url: str, said: Sequence[dict[str, Any]]) -> dict[str, Any]:
    sums = {name: sum(one.get(name, 0) for one in said) for name in SUMS}
    state = min((one.get("state", "up") for one in said), key=STATES.index)
    error = next((one["last_error"] for one in reversed(said) if one.get("last_error")), None)
    sums["docs_per_s"] = round(sums["docs_per_s"], 1)
    return {"url": url, "state": state, **sums, "batch_size": said[-1].get("batch_size"), "last_error": error}
