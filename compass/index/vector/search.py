"""The search of one space: graph, tail and view to finished hits. No actor in it, no event loop."""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict, defaultdict
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
from compass.index.vector.exact import Candidates
from compass.index.vector.vector_index import VectorIndex

log = logging.getLogger(__name__)

SEARCH_THREADS = min(4, os.cpu_count() or 1)
BUILD_SLICE = SLICE_ROWS  # enough to keep several threads busy, and queries get in between
EXACT_COST = 32  # a candidate of the graph costs as much as reading this many rows one after the other
PICKED_COST = 8  # ... or as picking this many, those that pass a filter
WIDEN = 4  # how much wider a search is asked again
FILTER_MARGIN = 3  # a filtered search asks for this many times the rank where its last hit is expected
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

    A search asks for more candidates than it needs, drops those that the filter or the view does not know,
    and asks wider when too few are left, in the end by brute force over all rows that may match. So neither a
    filter, nor deletes, nor a view that is ahead ever makes an answer short. (A filter that hnswlib calls for
    each row that it meets needs the interpreter each time: 4 to 40 times slower than asking wider.)
    """

    def __init__(self, config: SpaceConfig, view: ChunkView, room: Room = UNLIMITED) -> None:
        """Begin empty; it grows only where `room` allows."""
        self._config, self._view, self._room = config, view, room
        self._index = VectorIndex(config, room)
        self._cramped = False  # whether a compaction that pays does not fit
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
        """Return if there is room for so many further vectors; InsufficientMemoryError if not."""
        self._index.reserve(count)

    def require(self, rows: int, afresh: bool) -> None:
        """Return if a space of so many vectors fits, in place of this one or grown from it.

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
        cramped = not self._index.fits_twice()
        if cramped and not self._cramped:
            log.warning("%d of %d rows of a graph are dead, and there is no room to build it anew", dead, total)
        self._cramped = cramped
        return not cramped

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
        pursuits = [self._begin(index, query) for query in queries]
        unanswered = pursuits
        while unanswered:
            _find(index, unanswered)
            wanted = [p.wanted() for p in unanswered]
            chunks = self._view.by_vids(np.unique(np.concatenate([w.vids for w in wanted])))
            for pursuit, found in zip(unanswered, wanted, strict=True):
                pursuit.hits = self._hits(index, pursuit.query, found, chunks)
            unanswered = [p for p in unanswered if not p.is_answered()]
            for pursuit in unanswered:
                pursuit.widen()
        return [p.hits[: p.query.top_k] for p in pursuits]

    def _begin(self, index: VectorIndex, query: Query) -> _Pursuit:
        breadth = max(query.top_k, query.ef_search or self._config.hnsw.ef_search)
        if not query.where:
            return _Pursuit(query, None, len(index), breadth)
        only = self._filters.matching(query.where)
        if len(only):
            expected_rank = query.top_k * len(index) / len(only)
            breadth = max(breadth, int(FILTER_MARGIN * expected_rank))
        return _Pursuit(query, only, min(len(only), len(index)), breadth)

    def _hits(self, index: VectorIndex, query: Query, found: Candidates, chunks: Mapping[int, Chunk]) -> list[Hit]:
        hits = []
        for vid, score in zip(
            found.vids.tolist(), scores(found.distances, self._config.metric).tolist(), strict=True
        ):
            chunk = chunks.get(vid)
            if chunk is None or not query.where.matches(chunk):
                continue
            vector = index.vector(vid) if query.include_vectors else None
            if vector is not None or not query.include_vectors:
                hits.append(Hit(chunk, score, vector))
        return sorted(hits, key=lambda hit: (-hit.score, hit.chunk.id))


class _Pursuit:
    """One query on its way to its hits."""

    def __init__(self, query: Query, only: IntVector | None, reach: int, breadth: int) -> None:
        """`only`: the sorted vids that may match, None for all; `reach`: how many rows they are at most."""
        self.query, self.only, self.reach, self.breadth = query, only, reach, breadth
        self.candidates: Candidates | None = None
        self.hits: list[Hit] = []
        self._need = query.top_k

    @property
    def exact(self) -> bool:
        """Whether brute force is asked for, or cheaper."""
        rows = EXACT_COST if self.only is None else PICKED_COST
        return self.query.exact or self.breadth * rows >= self.reach

    def take(self, found: Candidates) -> None:
        """Take the candidates of the graph, less those that do not pass the filter; too few: ask wider first.

        Recall falls towards the rim of a beam, so enough have to lie in its nearer half.
        """
        if self.only is not None:
            passed = _are_in(found.vids, self.only)
            if np.count_nonzero(passed[: self.breadth // 2]) < self.query.top_k:
                self.breadth *= WIDEN
                return
            found = Candidates(found.vids[passed], found.distances[passed], complete=False)
        self.candidates = found

    def wanted(self) -> Candidates:
        """The candidates to look up next."""
        assert self.candidates is not None
        return self.candidates.head(self._need)

    def is_answered(self) -> bool:
        """Whether there are enough hits, or no more to be had."""
        return len(self.hits) >= self.query.top_k or self.wanted().complete

    def widen(self) -> None:
        """Look at all candidates next; if that was done, search wider."""
        assert self.candidates is not None
        if self._need < len(self.candidates.vids):
            self._need = len(self.candidates.vids)
        else:
            self.breadth *= WIDEN
            self._need = self.breadth
            self.candidates = None


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


def _find(index: VectorIndex, pursuits: Sequence[_Pursuit]) -> None:
    """Give each its candidates; those of equal breadth share one walk of the graph."""
    while lacking := [p for p in pursuits if p.candidates is None]:
        alike: dict[int, list[_Pursuit]] = defaultdict(list)
        for pursuit in lacking:
            if pursuit.exact:
                pursuit.candidates = index.exact(pursuit.query.vector, pursuit.breadth, pursuit.only)
            else:
                alike[pursuit.breadth].append(pursuit)
        for breadth, group in alike.items():
            found = index.near(np.stack([p.query.vector for p in group]), breadth, SEARCH_THREADS)
            for pursuit, candidates in zip(group, found, strict=True):
                pursuit.take(candidates)


def _are_in(vids: IntVector, sorted_vids: IntVector) -> npt.NDArray[np.bool_]:
    """A mask of the vids that are in a sorted array, which is not empty."""
    places = np.minimum(np.searchsorted(sorted_vids, vids), len(sorted_vids) - 1)
    return np.asarray(sorted_vids[places] == vids)
