"""A stage of a rebuild: it owns the rows of a descriptor from reading the part to the durable vector file."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import pyarrow as pa

from compass.adapters.embedders import open_embedder
from compass.domain.chunk import FloatMatrix, IntVector
from compass.domain.embedding import FIRST_BATCH, Embedder
from compass.domain.space import SpaceConfig
from compass.errors import ConflictError
from compass.rebuild.job import RebuildJob
from compass.rebuild.plan import Descriptor
from compass.storage.objects import Objects, open_objects
from compass.storage.parts import PartRef, read_part
from compass.storage.vectors import SpaceVectors

CHECK_S = 1.0  # how often a stage looks whether its run goes on: a cancelled one leaves the endpoint alone
KEPT_PARTS = 2  # parts whose texts stay in memory: the descriptors of a part come one after the other

T = TypeVar("T")
Embed = Callable[[Sequence[str]], Awaitable[FloatMatrix]]


class StaleRunError(ConflictError):
    """Another attempt has been accepted meanwhile: this one may not append any more."""

    type, title = "stale-run", "Another rebuild run was accepted"


@dataclass(frozen=True, slots=True)
class Filled:
    """A descriptor done: its vectors are durable in the file `key`. `endpoints`: as the stage sees them."""

    key: str
    count: int
    stage: str = ""
    endpoints: tuple[dict[str, Any], ...] = ()


@runtime_checkable
class Watched(Protocol):
    """An embedder that tells how its endpoints do."""

    def endpoints(self) -> Sequence[dict[str, Any]]:
        """[{url, in_flight, docs_per_s, errors, last_error}], since it was made."""


class EmbedStage:
    """Embeds descriptors; safe for several at once on one event loop."""

    def __init__(
        self,
        objects: Objects,
        vectors: SpaceVectors,
        embedder: Embedder,
        attempt: str,
        throttle: Throttle | None = None,
    ) -> None:
        """Open a stage of the run's `attempt`; without a throttle the embedder has its own measure."""
        self._name = uuid.uuid4().hex
        self._objects, self._vectors, self._embedder = objects, vectors, embedder
        self._attempt, self._throttle = attempt, throttle
        self._parts: OrderedDict[PartRef, asyncio.Task[pa.Table]] = OrderedDict()

    async def fill(self, descriptor: Descriptor) -> Filled:
        """Embed the descriptor's rows and append them as one durable file.

        Raises:
            StaleRunError: another attempt runs now; nothing was appended.
            MissingObjectError: compaction removed the part; plan anew.
            EmbeddingError: what the endpoint did, after the embedder's own retries; nothing was appended.
        """
        work = asyncio.create_task(self._fill(descriptor))
        try:
            while not (await asyncio.wait({work}, timeout=CHECK_S))[0]:
                await asyncio.to_thread(check_accepted, self._vectors, self._attempt)
            return work.result()
        finally:
            work.cancel()

    async def _fill(self, descriptor: Descriptor) -> Filled:
        vids, texts = await self._read(descriptor)
        embed = self._embedder.embed
        rows = await (embed(texts) if self._throttle is None else self._throttle.embed(embed, texts))
        key = await asyncio.to_thread(self._append, vids, rows)
        watched = self._embedder.endpoints() if isinstance(self._embedder, Watched) else ()
        return Filled(key, len(vids), self._name, tuple(watched))

    async def close(self) -> None:
        """Let go of the endpoint's connections and the parts in memory."""
        for part in self._parts.values():
            part.cancel()
        self._parts.clear()
        await self._embedder.close()

    async def _read(self, descriptor: Descriptor) -> tuple[IntVector, list[str]]:
        part = descriptor.part
        if part not in self._parts:
            self._parts[part] = asyncio.create_task(
                asyncio.to_thread(read_part, self._objects, part, ["vid", "text"])
            )
            while len(self._parts) > KEPT_PARTS:
                self._parts.popitem(last=False)
        self._parts.move_to_end(part)
        rows = (await asyncio.shield(self._parts[part])).take(pa.array(descriptor.rows))
        return rows["vid"].to_numpy().astype(np.int64, copy=False), rows["text"].to_pylist()

    def _append(self, vids: IntVector, rows: FloatMatrix) -> str:
        check_accepted(self._vectors, self._attempt)
        return self._vectors.append(vids, rows, run=self._attempt)


def check_accepted(vectors: SpaceVectors, attempt: str) -> None:
    """Return if the stored record says that this attempt runs; blocking.

    Raises:
        StaleRunError: it was cancelled, or another one was accepted.
    """
    record = vectors.read_run() or {}
    if record.get("attempt") != attempt or record.get("state") != "running":
        raise StaleRunError(
            f"the rebuild attempt {attempt} was ended or replaced; it writes nothing more",
            {"attempt": attempt, "accepted": record.get("attempt")},
        )


class Throttle:
    """Holds a stage back where the job asks for it: fewer requests at once, or fewer texts a second."""

    def __init__(self, batch_rows: int, requests: int | None, max_docs_per_s: float | None) -> None:
        """Let `requests` of `batch_rows` texts go at once, and so many texts a second; None: no limit."""
        self._batch_rows, self._per_s = batch_rows, max_docs_per_s
        self._turn = asyncio.Semaphore(requests) if requests else contextlib.nullcontext()
        self._free_at = 0.0

    async def embed(self, embed: Embed, texts: Sequence[str]) -> FloatMatrix:
        """The rows of `texts`, embedded in batches that wait for their turn."""
        batches = [texts[at : at + self._batch_rows] for at in range(0, len(texts), self._batch_rows)]
        return np.concatenate(await together([self._in_turn(embed, batch) for batch in batches]))

    async def _in_turn(self, embed: Embed, texts: Sequence[str]) -> FloatMatrix:
        async with self._turn:
            await self._wait(len(texts))
            return await embed(texts)

    async def _wait(self, count: int) -> None:
        """Wait for the end of those before: the next may go when these have had their share of time."""
        if self._per_s is not None:
            now = time.monotonic()
            starts_at = max(now, self._free_at)
            self._free_at = starts_at + count / self._per_s
            await asyncio.sleep(starts_at - now)


async def together(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all, in order; the first error cancels the rest and is raised as it was."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


OpenStage = Callable[[RebuildJob, str, int], EmbedStage]


@dataclass(frozen=True, slots=True)
class StageOpener:
    """Opens the stages of a space, in this process or in another one: only settings travel.

    Attributes:
        root: What `open_objects` takes.
        timeout_s: One request to an endpoint.
        retry_s: How long one batch is retried.
    """

    root: str
    uuid: str
    space_id: str
    config: SpaceConfig
    timeout_s: float
    retry_s: float

    def __call__(self, job: RebuildJob, attempt: str, stages: int) -> EmbedStage:
        """One of `stages` stages that share the job's speed limit."""
        objects = open_objects(self.root)
        embedder = open_embedder(
            self.config,
            kind="document",
            timeout_s=self.timeout_s,
            retry_s=self.retry_s,
            endpoints=job.endpoints,
            batch_size=job.batch_size,
            api_key_env=job.api_key_env,
        )
        return EmbedStage(
            objects,
            SpaceVectors(objects, self.uuid, self.space_id, self.config.dims),
            embedder,
            attempt,
            self._throttle(job, stages),
        )

    def _throttle(self, job: RebuildJob, stages: int) -> Throttle | None:
        if job.concurrency is None and job.max_docs_per_s is None:
            return None
        per_s = None if job.max_docs_per_s is None else job.max_docs_per_s / stages
        return Throttle(job.batch_size or FIRST_BATCH, job.concurrency, per_s)
