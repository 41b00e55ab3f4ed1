"""Every vector that a space holds, for brute force: new ones at once, filtered ones exactly."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from compass.domain.chunk import FloatMatrix, FloatVector, IntVector
from compass.domain.memory import Footprint
from compass.domain.search.scoring import distances
from compass.domain.space import Metric

BLOCK_BYTES = 4 << 20
REMOVED = -1
SCAN_SHARE = 5  # reading a whole block costs as much as gathering a fifth of its rows


@dataclass(frozen=True, slots=True)
class Candidates:
    """Rows in the order of their distance to a query, nearest first.

    Attributes:
        complete: Whether there is nothing further to be found.
    """

    vids: IntVector
    distances: npt.NDArray[np.float32]
    complete: bool

    def head(self, count: int) -> Candidates:
        """The first `count`, and those that lie exactly as far as the last of them."""
        if len(self.vids) > count:
            count = int(np.searchsorted(self.distances, self.distances[count - 1], side="right"))
        return Candidates(self.vids[:count], self.distances[:count], self.complete and count >= len(self.vids))


def merge(one: Candidates, other: Candidates, count: int) -> Candidates:
    """The nearest `count` of both; a row that is in both counts once."""
    vids = np.concatenate([one.vids, other.vids])
    far = np.concatenate([one.distances, other.distances])
    order = np.lexsort((vids, far))
    _, first = np.unique(vids[order], return_index=True)
    kept = order[np.sort(first)[:count]]
    return Candidates(vids[kept], far[kept], one.complete and other.complete and len(kept) == len(first))


class ExactRows:
    """An append-only list of (vid, vector) in blocks; a position is for ever, removal only masks.

    One lock for writers; readers take none: a row is complete before the count says that it is there.
    """

    def __init__(self, dims: int, metric: Metric) -> None:
        self._dims, self._metric = dims, metric
        self._block_rows = max(64, BLOCK_BYTES // (dims * 4))
        self._blocks: list[FloatMatrix] = []
        self._vids: IntVector = np.empty(0, np.int64)
        self._count = 0
        self._position: dict[int, int] = {}
        self._changing = threading.Lock()

    def __len__(self) -> int:
        return len(self._position)

    def __contains__(self, vid: int) -> bool:
        return vid in self._position

    @property
    def end(self) -> int:
        """The position after the last row; removed rows keep theirs."""
        return self._count

    def add(self, vids: IntVector, vectors: FloatMatrix) -> None:
        """Append the rows whose vid is not held; they are found by the next scan."""
        with self._changing:
            fresh: dict[int, int] = {}
            for row, vid in enumerate(vids.tolist()):
                if vid not in self._position:
                    fresh.setdefault(vid, row)
            if not fresh:
                return
            start, count = self._count, len(fresh)
            self._reserve(start + count)
            self._write(start, vectors[list(fresh.values())])
            self._vids[start : start + count] = list(fresh)
            self._count = start + count
            self._position.update(zip(fresh, range(start, start + count), strict=True))

    def remove(self, vids: IntVector) -> None:
        """Mask rows; no later scan finds them. Vids that are not held are ignored."""
        with self._changing:
            for vid in vids.tolist():
                position = self._position.pop(vid, None)
                if position is not None:
                    self._vids[position] = REMOVED

    def vids(self) -> IntVector:
        """The vids held, sorted."""
        vids = self._vids[: self._count]
        return np.sort(vids[vids != REMOVED], kind="stable")

    def vector(self, vid: int) -> FloatVector | None:
        """The stored vector of a vid, or None: float32, shape (dims,), a copy."""
        position = self._position.get(vid)
        if position is None:
            return None
        return np.array(self._blocks[position // self._block_rows][position % self._block_rows], np.float32)

    def at(self, positions: IntVector) -> tuple[IntVector, FloatMatrix]:
        """The rows at these positions that are not removed: (vids, vectors), copies."""
        vids = self._vids[positions]
        live = vids != REMOVED
        return vids[live], self._gather(positions[live])

    def positions(self, vids: IntVector) -> IntVector:
        """Where the held ones of these vids are, in order of position."""
        held = [p for p in map(self._position.get, vids.tolist()) if p is not None]
        return np.sort(np.array(held, np.int64))

    def scan(self, query: FloatVector, count: int, start: int = 0) -> Candidates:
        """The `count` nearest (and ties with the last) of the rows from a position on: exact."""
        stop = self._count
        vids = self._vids[start:stop].copy()
        if not len(vids):
            return Candidates(vids, np.empty(0, np.float32), True)
        parts = [distances(query, rows, self._metric) for rows in self._spans(start, stop)]
        return _nearest(vids, np.concatenate(parts), count)

    def scan_at(self, query: FloatVector, count: int, positions: IntVector) -> Candidates:
        """The `count` nearest (and ties with the last) of the rows at these sorted positions: exact."""
        vids = self._vids[positions]
        edges = np.arange(0, self._count + self._block_rows, self._block_rows)
        cuts = np.searchsorted(positions, edges)
        parts = [np.empty(0, np.float32)]
        for block, first, last in zip(self._blocks, cuts[:-1], cuts[1:], strict=False):
            if first < last:
                parts.append(self._measure(query, block, positions[first:last] % self._block_rows))
        return _nearest(vids, np.concatenate(parts), count)

    def memory_bytes(self) -> int:
        """About what the rows take in memory."""
        return Footprint(self._dims, 0).rows_bytes(self._count)

    def growth_bytes(self, count: int) -> int:
        """What they will take more in memory when they have no place for `count` further rows; else 0."""
        blocks = -(-(self._count + count) // self._block_rows) - len(self._blocks)
        return max(0, blocks) * Footprint(self._dims, 0).rows_bytes(self._block_rows)

    def _measure(self, query: FloatVector, block: FloatMatrix, offsets: IntVector) -> npt.NDArray[np.float32]:
        span = int(offsets[-1]) + 1
        if len(offsets) * SCAN_SHARE < span:
            return distances(query, block[offsets], self._metric)
        return distances(query, block[:span], self._metric)[offsets]

    def _spans(self, start: int, stop: int) -> list[FloatMatrix]:
        """The rows from `start` to `stop` as views of the blocks."""
        size = self._block_rows
        numbers = range(start // size, -(-stop // size))
        return [self._blocks[n][max(start - n * size, 0) : stop - n * size] for n in numbers]

    def _gather(self, positions: IntVector) -> FloatMatrix:
        rows = np.empty((len(positions), self._dims), np.float32)
        numbers, offsets = np.divmod(positions, self._block_rows)
        for number in np.unique(numbers).tolist():
            chosen = numbers == number
            rows[chosen] = self._blocks[number][offsets[chosen]]
        return rows

    def _reserve(self, count: int) -> None:
        while len(self._blocks) * self._block_rows < count:
            self._blocks.append(np.empty((self._block_rows, self._dims), np.float32))
        if len(self._vids) < count:
            grown = np.full(max(count, 2 * len(self._vids)), REMOVED, np.int64)
            grown[: self._count] = self._vids[: self._count]
            self._vids = grown

    def _write(self, start: int, vectors: FloatMatrix) -> None:
        written = 0
        for span in self._spans(start, start + len(vectors)):
            span[:] = vectors[written : written + len(span)]
            written += len(span)


def _nearest(vids: IntVector, far: npt.NDArray[np.float32], count: int) -> Candidates:
    """The nearest `count` live rows and the ties with the last, in order."""
    live = vids != REMOVED
    vids, far = vids[live], far[live]
    complete = len(vids) <= count
    if not complete:
        near = far <= np.partition(far, count - 1)[count - 1]
        vids, far = vids[near], far[near]
    order = np.lexsort((vids, far))
    return Candidates(vids[order], far[order], complete)
