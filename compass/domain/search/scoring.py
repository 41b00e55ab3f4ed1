"""From distances to scores: greater is nearer, never negative."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from compass.domain.chunk import FloatVector
from compass.domain.space import Metric


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
