"""A service in one process: the real gateway and HTTP application, with fakes behind the gateway's ports."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy as np

from compass.api.calls import call
from compass.domain.chunk import Chunk, ChunkInput, FloatMatrix, FloatVector, has_text
from compass.domain.collection import (
    AddSpace,
    CollectionSpec,
    CollectionState,
    CollectionStats,
    DropSpace,
    SetSpace,
    SwapDefault,
    apply,
)
from compass.domain.embedding.contract import ServerInfo
from compass.domain.embedding.endpoint_stats import EndpointStats
from compass.domain.filters import Filter
from compass.domain.history import By, Event
from compass.domain.rebuild.estimate import Span
from compass.domain.rebuild.order import RebuildOrder, RebuildStarted
from compass.domain.rebuild.report import (
    ChunkCounts,
    DiskEstimate,
    EndpointEstimate,
    EstimateReport,
    Failure,
    MemoryEstimate,
    TimeEstimate,
)
from compass.domain.rebuild.status import QuarantinedChunk, RebuildStatus, RunStatus
from compass.domain.receipts import Deleted, Ingested
from compass.domain.routing.lease import Holding, Routed
from compass.domain.routing.swap import SwapOrder, Swapped
from compass.domain.routing.table import CollectionRoute, RoutingTable
from compass.domain.search.query import Hit, Query
from compass.domain.space import Space, SpaceChanges, SpaceConfig, SpaceStats, Status
from compass.errors import CollectionExistsError, NotFoundError, RebuildRunningError, SpaceLagsError, UnavailableError
from compass.gateway.gateway import Gateway
from compass.gateway.visibility import GRACE_S
from compass.http.app import build_app
from compass.settings import Settings
from compass.testing.clock import ManualClock


class FakeTable:
    """A routing table without a router: always newest, leased unless a test says otherwise."""

    def __init__(self) -> None:
        self._holding = Holding()
        self.ready = True

    @property
    def table(self) -> RoutingTable:
        return self._holding.table

    async def current(self) -> RoutingTable:
        if not self.ready:
            raise UnavailableError("this gateway has no word from the router", {"retry_after": 1})
        return self.table

    def put(self, route: CollectionRoute) -> None:
        self._holding.table = self.table.with_route(route)

    def remove(self, collection: str) -> None:
        self._holding.table = self.table.without(collection)

    @asynccontextmanager
    async def route(self, collection: str, space: str | None) -> AsyncIterator[Routed]:
        routed = self._holding.begin(collection, space)
        try:
            yield routed
        finally:
            self._holding.end(routed)


NOBODY = By()


class FakeCollection:
    """A collection as a dict; `writes` counts what reached its log."""

    def __init__(self) -> None:
        self.seq, self.writes = 1, 0
        self.attempts: list[str | None] = []
        self.rows: dict[int, Chunk] = {}
        self.sent: dict[int, dict[str, FloatVector]] = {}  # the callers' vectors, by id
        self.on_stats: Callable[[], object] = lambda: None
        self._ids: dict[tuple[str, int], int] = {}

    async def ingest(self, chunks: Sequence[ChunkInput], attempt: str | None = None) -> Ingested:
        self.attempts.append(attempt)
        self._commit()
        ids = []
        for c in chunks:
            row_id = self._ids.setdefault((c.file_id, c.chunk_index), len(self._ids) + 1)
            self.rows[row_id] = Chunk(
                id=row_id,
                vid=self.seq,
                seq=self.seq,
                file_id=c.file_id,
                chunk_index=c.chunk_index,
                text=c.text,
                metadata=dict(c.metadata),
                doc_type=c.doc_type,
                page=c.page,
                parent_id=c.parent_id,
                parent_ref=c.parent_ref,
                group_id=c.group_id,
            )
            self.sent.setdefault(row_id, {}).update(c.vectors)
            ids.append(row_id)
        return Ingested(self.seq, ids)

    async def delete(self, ids: Sequence[int], where: Filter | None, attempt: str | None = None) -> Deleted:
        self.attempts.append(attempt)
        self._commit()
        gone = [i for i, row in self.rows.items() if (where.matches(row) if where else i in ids)]
        for row_id in gone:
            del self.rows[row_id]
        return Deleted(self.seq, len(gone))

    async def chunk(self, chunk_id: int) -> Chunk | None:
        return self.rows.get(chunk_id)

    async def page(self, after: int, limit: int) -> list[Chunk]:
        return [self.rows[i] for i in sorted(self.rows) if i > after][:limit]

    async def stats(self) -> CollectionStats:
        self.on_stats()
        return CollectionStats(len(self.rows), self.seq)

    async def history(self) -> list[Event]:
        return [Event(2, 1_700_000_000.5, 1, "add", "new", 0.25, "anyone", "why not", {"model": "m"})]

    def _commit(self) -> None:
        self.seq += 1
        self.writes += 1


class FakeEmbedder:
    """A text's vector: its characters counted, so that equal texts are nearest."""

    def __init__(self, dims: int) -> None:
        self.dims = dims

    async def embed(self, texts: Sequence[str]) -> FloatMatrix:
        rows = np.zeros((len(texts), self.dims), np.float32)
        for row, text in zip(rows, texts, strict=True):
            for character in text:
                row[ord(character) % self.dims] += 1
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)

    async def describe(self) -> list[ServerInfo]:
        return [ServerInfo()]

    def endpoints(self) -> list[EndpointStats]:
        return []

    async def close(self) -> None:
        return None


