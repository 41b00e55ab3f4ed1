"""The search of one space: graph, tail and view to finished hits. No actor in it, no event loop."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from compass.domain.chunk import Chunk, FloatMatrix, IntVector
from compass.domain.filters import Filter
from compass.domain.memory import SLICE_ROWS, UNLIMITED, Room
from compass.domain.search.query import Hit, Query
from compass.domain.search.scoring import scores
from compass.domain.space import SpaceConfig, why_unfit
from compass.errors import InvalidRequestError
from compass.index.vector.candidate_search import CandidateSearch, find_candidates
from compass.index.vector.exact import Candidates
from compass.index.vector.vector_index import VectorIndex

log = logging.getLogger(__name__)

BUILD_SLICE = SLICE_ROWS  # enough to keep several threads busy, and queries get in between
FILTERS_KEPT = 8
COMPACT_SHARE, COMPACT_ROWS = 0.3, 1_000


class ChunkView(Protocol):
    """What a search needs of the collection's view; `compass.storage.view.view.View` is one."""

    def seq(self) -> int:
        """The commit that the view has reached."""

    def by_vids(self, vids: IntVector) -> Mapping[int, Chunk]:
        """The live chunks among these."""

    def matching(self, where: Filter) -> IntVector:
        """The vids of the live chunks that pass the filter, sorted."""


