"""A search by a vector: which space it is for, and whether it fits there."""

from __future__ import annotations

import numpy as np
import pytest

from compass.domain.search.request import QueryVector, SearchRequest, vector_in
from compass.domain.space import Space, SpaceConfig
from compass.domain.vector import SentVector, Unreadable
from compass.errors import InvalidRequestError

SPACE = Space("a-1", "a", SpaceConfig(2, "m"), "active", 0.0)
ROW = np.array([3, 4], np.float32)


def test_a_vector_is_prepared_as_the_space_stores_it() -> None:
    """Bare or by the name of the space."""
    for vector in (ROW, {"a": ROW}):
        np.testing.assert_allclose(vector_in(SPACE, QueryVector("vector", vector)), [0.6, 0.8], rtol=1e-6)


@pytest.mark.parametrize(
    ("vector", "detail"),
    [
        (Unreadable("is a riddle"), "is a riddle"),
        ({"a": Unreadable("is a riddle")}, "is a riddle"),
        ({"b": ROW}, "wants exactly one vector, for space 'a'"),
        ({"a": ROW, "b": ROW}, "wants exactly one vector, for space 'a'"),
        ({}, "wants exactly one vector, for space 'a'"),
        (ROW[:1], "expected 2 dims, got 1 (space 'a')"),
        (0 * ROW, "is a zero vector (space 'a')"),
    ],
)
def test_a_vector_that_does_not_fit(vector: SentVector | dict[str, SentVector], detail: str) -> None:
    """It is refused by the field that it came in."""
    with pytest.raises(InvalidRequestError) as refused:
        vector_in(SPACE, QueryVector("query_vector", vector))
    assert refused.value.fields["errors"] == [{"field": "query_vector", "detail": detail}]


def test_a_search_has_one_vector_at_most() -> None:
    """Which of two would count?"""
    one, other = QueryVector("query_vector", ROW), QueryVector("vector", ROW)
    assert SearchRequest().query_vector is None
    assert SearchRequest(vectors=[one]).query_vector is one
    with pytest.raises(InvalidRequestError, match="vector: is given beside query_vector"):
        _ = SearchRequest(vectors=[one, other]).query_vector


def test_a_vector_is_bare_where_nothing_names_a_space() -> None:
    """Neither the search nor the vector itself."""
    bare, named = QueryVector("vector", ROW), QueryVector("vector", {"a": ROW})
    assert SearchRequest().is_bare(bare)
    assert not SearchRequest().is_bare(named)
    assert not SearchRequest(space="a").is_bare(bare)
