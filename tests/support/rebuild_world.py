"""A collection on a real disk with the rebuild's ports around it, in one process."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from compass.clock import Clock, boot_clock
from compass.domain.chunk import ChunkInput, FloatMatrix
from compass.domain.collection import CollectionStats, SetSpace
from compass.domain.embedding.contract import ServerInfo
from compass.domain.embedding.endpoint_stats import EndpointStats
from compass.domain.rebuild.order import RebuildOrder
from compass.domain.rebuild.run_record import RunRecord
from compass.domain.space import Space, SpaceConfig, SpaceStats
from compass.embedding.builtin import HashingModel
from compass.errors import FingerprintMismatchError, SpaceLagsError
from compass.rebuild.run import RebuildRun
from compass.rebuild.stage import EmbedStage, OpenStage
from compass.rebuild.timings import DEFAULT_TIMINGS, RunTimings
from compass.storage.log.writer import CollectionStore
from compass.storage.objects import LocalObjects
from compass.storage.root import Root
from compass.storage.snapshot.parts import Snapshot
from compass.storage.spaces.vectors import SpaceVectors

DIMS = 16
MakeOrder = Callable[..., RebuildOrder]


class CountingEmbedder:
    """The built-in model, which counts each text it is sent, and fails or waits when a test says so."""

    def __init__(self) -> None:
        self.model = HashingModel("m", DIMS)
        self.sent: Counter[str] = Counter()
        self.before: Callable[[Sequence[str]], None] = lambda texts: None
        self.open_gate = asyncio.Event()
        self.open_gate.set()
        self.waiting = asyncio.Event()
        self.closed = 0
        self.stats: list[EndpointStats] = []

    async def embed(self, texts: Sequence[str]) -> FloatMatrix:
        self.sent.update(texts)
        self.before(texts)
        self.waiting.set()
        await self.open_gate.wait()
        return self.model.embed(texts)

    async def describe(self) -> list[ServerInfo]:
        return [ServerInfo()]

    def endpoints(self) -> list[EndpointStats]:
        return self.stats

    async def close(self) -> None:
        self.closed += 1


class LocalCollection:
    """The port `Collection` over a store of this process."""

    def __init__(self, store: CollectionStore) -> None:
        self.store = store
        self.checkpoints = 0
        self.snapshots: list[Snapshot] = []

    async def checkpoint(self) -> Snapshot:
        self.checkpoints += 1
        if self.snapshots:
            return self.snapshots.pop(0)
        return await asyncio.to_thread(self.store.checkpoint)

    async def stats(self) -> CollectionStats:
        return CollectionStats(self.store.view.count(), self.store.seq)


class SetIndex:
    """The port `SpaceIndex` as a set of vids: it follows what the run's record leaves to it."""

    def __init__(self, store: CollectionStore, vectors: SpaceVectors, embedder: CountingEmbedder) -> None:
        self.store, self.vectors, self.embedder = store, vectors, embedder
        self.held: set[int] = set()
        self.loaded: list[str] = []
        self.run: RunRecord | None = None
        self.live_owner_below: list[int] = []
        self.checked: list[tuple[str, ...]] = []
        self.mismatch: FingerprintMismatchError | None = None

    async def load_files(self, keys: list[str]) -> None:
        for key in keys:
            self.loaded.append(key)
            self.held.update(self.vectors.read(key)[0].tolist())

    async def run_changed(self) -> None:
        self.run = self.vectors.read_run()

    def bound(self) -> int:
        """The vids below are the run's."""
        return self.run.owns_below if self.run is not None and self.run.running else 0

    async def follow(self, seq: int, wait_s: float) -> int:
        self.store.view.refresh(seq)
        bound = self.bound()
        mine = [v for v in self.missing() if v >= bound]
        if mine:
            texts = self.store.view.texts(mine)
            rows = await self.embedder.embed([texts[v] for v in mine])
            self.vectors.append(np.array(mine), rows)
            self.held.update(mine)
        return len(self.missing())

    async def stats(self) -> SpaceStats:
        live = set(self.store.view.live_vids().tolist())
        quarantined = len(self.vectors.quarantined())
        return SpaceStats(len(live & self.held), len(self.missing()), quarantined, 0, 0)

    async def ensure_same_model(self, endpoints: Sequence[str], api_key_env: str | None) -> None:
        self.checked.append(tuple(endpoints))
        if self.mismatch is not None:
            raise self.mismatch

    def missing(self) -> list[int]:
        lacking = set(self.store.view.embeddable_vids().tolist()) - self.held
        return sorted(lacking - set(self.vectors.quarantined()))


