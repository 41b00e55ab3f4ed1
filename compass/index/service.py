"""The index of one space: answers queries, and follows the collection's log.

Following is one step, repeated: *embed `live - have`, drop `have - live`*. Live ingest, catch-up and healing
after a crash are all this step; only the bulk of a rebuild is somebody else's work (see `_mine`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from compass.domain.chunk import FloatMatrix, FloatVector, IntVector, has_text
from compass.domain.embedding.contract import Embedder
from compass.domain.embedding.fingerprint import ModelCheck
from compass.domain.memory import UNLIMITED, Room
from compass.domain.rebuild.run_record import RunRecord
from compass.domain.rebuild.status import QuarantinedChunk, RebuildStatus, status_of_run
from compass.domain.search.query import Hit, Query
from compass.domain.space import BuiltBy, Lag, Space, SpaceStats
from compass.embedding.isolate import embed_each
from compass.errors import CompassError, ConflictError, InsufficientMemoryError
from compass.index.space_model import SpaceModel
from compass.index.vector.hnsw import nice_this_thread
from compass.index.vector.search import SpaceSearch
from compass.storage.snapshot.parts import MissingObjectError
from compass.storage.spaces.vectors import SpaceVectors
from compass.storage.view.view import Changes, View

log = logging.getLogger(__name__)

EMBED_ROWS = 256  # texts of one durable vector file of live ingest
BUILD_THREADS = os.cpu_count() or 1
POLL_S = 0.5  # how often the log is looked at when nobody says that it has grown
RETRY_S = 5.0  # how long a follower waits after its endpoint did not answer
SAVE_GROWTH = 0.2  # the graph is saved when it has grown by this share
SAMPLES = 8  # texts that tell whether another endpoint is the same model
SHOWN_REFUSALS = 100
EMPTY = np.empty(0, np.int64)


class SpaceIndex:
    """Searches one space and keeps it level with the log. One event loop; heavy work goes to threads."""

    def __init__(
        self,
        space: Space,
        view: View,
        vectors: SpaceVectors,
        open_embedder: Callable[[Space], Embedder],
        completed: Callable[[], Coroutine[Any, Any, None]],
        identified: Callable[[BuiltBy], Coroutine[Any, Any, None]],
        room: Room = UNLIMITED,
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
        """
        self._space, self._view, self._vectors = space, view, vectors
        self._completed, self._room = completed, room
        self._model = SpaceModel(open_embedder, self._samples, identified)
        self._memory_limited = False  # files are left out for want of memory
        self._search: SpaceSearch | None = None
        self._files: set[str] = set()
        self._missing = EMPTY  # live, embeddable, and neither held nor quarantined: sorted
        self._newest = -1  # the greatest vid met; a file that holds a greater one is ahead of the view
        self._refused: dict[int, str] = {}
        self._run: RunRecord | None = None
        self._seq = 0  # the search is level with the log up to here, but for `_missing`
        self._saved_rows = 0
        self._error: str | None = None
        self._builder = ThreadPoolExecutor(1, "build", initializer=nice_this_thread)
        self._step_lock = asyncio.Lock()
        self._wake, self._moved = asyncio.Event(), asyncio.Condition()
        self._opening = asyncio.get_running_loop().create_task(self._open())
        self._tidying: asyncio.Task[None] | None = None
        self._task = asyncio.get_running_loop().create_task(self._live())

    # ---- what others ask

    async def search(self, queries: Sequence[Query]) -> list[list[Hit]]:
        """Answer several queries that waited together, none older than its `min_seq`."""
        search = await self._ready()
        wanted = max(q.min_seq for q in queries)
        if wanted > self._seq:
            await self._catch_up(wanted)
        return await asyncio.to_thread(search.search, list(queries))

    async def follow(self, seq: int, wait_s: float) -> int:
        """Wait until what was written up to `seq` can be found here; how many live chunks still cannot."""
        await self._ready()
        if seq > self._seq:
            await self._catch_up(seq)
        bound = int(self._missing[-1]) if len(self._missing) else -1
        self._wake.set()
        if wait_s > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s), self._moved:
                    await self._moved.wait_for(lambda: not (self._missing <= bound).any())
        return int((self._missing <= bound).sum())

    async def lag_at(self, seq: int, wait_s: float) -> Lag:
        """As `follow`; with what is quarantined then, for what it lacked may have been refused meanwhile."""
        lag = await self.follow(seq, wait_s)
        return Lag(lag, len(self._refused), self._accepted())

    async def load_files(self, keys: Sequence[str]) -> None:
        """Take in vector files of a rebuild; returns when they are in the graph, so that memory stays flat."""
        await self._ready()
        async with self._step_lock:
            taken = [await self._take_file(key) for key in keys]
            if not all(taken):
                await self._take_new_files()
        await self._announce()

    async def run_changed(self) -> None:
        """A rebuild began, moved on or ended: look at its record to know whose work is whose."""
        await self._ready()
        await self._refresh_run()
        self._wake.set()

    async def configure(self, space: Space) -> None:
        """Take the space as the log records it now."""
        await self._ready()
        self._use(space)

    async def stats(self) -> SpaceStats:
        """What it holds, and what it lacks."""
        search = await self._ready()
        return SpaceStats(
            vectors=len(search),
            lag=len(self._missing),
            quarantined=len(self._refused),
            accepted=self._accepted(),
            bytes_on_disk=await asyncio.to_thread(self._vectors.bytes_on_disk),
            error=self._error,
        )

    async def rebuild_status(self) -> RebuildStatus:
        """How far its rebuild is, by its last run and by what it holds now."""
        search = await self._ready()
        run = await asyncio.to_thread(self._vectors.read_run)
        status = status_of_run(run, active=self._space.status == "active")
        return replace(
            status,
            embedded=len(search),
            total=await asyncio.to_thread(self._view.count),
            failed=len(self._refused),
            lag=len(self._missing),
            quarantined=tuple(await asyncio.to_thread(self._shown_quarantine, -1, SHOWN_REFUSALS)),
            error=status.error or self._error,
        )

    async def quarantine(self, after: int, limit: int) -> list[QuarantinedChunk]:
        """Up to `limit` refused chunks with an id above `after`, by id."""
        await self._ready()
        return await asyncio.to_thread(self._shown_quarantine, after, limit)

    async def examine(self, endpoints: Sequence[str], api_key_env: str | None = None) -> list[ModelCheck]:
        """What these endpoints say of their model, and how they embed a few of the stored texts."""
        await self._ready()
        return await self._model.examine(self._space, endpoints, api_key_env)

    async def ensure_same_model(self, endpoints: Sequence[str], api_key_env: str | None = None) -> None:
        """Return if none of these endpoints turns out to be another model than the one that built the space.

        Raises:
            FingerprintMismatchError: one does; one that does not answer does not.
        """
        await self._ready()
        await self._model.ensure_same_model(self._space, endpoints, api_key_env)

    async def ensure_memory(self, afresh: bool) -> None:
        """Return if a rebuild has the memory for every live chunk, `afresh` in place of what is held here.

        Raises:
            InsufficientMemoryError: it does not fit; the fields say what it needs and what is free.
        """
        search = await self._ready()
        await asyncio.to_thread(self._view.refresh)
        texts = len(await asyncio.to_thread(self._view.embeddable_vids))
        search.require(max(texts, len(search)), afresh)

    async def close(self, keep: bool = True) -> None:
        """Stop following, and save the graph if it is to be kept; queries in flight finish."""
        tasks = [task for task in (self._task, self._opening, self._tidying) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._model.close()
        if keep and self._search is not None and self._is_open() and len(self._search) != self._saved_rows:
            await self._save()
        self._builder.shutdown(wait=False)

    # ---- following the log

    async def _live(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):  # `wait_for` of Python 3.11 may swallow a cancellation
                    await self._wake.wait()
            self._wake.clear()
            try:
                await self._step()
                self._error = None
            except CompassError as error:
                self._note(error.detail)
                await asyncio.sleep(POLL_S if isinstance(error, ConflictError) else RETRY_S)
            except Exception as error:
                log.exception("space %s of %s", self._space.name, self._vectors.space_id)
                self._note(f"unexpected: {type(error).__name__}: {error}")
                await asyncio.sleep(RETRY_S)

    async def _step(self) -> None:
        """Level with the log, and nothing left to embed that is ours to embed."""
        if self._opening.done() and not self._is_open():
            self._opening = asyncio.get_running_loop().create_task(self._open())
        await self._ready()
        if self._is_rebuilding():
            await self._refresh_run()  # a process that was killed does not say that its run has ended
        await self._catch_up(0)
        self._model.check()
        if (tidied := self._tidying) is None or tidied.done():  # first: it frees memory that the rest may lack
            self._tidying = asyncio.get_running_loop().create_task(self._tidy())
            if tidied is not None:
                tidied.result()  # raises what went wrong
        if self._memory_limited:
            await self._take_left_out()
        await self._embed_missing()
        if self._is_fed_and_complete():
            await self._completed()

    async def _open(self) -> None:
        """The saved graph, then whatever the files hold that it lacks; damaged or absent: from the files alone."""
        await asyncio.to_thread(self._view.refresh)
        config, view = self._space.config, self._view

        def load(path: Path) -> SpaceSearch:
            return SpaceSearch.load(path, config, view, self._room)

        saved = await asyncio.to_thread(self._vectors.load_index, load)
        self._search = saved[0] if saved else SpaceSearch(config, view, self._room)
        self._saved_rows = len(self._search)
        self._refused = await asyncio.to_thread(self._vectors.quarantined)
        self._run = await asyncio.to_thread(self._vectors.read_run)
        async with self._step_lock:
            await self._level()
            await self._read_space()

    def _is_open(self) -> bool:
        return self._opening.done() and not self._opening.cancelled() and self._opening.exception() is None

    def _is_rebuilding(self) -> bool:
        return self._run is not None and self._run.running

    async def _refresh_run(self) -> None:
        """Read the run's record; what an ended run has left in files is not embedded again."""
        async with self._step_lock:
            before, self._run = self._run, await asyncio.to_thread(self._vectors.read_run)
            if _ownership(before) != _ownership(self._run):
                await self._read_quarantine()
                if not self._is_rebuilding():
                    await self._take_what_fits()
                self._missing = await self._lacking(await asyncio.to_thread(self._view.embeddable_vids))
        await self._announce()

    async def _read_quarantine(self) -> None:
        """A run adds to the quarantine, and lifts it: what is stored counts, of the chunks that live."""
        stored = await asyncio.to_thread(self._vectors.quarantined)
        live = set((await asyncio.to_thread(self._view.live_vids)).tolist())
        self._refused = {v: reason for v, reason in stored.items() if v in live}

    async def _ready(self) -> SpaceSearch:
        """The search, once it is open; raises what opening raised."""
        await asyncio.shield(self._opening)
        assert self._search is not None
        return self._search

    async def _catch_up(self, seq: int) -> None:
        """Apply what the log has beyond `_seq`: deletes, new chunks, vectors that callers sent."""
        async with self._step_lock:
            now = await asyncio.to_thread(self._view.refresh, seq)
            if now == self._seq:
                return
            changes = await asyncio.to_thread(self._view.changes, self._seq)
            if changes is None:
                await self._level()
            else:
                await self._apply(changes)
            await self._read_space()
        await self._announce()

    async def _read_space(self) -> None:
        """Take the space's record from the log: what the router tells may be lost, the log is not."""
        space = (await asyncio.to_thread(self._view.state)).spaces.get(self._space.id)
        if space is not None:
            self._use(space)

    def _use(self, space: Space) -> None:
        assert self._search is not None
        if space != self._space:
            self._search.configure(space.config)
            self._space = space
            self._wake.set()

    async def _apply(self, changes: Changes) -> None:
        search = self._search
        assert search is not None
        await asyncio.to_thread(search.remove, changes.died)
        self._missing = np.setdiff1d(self._missing, changes.died)
        died = set(changes.died.tolist())
        self._refused = {v: r for v, r in self._refused.items() if v not in died}
        self._newest = max(self._newest, *changes.born[-1:].tolist(), -1)
        await self._take_what_fits()
        texts = await asyncio.to_thread(self._view.texts, changes.born[~search.held(changes.born)])
        born = np.array(sorted(v for v, text in texts.items() if has_text(text)), np.int64)
        self._missing = np.union1d(self._missing, await self._lacking(born))
        self._seq = changes.seq

    async def _level(self) -> None:
        """The full difference, from nothing but the files and the view."""
        search = self._search
        assert search is not None
        seq = await asyncio.to_thread(self._view.seq)
        live = await asyncio.to_thread(self._view.live_vids)
        self._newest = int(live[-1]) if len(live) else -1
        await asyncio.to_thread(search.remove, np.setdiff1d(search.vids(), live))
        self._files.clear()  # the view may have been thrown away, and what was removed above comes back
        await self._take_what_fits()
        alive = set(live.tolist())
        self._refused = {v: r for v, r in self._refused.items() if v in alive}
        self._missing = await self._lacking(await asyncio.to_thread(self._view.embeddable_vids))
        self._seq = seq

    async def _lacking(self, vids: IntVector) -> IntVector:
        """Those of these sorted vids that are neither held nor quarantined."""
        assert self._search is not None
        held = await asyncio.to_thread(self._search.held, vids)
        return np.setdiff1d(vids[~held], np.fromiter(self._refused, np.int64, len(self._refused)))

    async def _take_new_files(self) -> None:
        """Take what the listed files have; those that a merge takes away meanwhile are in one not yet listed."""
        while True:
            listed = await asyncio.to_thread(self._vectors.files)
            self._files.intersection_update(listed)
            if all([await self._take_file(key) for key in listed if key not in self._files]):
                return

    async def _take_what_fits(self) -> None:
        """As `_take_new_files`; without the memory for all of it the space answers from what it has, and lags."""
        try:
            await self._take_new_files()
        except InsufficientMemoryError as error:
            self._memory_limited = True
            self._note(error.detail)

    async def _take_left_out(self) -> None:
        """Take what there was no room for; InsufficientMemoryError while there still is none."""
        async with self._step_lock:
            await self._take_new_files()
            self._memory_limited = False
        await self._announce()

    async def _take_file(self, key: str) -> bool:
        """Add a file's vectors of live chunks; False if a merge took it away: its rows are in another one."""
        assert self._search is not None
        try:
            vids, rows = await asyncio.to_thread(self._vectors.read, key)
        except MissingObjectError:
            return False
        new = ~self._search.held(vids)
        if new.any():
            new[new] = await asyncio.to_thread(self._alive, vids[new])
            await self._add(vids[new], rows[new])
        if not len(vids) or int(vids[-1]) <= self._newest:
            self._files.add(key)  # else the view has yet to reach it: look again at the next step
        return True

    async def _add(self, vids: IntVector, rows: FloatMatrix) -> None:
        """Make vectors findable: a few by the exact tail at once, many straight into the graph."""
        assert self._search is not None
        if len(vids) <= EMBED_ROWS:
            self._search.add(vids, rows)
        else:
            await self._in_builder(lambda search: search.build(vids, rows, BUILD_THREADS))
        self._missing = np.setdiff1d(self._missing, vids)

    async def _in_builder(self, work: Callable[[SpaceSearch], None]) -> None:
        """Run work on the graph in the niced thread, so that queries come first on a busy machine."""
        assert self._search is not None
        await asyncio.get_running_loop().run_in_executor(self._builder, work, self._search)

    def _alive(self, vids: IntVector) -> npt.NDArray[np.bool_]:
        """A mask of the vids that the view knows."""
        return np.isin(vids, np.fromiter(self._view.texts(vids), np.int64))

    def _mine(self) -> IntVector:
        """The missing vids that the follower embeds.

        A rebuild in its bulk owns the vids below the bound of its snapshot; a space that was never active
        and has no run is nobody's: it does not follow before it is asked to.
        """
        if not self._space.follows or self._space.config.embed_endpoint is None:
            return EMPTY
        if self._run is not None and self._run.running:
            return self._missing[self._missing >= self._run.owns_below]
        return self._missing if self._space.status == "active" else EMPTY

    async def _embed_missing(self) -> None:
        search = await self._ready()
        while len(mine := self._mine()[:EMBED_ROWS]):
            embedder = await self._model.embedder(self._space)
            search.reserve(len(mine))  # else the same texts would be embedded again and again
            texts = await asyncio.to_thread(self._view.texts_to_embed, mine, self._space.config)
            vids = list(texts)
            done = await embed_each(embedder, [texts[v] for v in vids])
            await self._keep(np.array([vids[i] for i in done.rows], np.int64), done.vectors)
            await self._quarantine({vids[i]: reason for i, reason in done.refused.items()})
            async with self._step_lock:
                gone = np.setdiff1d(mine, np.array(vids, np.int64))
                self._missing = np.setdiff1d(self._missing, gone)
            self._error = None
            await self._announce()
            if len(done.rows):
                self._model.identify_aside(self._space)

    def _samples(self) -> list[tuple[str, FloatVector]]:
        """A few texts from all over the space, each with its stored vector."""
        assert self._search is not None
        vids = self._search.vids()
        some = vids[:: max(1, len(vids) // SAMPLES)][:SAMPLES]
        texts = self._view.texts_to_embed(some, self._space.config)
        found, rows = self._vectors.get(some.tolist())
        return [(texts[v], row) for v, row in zip(found.tolist(), rows, strict=True) if v in texts]

    def _accepted(self) -> int:
        """How many quarantined chunks the order of the last run allows."""
        return self._run.order.max_failed if self._run else 0

    def _shown_quarantine(self, after: int, limit: int) -> list[QuarantinedChunk]:
        refused = dict(self._refused)
        chunks = sorted((c.id, vid, c) for vid, c in self._view.by_vids(list(refused)).items() if c.id > after)
        return [QuarantinedChunk(c.id, c.file_id, c.chunk_index, refused[vid]) for _, vid, c in chunks[:limit]]

    async def _keep(self, vids: IntVector, rows: FloatMatrix) -> None:
        if not len(vids):
            return
        assert self._search is not None
        key = await asyncio.to_thread(self._vectors.append, vids, rows)
        async with self._step_lock:
            self._files.add(key)
            live = await asyncio.to_thread(self._alive, vids)
            await self._add(vids[live], rows[live])
            self._missing = np.setdiff1d(self._missing, vids)

    async def _quarantine(self, reasons: dict[int, str]) -> None:
        if not reasons:
            return
        await asyncio.to_thread(self._vectors.quarantine, reasons)
        async with self._step_lock:
            self._refused.update(reasons)
            self._missing = np.setdiff1d(self._missing, np.fromiter(reasons, np.int64, len(reasons)))

    async def _tidy(self) -> None:
        """Move the exact tail into the graph, build a graph full of dead rows anew, save what has grown."""
        search = await self._ready()
        left = 1
        while left:
            left = await asyncio.to_thread(search.settle, EMBED_ROWS)
        if search.compact_due():
            await self._in_builder(SpaceSearch.compact)
        grown = len(search) - self._saved_rows
        if grown > 1_000 and grown > SAVE_GROWTH * self._saved_rows and not self._is_rebuilding():
            await self._save()

    async def _save(self) -> None:
        assert self._search is not None
        rows = len(self._search)
        await asyncio.to_thread(self._vectors.save_index, self._search.save, {"rows": rows, "seq": self._seq})
        self._saved_rows = rows

    def _is_fed_and_complete(self) -> bool:
        """Whether callers have given a building space without endpoint a vector for every live chunk."""
        space = self._space
        fed = space.status == "building" and space.config.embed_endpoint is None
        return fed and self._run is None and len(self._search or ()) > 0 and not len(self._missing)

    async def _announce(self) -> None:
        async with self._moved:
            self._moved.notify_all()

    def _note(self, error: str) -> None:
        if error != self._error:
            log.warning("space %s of %s lags: %s", self._space.name, self._vectors.space_id, error)
        self._error = error


def _ownership(run: RunRecord | None) -> tuple[str, str, int] | None:
    """Whose work which vids are, as a run's record says."""
    return None if run is None else (run.attempt, run.state, run.owns_below)
