"""A follower of one space: finds what the log and the stored vectors say is there, and knows what is missing.

Following is one step, repeated: *embed `live - have`, drop `have - live`*. Live ingest, catch-up and healing after
a crash are all this step. The follower drops, takes in what has vectors, and says which live chunks have none
(`missing`); to embed them is the work of the space's owner (`backfill.py`) or of a rebuild. So a space may have
any number of followers: they have no embedder, and write nothing but their node's view.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from compass.domain.chunk import FloatMatrix, IntVector
from compass.domain.memory import UNLIMITED, Room
from compass.domain.rebuild.run_record import RunRecord
from compass.domain.search.query import Hit, Query
from compass.domain.space import Lag, Space
from compass.index.contents import Contents, StoredVectors
from compass.index.vector.hnsw import nice_this_thread
from compass.index.vector.search import SpaceSearch
from compass.storage.view.view import View


class Follower:
    """Searches one space and keeps it level with the log. One event loop; heavy work goes to threads.

    Attributes:
        due: Set when a step is worth its while at once: somebody waits, or the space has changed.
        saved_rows: How many rows came from the saved graph.
    """

    def __init__(self, space: Space, view: View, vectors: StoredVectors, room: Room = UNLIMITED) -> None:
        """Begin to open: the saved graph, then what the files have beyond it.

        Args:
            space: The space as the log records it; the log and `configure` replace it.
            view: The node's view of the collection; a read-only one beside another owner.
            vectors: The space's durable vectors.
            room: The memory that it may take.
        """
        self.due = asyncio.Event()
        self.saved_rows = 0
        self._space, self._view, self._vectors, self._room = space, view, vectors, room
        self._run: RunRecord | None = None
        self._builder = ThreadPoolExecutor(1, "build", initializer=nice_this_thread)
        self._contents = self._empty()
        self._changing = asyncio.Lock()
        self._moved = asyncio.Condition()
        self._opening = asyncio.get_running_loop().create_task(self._open())

    # ---- what it knows

    @property
    def space(self) -> Space:
        """The space as the log records it, as far as it is known here."""
        return self._space

    @property
    def seq(self) -> int:
        """The commit that it is level with, but for `missing`."""
        return self._contents.seq

    @property
    def missing(self) -> IntVector:
        """The live chunks that have a text, which nobody refused, and cannot be found here: vids, sorted."""
        return self._contents.missing

    @property
    def refused(self) -> Mapping[int, str]:
        """The live chunks that are quarantined, and why."""
        return self._contents.refused

    @property
    def memory_error(self) -> str | None:
        """Why vector files are left out: for want of memory. None if none is."""
        return self._contents.memory_error

    @property
    def run(self) -> RunRecord | None:
        """The record of the space's last rebuild, as read last."""
        return self._run

    @property
    def is_rebuilding(self) -> bool:
        """Whether a rebuild of the space goes on."""
        return self._run is not None and self._run.running

    @property
    def accepted(self) -> int:
        """How many quarantined chunks the order of the last run allows."""
        return self._run.order.max_failed if self._run else 0

    @property
    def is_open(self) -> bool:
        """Whether it has opened."""
        return self._opening.done() and not self._opening.cancelled() and self._opening.exception() is None

    def vids(self) -> IntVector:
        """The vids held, sorted."""
        return self._contents.search.vids()

    async def ready(self) -> SpaceSearch:
        """Its search, once it is open; raises what opening raised."""
        await asyncio.shield(self._opening)
        return self._contents.search

    # ---- what callers ask

    async def search(self, queries: Sequence[Query]) -> list[list[Hit]]:
        """Answer several queries that waited together, none older than its `min_seq`."""
        await self.catch_up(max(q.min_seq for q in queries))
        return await asyncio.to_thread(self._contents.search.search, list(queries))

    async def follow(self, seq: int, wait_s: float) -> int:
        """Wait until what was written up to `seq` can be found here; how many live chunks still cannot."""
        await self.catch_up(seq)
        last = int(self.missing[-1]) if len(self.missing) else -1
        self.due.set()
        if wait_s > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s), self._moved:
                    await self._moved.wait_for(lambda: not (self.missing <= last).any())
        return int((self.missing <= last).sum())

    async def lag_at(self, seq: int, wait_s: float) -> Lag:
        """As `follow`; with what is quarantined then, for what it lacked may have been refused meanwhile."""
        lag = await self.follow(seq, wait_s)
        return Lag(lag, len(self.refused), self.accepted)

    async def catch_up(self, seq: int) -> None:
        """Be level with commit `seq` or a later one."""
        await self.ready()
        if seq > self.seq:
            await self._refresh(seq)

    # ---- the step

    async def step(self) -> None:
        """The whole step of a follower that owns nothing: level with the log, and with what others have stored."""
        await self.refresh()
        await self.refresh_run()
        if len(self.missing) or self.memory_error:
            async with self._change() as contents:
                await contents.take_missing()

    async def refresh(self) -> None:
        """Open if that has failed, and go as far with the log as can be done at once."""
        if self._opening.done() and not self.is_open:
            self._opening = asyncio.get_running_loop().create_task(self._open())
        await self.ready()
        await self._refresh(0)

    async def refresh_run(self) -> None:
        """Read the run's record, to know whose work is whose; what the run has stored is not missing."""
        await self.ready()
        async with self._change() as contents:
            run = await asyncio.to_thread(self._vectors.read_run)
            if _ownership(run) != _ownership(self._run):
                await contents.take_stored()
            self._run = run  # not before: what an ended run has stored would be embedded meanwhile

    async def configure(self, space: Space) -> None:
        """Take the space as the log records it now."""
        await self.ready()
        self._use(space)

    # ---- what others have stored

    async def load_files(self, keys: Sequence[str]) -> None:
        """Take in vector files of a rebuild; returns when they are in the graph, so that memory stays flat.

        Raises:
            InsufficientMemoryError: there is no room for them.
        """
        await self.ready()
        async with self._change() as contents:
            await contents.take_files(keys)

    async def load_left_out(self) -> None:
        """Take in what there was no room for.

        Raises:
            InsufficientMemoryError: there still is none.
        """
        async with self._change() as contents:
            await contents.take_left_out()

    async def add_file(self, key: str, vids: IntVector, rows: FloatMatrix) -> None:
        """Make the rows of a file that was just written findable, as far as their chunks still live."""
        async with self._change() as contents:
            await contents.add_file(key, vids, rows)

    async def add_refused(self, reasons: Mapping[int, str]) -> None:
        """Know what was just quarantined."""
        async with self._change() as contents:
            contents.add_refused(reasons)

    async def forget(self, vids: IntVector) -> None:
        """Miss these no more: their chunks are gone."""
        async with self._change() as contents:
            contents.forget(vids)

    # ---- for who owns the space

    async def run_in_builder(self, work: Callable[[SpaceSearch], None]) -> None:
        """Run work on the graph in the niced thread, so that queries come first on a busy machine."""
        await asyncio.get_running_loop().run_in_executor(self._builder, work, self._contents.search)

    async def close(self) -> None:
        """Take in nothing more; queries in flight finish."""
        self._opening.cancel()
        await asyncio.gather(self._opening, return_exceptions=True)
        self._builder.shutdown(wait=False)

    # ---- following the log

    def _empty(self) -> Contents:
        return self._contents_of(SpaceSearch(self._space.config, self._view, self._room))

    def _contents_of(self, search: SpaceSearch) -> Contents:
        return Contents(search, self._view, self._vectors, self._builder)

    async def _open(self) -> None:
        """The saved graph, then whatever the files hold that it lacks; damaged or absent: from the files alone."""
        await asyncio.to_thread(self._view.refresh)
        config, view = self._space.config, self._view

        def load(path: Path) -> SpaceSearch:
            return SpaceSearch.load(path, config, view, self._room)

        saved = await asyncio.to_thread(self._vectors.load_index, load)
        self._contents = self._contents_of(saved[0]) if saved else self._empty()
        self.saved_rows = len(self._contents.search)
        self._run = await asyncio.to_thread(self._vectors.read_run)
        async with self._change() as contents:
            await contents.recount()
            await self._read_space()

    async def _refresh(self, seq: int) -> None:
        """Apply what the log has beyond `self.seq`: deletes, new chunks, vectors that callers sent."""
        async with self._change() as contents:
            if await asyncio.to_thread(self._view.refresh, seq) == contents.seq:
                return
            changes = await asyncio.to_thread(self._view.changes, contents.seq)
            if changes is None:
                await contents.recount()
            else:
                await contents.apply(changes)
            await self._read_space()

    async def _read_space(self) -> None:
        """Take the space's record from the log: what the router tells may be lost, the log is not."""
        space = (await asyncio.to_thread(self._view.state)).spaces.get(self._space.id)
        if space is not None:
            self._use(space)

    def _use(self, space: Space) -> None:
        if space != self._space:
            self._contents.search.configure(space.config)
            self._space = space
            self.due.set()

    @contextlib.asynccontextmanager
    async def _change(self) -> AsyncIterator[Contents]:
        """The contents for one change, which nothing else changes meanwhile; whoever waits looks again after it."""
        async with self._changing:
            yield self._contents
        async with self._moved:
            self._moved.notify_all()


def _ownership(run: RunRecord | None) -> tuple[str, str, int] | None:
    """Whose work which vids are, as a run's record says."""
    return None if run is None else (run.attempt, run.state, run.owns_below)
