"""How wide a search asks, and when it had better read everything."""

from __future__ import annotations

import numpy as np
import pytest

from compass.domain.search.plan import first_breadth, is_beam_enough, is_exact_cheaper, widened


@pytest.mark.parametrize(
    ("top_k", "ef_search", "passing", "breadth"),
    [
        (10, 100, None, 100),  # the space's own beam
        (500, 100, None, 500),  # never fewer than are wanted
        (10, 100, 0, 100),  # nothing passes: nothing to expect
        (10, 100, 10_000, 100),  # all pass
        (10, 100, 1_000, 300),  # one in ten passes: the tenth hit is expected at rank 100
        (10, 100, 10, 30_000),
    ],
)
def test_a_filter_widens_the_beginning(top_k: int, ef_search: int, passing: int | None, breadth: int) -> None:
    """A search begins with three times the rank where its last hit is expected, and at least with its beam."""
    assert first_breadth(top_k, ef_search, 10_000, passing) == breadth


def test_reading_everything_is_cheaper_where_there_is_little() -> None:
    """A candidate of the graph costs 32 rows in a row, or 8 rows that a filter picks."""
    assert is_exact_cheaper(100, 3_200, filtered=False)
    assert not is_exact_cheaper(100, 3_201, filtered=False)
    assert is_exact_cheaper(100, 800, filtered=True)
    assert not is_exact_cheaper(100, 801, filtered=True)
    assert is_exact_cheaper(1, 0, filtered=True)


def test_a_search_that_widens_ends_exact() -> None:
    """However many rows there are, a few rounds reach them all."""
    breadth, rounds = 100, 0
    while not is_exact_cheaper(breadth, 100_000_000, filtered=False):
        breadth, rounds = widened(breadth), rounds + 1
    assert rounds == 8


def test_the_nearer_half_of_a_beam_counts() -> None:
    """Candidates that pass count only where recall is good; what lies at the rim proves nothing."""
    near, rim = np.zeros(100, np.bool_), np.zeros(100, np.bool_)
    near[40:50], rim[41:51] = True, True
    assert is_beam_enough(near, 100, 10)
    assert not is_beam_enough(near, 100, 11)
    assert not is_beam_enough(rim, 100, 10)
    assert is_beam_enough(near[:50], 1_000, 10), "a walk that met fewer rows than asked for has met the nearest"
