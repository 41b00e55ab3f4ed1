"""A stage of a rebuild: it owns the rows of a descriptor from reading the part to the durable vector file."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa

from compass.domain.chunk import FloatMatrix, IntVector
from compass.domain.embedding.contract import Embedder
from compass.domain.embedding.endpoint_stats import EndpointStats
from compass.domain.rebuild.budget import Meter
from compass.domain.rebuild.order import RebuildOrder
from compass.domain.space import SpaceConfig
from compass.domain.template import BUILTIN_FIELDS
from compass.embedding.isolate import embed_each
from compass.embedding.open import open_embedder
from compass.rebuild.plan import Descriptor
from compass.rebuild.run_store import check_accepted
from compass.storage.objects import Objects, open_objects
from compass.storage.snapshot.parts import PartRef, read_part
from compass.storage.spaces.vectors import SpaceVectors

TEXT_COLUMNS = ["vid", "text"]
TEMPLATE_COLUMNS = ["vid", *BUILTIN_FIELDS, "metadata"]
KEPT_PARTS = 2  # parts whose texts stay in memory: the descriptors of a part come one after the other

ReportEndpoints = Callable[[str, str, tuple[EndpointStats, ...]], None]  # an attempt, a stage of it, its endpoints


@dataclass(frozen=True, slots=True)
class StageResult:
    """What became of a descriptor, durably.

    Attributes:
        key: The file of its vectors; None where every text was refused.
        count: Vectors in it.
        refused: Texts that were refused for themselves; they are quarantined.
        endpoints: As the stage sees them.
        stopped: Whether the budget ended it before all of its rows were embedded.
    """

    key: str | None
    count: int
    refused: int = 0
    stage: str = ""
    endpoints: tuple[EndpointStats, ...] = ()
    stopped: bool = False


class EmbedStage:
    """Embeds descriptors; safe for several at once on one event loop. `name` tells stages apart."""

    def __init__(
        self,
        objects: Objects,
        vectors: SpaceVectors,
        embedder: Embedder,
        attempt: str,
        config: SpaceConfig | None = None,
        report: ReportEndpoints | None = None,
        *,
        check_s: float = 1.0,
    ) -> None:
        """Open a stage of the run's `attempt`.

        Args:
            objects: Where the parts are.
            vectors: Where the vectors go.
            embedder: What embeds.
            attempt: A stage of an attempt that has ended appends nothing.
            config: It says what of a chunk is embedded; None: its text.
            report: Hears how the endpoints do, every `check_s` while the stage works.
            check_s: How often it looks whether its run goes on: a cancelled one leaves the endpoint alone.
        """
        self._check_s = check_s
        self.name = uuid.uuid4().hex
        self._objects, self._vectors, self._embedder = objects, vectors, embedder
        self._attempt, self._report = attempt, report
        self._config = config
        self._stopped = False
        self._columns = TEXT_COLUMNS if config is None or config.template is None else TEMPLATE_COLUMNS
        self._parts: OrderedDict[PartRef, asyncio.Task[pa.Table]] = OrderedDict()

    async def fill(self, descriptor: Descriptor) -> StageResult:
        """Embed the descriptor's rows and append them as one durable file; where the budget ends, those it paid for.

        Raises:
            StaleRunError: another attempt runs now; nothing was appended.
            MissingObjectError: compaction removed the part; plan anew.
            EmbeddingError: no endpoint is left, or none came back in time; nothing was appended.
        """
        work = asyncio.create_task(self._fill(descriptor))
        try:
            while not (await asyncio.wait({work}, timeout=self._check_s))[0]:
                await asyncio.to_thread(check_accepted, self._vectors, self._attempt)
                if self._report is not None:
                    self._report(self._attempt, self.name, self.endpoints())
            return work.result()
        finally:
            work.cancel()

    async def _fill(self, descriptor: Descriptor) -> StageResult:
        if self._stopped:
            return StageResult(None, 0, 0, self.name, self.endpoints(), True)
        vids, texts = await self._read(descriptor)
        name = f"{self._attempt}-{vids[0]}"  # what is durable is in no later plan of the attempt
        if (file := await asyncio.to_thread(self._vectors.find, name)) is not None:
            return StageResult(*file, 0, self.name, self.endpoints())  # by a stage that died before it could say so
        done = await embed_each(self._embedder, texts)
        refused = {int(vids[i]): reason for i, reason in done.refused.items()}
        key = await asyncio.to_thread(self._keep, name, vids[done.rows], done.vectors, refused)
        stopped = done.stopped is not None
        self._stopped = self._stopped or stopped
        return StageResult(key, len(done.rows), len(refused), self.name, self.endpoints(), stopped)

    def endpoints(self) -> tuple[EndpointStats, ...]:
        """How the endpoints do, as this stage sees them."""
        return tuple(self._embedder.endpoints())

    async def close(self) -> None:
        """Let go of the endpoint's connections and the parts in memory."""
        for part in self._parts.values():
            part.cancel()
        self._parts.clear()
        await self._embedder.close()

    async def _read(self, descriptor: Descriptor) -> tuple[IntVector, list[str]]:
        part = descriptor.part
        if part not in self._parts:
            self._parts[part] = asyncio.create_task(asyncio.to_thread(read_part, self._objects, part, self._columns))
            while len(self._parts) > KEPT_PARTS:
                self._parts.popitem(last=False)
        self._parts.move_to_end(part)
        rows = (await asyncio.shield(self._parts[part])).take(pa.array(descriptor.rows))
        vids = rows["vid"].to_numpy().astype(np.int64, copy=False)
        return vids, await asyncio.to_thread(_texts, self._config, rows)

    def _keep(self, name: str, vids: IntVector, rows: FloatMatrix, refused: dict[int, str]) -> str | None:
        """Make it durable: the vectors, and why the other texts have none; the key of the file."""
        check_accepted(self._vectors, self._attempt)
        self._vectors.quarantine(refused)
        return self._vectors.append(vids, rows, run=self._attempt, name=name) if len(vids) else None


