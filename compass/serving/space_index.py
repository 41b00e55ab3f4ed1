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
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from compass.adapters.embedders import embed_each
from compass.adapters.hnsw import nice_this_thread
from compass.domain.chunk import FloatMatrix, IntVector, has_text
from compass.domain.embedding import Embedder
from compass.domain.progress import status_of_run
from compass.domain.search import Hit, Query
from compass.domain.space import Space
from compass.errors import CompassError
from compass.serving.space_search import SpaceSearch
from compass.storage.parts import MissingObjectError
from compass.storage.vectors import SpaceVectors
from compass.storage.view import View

log = logging.getLogger(__name__)

EMBED_ROWS = 256  # texts of one durable vector file of live ingest
BUILD_THREADS = os.cpu_count() or 1
POLL_S = 0.5  # how often the log is looked at when nobody says that it has grown
RETRY_S = 5.0  # how long a follower waits after its endpoint did not answer
SAVE_GROWTH = 0.2  # the graph is saved when it has grown by this share
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
    ) -> None:
        """Open the saved graph and begin to follow.

        Args:
            space: The space as the log records it; `configure` replaces it.
            view: The node's view of the collection, read-only here.
            vectors: The space's durable vectors.
            open_embedder: Makes the embedder of the space's own documents.
            completed: Called when a building space that callers feed has a vector for every live chunk.
        """
        self._space, self._view, self._vectors = space, view, vectors
        self._open_embedder, self._completed = open_embedder, completed
        self._embedder: Embedder | None = None
        self._search: SpaceSearch | None = None
        self._files: set[str] = set()
        self._missing = EMPTY  # live, embeddable, and neither held nor quarantined: sorted
        self._newest = -1  # the greatest vid met; a file that holds a greater one is ahead of the view
        self._refused: dict[int, str] = {}
        self._run: dict[str, Any] = {}
        self._seq = 0  # the search is level with the log up to here, but for `_missing`
        self._saved_rows = 0
        self._error: str | None = None
        self._builder = ThreadPoolExecutor(1, "build", initializer=nice_this_thread)
        self._step_lock = asyncio.Lock()
        self._wake, self._moved = asyncio.Event(), asyncio.Condition()
        self._opening = asyncio.get_running_loop().create_task(self._open())
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

    async def absorb(self, keys: Sequence[str]) -> None:
        """Take in vector files of a rebuild; returns when they are in the graph, so that memory stays flat."""
        await self._ready()
        async with self._step_lock:
            for key in keys:
                await self._take_file(key)
        await self._announce()

    async def run_changed(self) -> None:
        """A rebuild began, moved on or ended: look at its record to know whose work is whose."""
        await self._ready()
        async with self._step_lock:
            await self._read_run()
            await self._recount()
        self._wake.set()

    async def configure(self, space: Space) -> None:
        """Take the space as the log records it now."""
        if space != self._space:
            search = await self._ready()
            old, self._space = self._embedder, space
            self._embedder = None
            search.configure(space.config)
            if old is not None:
                await old.close()
            self._wake.set()

    async def info(self) -> dict[str, Any]:
        """{vectors, lag, quarantined, bytes_on_disk, error}."""
        search = await self._ready()
        return {
            "vectors": len(search),
            "lag": len(self._missing),
            "quarantined": len(self._refused),
            "bytes_on_disk": await asyncio.to_thread(self._vectors.bytes_on_disk),
            "error": self._error,
        }

    async def quarantined(self) -> dict[int, str]:
        """The vids that the endpoint refuses for themselves, and why."""
        await self._ready()
        return dict(self._refused)

    async def rebuild_status(self) -> dict[str, Any]:
        """RebuildStatus of the HTTP interface, but for the space's `status`."""
        search = await self._ready()
        run = await asyncio.to_thread(self._vectors.read_run)
        total = await asyncio.to_thread(self._view.count)
        shown = status_of_run(run, active=self._space.status == "active")
        lag = len(self._missing)
        status = {**shown, "embedded": len(search), "total": total, "failed": len(self._refused), "lag": lag}
        if self._error and not status.get("error"):
            status["error"] = self._error
        return status

    async def close(self) -> None:
        """Save the graph and stop following; queries in flight finish."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        if self._search is not None and len(self._search) != self._saved_rows:
            await self._save()
        if self._embedder is not None:
            await self._embedder.close()

    # ---- following the log

    async def _live(self) -> None:
        await self._ready()
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), POLL_S)
            self._wake.clear()
            try:
                await self._catch_up(0)
                await self._embed_missing()
                await self._tidy()
                if self._is_fed_and_complete():
                    await self._completed()
            except CompassError as error:
                self._note(error.detail)
                await asyncio.sleep(RETRY_S if error.retryable else POLL_S)
            except Exception as error:
                log.exception("space %s of %s", self._space.name, self._vectors.space_id)
                self._note(f"unexpected: {type(error).__name__}: {error}")
                await asyncio.sleep(RETRY_S)

    async def _open(self) -> None:
        """The saved graph, then whatever the files hold that it lacks; damaged or absent: from the files alone."""
        await asyncio.to_thread(self._view.refresh)
        config, view = self._space.config, self._view

        def load(path: Path) -> SpaceSearch:
            return SpaceSearch.load(path, config, view)

        saved = await asyncio.to_thread(self._vectors.load_index, load)
        self._search = saved[0] if saved else SpaceSearch(config, view)
        self._saved_rows = len(self._search)
        self._refused = await asyncio.to_thread(self._vectors.quarantined)
        await self._read_run()
        async with self._step_lock:
            await self._level()

    async def _read_run(self) -> None:
        record = await asyncio.to_thread(self._vectors.read_run)
        self._run = record or {}

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
                search = await self._ready()
                await asyncio.to_thread(search.remove, changes.died)
                self._missing = np.setdiff1d(self._missing, changes.died)
                died = set(changes.died.tolist())
                self._refused = {v: r for v, r in self._refused.items() if v not in died}
                self._newest = max(self._newest, *changes.born.tolist(), -1)
                await self._take_new_files()
                await self._want(changes.born)
                self._seq = changes.seq
        await self._announce()

    async def _level(self) -> None:
        """The full difference, from nothing but the files and the view."""
        search = self._search
        assert search is not None
        seq = await asyncio.to_thread(self._view.seq)
        live = await asyncio.to_thread(self._view.live_vids)
        self._newest = max(self._newest, *live[-1:].tolist(), -1)
        await self._take_new_files()
        await asyncio.to_thread(search.remove, np.setdiff1d(search.vids(), live))
        alive = set(live.tolist())
        self._refused = {v: r for v, r in self._refused.items() if v in alive}
        self._missing = EMPTY
        await self._want(await asyncio.to_thread(self._view.embeddable_vids))
        self._seq = seq

    async def _recount(self) -> None:
        self._missing = EMPTY
        await self._want(await asyncio.to_thread(self._view.embeddable_vids))

    async def _want(self, vids: IntVector) -> None:
        """Add to `_missing` those of `vids` that are neither held nor quarantined nor without a text."""
        assert self._search is not None
        lacking = vids[~self._search.held(vids)]
        lacking = np.setdiff1d(lacking, np.fromiter(self._refused, np.int64, len(self._refused)))
        if len(lacking):
            texts = await asyncio.to_thread(self._view.texts, lacking)
            lacking = np.array(sorted(v for v, text in texts.items() if has_text(text)), np.int64)
        self._missing = np.union1d(self._missing, lacking)

    async def _take_new_files(self) -> None:
        for key in await asyncio.to_thread(self._vectors.files):
            if key not in self._files:
                await self._take_file(key)

    async def _take_file(self, key: str) -> None:
        """Add a file's vectors of live chunks. A file that compaction took away is in its successor."""
        assert self._search is not None
        try:
            vids, rows = await asyncio.to_thread(self._vectors.read, key)
        except MissingObjectError:
            return
        if not len(vids) or int(vids[-1]) <= self._newest:
            self._files.add(key)  # else the view has yet to reach it: look again at the next step
        new = ~self._search.held(vids)
        if new.any():
            new[new] = await asyncio.to_thread(self._alive, vids[new])
            await self._add(vids[new], rows[new])

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
        running = self._run.get("state") == "running"
        if not running and self._space.status != "active":
            return EMPTY
        bound = int(self._run.get("owns_below", 0)) if running else 0
        return self._missing[self._missing >= bound]

    async def _embed_missing(self) -> None:
        while len(mine := self._mine()[:EMBED_ROWS]):
            if self._embedder is None:
                self._embedder = self._open_embedder(self._space)
            texts = await asyncio.to_thread(self._view.texts, mine)
            vids = [v for v, text in texts.items() if has_text(text)]
            done = await embed_each(self._embedder, [texts[v] for v in vids])
            await self._keep(np.array([vids[i] for i in done.rows], np.int64), done.vectors)
            await self._quarantine({vids[i]: reason for i, reason in done.refused.items()})
            async with self._step_lock:
                gone = np.setdiff1d(mine, np.array(vids, np.int64))
                self._missing = np.setdiff1d(self._missing, gone)
            self._error = None
            await self._announce()

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
        if grown > 1_000 and grown > SAVE_GROWTH * self._saved_rows and self._run.get("state") != "running":
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
        return fed and not self._run and len(self._search or ()) > 0 and not len(self._missing)

    async def _announce(self) -> None:
        async with self._moved:
            self._moved.notify_all()

    def _note(self, error: str) -> None:
        if error != self._error:
            log.warning("space %s of %s lags: %s", self._space.name, self._vectors.space_id, error)
        self._error = error
