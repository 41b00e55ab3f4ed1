"""What an attempt knows of itself at each moment: how far it is, how its endpoints do, and whether it stalls."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from compass.clock import Clock
from compass.domain.embedding.endpoint_stats import EndpointStats
from compass.domain.rebuild.budget import Spending
from compass.domain.rebuild.progress import Progress
from compass.domain.rebuild.run_record import RunRecord
from compass.domain.space import SpaceStats
from compass.rebuild.endpoint_stats import RunEndpoints
from compass.rebuild.plan import Plan
from compass.rebuild.stage import StageResult

log = logging.getLogger(__name__)


class RunMonitor:
    """Takes note of what happens in one attempt of a run.

    Attributes:
        progress: How far it is.
        has_landed: Whether this attempt has added vectors.
    """

    def __init__(self, space_id: str, clock: Clock, stall_s: float, progress: Progress | None = None) -> None:
        """Begin with the progress of earlier attempts; nothing moves for `stall_s`: somebody should look."""
        self.progress, self.has_landed = progress or Progress(), False
        self._space_id, self._clock, self._stall_s = space_id, clock, stall_s
        self._endpoints = RunEndpoints(clock)
        self._moved_at_s = clock()

    @property
    def idle_s(self) -> float:
        """Seconds since something moved."""
        return self._clock() - self._moved_at_s

    def planned(self, plan: Plan) -> None:
        """The collection was looked at anew."""
        counts = {"total": plan.live, "embedded": plan.had, "failed": plan.skipped, "blank": plan.blank}
        self.progress = self.progress.planned(self._clock(), **counts)

    def endpoints(self, stage: str, endpoints: Sequence[EndpointStats]) -> None:
        """A stage has reported how its endpoints do."""
        self._endpoints.report(stage, endpoints)

    def landed(self, result: StageResult) -> None:
        """A stage is through with a descriptor."""
        self._moved()
        self.has_landed = self.has_landed or result.key is not None
        self._endpoints.report(result.stage, result.endpoints)
        self.progress = replace(self.progress, failed=self.progress.failed + result.refused)

    def loaded(self, count: int) -> None:
        """So many chunks more can be found."""
        self._moved()
        self.progress = self.progress.observe(self._clock(), embedded=self.progress.embedded + count)

    def counted(self, chunk_count: int, index: SpaceStats) -> None:
        """Those who know have been asked for the counts of now."""
        if index.vectors != self.progress.embedded:
            self._moved()
        self.progress = replace(self.progress, total=chunk_count, failed=index.quarantined)
        self.progress = self.progress.observe(self._clock(), embedded=index.vectors)

    def activated(self) -> None:
        """The space has turned active."""
        self.progress = self.progress.activated()

    def as_of_now(self, record: RunRecord, spending: Spending | None) -> RunRecord:
        """The running record, with what can be said at this moment."""
        now_s, idle_s = self._clock(), self.idle_s
        stalled_s = round(idle_s, 1) if idle_s > self._stall_s else None
        if stalled_s is not None and record.stalled_s is None:
            log.warning("the rebuild of space %s stalls: nothing landed for %.0f s", self._space_id, idle_s)
        return replace(
            record,
            progress=self.progress,
            docs_per_s=round(self.progress.docs_per_s(now_s), 1),
            eta_s=self.progress.eta_s(now_s),
            fleet=self._endpoints.endpoints(),
            stalled_s=stalled_s,
            waiting=self._endpoints.waiting(),
            spending=spending,
        )

    def _moved(self) -> None:
        self._moved_at_s = self._clock()
