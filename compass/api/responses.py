"""What is answered: the domain's values as the HTTP interface shows them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from compass.api import schemas
from compass.domain import info
from compass.domain.chunk import Chunk
from compass.domain.embedding.endpoint_url import shown as without_secrets
from compass.domain.embedding.fingerprint import Fingerprint
from compass.domain.history import Event
from compass.domain.ingest import IngestReceipt
from compass.domain.page import Page
from compass.domain.rebuild.order import RebuildStarted
from compass.domain.rebuild.report import EstimateReport
from compass.domain.rebuild.status import QuarantinedChunk
from compass.domain.receipts import Deleted
from compass.domain.routing.swap import Swapped
from compass.domain.search.query import Hit
from compass.domain.search.result import SearchResult
from compass.domain.space import BUILTIN, NewSpace, Space

T = TypeVar("T")


def collection_info(collection: info.CollectionInfo) -> schemas.CollectionInfo:
    """A collection: its route, what its writer says, its spaces."""
    route = collection.route
    return schemas.CollectionInfo(
        name=route.name,
        created_at=_iso(route.created_at),
        embedding_dims=route.space(None).config.dims,
        chunk_count=collection.stats.chunk_count,
        vector_spaces={one.space.name: space_info(one) for one in collection.spaces},
        default_vector_space=route.default,
        epoch=route.epoch,
        seq=collection.stats.seq,
    )


def space_info(one: info.SpaceInfo) -> schemas.SpaceInfo:
    """A space: its record, and what its index knows."""
    space, stats = one.space, one.stats
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


def space_added(space: NewSpace) -> schemas.SpaceAdded:
    """A space that was added: it is building."""
    return schemas.SpaceAdded(name=space.name, dims=space.config.dims, model=space.config.model, status="building")


def swapped(swap: Swapped) -> schemas.Swapped:
    """The default before and after."""
    return schemas.Swapped(swap.previous, swap.current, swap.epoch)


def history(events: Sequence[Event]) -> schemas.History:
    """What was done, oldest first."""
    return schemas.History([_event(event) for event in events])


def ingest_answer(receipt: IngestReceipt) -> schemas.IngestAnswer:
    """An acknowledged write."""
    return schemas.IngestAnswer(
        indexed=receipt.indexed,
        id_map=dict(receipt.ids),
        took_ms=round(1e3 * receipt.took_s, 3),
        seq=receipt.seq,
        pending=dict(receipt.pending),
    )


def delete_answer(receipt: Deleted) -> schemas.DeleteAnswer:
    """An acknowledged delete."""
    return schemas.DeleteAnswer(receipt.deleted, receipt.seq)


def chunk(stored: Chunk) -> schemas.Chunk:
    """A chunk without its vectors."""
    return schemas.Chunk(
        id=stored.id,
        file_id=stored.file_id,
        chunk_index=stored.chunk_index,
        text=stored.text,
        metadata=stored.metadata,
        doc_type=stored.doc_type,
        page=_or_unset(stored.page),
        parent_id=_or_unset(stored.parent_id),
        parent_ref=_or_unset(stored.parent_ref),
        group_id=_or_unset(stored.group_id),
    )


def chunk_page(page: Page[Chunk]) -> schemas.ChunkPage:
    """A page of chunks."""
    return schemas.ChunkPage([chunk(stored) for stored in page.items], page.next)


def search_response(result: SearchResult) -> schemas.SearchResponse:
    """The hits of a search."""
    return schemas.SearchResponse(
        results=[_result(hit, result.space) for hit in result.hits],
        total=len(result.hits),
        took_us=round(1e6 * result.took_s),
        mode="semantic",
        vector_space=result.space.name,
        epoch=result.epoch,
    )


def rebuild_started(started: RebuildStarted) -> schemas.RebuildStarted:
    """A rebuild that runs now."""
    return schemas.RebuildStarted(started.status, started.job_id)


def rebuild_status(rebuild: info.SpaceRebuild) -> schemas.RebuildStatus:
    """How far a space is."""
    status = rebuild.status
    return schemas.RebuildStatus(
        status=rebuild.space.status,
        progress=rebuild.progress,
        percent=rebuild.percent,
        embedded=status.embedded,
        total=status.total,
        failed=status.failed,
        lag=status.lag,
        docs_per_s=status.docs_per_s,
        eta_s=status.eta_s,
        run=schemas.RebuildRun(
            state=status.run.state,
            job_id=status.run.job_id,
            started_at=_iso_or_none(status.run.started_at),
            ended_at=_iso_or_none(status.run.ended_at),
        ),
        endpoints=_converted(status.endpoints, list[schemas.EndpointStatus]),
        quarantined=_converted(status.quarantined, list[schemas.QuarantinedChunk]),
        cost=UNSET if status.cost is None else _converted(status.cost, schemas.Cost),
        error=_or_unset(status.error),
    )


def quarantine(page: Page[QuarantinedChunk]) -> schemas.Quarantine:
    """A page of the chunks that an endpoint refuses."""
    return schemas.Quarantine(_converted(page.items, list[schemas.QuarantinedChunk]), page.next)


def estimate(report: EstimateReport) -> schemas.RebuildEstimate:
    """The report of a dry run."""
    plain = msgspec.to_builtins(report)
    plain["failures"] = [{k: v for k, v in failure.items() if v is not None} for failure in plain["failures"]]
    return msgspec.convert(plain, schemas.RebuildEstimate)


def _event(event: Event) -> schemas.Event:
    return msgspec.convert({**event.to_json(), "at": _iso(event.at)}, schemas.Event)


def _result(hit: Hit, space: Space) -> schemas.Result:
    """A hit, with its vector where the query asked for it."""
    stored = chunk(hit.chunk)
    if hit.vector is not None:
        stored.embeddings = {space.name: hit.vector.tolist()}
    return schemas.Result(stored, float(hit.score))


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _iso_or_none(seconds: float | None) -> str | None:
    return None if seconds is None else _iso(seconds)


def _or_unset(value: T | None) -> T | UnsetType:
    return UNSET if value is None else value


def _converted(value: object, kind: type[T]) -> T:
    """A value of the domain, a list of them or one with others in it, as the struct with the same fields."""
    return msgspec.convert(value, kind, from_attributes=True)
