"""What the process of a space's owner runs: a follower, the backfill of what is missing, and housekeeping."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any

from compass.domain.embedding.contract import Embedder
from compass.domain.embedding.fingerprint import ModelCheck
from compass.domain.memory import UNLIMITED, Room
from compass.domain.rebuild.status import QuarantinedChunk, RebuildStatus, status_of_run
from compass.domain.search.query import Hit, Query
from compass.domain.space import BuiltBy, Lag, Space, SpaceStats
from compass.index.backfill import Backfill
from compass.index.follower import Follower
from compass.index.housekeeping import Housekeeping
from compass.index.pace import DEFAULT_PACE, Pace
from compass.index.poller import Poller
from compass.storage.spaces.vectors import SpaceVectors
from compass.storage.view.view import View

SHOWN_REFUSALS = 100


class SpaceIndex:
    """The index of one space, by its only owner. One event loop; heavy work goes to threads.

    Attributes:
        follower: Level with the log; answers the queries.
        backfill: Embeds what the follower misses.
    """

    def __init__(
        self,
        space: Space,
        view: View,
        vectors: SpaceVectors,
        open_embedder: Callable[[Space], Embedder],
        completed: Callable[[], Coroutine[Any, Any, None]],
        identified: Callable[[BuiltBy], Coroutine[Any, Any, None]],
        room: Room = UNLIMITED,
        pace: Pace = DEFAULT_PACE,
    ) -> None:
        """Open the saved graph and begin to follow.

        Args:
            space: The space as the log records it; `configure` replaces it.
            view: The node's view of the collection, read-only here.
            vectors: The space's durable vectors.
            open_embedder: Makes the embedder of the space's own documents.
            completed: Called when a building space that callers feed has a vector for every live chunk.
            identified: Called with what the space's endpoint says of itself, where nobody has asked before.
            room: The memory that it may take.
            pace: How often it looks, tries again and saves.
        """
        self.follower = Follower(space, view, vectors, room)
        self.backfill = Backfill(self.follower, view, vectors, open_embedder, identified, pace.batch_rows)
        self._view, self._vectors, self._completed = view, vectors, completed
        self._housekeeping = Housekeeping(self.follower, vectors, pace)
        name = f"space {space.name} of {vectors.space_id}"
        self._poller = Poller(name, self._step, self.follower.due, pace)

    @property
    def error(self) -> str | None:
        """Why the space lags, or is about to; None when all goes well."""
        return self._poller.error or self.follower.memory_error

    async def search(self, queries: Sequence[Query]) -> list[list[Hit]]:
        """Answer several queries that waited together, none older than its `min_seq`."""
        return await self.follower.search(queries)

    async def follow(self, seq: int, wait_s: float) -> int:
        """Wait until what was written up to `seq` can be found here; how many live chunks still cannot."""
        return await self.follower.follow(seq, wait_s)

    async def lag_at(self, seq: int, wait_s: float) -> Lag:
        """As `follow`; with what is quarantined then, for what it lacked may have been refused meanwhile."""
        return await self.follower.lag_at(seq, wait_s)

    async def load_files(self, keys: Sequence[str]) -> None:
        """Take in vector files of a rebuild; returns when they are in the graph, so that memory stays flat."""
        await self.follower.load_files(keys)

    async def run_changed(self) -> None:
        """A rebuild began, moved on or ended: look at its record to know whose work is whose."""
        await self.follower.refresh_run()
        self.follower.due.set()

    async def configure(self, space: Space) -> None:
        """Take the space as the log records it now."""
        await self.follower.configure(space)

    async def stats(self) -> SpaceStats:
        """What it holds, and what it lacks."""
        search = await self.follower.ready()
        return SpaceStats(
            vectors=len(search),
            lag=len(self.follower.missing),
            quarantined=len(self.follower.refused),
            accepted=self.follower.accepted,
            bytes_on_disk=await asyncio.to_thread(self._vectors.bytes_on_disk),
            error=self.error,
        )

    async def rebuild_status(self) -> RebuildStatus:
        """How far its rebuild is, by its last run and by what it holds now."""
        search = await self.follower.ready()
        run = await asyncio.to_thread(self._vectors.read_run)
        status = status_of_run(run, active=self.follower.space.status == "active")
        return replace(
            status,
            embedded=len(search),
            total=await asyncio.to_thread(self._view.count),
            failed=len(self.follower.refused),
            lag=len(self.follower.missing),
            quarantined=tuple(await asyncio.to_thread(self._quarantine, -1, SHOWN_REFUSALS)),
            error=status.error or self.error,
        )

    async def quarantine(self, after: int, limit: int) -> list[QuarantinedChunk]:
        """Up to `limit` refused chunks with an id above `after`, by id."""
        await self.follower.ready()
        return await asyncio.to_thread(self._quarantine, after, limit)

    async def examine(self, endpoints: Sequence[str], api_key_env: str | None = None) -> list[ModelCheck]:
        """What these endpoints say of their model, and how they embed a few of the stored texts."""
        await self.follower.ready()
        return await self.backfill.examine(endpoints, api_key_env)

    async def ensure_same_model(self, endpoints: Sequence[str], api_key_env: str | None = None) -> None:
        """Check that none of these endpoints is another model than the one that built the space.

        Raises:
            FingerprintMismatchError: one is; one that does not answer passes.
        """
        await self.follower.ready()
        await self.backfill.ensure_same_model(endpoints, api_key_env)

    async def ensure_memory(self, afresh: bool) -> None:
        """Check that a rebuild has the memory for every live chunk, `afresh` in place of what is held here.

        Raises:
            InsufficientMemoryError: it does not fit; the fields say what it needs and what is free.
        """
        search = await self.follower.ready()
        await asyncio.to_thread(self._view.refresh)
        texts = len(await asyncio.to_thread(self._view.embeddable_vids))
        search.require(max(texts, len(search)), afresh)

    async def close(self, keep: bool = True) -> None:
        """Stop following, and save the graph if it is to be kept; queries in flight finish."""
        await self._poller.close()
        await self.backfill.close()
        await self._housekeeping.close(keep)
        await self.follower.close()

    async def _step(self) -> None:
        """Level with the log, and nothing left to embed that is ours to embed."""
        await self.follower.refresh()
        if self.follower.is_rebuilding:
            await self.follower.refresh_run()  # a process that was killed does not say that its run has ended
        self.backfill.check_identified()
        self._housekeeping.tidy_aside()  # before what follows: it frees memory that the rest may lack
        if self.follower.memory_error:
            await self.follower.load_left_out()
        while await self.backfill.embed_batch():
            self._poller.error = None
        if await self._is_fed_and_complete():
            await self._completed()

    async def _is_fed_and_complete(self) -> bool:
        """Whether callers have given a building space without endpoint a vector for every live chunk."""
        follower = self.follower
        space, held = follower.space, len(await follower.ready())
        fed = space.status == "building" and space.config.embed_endpoint is None
        return fed and follower.run is None and held > 0 and not len(follower.missing)

    def _quarantine(self, after: int, limit: int) -> list[QuarantinedChunk]:
        refused = dict(self.follower.refused)
        chunks = sorted((c.id, vid, c) for vid, c in self._view.by_vids(list(refused)).items() if c.id > after)
        return [QuarantinedChunk(c.id, c.file_id, c.chunk_index, refused[vid]) for _, vid, c in chunks[:limit]]
