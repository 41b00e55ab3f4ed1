"""What a space holds, and which live chunks it has no vector of: by the log, the vector files and the quarantine."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from compass.domain.chunk import FloatMatrix, IntVector, has_text
from compass.domain.rebuild.run_record import RunRecord
from compass.errors import InsufficientMemoryError
from compass.index.vector.search import SpaceSearch
from compass.storage.snapshot.parts import MissingObjectError
from compass.storage.view.view import Changes, View

BUILD_THREADS = os.cpu_count() or 1
TAIL_ROWS = 256  # so many new rows of a file are searched exactly at first; more go straight into the graph

T = TypeVar("T")


class StoredVectors(Protocol):
    """What is read of a space's folder; `compass.storage.spaces.vectors.SpaceVectors` is one."""

    def files(self) -> list[str]:
        """The keys of the vector files; those that callers' vectors are in come first and win."""

    def read(self, key: str) -> tuple[IntVector, FloatMatrix]:
        """One file: vids sorted, and their vectors."""

    def quarantined(self) -> dict[int, str]:
        """The vids whose text no endpoint takes, and why."""

    def read_run(self) -> RunRecord | None:
        """The record of the space's last rebuild run."""

    def load_index(self, read: Callable[[Path], T]) -> tuple[T, dict[str, Any]] | None:
        """What `read` makes of the newest saved graph, and its meta; None without a sound one."""


