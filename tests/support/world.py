"""A service in one process: the real router, collections, indexes and gateways' tables; no Ray, no HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from waiting import until

from compass.cluster import wiring
from compass.control.router import RouterService
from compass.control.timings import RouterTimings
from compass.domain.chunk import ChunkInput, FloatMatrix
from compass.domain.collection import CollectionSpec
from compass.domain.embedding.contract import Embedder, ServerInfo
from compass.domain.embedding.endpoint_stats import EndpointStats
from compass.domain.memory import UNLIMITED
from compass.domain.rebuild.order import RebuildOrder
from compass.domain.rebuild.report import (
    ChunkCounts,
    DiskEstimate,
    EstimateReport,
    Failure,
    MemoryEstimate,
    TimeEstimate,
)
from compass.domain.routing.table import CollectionRoute
from compass.domain.search.query import Query
from compass.domain.space import Space, SpaceConfig
from compass.embedding.builtin import HashingModel
from compass.errors import EndpointUnavailableError
from compass.gateway.routing import RouteTable
from compass.index.pace import Pace
from compass.index.service import SpaceIndex
from compass.settings import Settings
from compass.storage.root import Root
from compass.storage.service import CollectionService

LEASE_S = 4.0
DIMS = 16
HURRIED = RouterTimings(settle_s=0.05, catch_up_s=0.3, reconcile_s=0.05, stop_check_s=0.02, cancel_s=0.1)
OLD, NEW = SpaceConfig(DIMS, "a", "http://a"), SpaceConfig(DIMS, "b", "http://b")


class Model:
    """An endpoint: the built-in model, or an error while it is down."""

    def __init__(self, name: str) -> None:
        self._model = HashingModel(name, DIMS)
        self.down = False
        self.says: ServerInfo | None = None  # until a test is about it: a record of it would be one more commit

    async def describe(self) -> list[ServerInfo]:
        if self.down or self.says is None:
            raise EndpointUnavailableError("the endpoint is down")
        return [self.says]

    async def embed(self, texts: Sequence[str]) -> FloatMatrix:
        if self.down:
            raise EndpointUnavailableError("the endpoint is down")
        return self._model.embed(texts)

    def endpoints(self) -> list[EndpointStats]:
        return []

    async def close(self) -> None:
        return None


class FakeRebuild:
    """A rebuild that runs until a test ends it."""

    def __init__(self) -> None:
        self.orders: list[RebuildOrder] = []
        self.runs = False
        self.hangs = False

    async def start(self, order: RebuildOrder) -> None:
        self.orders.append(order)
        self.runs = True

    async def cancel(self) -> None:
        if self.hangs:
            await asyncio.Event().wait()
        self.runs = False

    async def running(self) -> bool:
        return self.runs

    async def writing(self) -> bool:
        return self.runs


class Faulty:
    """A port whose methods a test replaces; all others go to the real one."""

    def __init__(self, real: Any, **methods: Any) -> None:
        self._real, self._methods = real, methods

    def __getattr__(self, name: str) -> Any:
        return self._methods.get(name) or getattr(self._real, name)


NOTHING_KNOWN = EstimateReport(
    chunks=ChunkCounts(0, 0, 0, 0, 0),
    endpoints=(),
    docs_per_s=None,
    tokens=None,
    tokens_from=None,
    time_s=TimeEstimate(None, None, None),
    disk_bytes=DiskEstimate(0, 0, 0, 0),
    memory_bytes=MemoryEstimate(0, 0, 0),
    cost=None,
    budget=None,
    failures=(),
    rests_on="nothing",
)


class FakeCluster:
    """The actors as objects of this process, over one root; what is stopped is started when it is asked again."""

    def __init__(self, settings: Settings, root: Root) -> None:
        self.settings, self.root = settings, root
        self.models = {"a": Model("a"), "b": Model("b")}
        self.collections: dict[str, CollectionService] = {}
        self.indexes: dict[str, SpaceIndex] = {}
        self.rebuilds: dict[str, FakeRebuild] = {}
        self.new_rebuild: Callable[[], FakeRebuild] = FakeRebuild
        self.ended_rebuilds: list[str] = []
        self.estimated: list[tuple[str, RebuildOrder, tuple[Failure, ...]]] = []  # space, order, known failures
        self.estimators_go = asyncio.Event()
        self.estimators_go.set()
        self.wrap_collection: Callable[[CollectionService], Any] = lambda real: real
        self.wrap_index: Callable[[SpaceIndex, Space], Any] = lambda real, space: real
        self.router: RouterService | None = None
        self.room = UNLIMITED

    def collection(self, uuid: str) -> CollectionService:
        if uuid not in self.collections:
            self.collections[uuid] = wiring.open_collection(self.settings, self.root, uuid)
        collection: CollectionService = self.wrap_collection(self.collections[uuid])
        return collection

    def index(self, uuid: str, space: Space) -> SpaceIndex:
        if space.id not in self.indexes:
            self.indexes[space.id] = wiring.open_index(
                self.settings,
                self.root,
                uuid,
                space.id,
                self._now_router,
                embedders=self._embedder,
                room=self.room,
                pace=Pace(poll_s=0.02, retry_s=0.05),
            )
        index: SpaceIndex = self.wrap_index(self.indexes[space.id], space)
        return index

    def _now_router(self) -> RouterService:
        assert self.router is not None
        return self.router

    def _embedder(self, space: Space) -> Embedder:
        """The embedder of a space's documents."""
        return self.models[space.config.model]

    def rebuild(self, collection: str, uuid: str, space: Space) -> FakeRebuild:
        if space.id not in self.rebuilds:
            self.rebuilds[space.id] = self.new_rebuild()
        return self.rebuilds[space.id]

    async def find_rebuild(self, space_id: str) -> FakeRebuild | None:
        return self.rebuilds.get(space_id)

    async def estimate(
        self, uuid: str, space: Space, order: RebuildOrder, known: Sequence[Failure]
    ) -> EstimateReport:
        self.estimated.append((space.name, order, tuple(known)))
        await self.estimators_go.wait()
        return replace(NOTHING_KNOWN, failures=tuple(known))

    async def stop_collection(self, uuid: str) -> None:
        if uuid in self.collections:
            await self.collections.pop(uuid).close()

    async def stop_index(self, space_id: str) -> None:
        if space_id in self.indexes:
            await self.indexes.pop(space_id).close(keep=False)

    async def stop_rebuild(self, space_id: str) -> None:
        if self.rebuilds.pop(space_id, None) is not None:
            self.ended_rebuilds.append(space_id)

    async def close(self) -> None:
        for space_id in list(self.indexes):
            await self.indexes.pop(space_id).close()
        for uuid in list(self.collections):
            await self.stop_collection(uuid)


