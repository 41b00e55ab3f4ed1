"""The graph of a space: hnswlib, and the rules that it needs to be safe and never to raise for a small k."""

from __future__ import annotations

import os
import struct
import threading
from pathlib import Path

import hnswlib
import numpy as np
import numpy.typing as npt
from readerwriterlock.rwlock import RWLockFair

from compass.domain.chunk import FloatMatrix, IntVector
from compass.domain.memory import FIRST_CAPACITY, GROWTH, Footprint, grown
from compass.domain.space import SpaceConfig
from compass.errors import StorageError

Nearest = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]

NICENESS = 10  # of threads that build: queries come first
HEADER = struct.Struct("<6Q2i3QdQ")  # of hnswlib 0.8's file: sizes and offsets, then the elements of level 0


def nice_this_thread() -> None:
    """Make the calling thread, and the threads that hnswlib starts from it, yield to queries (Linux)."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


def saved_bytes(config: SpaceConfig, rows: int) -> int:
    """About the size of the file of a graph: each row, and the upper levels that one in M rows is in."""
    m = config.hnsw.m
    row = config.dims * 4 + (2 * m * 4 + 4) + 8 + 4  # links, label, the size of the upper levels
    upper = (4 * m + 4) / (m - 1)
    return HEADER.size + round(rows * (row + upper))


class Graph:
    """Approximate nearest neighbours by vid; thread-safe.

    hnswlib does not allow a change beside a query: changes take the exclusive side of a fair lock whose other
    side the queries share. hnswlib's beam width is one variable of the whole index; as it walks with the
    greater of that and k, the width of a query is passed as its k, and queries never disturb each other.
    """

    def __init__(self, config: SpaceConfig) -> None:
        self._config = config
        self._index = _empty_index(config)
        self._index.init_index(FIRST_CAPACITY, M=config.hnsw.m, ef_construction=config.hnsw.ef_construction)
        self._dead: set[int] = set()
        self._lock = RWLockFair()

    def __len__(self) -> int:
        return int(self._index.element_count) - len(self._dead)

    @property
    def dead_count(self) -> int:
        """Rows that are marked deleted; they still take memory and time."""
        return len(self._dead)

    def add(self, vids: IntVector, vectors: FloatMatrix, threads: int = 1) -> None:
        """Add rows in one exclusive step; queries wait for it, so give few rows where there are queries.

        Args:
            vids: shape (n,), >= 0. A vid that is there already is replaced, slowly.
            vectors: float32, shape (n, dims), finite and prepared.
            threads: Of hnswlib; they are used when n is more than four times their number.
        """
        with self._lock.gen_wlock():
            self._make_room(len(vids))
            self._index.add_items(vectors, vids, num_threads=threads)
            self._dead.difference_update(vids.tolist())

    def remove(self, vids: IntVector) -> None:
        """Mark rows deleted; vids that are not there are ignored. They are never answered again."""
        with self._lock.gen_wlock():
            for vid in vids.tolist():
                if vid not in self._dead and self._mark_deleted(vid):
                    self._dead.add(vid)

    def search(self, queries: FloatMatrix, k: int, threads: int = 1) -> Nearest | None:
        """The `k` nearest of each query, nearest first, found with a beam of width `k`.

        Args:
            queries: float32, shape (q, dims).
            k: Ask for more than you need: recall grows with it. Capped at the rows there are.
            threads: Of hnswlib, when there are many queries.

        Returns:
            vids and distances, both of shape (q, min(k, len(self))); see `domain.search.distances`. None if
            the walk did not meet that many rows, though they are there: use brute force.
        """
        with self._lock.gen_rlock():
            k = min(k, len(self))
            if k == 0:
                nothing = (len(queries), 0)
                return np.empty(nothing, np.int64), np.empty(nothing, np.float32)
            try:
                vids, distances = self._index.knn_query(queries, k, num_threads=threads)
            except RuntimeError:  # "Cannot return the results in a contiguous 2D array"
                return None
        return vids.view(np.int64), distances

    def memory_bytes(self) -> int:
        """About what the graph takes in memory: vectors, links, labels, locks, for the capacity it has."""
        return self._footprint.graph_bytes(self._index.max_elements)

    def growth_bytes(self, count: int) -> int:
        """What it will take more in memory before `count` further rows are in it."""
        after = grown(self._index.max_elements, self._index.element_count + count)
        return self._footprint.graph_bytes(after) - self.memory_bytes()

    def save(self, path: Path) -> None:
        """Write the graph to one file. Adds wait; hnswlib holds the interpreter while it writes."""
        with self._lock.gen_wlock():
            self._index.save_index(str(path))

    @classmethod
    def load(cls, path: Path, config: SpaceConfig) -> tuple[Graph, IntVector, FloatMatrix]:
        """A saved graph with its live rows: (graph, vids, vectors); the vectors are mapped from the file.

        Raises:
            StorageError: the file is no graph of this many dims, or is cut short. A flipped bit is not seen:
                the caller keeps a checksum.
        """
        vids, vectors, deleted = _read_rows(path, config)
        graph = cls.__new__(cls)
        graph._config = config
        graph._index = _empty_index(config)
        graph._lock = RWLockFair()
        try:
            graph._index.load_index(str(path), max_elements=max(FIRST_CAPACITY, int(len(vids) * GROWTH)))
        except RuntimeError as error:
            raise StorageError(f"{path.name} is not a readable graph: {error}", {}) from error
        graph._dead = set(vids[deleted].tolist())
        return graph, vids[~deleted], vectors[~deleted] if deleted.any() else vectors

    def _make_room(self, count: int) -> None:
        needed = self._index.element_count + count
        if needed > self._index.max_elements:
            self._index.resize_index(grown(self._index.max_elements, needed))

    @property
    def _footprint(self) -> Footprint:
        return Footprint(self._config.dims, self._config.hnsw.m)

    def _mark_deleted(self, vid: int) -> bool:
        try:
            self._index.mark_deleted(vid)
        except RuntimeError:  # hnswlib's word for "no such label"
            return False
        return True


def _empty_index(config: SpaceConfig) -> hnswlib.Index:
    return hnswlib.Index(space="l2" if config.metric == "l2" else "ip", dim=config.dims)


def _read_rows(path: Path, config: SpaceConfig) -> tuple[IntVector, FloatMatrix, npt.NDArray[np.bool_]]:
    """Labels, vectors and deletion marks straight from hnswlib's file.

    Its own `get_items` goes through Python floats: 24 µs a row, and the interpreter stands still meanwhile.
    """
    with path.open("rb") as file:
        header = file.read(HEADER.size)
    if len(header) < HEADER.size:
        raise StorageError(f"{path.name} is too short to be a graph", {})
    _, _, count, row_bytes, label_at, vector_at, *_ = HEADER.unpack(header)
    if label_at - vector_at != config.dims * 4 or path.stat().st_size < HEADER.size + count * row_bytes:
        raise StorageError(f"{path.name} is not a whole graph of {config.dims} dims", {})
    row = np.dtype(
        {
            "names": ["mark", "vector", "label"],
            "formats": ["u1", ("<f4", (config.dims,)), "<i8"],
            "offsets": [2, vector_at, label_at],  # the mark is the third byte of the links' count
            "itemsize": row_bytes,
        }
    )
    if count == 0:
        return np.empty(0, np.int64), np.empty((0, config.dims), np.float32), np.empty(0, np.bool_)
    rows = np.memmap(path, row, mode="r", offset=HEADER.size, shape=(count,))
    return np.array(rows["label"], np.int64), rows["vector"], (np.asarray(rows["mark"]) & 1).astype(np.bool_)
