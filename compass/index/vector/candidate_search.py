"""The searches of one call on their way to their candidates: those that are alike share a walk of the graph."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from compass.domain.chunk import IntVector
from compass.domain.search import plan
from compass.domain.search.query import Hit, Query
from compass.index.vector.exact import Candidates
from compass.index.vector.vector_index import VectorIndex

SEARCH_THREADS = min(4, os.cpu_count() or 1)


class CandidateSearch:
    """One query, the candidates it has met so far, and the hits among them.

    Attributes:
        candidates: The nearest rows of the last walk or scan, which may match; None before one that is wide enough.
        hits: What the caller has made of them.
    """

    def __init__(self, query: Query, ef_search: int, rows: int, matching: IntVector | None) -> None:
        """Ask nothing yet.

        Args:
            query: What is asked.
            ef_search: The breadth to begin with, at least.
            rows: How many rows are held.
            matching: The sorted vids that may match; None for all.
        """
        passing = None if matching is None else len(matching)
        self.query, self.matching = query, matching
        self.breadth = plan.first_breadth(query.top_k, ef_search, rows, passing)
        self.candidates: Candidates | None = None
        self.hits: list[Hit] = []
        self._reach = rows if passing is None else min(passing, rows)
        self._need = query.top_k

    @property
    def exact(self) -> bool:
        """Whether brute force is asked for, or cheaper."""
        filtered = self.matching is not None
        return self.query.exact or plan.is_exact_cheaper(self.breadth, self._reach, filtered)

    def take(self, walked: Candidates) -> None:
        """Take the candidates of the graph that pass the filter; too few: ask wider first."""
        if self.matching is not None:
            passed = _are_in(walked.vids, self.matching)
            if not plan.is_beam_enough(passed, self.breadth, self.query.top_k):
                self.breadth = plan.widened(self.breadth)
                return
            walked = Candidates(walked.vids[passed], walked.distances[passed], complete=False)
        self.candidates = walked

    def needed(self) -> Candidates:
        """The candidates to look up next."""
        assert self.candidates is not None
        return self.candidates.head(self._need)

    def is_answered(self) -> bool:
        """Whether there are enough hits, or no more to be had."""
        return len(self.hits) >= self.query.top_k or self.needed().complete

    def widen(self) -> None:
        """Look at all candidates next; if that was done, search wider."""
        assert self.candidates is not None
        if self._need < len(self.candidates.vids):
            self._need = len(self.candidates.vids)
        else:
            self._need = self.breadth = plan.widened(self.breadth)
            self.candidates = None


def find_candidates(index: VectorIndex, searches: Sequence[CandidateSearch]) -> None:
    """Give each search its candidates; those of equal breadth share one walk of the graph."""
    while waiting := [search for search in searches if search.candidates is None]:
        alike: dict[int, list[CandidateSearch]] = defaultdict(list)
        for search in waiting:
            if search.exact:
                search.candidates = index.exact(search.query.vector, search.breadth, search.matching)
            else:
                alike[search.breadth].append(search)
        for breadth, group in alike.items():
            walks = index.near(np.stack([search.query.vector for search in group]), breadth, SEARCH_THREADS)
            for search, walked in zip(group, walks, strict=True):
                search.take(walked)


def _are_in(vids: IntVector, sorted_vids: IntVector) -> npt.NDArray[np.bool_]:
    """A mask of the vids that are in a sorted array, which is not empty."""
    places = np.minimum(np.searchsorted(sorted_vids, vids), len(sorted_vids) - 1)
    return np.asarray(sorted_vids[places] == vids)