class World:
    """A router, two gateways that poll it, and the actors behind them."""

    def __init__(self, folder: Path, timings: RouterTimings = HURRIED, drain_s: float = 60.0) -> None:
        self.folder, self.timings, self.drain_s = folder, timings, drain_s
        self.settings = Settings(
            data=folder / "data", cache=folder / "cache", lease_s=LEASE_S, grace_s=0.0, checkpoint_s=3_600
        )
        self.root = wiring.open_root(self.settings)
        self.cluster = FakeCluster(self.settings, self.root)
        self.tables: list[RouteTable] = []
        self.drop_guard_s, self.later_s = 0.0, 0.0
        self._polling: list[asyncio.Task[None]] = []
        self.begin()

    def now(self) -> float:
        """The router's wall clock, which a test puts forward by `later_s`."""
        return time.time() + self.later_s

    def begin(self) -> None:
        """A router and its gateways; the one before has ended after all its gateways."""
        self._claim = wiring.claim_root(self.root)
        settings = self.settings.model_copy(update={"drop_guard_s": self.drop_guard_s})
        opened = wiring.open_router(
            settings,
            self.root,
            self._claim,
            self.cluster,
            drain_s=self.drain_s,
            timings=self.timings,
            now=self.now,
        )
        self.router, self.publisher = opened.service, opened.publisher
        self.cluster.router = self.router
        self.tables = [wiring.open_table(self.settings, name, self.router) for name in ("g1", "g2")]
        self._polling = [asyncio.create_task(table.run()) for table in self.tables]

    async def end(self) -> None:
        for task in self._polling:
            task.cancel()
        await self.router.close()
        wiring.release_root(self.root, self._claim)

    async def close(self) -> None:
        await self.end()
        await self.cluster.close()

    async def create(self, *chunks: str, **spaces: SpaceConfig) -> str:
        """The collection `docs` with the default `old` and these spaces beside it; its uuid."""
        await self.router.create_collection(CollectionSpec("docs", {"old": OLD, **spaces}, "old"))
        await self.ingest(*chunks)
        return str(self.route().uuid)

    async def create_built_by_a(self) -> None:
        """As `create`, with an endpoint that says what it is, and is known to have built the default."""
        self.cluster.models["a"].says = ServerInfo(model_id="a")
        await self.create("one", "two")
        await self.level(self.space("old"))
        await until(lambda: self.publisher.table.route("docs").spaces["old"].built_by is not None)

    async def ingest(self, *texts: str) -> int:
        chunks = [ChunkInput(text, 0, text) for text in texts]
        return (await self.cluster.collection(self.route().uuid).ingest(chunks)).seq

    def route(self) -> CollectionRoute:
        """The route of `docs`, on which all gateways must agree."""
        first, second = (table.table.route("docs") for table in self.tables)
        assert first == second == self.publisher.table.route("docs")
        return first

    def space(self, name: str) -> Space:
        return self.route().spaces[name]

    def folder_of(self, space: Space, uuid: str) -> Path:
        return self.folder / "data" / uuid / "spaces" / space.id

    async def level(self, space: Space) -> int:
        """Wait until a space has all that was written; how many chunks it lacks after all."""
        for store in [service._store for service in self.cluster.collections.values()]:
            if space.id in store.state.spaces:
                return await self.cluster.indexes[space.id].follow(store.seq, 60)
        return await self.cluster.indexes[space.id].follow(0, 60)

    async def found(self, text: str, name: str | None = None) -> list[str]:
        """The texts that a query finds, best first, through a gateway's table."""
        async with self.tables[0].route("docs", name) as routed:
            vector = (await self.cluster.models[routed.space.config.model].embed([text]))[0]
            index = self.cluster.indexes[routed.space.id]
            await self.level(routed.space)
            hits = (await index.search([Query(vector, top_k=5)]))[0]
        return [hit.chunk.text for hit in hits]


@asynccontextmanager
async def hurried(folder: Path, drain_s: float = 60.0) -> AsyncIterator[World]:
    """A service without collections; nothing in it waits for long, but a drop for queries, up to `drain_s`."""
    made = World(folder, drain_s=drain_s)
    try:
        yield made
    finally:
        await made.close()


def raises(error: Exception) -> Any:
    """A method that raises."""

    async def method(*args: Any) -> Any:
        raise error

    return method