class FakeIndex:
    """Brute force over the collection. `lacks`: chunks that it says it cannot find yet."""

    def __init__(self, space: Space, collection: FakeCollection) -> None:
        self.space, self.collection = space, collection
        self.lacks = 0
        self.followed: list[tuple[int, float]] = []
        self.queries: list[Query] = []
        self.on_follow: Callable[[], Awaitable[object] | None] = lambda: None
        self.progress = 0.25

    async def search(self, queries: Sequence[Query]) -> list[list[Hit]]:
        self.queries += queries
        return [await self._one(query) for query in queries]

    async def follow(self, seq: int, wait_s: float) -> int:
        self.followed.append((seq, wait_s))
        waiting = self.on_follow()
        if waiting is not None:
            await waiting
        return self.lacks

    async def stats(self) -> SpaceStats:
        return SpaceStats(len(self.collection.rows), self.lacks, 0, 0, 8)

    async def rebuild_status(self) -> RebuildStatus:
        run = RunStatus("running", "j", 1.0)
        return RebuildStatus(progress=self.progress, embedded=1, total=4, run=run)

    async def quarantine(self, after: int, limit: int) -> list[QuarantinedChunk]:
        return []

    async def _one(self, query: Query) -> list[Hit]:
        hits = []
        for row_id, chunk in self.collection.rows.items():
            vector = self.collection.sent[row_id].get(self.space.id)
            if vector is None and self.space.config.embed_endpoint and has_text(chunk.text):
                vector = (await FakeEmbedder(self.space.config.dims).embed([chunk.text]))[0]
            if vector is not None and query.where.matches(chunk):
                hits.append(
                    Hit(chunk, max(0.0, float(vector @ query.vector)), vector if query.include_vectors else None)
                )
        return sorted(hits, key=lambda hit: -hit.score)[: query.top_k]


SPAN = Span(1.0, 2.0, 3.0)
ESTIMATE = EstimateReport(
    chunks=ChunkCounts(total=4, without_text=1, embedded=1, missing=2, sampled=2),
    endpoints=(EndpointEstimate("http://a/embed", 2, 1, SPAN, SPAN, "server", 32, None),),
    docs_per_s=SPAN,
    tokens=SPAN,
    tokens_from="server",
    time_s=TimeEstimate(SPAN, None, SPAN),
    disk_bytes=DiskEstimate(1, 2, 3, 6),
    memory_bytes=MemoryEstimate(1, 2, 3),
    cost=SPAN,
    budget=5.0,
    failures=(
        Failure(
            "chunks-refused",
            "too long",
            True,
            endpoint="http://a/embed",
            count=SPAN,
            chunks=(QuarantinedChunk(1, "f", 0, "too long"),),
        ),
    ),
    rests_on="2 texts",
    took_s=1.5,
)


