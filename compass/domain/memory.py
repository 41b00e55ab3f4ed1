"""How much memory a space takes: so that one which does not fit says so, before the kernel ends its process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

from compass.errors import InsufficientMemoryError

FIRST_CAPACITY = 1024  # rows of an empty graph
GROWTH = 1.5  # of a graph that is full
SLICE_ROWS = 1_000  # rows on their way from a file into rows and graph
SMALL_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Footprint:
    """The memory of a space's two parts: the graph, which is paid by capacity, and the rows beside it.

    Each part has a copy of every vector. What a row takes beside it is measured, see the unit test: the links
    of level 0 (2 M of 4 bytes and their count), a label, a mutex and the entries of hnswlib's maps; in the rows
    a vid and an entry of a dict.
    """

    dims: int
    m: int

    def graph_bytes(self, capacity: int) -> int:
        """A graph with room for so many rows, filled."""
        links = 2 * self.m * 4 + 4
        return capacity * (self.dims * 4 + links + 8 + 40 + 64)

    def rows_bytes(self, rows: int) -> int:
        """So many rows for exact search."""
        return rows * (self.dims * 4 + 8 + 120)

    def space_bytes(self, rows: int) -> int:
        """A space of so many rows at the end of its build.

        A graph that grows is not there twice: its block is so large that the allocator moves its pages instead
        of copying them. A save takes nothing: it writes to a file as it goes. A compaction takes all of this a
        second time, so it is asked for when it is due, and left out where it does not fit.
        """
        on_the_way = 2 * min(rows, SLICE_ROWS) * self.dims * 4
        return self.graph_bytes(grown(FIRST_CAPACITY, rows)) + self.rows_bytes(rows) + on_the_way


def grown(capacity: int, rows: int) -> int:
    """The capacity of a graph that had this one when the last of so many rows has come in, a slice at a time."""
    while capacity < rows:
        capacity = int(capacity * GROWTH)
    return capacity


@dataclass(frozen=True, slots=True)
class Room:
    """The memory that a process may still take where it lives.

    Attributes:
        free_bytes: Asked each time: others take memory too.
        node: Its name, for whoever reads the error.
        small_bytes: A space up to here is never turned away.
    """

    free_bytes: Callable[[], int]
    node: str
    small_bytes: int = SMALL_BYTES

    def fits(self, more_bytes: int, held_bytes: int) -> bool:
        """Whether a space that holds so much can take more; a small one always can."""
        return more_bytes <= 0 or held_bytes + more_bytes <= self.small_bytes or more_bytes <= self.free_bytes()

    def require(self, what: str, more_bytes: int, held_bytes: int, freed_bytes: int = 0) -> None:
        """Check that `what` can take more.

        Args:
            what: The beginning of the sentence for a person.
            more_bytes: To be taken.
            held_bytes: What it holds already.
            freed_bytes: What will be given back before.

        Raises:
            InsufficientMemoryError: it does not fit; the fields say how much is needed, and free.
        """
        if self.fits(more_bytes - freed_bytes, held_bytes):
            return
        free_bytes = max(0, self.free_bytes() + freed_bytes)
        raise InsufficientMemoryError(
            f"{what} needs {_mb(more_bytes)} more memory, and node {self.node} has {_mb(free_bytes)} to give: use a "
            "node with more memory, a model of fewer dims, or drop a space that nobody asks any more",
            {"needed_bytes": more_bytes, "free_bytes": free_bytes, "node": self.node},
        )


UNLIMITED = Room(lambda: sys.maxsize, "")


def _mb(count_bytes: int) -> str:
    return f"{count_bytes / 1e6:,.0f} MB"
