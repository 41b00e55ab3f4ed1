"""What a space is asked and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from compass.domain.chunk import Chunk, FloatVector
from compass.domain.filters import Filter


@dataclass(frozen=True, slots=True)
class Query:
    """One question to one space.

    Attributes:
        vector: float32, shape (dims,), already checked; normalised for cosine.
        exact: Compare with every vector instead of walking the graph.
        ef_search: Beam width; None for the space's own.
        min_seq: The answer must not be older than this commit.
    """

    vector: FloatVector
    top_k: int = 10
    where: Filter = field(default_factory=Filter)
    exact: bool = False
    ef_search: int | None = None
    include_vectors: bool = False
    min_seq: int = 0


class Hit(NamedTuple):
    """One answer: a chunk, its score (never negative, greater is nearer), its vector if asked for."""

    chunk: Chunk
    score: float
    vector: FloatVector | None = None
