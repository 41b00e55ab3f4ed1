"""What a space is asked and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from compass.domain.chunk import Chunk, FloatVector
from compass.domain.filters import Filter
from compass.domain.space import Metric


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


def scores(distances: npt.NDArray[np.float32], metric: Metric) -> npt.NDArray[np.float32]:
    """Scores of hnswlib's distances: cosine and dot max(0, 1 - d), l2 1 / (1 + d) as d is squared already."""
    if metric == "l2":
        return np.asarray(1.0 / (1.0 + distances), np.float32)
    return np.asarray(np.maximum(np.float32(0), np.float32(1) - distances), np.float32)


def distances(query: FloatVector, rows: npt.NDArray[np.float32], metric: Metric) -> npt.NDArray[np.float32]:
    """Exact distances as hnswlib defines them: 1 - dot for cosine and dot, squared euclidean for l2."""
    if metric == "l2":
        delta = rows - query
        return np.asarray(np.einsum("ij,ij->i", delta, delta), np.float32)
    return np.asarray(np.float32(1) - rows @ query, np.float32)
