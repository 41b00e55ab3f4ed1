"""The record that a rebuild keeps of itself: the one form of a run, on disk and in every process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from compass.domain.embedding.endpoint_stats import EndpointStats
from compass.domain.rebuild.budget import Spending
from compass.domain.rebuild.order import RebuildOrder
from compass.domain.rebuild.progress import Progress
from compass.errors import SpaceQuarantinedError

RunState = Literal["running", "done", "failed", "cancelled"]
EVERY_VID = 2**63 - 1
_STORED = {"mixed_models": "tainted"}  # names on disk are for ever


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What is stored of a run.

    Attributes:
        attempt: Who may append now; a writer of another one is stale.
        owns_below: While it runs, the vids below are its work, and the space's follower leaves them alone.
        docs_per_s: The speed when this was stored; 0 of a run that has ended.
        fleet: How the endpoints do, over all stages.
        waiting: Why nothing goes on, while no endpoint answers.
        stalled_s: How long nothing has landed, when that is alarming.
        spending: What the account says; None where the order names no price.
        mixed_models: Whether the model was found changed after vectors of it had landed; only a restart helps then.
    """

    order: RebuildOrder
    attempt: str
    state: RunState
    started_at: float
    ended_at: float | None = None
    error: str | None = None
    owns_below: int = EVERY_VID
    progress: Progress = field(default_factory=Progress)
    docs_per_s: float = 0.0
    eta_s: float | None = None
    fleet: tuple[EndpointStats, ...] = ()
    stalled_s: float | None = None
    waiting: str | None = None
    spending: Spending | None = None
    mixed_models: bool = False

    @property
    def running(self) -> bool:
        """Whether the run goes on, or is to be resumed."""
        return self.state == "running"

    @property
    def spent(self) -> float:
        """The most that the run may have spent so far."""
        return self.spending.at_most if self.spending else 0.0

    @property
    def trouble(self) -> str | None:
        """Why it failed, or why nothing goes on now."""
        if self.waiting:
            return self.waiting
        if self.stalled_s:
            return f"nothing has landed for {self.stalled_s:.0f} s: look at the endpoints"
        return self.error

    def ended(self, state: RunState, at: float, error: str | None = None, *, mixed_models: bool = False) -> RunRecord:
        """The record of the same run once it has ended `at`: Unix time, seconds."""
        return replace(
            self,
            state=state,
            ended_at=at,
            error=error,
            mixed_models=mixed_models,
            docs_per_s=0.0,
            eta_s=0.0 if state == "done" else None,
            stalled_s=None,
            waiting=None,
        )

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values: the fields of the order beside those of the run."""
        run = {_STORED.get(f.name, f.name): getattr(self, f.name) for f in fields(self) if f.name != "order"}
        nested = {
            "progress": self.progress.to_json(),
            "fleet": [endpoint.to_json() for endpoint in self.fleet],
            "spending": None if self.spending is None else self.spending.to_json(),
        }
        return {**self.order.to_json(), **run, **nested}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> RunRecord:
        """The inverse of `to_json`."""
        keys = ((f.name, _STORED.get(f.name, f.name)) for f in fields(RunRecord))
        stored = {name: data[key] for name, key in keys if key in data}
        spending = data.get("spending")
        nested = {
            "order": RebuildOrder.from_json(data),
            "progress": Progress.from_json(data["progress"]),
            "fleet": tuple(EndpointStats.from_json(endpoint) for endpoint in data["fleet"]),
            "spending": None if spending is None else Spending.from_json(spending),
        }
        return RunRecord(**{**stored, **nested})


def check_quarantine(refused: int, allowed: int) -> None:
    """Check that a run may end well with so many refused chunks.

    Raises:
        SpaceQuarantinedError: they are more than the order allows.
    """
    if refused > allowed:
        raise SpaceQuarantinedError(
            f"{refused} chunks quarantined: their texts are refused for themselves, see the space's quarantine. "
            f"Rebuild again to retry just these, with max_failed: {refused} to do without them",
            {"quarantined": refused, "max_failed": allowed},
        )
