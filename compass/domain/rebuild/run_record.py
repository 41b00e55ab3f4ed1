"""What a rebuild is asked to do, and the record that it keeps of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from compass.domain.rebuild.progress import Progress
from compass.errors import SpaceQuarantinedError

RunState = Literal["running", "done", "failed", "cancelled"]
EVERY_VID = 2**63 - 1
_STORED = {"mixed_models": "tainted"}  # names on disk are for ever


@dataclass(frozen=True, slots=True)
class RebuildJob:
    """One order to rebuild a space.

    Attributes:
        job_id: Named by whoever orders; it stays the same when the run resumes after a crash.
        endpoints: What embeds, URLs or `builtin`; at least one.
        api_key_env: The variable that holds the endpoints' key; the space's own key goes to its own endpoint alone.
        batch_size: Texts of one request.
        concurrency: Requests at once.
        max_docs_per_s: The most that may be embedded in a second; None for no limit.
        endpoint_timeout_s: How long work waits while no endpoint gives a good answer, before the run fails.
        max_failed: Chunks that may stay quarantined in a space that turns active.
        cost_per_million_tokens: What the endpoints cost by the token.
        cost_per_hour: What each of them costs by the hour.
        budget: The most that the run may spend, by one of these two; None for no limit.
    """

    job_id: str
    endpoints: tuple[str, ...]
    api_key_env: str | None = None
    batch_size: int | None = None
    concurrency: int | None = None
    max_docs_per_s: float | None = None
    endpoint_timeout_s: float = 900.0
    max_failed: int = 0
    cost_per_million_tokens: float | None = None
    cost_per_hour: float | None = None
    budget: float | None = None

    @property
    def limited(self) -> bool:
        """Whether it may not embed as fast as it can."""
        return any(limit is not None for limit in (self.max_docs_per_s, self.concurrency, self.budget))

    @staticmethod
    def of(data: Mapping[str, Any]) -> RebuildJob:
        """The job among the values of an order or of a stored record."""
        named = {f.name: data[f.name] for f in fields(RebuildJob) if f.name in data}
        return RebuildJob(**{**named, "endpoints": tuple(named["endpoints"])})


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What is stored of a run.

    Attributes:
        attempt: Who may append now; a writer of another one is stale.
        owns_below: While it runs, the vids below are its work, and the space's follower leaves them alone.
        docs_per_s: The speed when this was stored; 0 of a run that has ended.
        fleet: How the endpoints do, as `FleetEmbedder.endpoints` says it, over all stages.
        waiting: Why nothing goes on, while no endpoint answers.
        stalled_s: How long nothing has landed, when that is alarming.
        spending: What the account says, see `Account.to_json`; None where the order names no price.
        mixed_models: Whether the model was found changed after vectors of it had landed; only a restart helps then.
    """

    job: RebuildJob
    attempt: str
    state: RunState
    started_at: float
    ended_at: float | None = None
    error: str | None = None
    owns_below: int = EVERY_VID
    progress: Progress = field(default_factory=Progress)
    docs_per_s: float = 0.0
    eta_s: float | None = None
    fleet: tuple[dict[str, Any], ...] = ()
    stalled_s: float | None = None
    waiting: str | None = None
    spending: dict[str, Any] | None = None
    mixed_models: bool = False

    @property
    def spent(self) -> float:
        """The most that the run may have spent so far."""
        return float(self.spending["at_most"]) if self.spending else 0.0

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values: the fields of the job beside those of the run."""
        run = {_STORED.get(f.name, f.name): getattr(self, f.name) for f in fields(self) if f.name != "job"}
        job = {**asdict(self.job), "endpoints": list(self.job.endpoints)}
        return {**job, **run, "progress": self.progress.to_json(), "fleet": list(self.fleet)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> RunRecord:
        """The inverse of `to_json`."""
        stored = ((f.name, _STORED.get(f.name, f.name)) for f in fields(RunRecord))
        named = {name: data[key] for name, key in stored if key in data}
        progress, fleet = Progress.from_json(data["progress"]), tuple(data["fleet"])
        return RunRecord(**{**named, "job": RebuildJob.of(data), "progress": progress, "fleet": fleet})


def check_quarantine(refused: int, allowed: int) -> None:
    """Return if a run may end well with so many refused chunks.

    Raises:
        SpaceQuarantinedError: they are more than the order allows.
    """
    if refused > allowed:
        raise SpaceQuarantinedError(
            f"{refused} chunks quarantined: their texts are refused for themselves, see the space's quarantine. "
            f"Rebuild again to retry just these, with max_failed: {refused} to do without them",
            {"quarantined": refused, "max_failed": allowed},
        )
