"""The pilot of a rebuild: a sample of what is missing, embedded and thrown away, for an estimate of the whole.

It writes nothing. In production it has a process of its own, so that neither queries nor the router wait for it.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from compass.domain import memory
from compass.domain.chunk import FloatMatrix, IntVector
from compass.domain.embedding.contract import Embedder
from compass.domain.embedding.endpoint_url import shown
from compass.domain.rebuild.budget import Price
from compass.domain.rebuild.estimate import Built, Fault, Probed, SpaceSize, Terms, Work, sample_order
from compass.domain.rebuild.forecast import ChunkKey, forecast
from compass.domain.rebuild.order import RebuildOrder
from compass.domain.rebuild.report import EstimateReport, Failure
from compass.domain.space import BUILTIN, Space, SpaceConfig
from compass.embedding.probe import Probe
from compass.errors import CompassError
from compass.index.vector.hnsw import Graph, saved_bytes
from compass.storage.spaces.vectors import SpaceVectors, stored_bytes
from compass.storage.view.view import View


@dataclass(frozen=True, slots=True)
class EstimateLimits:
    """How much is measured for an estimate.

    Attributes:
        probe_s: Seconds for the endpoints, all of them at once.
        sampled: Chunks, at most.
        build_rows: Vectors in the graph that is built, at most; `timed_rows` of them are added at a time.
        build_s: Seconds for building it.
        build_threads: What builds it.
    """

    probe_s: float = 20.0
    sampled: int = 4_096
    build_rows: int = 4_000
    timed_rows: int = 500
    build_s: float = 2.0
    build_threads: int = os.cpu_count() or 1


DEFAULT_LIMITS = EstimateLimits()


class OpenEmbedder(Protocol):
    """Opens an embedder of documents, see `embedding.open.open_embedder`."""

    def __call__(
        self,
        config: SpaceConfig,
        *,
        endpoints: Sequence[str],
        api_key_env: str | None,
        batch_size: int | None,
        concurrency: int | None,
        max_docs_per_s: float | None,
        endpoint_timeout_s: float,
    ) -> Embedder:
        """An embedder of these endpoints, within these limits."""


class Estimator:
    """Estimates the rebuild of one space; plain asyncio."""

    def __init__(
        self,
        space: Space,
        view: View,
        vectors: SpaceVectors,
        open_embedder: OpenEmbedder,
        *,
        limits: EstimateLimits = DEFAULT_LIMITS,
    ) -> None:
        """Wire it.

        Args:
            space: The space as the log records it.
            view: The node's view of the collection.
            vectors: The space's durable vectors; they are only read.
            open_embedder: Takes the endpoints and the options of an order by name.
            limits: How much is measured.
        """
        self._space, self._view, self._vectors = space, view, vectors
        self._open_embedder, self._limits = open_embedder, limits

    async def estimate(self, order: RebuildOrder, known: Sequence[Failure] = ()) -> EstimateReport:
        """The report on an order; `known` will fail already."""
        began_s = time.monotonic()
        work, vids = await asyncio.to_thread(self._work, order.restart)
        sampled = sample_order(work.lengths, self._limits.sampled)
        texts, kept = await asyncio.to_thread(self._texts, vids, sampled)
        sampled = sampled[kept]
        probed, rows = await self._probe(order, texts)
        built = None
        if rows is not None:
            built = await asyncio.to_thread(measure_build, self._space.config, rows, limits=self._limits)
        refused = sorted({at for one in probed for at in one.refused})
        chunks = await asyncio.to_thread(self._chunks, vids[sampled], refused)
        terms = Terms(
            len(order.endpoints),
            order.max_docs_per_s,
            order.max_failed,
            Price(order.cost_per_million_tokens, order.cost_per_hour),
            order.budget,
        )
        footprint = footprint_of(self._space.config, work.embeddable)
        report = forecast(work, probed, sampled, built, footprint, terms, chunks=chunks, failures=known)
        return replace(report, took_s=round(time.monotonic() - began_s, 2))

    def _work(self, restart: bool) -> tuple[Work, IntVector]:
        """What is missing, quarantined chunks among it: an order tries them again. With the vids of it."""
        self._view.refresh()
        vids, lengths = self._view.text_lengths()
        missing = np.ones(len(vids), np.bool_) if restart else ~np.isin(vids, self._vectors.have())
        return Work(self._view.count(), len(vids), lengths[missing]), vids[missing]

    def _texts(self, vids: IntVector, sampled: IntVector) -> tuple[list[str], IntVector]:
        """What is embedded of the sampled chunks, and which of them are still there."""
        texts = self._view.texts_to_embed(vids[sampled], self._space.config)
        kept = [at for at, vid in enumerate(vids[sampled].tolist()) if vid in texts]
        return [texts[vid] for vid in vids[sampled][kept].tolist()], np.array(kept, np.int64)

    def _chunks(self, vids: IntVector, positions: Sequence[int]) -> dict[int, ChunkKey]:
        chunks = self._view.by_vids(vids[list(positions)])
        at_position = {at: chunks.get(int(vids[at])) for at in positions}
        return {at: (c.id, c.file_id, c.chunk_index) for at, c in at_position.items() if c is not None}

    async def _probe(self, order: RebuildOrder, texts: Sequence[str]) -> tuple[list[Probed], FloatMatrix | None]:
        """Measure every endpoint, all at once as in a rebuild, each by itself; and vectors of whoever gave most."""
        urls, config, limits = order.endpoints, self._space.config, self._limits
        if len(urls) > 1:  # the space's own key goes to its own endpoint, and only where that is alone
            config = replace(config, api_key_env=None)

        names = [url if url == BUILTIN else shown(url) for url in urls]
        try:
            await self._open(config, urls, order).close()
        except CompassError as error:  # as the order stands its stages would not open
            return [Probed(name, fault=Fault(error.type, error.detail)) for name in names], None

        async def one(url: str, name: str) -> tuple[Probed, FloatMatrix | None]:
            embedder = self._open(config, (url,), order)
            try:
                probe = Probe(name, embedder, texts, limits.probe_s)
                return await probe.run(), probe.rows(limits.build_rows)
            finally:
                await embedder.close()

        measured = await asyncio.gather(*(one(url, name) for url, name in zip(urls, names, strict=True)))
        rows = max((rows for _, rows in measured if rows is not None), key=len, default=None)
        return [probed for probed, _ in measured], rows

    def _open(self, config: SpaceConfig, urls: Sequence[str], order: RebuildOrder) -> Embedder:
        """An embedder of some endpoints, with the order's limits divided by all: together they keep to them."""
        count = len(order.endpoints)
        return self._open_embedder(
            config,
            endpoints=urls,
            api_key_env=order.api_key_env,
            batch_size=order.batch_size,
            concurrency=None if order.concurrency is None else max(1, order.concurrency // count),
            max_docs_per_s=None if order.max_docs_per_s is None else order.max_docs_per_s / count,
            endpoint_timeout_s=2 * self._limits.probe_s,  # the probe looks after the time itself
        )


def footprint_of(config: SpaceConfig, rows: int) -> SpaceSize:
    """What a space of so many vectors takes."""
    taken = memory.Footprint(config.dims, config.hnsw.m)
    graph = taken.graph_bytes(memory.grown(memory.FIRST_CAPACITY, rows))
    return SpaceSize(stored_bytes(config.dims, rows), saved_bytes(config, rows), graph, taken.rows_bytes(rows))


def measure_build(
    config: SpaceConfig,
    rows: FloatMatrix,
    clock: Callable[[], float] = time.monotonic,
    *,
    limits: EstimateLimits = DEFAULT_LIMITS,
) -> Built | None:
    """Build a graph of some thousand rows, and time the second half of it; None where it is too quick to time.

    Where the sample is smaller, means of its pairs are added: they lie where its vectors lie.
    """
    sample = _with_mixtures(rows, limits.build_rows)
    graph, began_s, half_s, half = Graph(config), clock(), 0.0, 0
    done = 0
    while done < len(sample):
        part = sample[done : done + limits.timed_rows]
        graph.add(np.arange(done, done + len(part)), part, limits.build_threads)
        done += len(part)
        took_s = clock() - began_s
        if half == 0 and (done >= limits.build_rows // 2 or took_s >= limits.build_s / 4):
            half, half_s = done, took_s
        elif half and took_s >= limits.build_s:
            break
    took_s = clock() - began_s - half_s
    return Built(half, done, took_s, config.hnsw.ef_construction) if done > half and took_s > 0 else None


def _with_mixtures(rows: FloatMatrix, count: int) -> FloatMatrix:
    missing = count - len(rows)
    if missing <= 0:
        return rows[:count]
    choose = np.random.default_rng(0)
    one, other = choose.integers(len(rows), size=(2, missing))
    weight = choose.uniform(0.2, 0.8, (missing, 1)).astype(np.float32)
    mixed = weight * rows[one] + (1 - weight) * rows[other]
    length = np.linalg.norm(mixed, axis=1, keepdims=True)
    wanted = np.linalg.norm(rows[one], axis=1, keepdims=True)
    return np.concatenate([rows, mixed * wanted / np.where(length == 0, 1, length)]).astype(np.float32)
