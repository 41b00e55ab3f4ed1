"""Brute force over blocks of rows."""

from __future__ import annotations

import numpy as np
import pytest

from compass.domain.search.scoring import distances
from compass.domain.space import Metric
from compass.index.vector.exact import Candidates, ExactRows, merge

DIMS = 16_384  # 64 rows a block: few rows cross many blocks


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((300, DIMS)).astype(np.float32)


def rows_of(vectors: np.ndarray, metric: Metric = "l2") -> ExactRows:
    rows = ExactRows(DIMS, metric)
    for start in range(0, len(vectors), 70):
        rows.add(np.arange(start, min(start + 70, len(vectors))), vectors[start : start + 70])
    return rows


@pytest.mark.parametrize("metric", ["dot", "l2"])
@pytest.mark.parametrize("start", [0, 1, 63, 64, 65, 200, 299, 300])
def test_scan_is_exact_across_blocks(vectors: np.ndarray, metric: Metric, start: int) -> None:
    """A scan from any position finds exactly the nearest rows from there on, in order."""
    rows, query = rows_of(vectors, metric), vectors[7] + 0.1
    far = distances(query, vectors, metric)
    expected = start + np.argsort(far[start:])[:10]
    assert rows.scan(query, 10, start).vids.tolist() == expected.tolist()


@pytest.mark.parametrize(
    "chosen", [[], [0], [63, 64], list(range(300)), [299], list(range(0, 300, 50)), [5, 6, 7, 290]]
)
def test_scan_at_is_exact(vectors: np.ndarray, chosen: list[int]) -> None:
    """A scan of chosen rows finds the nearest of exactly these, be they few or all of a block."""
    rows, query = rows_of(vectors), vectors[7] + 0.1
    far = distances(query, vectors, "l2")
    expected = sorted(chosen, key=lambda vid: far[vid])[:4]
    found = rows.scan_at(query, 4, rows.positions(np.array(chosen, np.int64)))
    assert found.vids.tolist() == expected
    assert found.complete == (len(chosen) <= 4)


def test_a_vid_is_held_once(vectors: np.ndarray) -> None:
    """Adding a vid that is held, or twice in one call, keeps the first vector."""
    rows = ExactRows(DIMS, "l2")
    rows.add(np.array([5, 5]), vectors[:2])
    rows.add(np.array([5, 6]), vectors[2:4])
    assert rows.vids().tolist() == [5, 6]
    np.testing.assert_array_equal(rows.vector(5), vectors[0])
    np.testing.assert_array_equal(rows.vector(6), vectors[3])


def test_removed_rows(vectors: np.ndarray) -> None:
    """A removed row is in no scan and no list, and what is added again has its new vector."""
    rows = rows_of(vectors)
    rows.remove(np.array([7, 7, 1_000]))
    assert sorted(rows.scan(vectors[7], 300).vids.tolist()) == [vid for vid in range(300) if vid != 7]
    assert (rows.vector(7), len(rows)) == (None, 299)
    assert rows.positions(np.array([6, 7])).tolist() == [6]
    rows.add(np.array([7]), vectors[:1])
    np.testing.assert_array_equal(rows.vector(7), vectors[0])


def test_rows_as_far_as_the_last_are_not_cut() -> None:
    """Which of several equal rows is answered is not left to chance: all of them are candidates."""
    rows = ExactRows(2, "l2")
    rows.add(np.arange(6), np.array([[1, 0], [0, 0], [1, 0], [1, 0], [2, 0], [1, 0]], np.float32))
    found = rows.scan(np.zeros(2, np.float32), 2)
    assert found.vids.tolist() == [1, 0, 2, 3, 5]
    assert found.head(2).vids.tolist() == [1, 0, 2, 3, 5]
    assert found.head(1).vids.tolist() == [1]
    assert not found.complete


def test_merge_counts_a_row_once() -> None:
    """A row met in the graph and in the tail is one candidate, and the nearest of both are kept."""
    one = Candidates(np.array([4, 2]), np.array([0.1, 0.5], np.float32), True)
    other = Candidates(np.array([4, 9]), np.array([0.1, 0.3], np.float32), True)
    assert merge(one, other, 10).vids.tolist() == [4, 9, 2]
    assert merge(one, other, 10).complete
    assert merge(one, other, 2).vids.tolist() == [4, 9]
    assert not merge(one, other, 2).complete