class Contents:
    """The sets behind a follower: what is held, refused and missing. One change at a time: the caller has a lock.

    Attributes:
        search: The search over what is held.
        missing: The live vids that have a text and are neither held nor refused: sorted.
        refused: The live vids that are quarantined, and why.
        seq: The commit that all of this is level with.
        memory_error: Why vector files are left out: for want of memory. None if none is.
    """

    def __init__(self, search: SpaceSearch, view: View, vectors: StoredVectors, builder: Executor) -> None:
        """Hold what the search holds, and know of nothing else before `recount`.

        Args:
            search: What was held before, say by a saved graph.
            view: The node's view of the collection.
            vectors: The space's durable vectors.
            builder: Runs what builds graphs.
        """
        self.search = search
        self.missing: IntVector = np.empty(0, np.int64)
        self.refused: dict[int, str] = {}
        self.seq = 0
        self.memory_error: str | None = None
        self._view, self._vectors, self._builder = view, vectors, builder
        self._files: set[str] = set()  # taken in
        self._newest = -1  # the greatest vid met; a file that holds a greater one is ahead of the view

    # ---- by the log

    async def apply(self, changes: Changes) -> None:
        """Drop what has died, take in what was born with vectors, and miss the others."""
        await asyncio.to_thread(self.search.remove, changes.died)
        self.missing = np.setdiff1d(self.missing, changes.died)
        died = set(changes.died.tolist())
        self.refused = {v: reason for v, reason in self.refused.items() if v not in died}
        self._newest = max(self._newest, *changes.born[-1:].tolist(), -1)
        await self._take_what_fits()
        texts = await asyncio.to_thread(self._view.texts, changes.born[~self.search.held(changes.born)])
        born = np.array(sorted(v for v, text in texts.items() if has_text(text)), np.int64)
        self.missing = np.union1d(self.missing, await self._lacking(born))
        self.seq = changes.seq

    async def recount(self) -> None:
        """The full difference between what is live and what is held, from nothing but the view and what is stored."""
        seq = await asyncio.to_thread(self._view.seq)
        live = await asyncio.to_thread(self._view.live_vids)
        self._newest = int(live[-1]) if len(live) else -1
        await asyncio.to_thread(self.search.remove, np.setdiff1d(self.search.vids(), live))
        self._files.clear()  # the view may have been thrown away, and what was removed above comes back
        await self.take_stored()
        self.seq = seq

    # ---- by what is stored

    async def take_stored(self) -> None:
        """Take in the quarantine and the new files, and count anew what is missing."""
        await self._take_quarantine_and_files()
        self.missing = await self._lacking(await asyncio.to_thread(self._view.embeddable_vids))

    async def take_missing(self) -> None:
        """As `take_stored`, for what is missing now: cheaper, and blind for a quarantine that was lifted."""
        await self._take_quarantine_and_files()
        self.missing = await self._lacking(self.missing)

    async def take_files(self, keys: Sequence[str]) -> None:
        """Take in these files; what a merge has taken away meanwhile is in others.

        Raises:
            InsufficientMemoryError: there is no room for them.
        """
        if not all([await self._take_file(key) for key in keys]):
            await self._take_new_files()

    async def take_left_out(self) -> None:
        """Take in what there was no room for.

        Raises:
            InsufficientMemoryError: there still is none.
        """
        await self._take_new_files()
        self.memory_error = None

    async def add_file(self, key: str, vids: IntVector, rows: FloatMatrix) -> None:
        """Hold the rows of a file that was just written, as far as their chunks still live."""
        live = await asyncio.to_thread(self._alive, vids)
        await self._add(vids[live], rows[live])
        self._files.add(key)
        self.forget(vids)

    def add_refused(self, reasons: Mapping[int, str]) -> None:
        """Know what was just quarantined."""
        self.refused.update(reasons)
        self.forget(np.fromiter(reasons, np.int64, len(reasons)))

    def forget(self, vids: IntVector) -> None:
        """Miss these no more."""
        self.missing = np.setdiff1d(self.missing, vids)

    async def _take_quarantine_and_files(self) -> None:
        stored = await asyncio.to_thread(self._vectors.quarantined)
        live = set((await asyncio.to_thread(self._view.live_vids)).tolist())
        self.refused = {v: reason for v, reason in stored.items() if v in live}
        await self._take_what_fits()

    async def _take_what_fits(self) -> None:
        """As `_take_new_files`; without the memory for all of it the space answers from what it has, and lags."""
        try:
            await self.take_left_out()
        except InsufficientMemoryError as error:
            self.memory_error = error.detail

    async def _take_new_files(self) -> None:
        """Take what the listed files have; those that a merge takes away meanwhile are in one not yet listed."""
        while True:
            listed = await asyncio.to_thread(self._vectors.files)
            self._files.intersection_update(listed)
            if all([await self._take_file(key) for key in listed if key not in self._files]):
                return

    async def _take_file(self, key: str) -> bool:
        """Add a file's vectors of live chunks; False if a merge took it away: its rows are in another one."""
        try:
            vids, rows = await asyncio.to_thread(self._vectors.read, key)
        except MissingObjectError:
            return False
        new = ~self.search.held(vids)
        if new.any():
            new[new] = await asyncio.to_thread(self._alive, vids[new])
            await self._add(vids[new], rows[new])
        if not len(vids) or int(vids[-1]) <= self._newest:
            self._files.add(key)  # else the view has yet to reach it: look again at the next step
        return True

    async def _add(self, vids: IntVector, rows: FloatMatrix) -> None:
        """Make vectors findable: a few by the exact tail at once, many straight into the graph."""
        if len(vids) <= TAIL_ROWS:
            self.search.add(vids, rows)
        else:
            build = self.search.build
            await asyncio.get_running_loop().run_in_executor(self._builder, build, vids, rows, BUILD_THREADS)
        self.forget(vids)

    async def _lacking(self, vids: IntVector) -> IntVector:
        """Those of these sorted vids that are neither held nor quarantined."""
        held = await asyncio.to_thread(self.search.held, vids)
        return np.setdiff1d(vids[~held], np.fromiter(self.refused, np.int64, len(self.refused)))

    def _alive(self, vids: IntVector) -> npt.NDArray[np.bool_]:
        """A mask of the vids that the view knows."""
        return np.isin(vids, np.fromiter(self._view.texts(vids), np.int64))
