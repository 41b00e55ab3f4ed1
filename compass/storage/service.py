"""The only writer of one collection, as a service: commits, reads, and housekeeping in the background."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from compass.domain.chunk import Chunk, ChunkInput
from compass.domain.collection import Change, CollectionState, CollectionStats, SetSpace
from compass.domain.filters import Filter
from compass.domain.history import Event, Note
from compass.domain.receipts import Deleted, Ingested
from compass.errors import CompassError, TakenOverError, UnavailableError
from compass.storage.log.writer import CollectionStore
from compass.storage.snapshot.parts import Snapshot

log = logging.getLogger(__name__)

T = TypeVar("T")

WRITERS = 16  # writers that wait together share one commit


class CollectionService:
    """Awaits what `CollectionStore` does on disk, and checkpoints when that is worthwhile."""

    def __init__(self, store: CollectionStore, checkpoint_s: float, router: int) -> None:
        """Serve `store`; look every `checkpoint_s` seconds whether a checkpoint is due.

        `router` is the newest incarnation of the router that is known, see `_check_router_epoch`.
        """
        self._store, self._router = store, router
        self._changing = asyncio.Lock()
        self._unsure = False  # whether a change may yet turn up in the log
        self._pool = ThreadPoolExecutor(WRITERS, "commit")
        self._task = asyncio.get_running_loop().create_task(self._keep_house(checkpoint_s))

    async def state(self, router: int) -> CollectionState:
        """The spaces, the default, the epoch, for a router of this incarnation."""
        async with self._changing:
            self._check_router_epoch(router)
            if self._unsure:
                await self._make_sure()
            return self._store.state

    async def ingest(self, chunks: Sequence[ChunkInput], attempt: str | None = None) -> Ingested:
        """Write chunks; durable when it returns. Sent again with the same `attempt` it changes nothing."""
        return await self._do(self._store.ingest, chunks, attempt)

    async def delete(self, ids: Sequence[int], where: Filter | None, attempt: str | None = None) -> Deleted:
        """Delete by ids or by a filter. Sent again with the same `attempt` it changes nothing."""
        return await self._do(self._store.delete, ids, where, attempt)

    async def change(self, change: Change, router: int, note: Note | None = None) -> CollectionState:
        """Change the state; its precondition is checked in the commit itself, which also holds the note.

        Raises:
            TakenOverError: a newer router has asked meanwhile; nothing changes.
            UnavailableError: it may have happened; `state` tells.
        """
        async with self._changing:
            self._check_router_epoch(router)
            try:
                return await self._do(self._store.change, change, note)
            except UnavailableError:
                self._unsure = True
                raise

    async def chunk(self, chunk_id: int) -> Chunk | None:
        """One chunk, or None."""
        return await self._do(self._store.view.get, chunk_id)

    async def page(self, after: int, limit: int) -> list[Chunk]:
        """Up to `limit` chunks whose id is greater than `after`, by id."""
        return await self._do(self._store.view.page, after, limit)

    async def stats(self) -> CollectionStats:
        """Its live chunks, and its last commit."""
        return CollectionStats(await self._do(self._store.view.count), self._store.seq)

    async def history(self) -> list[Event]:
        """What was done to the collection, oldest first."""
        return await self._do(self._store.view.history)

    async def checkpoint(self) -> Snapshot:
        """A snapshot in files, as a rebuild reads it."""
        return await self._do(self._store.checkpoint)

    async def sweep(self) -> None:
        """Delete the bytes of dropped spaces now."""
        await self._do(self._store.sweep)

    async def close(self) -> None:
        """Let go of the store; what is committed is durable already."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        await self._do(self._store.close)

    async def _make_sure(self) -> None:
        """Win the next commit: a change whose answer was lost is before it, or never will be in the log."""
        default = self._store.state.default
        assert default is not None, "a collection has a default"
        await self._do(self._store.change, SetSpace(default))
        self._unsure = False

    def _check_router_epoch(self, router: int) -> None:
        """Take no order of a router whose successor has read the state: it would change behind its back."""
        if router < self._router:
            raise TakenOverError(
                f"router {self._router} has taken over from router {router}", {"incarnation": self._router}
            )
        self._router = router

    async def _do(self, work: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *args)

    async def _keep_house(self, every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            try:
                if await self._do(self._store.due):
                    await self._do(self._store.checkpoint)
                    await self._do(self._store.compact)
            except CompassError as error:
                log.warning("housekeeping of %s: %s", self._store.state.name, error.detail)
            except Exception:  # a bug in one look must not end them all: the log would only grow from then on
                log.exception("housekeeping of %s", self._store.state.name)