def _texts(config: SpaceConfig | None, rows: pa.Table) -> list[str]:
    """What is embedded of each row."""
    if config is None or (config.template is None and config.document_prompt is None):
        return list(rows["text"].to_pylist())
    values = rows.to_pylist()
    return [config.document_text(row, json.loads(row.get("metadata", "{}"))) for row in values]


class Stage(Protocol):
    """What a pipeline asks of a stage."""

    async def fill(self, descriptor: Descriptor) -> StageResult:
        """Embed the descriptor's rows durably, see `EmbedStage.fill`."""

    async def close(self) -> None:
        """Let go of what it holds."""


OpenStage = Callable[[RebuildOrder, str], Stage]


@dataclass(frozen=True, slots=True)
class StageOpener:
    """Opens the stages of a space, in this process or in another one: only settings travel.

    Attributes:
        root: What `open_objects` takes.
        timeout_s: One request to an endpoint.
        report: Hears how the endpoints of a stage do; see `EmbedStage`.
        meter: Makes the meter of an attempt, for an order whose requests must be paid for before they go.
    """

    root: str
    uuid: str
    space_id: str
    config: SpaceConfig
    timeout_s: float
    report: ReportEndpoints | None = None
    meter: Callable[[str], Meter] | None = None

    def __call__(self, order: RebuildOrder, attempt: str) -> EmbedStage:
        """A stage of the order's `attempt`."""
        objects = open_objects(self.root)
        embedder = open_embedder(
            self.config,
            kind="document",
            timeout_s=self.timeout_s,
            retry_s=0.0,
            endpoints=order.endpoints,
            batch_size=order.batch_size,
            api_key_env=order.api_key_env,
            endpoint_timeout_s=order.endpoint_timeout_s,
            concurrency=order.concurrency,
            max_docs_per_s=order.max_docs_per_s,
            meter=self.meter(attempt) if order.metered and self.meter is not None else None,
        )
        return EmbedStage(
            objects,
            SpaceVectors(objects, self.uuid, self.space_id, self.config.dims),
            embedder,
            attempt,
            self.config,
            self.report,
        )