class SpaceSearch:
    """The vectors of one space and the hits among them; thread-safe, blocking.

    What passes a filter is looked for among ever more candidates, see `domain/search/plan.py`. (A filter that
    hnswlib calls for each row that it meets needs the interpreter each time: 4 to 40 times slower.)
    """

    def __init__(self, config: SpaceConfig, view: ChunkView, room: Room = UNLIMITED) -> None:
        """Begin empty; it grows only where `room` allows."""
        self._config, self._view, self._room = config, view, room
        self._index = VectorIndex(config, room)
        self._memory_limited = False  # whether a compaction that pays does not fit
        self._changing = threading.Lock()  # adds and removals against the switch of a compaction
        self._compacting = threading.Lock()
        self._filters = _Filters(view)

    def __len__(self) -> int:
        return len(self._index)

    def configure(self, config: SpaceConfig) -> None:
        """Take another default of `ef_search`; dims, metric and the graph's shape stay as they are."""
        self._config = config

    def vids(self) -> IntVector:
        """The vids held, sorted."""
        return self._index.vids()

    def held(self, vids: IntVector) -> npt.NDArray[np.bool_]:
        """A mask of the vids that are held."""
        index = self._index
        return np.fromiter((vid in index for vid in np.asarray(vids).tolist()), np.bool_, len(vids))

    def memory_bytes(self) -> int:
        """About what the space takes in memory."""
        return self._index.memory_bytes()

    def reserve(self, count: int) -> None:
        """Check that there is room for so many further vectors.

        Raises:
            InsufficientMemoryError: there is not.
        """
        self._index.reserve(count)

    def require(self, rows: int, afresh: bool) -> None:
        """Check that a space of so many vectors fits, in place of this one or grown from it.

        Raises:
            InsufficientMemoryError: it does not.
        """
        self._index.require(rows, afresh)

    def add(self, vids: IntVector, vectors: FloatMatrix) -> None:
        """Add vectors: the next search finds them. Vids that are held are ignored.

        Args:
            vids: shape (n,), >= 0.
            vectors: float32, shape (n, dims), prepared for the space's metric.

        Raises:
            InvalidRequestError: wrong dims, NaN, infinity, a zero vector; nothing was added.
            InsufficientMemoryError: there is no room for them; nothing was added.
        """
        vectors = np.asarray(vectors, np.float32)
        if not len(vids):
            return
        if reason := why_unfit(vectors, self._config.dims):
            raise InvalidRequestError(f"these vectors do not fit the space: {reason}")
        with self._changing:
            self._index.add(np.asarray(vids, np.int64), vectors)

    def build(self, vids: IntVector, vectors: FloatMatrix, threads: int) -> None:
        """Add many vectors to the graph with several threads, in big slices; errors as in `add`."""
        for start in range(0, len(vids), BUILD_SLICE):
            part = slice(start, start + BUILD_SLICE)
            self.add(vids[part], vectors[part])
            while self._index.settle(BUILD_SLICE, threads, BUILD_SLICE):
                pass

    def settle(self, max_rows: int) -> int:
        """Move up to `max_rows` of what was added lately into the graph; how many rows are left.

        It takes slices so small that searches hardly notice.
        """
        return self._index.settle(max_rows)

    def remove(self, vids: IntVector) -> None:
        """Forget vectors; no later search finds them. Vids that are not held are ignored."""
        with self._changing:
            self._index.remove(np.asarray(vids, np.int64))

    def compact_due(self) -> bool:
        """Whether so much of the graph is dead that building it anew pays, and there is room to do so."""
        dead, total = self._index.worn()
        if dead <= COMPACT_ROWS or dead < COMPACT_SHARE * total:
            return False
        memory_limited = not self._index.fits_twice()
        if memory_limited and not self._memory_limited:
            log.warning("%d of %d rows of a graph are dead, and there is no room to build it anew", dead, total)
        self._memory_limited = memory_limited
        return not memory_limited

    def compact(self, threads: int = 1) -> None:
        """Build the graph anew aside, from what is live, and switch; searches go on meanwhile.

        What is added meanwhile goes to the new tail at the switch; what is removed is removed there too.
        """
        with self._compacting:
            new = VectorIndex(self._config, self._room)
            while len(lacking := np.setdiff1d(self._index.vids(), new.vids())) > BUILD_SLICE:
                for start in range(0, len(lacking), BUILD_SLICE):
                    new.add(*self._index.vectors(lacking[start : start + BUILD_SLICE]))
                    new.settle(BUILD_SLICE, threads, BUILD_SLICE)
            with self._changing:
                old = self._index
                new.add(*old.vectors(np.setdiff1d(old.vids(), new.vids())))
                new.remove(np.setdiff1d(new.vids(), old.vids()))
                self._index = new

    def save(self, path: Path) -> None:
        """Write the graph to a file. Rows that have not been settled are not in it."""
        self._index.save(path)

    @classmethod
    def load(cls, path: Path, config: SpaceConfig, view: ChunkView, room: Room = UNLIMITED) -> SpaceSearch:
        """What `save` wrote; `vids` tells what it held.

        Raises:
            StorageError: the file is no graph of this many dims, or cut short.
        """
        search = cls(config, view, room)
        search._index = VectorIndex.load(path, config, room)
        return search

    def search(self, queries: Sequence[Query]) -> list[list[Hit]]:
        """The hits of each query: at most `top_k`, by score descending, then id ascending.

        Fewer only if there are not so many live chunks that match. Queries that are alike share one walk.
        `min_seq` is the caller's: it brings the view there first.
        """
        index = self._index
        searches = [self._begin(index, query) for query in queries]
        unanswered = searches
        while unanswered:
            find_candidates(index, unanswered)
            needed = [search.needed() for search in unanswered]
            chunks = self._view.by_vids(np.unique(np.concatenate([candidates.vids for candidates in needed])))
            for search, candidates in zip(unanswered, needed, strict=True):
                search.hits = self._hits(index, search.query, candidates, chunks)
            unanswered = [search for search in unanswered if not search.is_answered()]
            for search in unanswered:
                search.widen()
        return [search.hits[: search.query.top_k] for search in searches]

    def _begin(self, index: VectorIndex, query: Query) -> CandidateSearch:
        matching = self._filters.matching(query.where) if query.where else None
        return CandidateSearch(query, query.ef_search or self._config.hnsw.ef_search, len(index), matching)

    def _hits(
        self, index: VectorIndex, query: Query, candidates: Candidates, chunks: Mapping[int, Chunk]
    ) -> list[Hit]:
        hits = []
        near = scores(candidates.distances, self._config.metric).tolist()
        for vid, score in zip(candidates.vids.tolist(), near, strict=True):
            chunk = chunks.get(vid)
            if chunk is None or not query.where.matches(chunk):
                continue
            vector = index.vector(vid) if query.include_vectors else None
            if vector is not None or not query.include_vectors:
                hits.append(Hit(chunk, score, vector))
        return sorted(hits, key=lambda hit: (-hit.score, hit.chunk.id))


class _Filters:
    """What passes the last few filters, as long as the view stays where it is."""

    def __init__(self, view: ChunkView) -> None:
        self._view = view
        self._kept: OrderedDict[object, IntVector] = OrderedDict()
        self._lock = threading.Lock()

    def matching(self, where: Filter) -> IntVector:
        """The sorted vids of the live chunks that pass."""
        # True equals 1 in Python, and not in a filter: the key says which of them it was
        key = (where, tuple(isinstance(c.value, bool) for c in where.conditions), self._view.seq())
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        vids = self._view.matching(where)
        with self._lock:
            self._kept[key] = vids
            while len(self._kept) > FILTERS_KEPT:
                self._kept.popitem(last=False)
        return vids
