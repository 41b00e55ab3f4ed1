"""What a rebuild is asked to do."""

from __future__ import annotations

from dataclasses import dataclass

from compass.domain.space import Status


@dataclass(frozen=True, slots=True)
class RebuildSpec:
    """A rebuild to start. `endpoints` empty: the space's own."""

    endpoints: tuple[str, ...] = ()
    api_key_env: str | None = None
    batch_size: int | None = None
    concurrency: int | None = None
    max_docs_per_s: float | None = None
    restart: bool = False
    endpoint_timeout_s: float = 900.0
    max_failed: int = 0
    accept_new_fingerprint: bool = False
    cost_per_million_tokens: float | None = None
    cost_per_hour: float | None = None
    budget: float | None = None


@dataclass(frozen=True, slots=True)
class RebuildStarted:
    """The answer to an order: the status of the space, and the name of the job."""

    status: Status
    job_id: str
