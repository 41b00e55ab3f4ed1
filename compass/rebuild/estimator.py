"""The pilot of a rebuild: a sample of what is missing, embedded and thrown away, for an estimate of the whole.

It writes nothing. In production it has a process of its own, so that neither queries nor the router wait for it.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

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

PROBE_S = 20.0  # all endpoints at once
SAMPLED = 4_096
BUILT_ROWS, BUILD_S, TIMED_ROWS = 4_000, 2.0, 500
BUILD_THREADS = os.cpu_count() or 1

OpenEmbedder = Callable[..., Embedder]


class Estimator:
    """Estimates the rebuild of one space; plain asyncio."""

    def __init__(self, space: Space, view: View, vectors: SpaceVectors, open_embedder: OpenEmbedder) -> None:
        """Wire it.

        Args:
            space: The space as the log records it.
            view: The node's view of the collection.
            vectors: The space's durable vectors; they are only read.
            open_embedder: Takes the endpoint and the options of an order by name, see `adapters.embedders`.
        """
        self._space, self._view, self._vectors = space, view, vectors
        self._open_embedder = open_embedder

    async def estimate(self, order: RebuildOrder, known: Sequence[Failure] = ()) -> EstimateReport:
        """The report on an order; `known` will fail already."""
        began_s = time.monotonic()
        work, vids = await asyncio.to_thread(self._work, order.restart)
        sampled = sample_order(work.lengths, SAMPLED)
        texts, kept = await asyncio.to_thread(self._texts, vids, sampled)
        sampled = sampled[kept]
        probed, rows = await self._probe(order, texts)
        built = None
        if rows is not None:
            built = await asyncio.to_thread(measure_build, self._space.config, rows)
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
        named = {at: chunks.get(int(vids[at])) for at in positions}
        return {at: (c.id, c.file_id, c.chunk_index) for at, c in named.items() if c is not None}

    async def _probe(self, order: RebuildOrder, texts: Sequence[str]) -> tuple[list[Probed], FloatMatrix | None]:
        """Measure every endpoint, all at once as in a rebuild, each by itself; and vectors of whoever gave most."""
        urls, share, config = order.endpoints, self._share(order), self._space.config
        if len(urls) > 1:  # the space's own key goes to its own endpoint, and only where that is alone
            config = replace(config, api_key_env=None)

        names = [url if url == BUILTIN else shown(url) for url in urls]
        try:
            await self._open_embedder(config, endpoints=urls, **share).close()
        except CompassError as error:  # as the order stands its stages would not open
            return [Probed(name, fault=Fault(error.type, error.detail)) for name in names], None

        async def one(url: str, name: str) -> tuple[Probed, FloatMatrix | None]:
            embedder = self._open_embedder(config, endpoints=(url,), **share)
            try:
                probe = Probe(name, embedder, texts, PROBE_S)
                return await probe.run(), probe.rows(BUILT_ROWS)
            finally:
                await embedder.close()

        measured = await asyncio.gather(*(one(url, name) for url, name in zip(urls, names, strict=True)))
        rows = max((rows for _, rows in measured if rows is not None), key=len, default=None)
        return [probed for probed, _ in measured], rows

    def _share(self, order: RebuildOrder) -> dict[str, Any]:
        """The options of an order, its limits divided by the endpoints: together they keep to them."""
        count = len(order.endpoints)
        concurrency, pace = order.concurrency, order.max_docs_per_s
        at_once = None if concurrency is None else max(1, concurrency // count)
        return {
            "api_key_env": order.api_key_env,
            "batch_size": order.batch_size,
            "concurrency": at_once,
            "max_docs_per_s": None if pace is None else pace / count,
            "endpoint_timeout_s": 2 * PROBE_S,  # the probe looks after the time itself
        }


def footprint_of(config: SpaceConfig, rows: int) -> SpaceSize:
    """What a space of so many vectors takes."""
    taken = memory.Footprint(config.dims, config.hnsw.m)
    graph = taken.graph_bytes(memory.grown(memory.FIRST_CAPACITY, rows))
    return SpaceSize(stored_bytes(config.dims, rows), saved_bytes(config, rows), graph, taken.rows_bytes(rows))


def measure_build(
    config: SpaceConfig, rows: FloatMatrix, clock: Callable[[], float] = time.monotonic
) -> Built | None:
    """Build a graph of some thousand rows, and time the second half of it; None where it is too quick to time.

    Where the sample is smaller, means of its pairs are added: they lie where its vectors lie.
    """
    some = _with_mixtures(rows, BUILT_ROWS)
    graph, began_s, half_s, half = Graph(config), clock(), 0.0, 0
    done = 0
    while done < len(some):
        part = some[done : done + TIMED_ROWS]
        graph.add(np.arange(done, done + len(part)), part, BUILD_THREADS)
        done += len(part)
        took_s = clock() - began_s
        if half == 0 and (done >= BUILT_ROWS // 2 or took_s >= BUILD_S / 4):
            half, half_s = done, took_s
        elif half and took_s >= BUILD_S:
            break
    took_s = clock() - began_s - half_s
    return Built(half, done, took_s, config.hnsw.ef_construction) if done > half and took_s > 0 else None


def _with_mixtures(rows: FloatMatrix, count: int) -> FloatMatrix:
    lacking = count - len(rows)
    if lacking <= 0:
        return rows[:count]
    choose = np.random.default_rng(0)
    one, other = choose.integers(len(rows), size=(2, lacking))
    weight = choose.uniform(0.2, 0.8, (lacking, 1)).astype(np.float32)
    mixed = weight * rows[one] + (1 - weight) * rows[other]
    length = np.linalg.norm(mixed, axis=1, keepdims=True)
    wanted = np.linalg.norm(rows[one], axis=1, keepdims=True)
    return np.concatenate([rows, mixed * wanted / np.where(length == 0, 1, length)]).astype(np.float32)
