"""How far a rebuild is, as whoever waits for it is told."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from compass.domain.embedding.endpoint_stats import EndpointStats
from compass.domain.rebuild.progress import ALMOST, Progress
from compass.domain.rebuild.run_record import RunRecord

ShownState = Literal["running", "done", "failed", "cancelled", "none"]


@dataclass(frozen=True, slots=True)
class RunStatus:
    """The last run of a space's rebuild; times in seconds since 1970."""

    state: ShownState = "none"
    job_id: str | None = None
    started_at: float | None = None
    ended_at: float | None = None


@dataclass(frozen=True, slots=True)
class Cost:
    """What a run has spent, at the price of its order."""

    spent: float
    budget: float | None = None


@dataclass(frozen=True, slots=True)
class QuarantinedChunk:
    """A chunk whose text the endpoint refuses for itself, and why."""

    id: int
    file_id: str
    chunk_index: int
    reason: str


@dataclass(frozen=True, slots=True)
class RebuildStatus:
    """What a space's index knows of its rebuild; the space's own `status` is in the routing table.

    Attributes:
        progress: 0..1; never falls, and is 1.0 exactly when the space turned active.
        failed: How many chunks are quarantined; `quarantined` has the first of them.
        lag: Live chunks that the space cannot find yet.
    """

    progress: float = 0.0
    percent: float = 0.0
    embedded: int = 0
    total: int = 0
    failed: int = 0
    lag: int = 0
    docs_per_s: float = 0.0
    eta_s: float | None = None
    run: RunStatus = field(default_factory=RunStatus)
    endpoints: tuple[EndpointStats, ...] = ()
    quarantined: tuple[QuarantinedChunk, ...] = ()
    cost: Cost | None = None
    error: str | None = None


def status_of_run(record: RunRecord | None, *, active: bool) -> RebuildStatus:
    """What the record of a run says of the rebuild.

    Args:
        record: None where the space never had a run.
        active: Whether the space is active now, which alone makes the progress 1.0.
    """
    progress = record.progress if record else Progress()
    fraction = 1.0 if active else min(progress.fraction, ALMOST)
    status = RebuildStatus(
        progress=fraction,
        percent=round(100 * fraction, 2),
        embedded=progress.embedded,
        total=progress.total,
        failed=progress.failed,
    )
    if record is None:
        return status
    spending = record.spending
    return replace(
        status,
        docs_per_s=record.docs_per_s,
        eta_s=record.eta_s,
        run=RunStatus(record.state, record.order.job_id, record.started_at, record.ended_at),
        endpoints=record.fleet,
        cost=Cost(spending.spent, spending.budget) if spending else None,
        error=record.trouble,
    )
