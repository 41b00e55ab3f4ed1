"""What is answered: the domain's values as the HTTP interface shows them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from compass.api import schemas
from compass.api.schemas.estimates import RebuildEstimate
from compass.domain.chunk import Chunk
from compass.domain.collection import CollectionStats
from compass.domain.embedding.endpoint_url import shown as without_secrets
from compass.domain.embedding.fingerprint import Fingerprint
from compass.domain.history import Event
from compass.domain.rebuild.report import EstimateReport
from compass.domain.rebuild.status import RebuildStatus
from compass.domain.routing.table import CollectionRoute
from compass.domain.search.query import Hit
from compass.domain.space import BUILTIN, Space, SpaceStats

T = TypeVar("T")

ALMOST = 0.9999  # the most that a space which is not active may claim


def collection_info(
    route: CollectionRoute, stats: CollectionStats, spaces: Iterable[schemas.SpaceInfo]
) -> schemas.CollectionInfo:
    """A collection: its route, what its writer says, its spaces."""
    return schemas.CollectionInfo(
        name=route.name,
        created_at=_iso(route.created_at),
        embedding_dims=route.space(None).config.dims,
        chunk_count=stats.chunk_count,
        vector_spaces={space.name: space for space in spaces},
        default_vector_space=route.default,
        epoch=route.epoch,
        seq=stats.seq,
    )


def space_info(space: Space, stats: SpaceStats) -> schemas.SpaceInfo:
    """A space: its record, and what its index knows."""
    config, built_by = space.config, space.built_by
    endpoint = config.embed_endpoint
    if endpoint is not None and endpoint != BUILTIN:
        endpoint = without_secrets(endpoint)
    return schemas.SpaceInfo(
        name=space.name,
        id=space.id,
        dims=config.dims,
        model=config.model,
        status=space.status,
        embed_endpoint=_or_unset(endpoint),
        fingerprint=UNSET if built_by is None else Fingerprint.of(config, built_by).digest,
        vectors=stats.vectors,
        lag=stats.lag,
        quarantined=stats.quarantined,
        bytes_on_disk=stats.bytes_on_disk,
        created_at=_iso(space.created_at),
        error=_or_unset(stats.error or space.error),
    )


def rebuild_status(space: Space, status: RebuildStatus) -> schemas.RebuildStatus:
    """How far a space is.

    Its record and its index are asked one after the other, so the status decides: 1.0 is active, and only that.
    """
    progress = 1.0 if space.status == "active" else min(status.progress, ALMOST)
    run = status.run
    return schemas.RebuildStatus(
        status=space.status,
        progress=progress,
        percent=round(100 * progress, 2),
        embedded=status.embedded,
        total=status.total,
        failed=status.failed,
        lag=status.lag,
        docs_per_s=status.docs_per_s,
        eta_s=status.eta_s,
        run=schemas.RebuildRun(
            state=run.state,
            job_id=run.job_id,
            started_at=_iso_or_none(run.started_at),
            ended_at=_iso_or_none(run.ended_at),
        ),
        endpoints=_converted(status.endpoints, list[schemas.EndpointStatus]),
        quarantined=_converted(status.quarantined, list[schemas.QuarantinedChunk]),
        cost=UNSET if status.cost is None else _converted(status.cost, schemas.Cost),
        error=_or_unset(status.error),
    )


def estimate(report: EstimateReport) -> RebuildEstimate:
    """The report of a dry run."""
    plain = msgspec.to_builtins(report)
    plain["failures"] = [{k: v for k, v in failure.items() if v is not None} for failure in plain["failures"]]
    return msgspec.convert(plain, RebuildEstimate)


def history(events: Iterable[Event]) -> schemas.History:
    """What was done, oldest first."""
    shown = (msgspec.convert({**event.to_json(), "at": _iso(event.at)}, schemas.Event) for event in events)
    return schemas.History(list(shown))


def chunk_shown(chunk: Chunk) -> schemas.Chunk:
    """A chunk without its vectors."""
    return schemas.Chunk(**chunk.public())


def result(hit: Hit, space: Space) -> schemas.Result:
    """A hit, with its vector where the query asked for it."""
    shown = chunk_shown(hit.chunk)
    if hit.vector is not None:
        shown.embeddings = {space.name: hit.vector.tolist()}
    return schemas.Result(shown, float(hit.score))


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _iso_or_none(seconds: float | None) -> str | None:
    return None if seconds is None else _iso(seconds)


def _or_unset(text: str | None) -> str | UnsetType:
    return UNSET if text is None else text


def _converted(value: object, kind: type[T]) -> T:
    """A value of the domain, a list of them or one with others in it, as the struct with the same fields."""
    return msgspec.convert(value, kind, from_attributes=True)
