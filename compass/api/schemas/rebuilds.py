"""A rebuild: its order, and how far it is."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from compass.api.schemas.base import Reason, Request, Status
from compass.domain.ingest import INT64_MAX


class RebuildRequest(Request):
    """A rebuild to start; everything is optional."""

    embed_endpoint: str | list[str] | None = None
    batch_size: Annotated[int, Meta(ge=1, le=100_000)] | None = None
    api_key_env: str | None = None
    concurrency: Annotated[int, Meta(ge=1, le=10_000)] | None = None
    max_docs_per_s: Annotated[float, Meta(gt=0)] | None = None
    restart: bool = False
    endpoint_timeout_s: Annotated[float, Meta(gt=0, le=1e6)] = 900.0
    max_failed: Annotated[int, Meta(ge=0, le=INT64_MAX)] = 0
    accept_new_fingerprint: bool = False
    dry_run: Annotated[bool, Meta(description="Estimate it, and change nothing: answers 200.")] = False
    cost_per_million_tokens: Annotated[float, Meta(gt=0, description="Of the endpoints.")] | None = None
    cost_per_hour: Annotated[float, Meta(gt=0, description="Of each endpoint.")] | None = None
    budget: Annotated[float, Meta(gt=0, description="The most to spend; wants a price.")] | None = None
    reason: Reason = None


class CancelQuery(Request):
    """Why a rebuild is cancelled."""

    reason: Reason = None


class RebuildStarted(Struct):
    """A rebuild runs, or an active space embeds what is missing."""

    status: Status
    job_id: str


class RebuildCancelled(Struct):
    """The rebuild was cancelled; what it embedded is kept for a resume."""

    status: Literal["cancelled"] = "cancelled"


class RebuildRun(Struct, kw_only=True):
    """The last run of a space's rebuild."""

    state: Literal["running", "done", "failed", "cancelled", "none"] = "none"
    job_id: str | None = None
    started_at: str | None = None
    ended_at: str | None = None


class EndpointStatus(Struct, kw_only=True):
    """How one endpoint of a run is doing.

    `window`: requests that it may have in flight now. `docs`, `tokens`: what it has embedded in this run.
    """

    url: str
    state: Literal["new", "up", "paused", "down", "refused"] = "up"
    in_flight: int = 0
    window: int = 0
    batch_size: int | None = None
    docs_per_s: float = 0.0
    docs: int = 0
    tokens: int = 0
    errors: int = 0
    last_error: str | None = None


class QuarantinedChunk(Struct, kw_only=True):
    """A chunk that the endpoint refuses for itself."""

    id: int
    file_id: str
    chunk_index: int
    reason: str


class Quarantine(Struct):
    """A page of the chunks that are quarantined; `next` is the `after` of the next page, null on the last."""

    chunks: list[QuarantinedChunk]
    next: int | None


class Cost(Struct, kw_only=True):
    """What a run has spent, at the price of its order."""

    spent: float
    budget: float | None = None


class RebuildStatus(Struct, kw_only=True):
    """How far a space is. `progress` never falls and is 1.0 exactly when the space turned active.

    `failed` counts the chunks that the endpoint refuses for themselves; `quarantined` lists the first 100.
    """

    status: Status
    progress: float = 0.0
    percent: float = 0.0
    embedded: int = 0
    total: int = 0
    failed: int = 0
    lag: int = 0
    docs_per_s: float = 0.0
    eta_s: float | None = None
    run: RebuildRun = msgspec.field(default_factory=RebuildRun)
    endpoints: list[EndpointStatus] = []
    quarantined: list[QuarantinedChunk] = []
    cost: Cost | UnsetType = UNSET
    error: str | UnsetType = UNSET