class FakeRouter:
    """Changes the table at once; the preconditions are the domain's own."""

    def __init__(self, service: FakeService) -> None:
        self._service = service
        self.states: dict[str, CollectionState] = {}
        self.rebuilds: dict[str, RebuildOrder] = {}
        self.estimated: list[RebuildOrder] = []
        self.swap_lags = False
        self.calls: list[tuple[str, By]] = []
        self.confirmed: list[str | None] = []
        self.swaps: list[SwapOrder] = []

    async def create_collection(self, spec: CollectionSpec, by: By = NOBODY) -> None:
        self.calls.append(("create_collection", by))
        if spec.name in self.states:
            raise CollectionExistsError(f"there is a collection {spec.name!r} already")
        spaces = [_space(name, config, "active", True) for name, config in spec.spaces.items()]
        default = next(s.id for s in spaces if s.name == spec.default)
        key = uuid.uuid4().hex
        self._service.collections[key] = FakeCollection()
        self._set(
            CollectionState(key, spec.name, time.time(), {s.id: s for s in spaces}, default, config=dict(spec.config))
        )

    async def delete_collection(self, collection: str) -> None:
        del self._service.collections[self._state(collection).uuid]
        del self.states[collection]
        self._service.table.remove(collection)

    async def add_space(self, collection: str, name: str, config: SpaceConfig, by: By = NOBODY) -> None:
        self.calls.append(("add_space", by))
        self._set(apply(self._state(collection), AddSpace(_space(name, config, "building", False))))

    async def set_space(self, collection: str, space: str, changes: SpaceChanges, by: By = NOBODY) -> None:
        self.calls.append(("set_space", by))
        state = self._state(collection)
        target = state.by_name(space)
        config = target.with_config(**changes.of_config(target.config)).config
        self._set(apply(state, SetSpace(target.id, config=config)))

    async def activate(self, collection: str, space: str) -> None:
        state = self._state(collection)
        self._set(apply(state, SetSpace(state.by_name(space).id, status="active", follows=True)))

    async def drop_space(self, collection: str, space: str, confirm: str | None = None, by: By = NOBODY) -> None:
        self.calls.append(("drop_space", by))
        self.confirmed.append(confirm)
        state = self._state(collection)
        self._set(apply(state, DropSpace(state.by_name(space).id)))

    async def swap(self, collection: str, order: SwapOrder, by: By = NOBODY) -> Swapped:
        self.calls.append(("swap", by))
        self.swaps.append(order)
        space = order.space or ""
        if self.swap_lags:
            raise SpaceLagsError(f"vector space {space!r} lags", {"space": space, "lag": 3})
        state = self._state(collection)
        before, target = state.spaces[state.default or ""], state.by_name(space)
        epoch = state.epoch if order.expected_epoch is None else order.expected_epoch
        state = apply(state, SwapDefault(before.id, epoch, target.id))
        self._set(state)
        return Swapped(before.name, space, state.epoch)

    async def start_rebuild(
        self, collection: str, space: str, order: RebuildOrder, by: By = NOBODY
    ) -> RebuildStarted:
        self.calls.append(("start_rebuild", by))
        target = self._state(collection).by_name(space)
        if target.id in self.rebuilds:
            raise RebuildRunningError(f"a rebuild of {space!r} runs")
        self.rebuilds[target.id] = order
        return RebuildStarted(target.status, "job-1")

    async def estimate_rebuild(self, collection: str, space: str, order: RebuildOrder) -> EstimateReport:
        self._state(collection).by_name(space)
        self.estimated.append(order)
        return ESTIMATE

    async def cancel_rebuild(self, collection: str, space: str, by: By = NOBODY) -> None:
        self.calls.append(("cancel_rebuild", by))
        if self.rebuilds.pop(self._state(collection).by_name(space).id, None) is None:
            raise NotFoundError(f"no rebuild of {space!r} runs")

    def _state(self, collection: str) -> CollectionState:
        self._service.table.table.route(collection)
        return self.states[collection]

    def _set(self, state: CollectionState) -> None:
        self.states[state.name] = state
        self._service.table.put(CollectionRoute.of(state))


class FakeService:
    """Everything wired together; `http(...)` makes clients of the application."""

    def __init__(self, *, grace_s: float = GRACE_S, **settings: Any) -> None:
        self.clock = ManualClock(100.0)
        self.table = FakeTable()
        self.router = FakeRouter(self)
        self.collections: dict[str, FakeCollection] = {}
        self._indexes: dict[str, FakeIndex] = {}
        self.gateway = Gateway(
            self.table,
            self.router,
            self.collections.__getitem__,
            self.index_of,
            lambda space: FakeEmbedder(space.config.dims),
            self.clock,
            grace_s=grace_s,
        )
        self.app = build_app(self.gateway, Settings(**{"api_key": None, **settings}))

    async def call(self, operation: str, **arguments: object) -> Any:
        """What a Python handle is answered."""
        return await call(self.gateway, operation, arguments)

    def index_of(self, space: Space) -> FakeIndex:
        if space.id not in self._indexes:
            owner = next(s for s in self.router.states.values() if space.id in s.spaces)
            self._indexes[space.id] = FakeIndex(space, self.collections[owner.uuid])
        return self._indexes[space.id]

    def index(self, collection: str, space: str) -> FakeIndex:
        return self.index_of(self.router.states[collection].by_name(space))

    def collection(self, name: str) -> FakeCollection:
        return self.collections[self.router.states[name].uuid]

    def http(self, url: str = "http://127.0.0.1:8000", **options: Any) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url=url, **options)


def _space(name: str, config: SpaceConfig, status: Status, follows: bool) -> Space:
    return Space(f"{name}-{uuid.uuid4().hex[:8]}", name, config, status, time.time(), follows)