class LocalRouter:
    """The port `Router`: activates what lacks nothing, through the log."""

    def __init__(self, store: CollectionStore, index: SetIndex) -> None:
        self.store, self.index = store, index
        self.before_activation: list[Callable[[], None]] = []

    async def activate(self, collection: str, space_id: str) -> None:
        while self.before_activation:
            self.before_activation.pop()()
        self.store.view.refresh(self.store.seq)
        if lag := len(self.index.missing()):
            raise SpaceLagsError(f"lacks {lag}", {"lag": lag})
        self.store.change(SetSpace(space_id, status="active", follows=True))

    async def fail(self, collection: str, space_id: str, error: str) -> None:
        if self.store.state.by_id(space_id).status == "building":
            self.store.change(SetSpace(space_id, status="failed", error=error))


class World:
    """One collection `docs` with an active space `old-1` and a building space `new-1`."""

    def __init__(self, folder: Path) -> None:
        self.objects = LocalObjects(folder / "data")
        self.root = Root(self.objects, folder / "cache")
        config = SpaceConfig(DIMS, "m", "http://embed")
        now = time.time()
        spaces = [
            Space("old-1", "old", SpaceConfig(4, "m"), "active", now),
            Space("new-1", "new", config, "building", now, True),
        ]
        state = self.root.create("docs", spaces, "old-1", {})
        self.store = self.root.open(state.uuid, grace_s=0.0)
        self.vectors = self.root.space_vectors(state.uuid, "new-1", DIMS)
        self.embedder = CountingEmbedder()
        self.collection = LocalCollection(self.store)
        self.index = SetIndex(self.store, self.vectors, self.embedder)
        self.router = LocalRouter(self.store, self.index)
        self.open_stage: OpenStage = lambda order, attempt: EmbedStage(
            self.objects, self.vectors, self.embedder, attempt
        )
        self.runs: list[RebuildRun] = []

    def ingest(self, texts: Iterable[str], file_id: str = "f") -> None:
        self.store.ingest([ChunkInput(file_id, i, text) for i, text in enumerate(texts)])

    def new_run(self, timings: RunTimings = DEFAULT_TIMINGS, clock: Clock = boot_clock) -> RebuildRun:
        """Another process's view of the same rebuild."""
        run = RebuildRun(
            "docs",
            "new-1",
            collection=self.collection,
            index=self.index,
            router=self.router,
            vectors=self.vectors,
            objects=self.objects,
            open_stage=self.open_stage,
            timings=timings,
            clock=clock,
        )
        self.runs.append(run)
        return run

    def stored(self) -> RunRecord:
        """The record of the run as it is stored."""
        record = self.vectors.read_run()
        assert record is not None
        return record

    def status(self) -> str:
        return self.store.state.by_id("new-1").status

    def embeddable(self) -> list[int]:
        return [int(vid) for vid in self.store.view.embeddable_vids()]

    async def close(self) -> None:
        self.embedder.open_gate.set()
        for run in self.runs:
            await run.close()
        self.store.close()


async def ended(run: RebuildRun) -> RunRecord:
    """The record of a run once it has ended."""
    record = await run.wait()
    assert record is not None
    return record
