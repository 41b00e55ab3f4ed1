"""How a search for nearest candidates goes on: how wide it begins, when it is enough, when brute force is cheaper.

A search asks for more candidates than it needs, drops those that the filter or the view does not know, and asks
wider when too few are left, in the end by brute force over all rows that may match. So neither a filter, nor
deletes, nor a view that is ahead ever makes an answer short.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

EXACT_COST = 32  # a candidate of the graph costs as much as reading this many rows one after the other
PICKED_COST = 8  # ... or as picking this many, those that pass a filter
WIDEN = 4  # how much wider a search asks again
FILTER_MARGIN = 3  # a filtered search asks for this many times the rank where its last hit is expected


def first_breadth(top_k: int, ef_search: int, rows: int, passing: int | None) -> int:
    """How many candidates to ask for at first.

    Args:
        top_k: The hits that are wanted.
        ef_search: The least breadth.
        rows: That are held.
        passing: How many of them pass the filter; None without one.
    """
    breadth = max(top_k, ef_search)
    if not passing:
        return breadth
    expected_rank = top_k * rows / passing
    return max(breadth, int(FILTER_MARGIN * expected_rank))


def widened(breadth: int) -> int:
    """How many candidates to ask for when that many were too few."""
    return breadth * WIDEN


def is_exact_cheaper(breadth: int, reach: int, filtered: bool) -> bool:
    """Whether reading all rows costs no more than so many candidates of the graph.

    Args:
        breadth: The candidates.
        reach: The rows that may match.
        filtered: Whether they are picked by a filter.
    """
    return breadth * (PICKED_COST if filtered else EXACT_COST) >= reach


def is_beam_enough(passed: npt.NDArray[np.bool_], breadth: int, top_k: int) -> bool:
    """Whether enough candidates of a filtered walk have passed, to trust that the nearest are among them.

    Recall falls towards the rim of a beam, so enough have to lie in its nearer half.

    Args:
        passed: For each candidate, nearest first, whether it passes the filter.
        breadth: How many were asked for.
        top_k: The hits that are wanted.
    """
    return int(np.count_nonzero(passed[: breadth // 2])) >= top_k
