"""A batch of chunks is checked as a whole: all of its flaws in one error, or all of its vectors prepared."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from compass.domain.chunk import FloatVector
from compass.domain.ingest import IncomingChunk, IngestOrder, chunks_to_store
from compass.domain.routing.table import CollectionRoute
from compass.domain.space import Metric, Space, SpaceConfig
from compass.domain.vector import Unreadable
from compass.errors import InvalidRequestError

CHUNK = IncomingChunk("f", 0, "a text")


def route(**metrics: Metric) -> CollectionRoute:
    """A collection whose default is `a`; each space has two dims."""
    spaces = {
        name: Space(f"{name}-1", name, SpaceConfig(2, "m", metric=metric), "active", 0.0)
        for name, metric in (metrics or {"a": "cosine", "b": "dot"}).items()
    }
    return CollectionRoute("u", "c", 1, "a", spaces)


def row(*numbers: float) -> FloatVector:
    return np.array(numbers, np.float32)


def flaws_of(*chunks: IncomingChunk) -> list[tuple[int, str, str]]:
    with pytest.raises(InvalidRequestError) as refused:
        chunks_to_store(chunks, route())
    return [(flaw["index"], flaw["field"], flaw["detail"]) for flaw in refused.value.fields["errors"]]


def test_vectors_are_prepared_and_kept_by_the_id_of_their_space() -> None:
    """A bare one is the default's; for cosine they are made of length 1."""
    bare = replace(CHUNK, bare_vector=row(3, 4), vectors={"b": row(3, 4)})
    named = replace(CHUNK, vectors={"a": row(0, 2)})
    one, other, none = chunks_to_store([bare, named, CHUNK], route())
    np.testing.assert_allclose(one.vectors["a-1"], [0.6, 0.8], rtol=1e-6)
    np.testing.assert_array_equal(one.vectors["b-1"], [3, 4])
    np.testing.assert_array_equal(other.vectors["a-1"], [0, 1])
    assert none.vectors == {}


def test_every_flaw_is_found_whoever_has_found_it() -> None:
    """What could not be read, what fits no space and what breaks a rule stand in one error, by the chunks' order."""
    assert flaws_of(
        replace(CHUNK, vectors={"a": row(1, 2, 3), "nowhere": Unreadable("is a riddle")}),
        CHUNK,
        replace(CHUNK, bare_vector=Unreadable("is a riddle"), metadata={"$and": 1, "n": 2**63}),
        replace(CHUNK, bare_vector=row(0, 0), vectors={"a": row(1, float("nan"))}),
        replace(CHUNK, text=" ", vectors={"b": row(1, 2)}),
    ) == [
        (0, "embeddings.nowhere", "there is no vector space 'nowhere'"),
        (0, "embeddings.a", "expected 2 dims, got 3"),
        (2, "metadata.$and", "a key may not begin with '$'"),
        (2, "metadata.n", "an integer must fit in 64 bits"),
        (2, "embedding", "is a riddle"),
        (3, "embedding", "is given beside embeddings['a'], and both mean the default space"),
        (3, "embeddings.a", "holds NaN or infinity"),
        (3, "embedding", "is a zero vector"),
        (4, "embeddings", "a chunk without text has no vector"),
    ]


def test_wrong_dims_are_told_as_numbers_too() -> None:
    """What was expected, and what came."""
    with pytest.raises(InvalidRequestError) as refused:
        chunks_to_store([replace(CHUNK, bare_vector=row(1, 2, 3))], route())
    assert (refused.value.fields["expected_dims"], refused.value.fields["got_dims"]) == (2, 3)


def test_a_client_id_names_one_chunk() -> None:
    """Each of those that share one is named."""
    chunks = [replace(CHUNK, client_id=name) for name in ("x", "y", "x", None, None)]
    assert [(index, field) for index, field, _ in flaws_of(*chunks)] == [(0, "client_id"), (2, "client_id")]


def test_an_order_knows_whether_a_vector_is_bare() -> None:
    """Also one that cannot be read."""
    assert not IngestOrder([CHUNK, replace(CHUNK, vectors={"a": row(1, 2)})]).has_bare_vectors
    assert IngestOrder([CHUNK, replace(CHUNK, bare_vector=Unreadable("is a riddle"))]).has_bare_vectors
