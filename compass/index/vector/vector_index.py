"""The vectors of a space, twice: a graph for most questions, rows for exact ones and for what is new."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np

from compass.domain.chunk import FloatMatrix, FloatVector, IntVector
from compass.domain.memory import SLICE_ROWS, UNLIMITED, Footprint, Room
from compass.domain.space import SpaceConfig
from compass.index.vector.exact import Candidates, ExactRows, merge
from compass.index.vector.hnsw import Graph

QUERIED_SLICE = 4  # rows a slice while queries run: their p99 stays within a few ms
PAUSE_S = 0.0005  # a Python lock is not handed over: without a pause the adder takes it again before a query wakes


class VectorIndex:
    """Nearest candidates by vid; thread-safe.

    The rows hold every vector. Those before the position `_settled` are in the graph too, those after it are
    the tail, which each query scans. A query reads the border first and the graph later, so a row that moves
    meanwhile is met in both, never in neither.
    """

    def __init__(self, config: SpaceConfig, room: Room = UNLIMITED) -> None:
        """Begin empty; it grows only where `room` allows."""
        self._room, self._footprint = room, Footprint(config.dims, config.hnsw.m)
        self._graph = Graph(config)
        self._rows = ExactRows(config.dims, config.metric)
        self._settled = 0
        self._settling = threading.Lock()

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, vid: int) -> bool:
        return vid in self._rows

    def vids(self) -> IntVector:
        """The vids held, sorted."""
        return self._rows.vids()

    def vector(self, vid: int) -> FloatVector | None:
        """The stored vector of a vid, or None."""
        return self._rows.vector(vid)

    def vectors(self, vids: IntVector) -> tuple[IntVector, FloatMatrix]:
        """The held ones of these vids, with their vectors."""
        return self._rows.at(self._rows.positions(vids))

    def add(self, vids: IntVector, vectors: FloatMatrix) -> None:
        """Put rows into the tail: the next query finds them. Vids that are held are ignored.

        Raises:
            InsufficientMemoryError: there is no room for them; nothing was added.
        """
        self.reserve(len(vids))
        self._rows.add(vids, vectors)

    def reserve(self, count: int) -> None:
        """Check that there is room for `count` further rows, in the tail and later in the graph.

        The memory is looked at only when one of them is about to grow.

        Raises:
            InsufficientMemoryError: there is not.
        """
        self._room.require("the index of the vector space", self._growth_bytes(count), self.memory_bytes())

    def require(self, rows: int, afresh: bool) -> None:
        """Check that a space of so many rows fits; `afresh`: in place of this one, else this one grows to it.

        Raises:
            InsufficientMemoryError: it does not fit.
        """
        whole, held, more = self._footprint.space_bytes(rows), self._filled_bytes(), rows - len(self)
        what = f"a vector space of {rows} vectors of {self._footprint.dims} dims"
        if afresh:
            self._room.require(what, whole, 0, freed_bytes=held)
        elif more > 0:  # a few rows more do not fill what a graph that is there already has room for
            filled = self._footprint.graph_bytes(more) + self._footprint.rows_bytes(more)
            self._room.require(what, min(whole - held, self._growth_bytes(more) + filled), held)

    def _growth_bytes(self, count: int) -> int:
        """What graph and rows grow by before they have `count` further rows."""
        unsettled = self._rows.end - self._settled
        return self._graph.growth_bytes(unsettled + count) + self._rows.growth_bytes(count)

    def fits_twice(self) -> bool:
        """Whether there is room for another one like it, for as long as that is built."""
        return self._room.fits(self._footprint.space_bytes(len(self)), self._filled_bytes())

    def settle(self, max_rows: int, threads: int = 1, slice_rows: int = QUERIED_SLICE) -> int:
        """Move up to `max_rows` positions of the tail into the graph; how many are left."""
        with self._settling:
            stop = min(self._settled + max_rows, self._rows.end)
            while self._settled < stop:
                self._settle_slice(min(self._settled + slice_rows, stop), threads)
                time.sleep(PAUSE_S)
            return self._rows.end - self._settled

    def remove(self, vids: IntVector) -> None:
        """Forget rows; no later query meets them."""
        self._rows.remove(vids)
        self._graph.remove(vids)

    def near(self, queries: FloatMatrix, count: int, threads: int) -> list[Candidates]:
        """The `count` nearest of each query, approximately: graph and tail. shape (q, dims) in."""
        settled = self._settled
        nearest = self._graph.search(queries, count, threads)
        if nearest is None:
            return [self._rows.scan(query, count) for query in queries]
        walked = [Candidates(vids, far, complete=False) for vids, far in zip(*nearest, strict=True)]
        if settled == self._rows.end:
            return walked
        tails = [self._rows.scan(query, count, settled) for query in queries]
        return [merge(one, tail, count) for one, tail in zip(walked, tails, strict=True)]

    def exact(self, query: FloatVector, count: int, only: IntVector | None = None) -> Candidates:
        """The `count` nearest of all rows, or of the vids `only`: by brute force."""
        if only is None:
            return self._rows.scan(query, count)
        return self._rows.scan_at(query, count, self._rows.positions(only))

    def worn(self) -> tuple[int, int]:
        """Rows of the graph that are marked deleted, and all of its rows."""
        dead = self._graph.dead_count
        return dead, dead + len(self._graph)

    def memory_bytes(self) -> int:
        """About what it takes in memory."""
        return self._graph.memory_bytes() + self._rows.memory_bytes()

    def save(self, path: Path) -> None:
        """Write the settled rows to one file; the tail is left out."""
        self._graph.save(path)

    @classmethod
    def load(cls, path: Path, config: SpaceConfig, room: Room = UNLIMITED) -> VectorIndex:
        """What `save` wrote, whatever room there is; StorageError if the file is not that."""
        index = cls(config, room)
        index._graph, vids, vectors = Graph.load(path, config)
        for start in range(0, len(vids), SLICE_ROWS):  # in one step a third copy would be there for a while
            index._rows.add(vids[start : start + SLICE_ROWS], vectors[start : start + SLICE_ROWS])
        index._settled = index._rows.end
        return index

    def _filled_bytes(self) -> int:
        """What it has taken of the machine: pages of a graph's capacity that nobody wrote to are still free."""
        return self._footprint.graph_bytes(self.worn()[1]) + self._rows.memory_bytes()

    def _settle_slice(self, stop: int, threads: int) -> None:
        vids, vectors = self._rows.at(np.arange(self._settled, stop))
        if len(vids):
            self._graph.add(vids, vectors, threads)
        self._settled = stop
        died_meanwhile = [vid for vid in vids.tolist() if vid not in self._rows]
        if died_meanwhile:
            self._graph.remove(np.array(died_meanwhile, np.int64))
