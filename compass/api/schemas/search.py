"""A search and its answer."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from compass.api.schemas.base import Beam, Int64, QueryVector, Request
from compass.api.schemas.chunks import Chunk
from compass.domain.ingest import INT64_MAX


class ScoreWeights(Request):
    """How the fused score weighs its parts."""

    rrf_k: float = 60.0
    fts_weight: float = 1.0
    semantic_weight: float = 1.0


class SearchRequest(Request):
    """A search."""

    query: str = ""
    mode: Literal["semantic", "hybrid", "fts"] = "semantic"
    vector_space: str | list[str] | None = None
    top_k: Annotated[int, Meta(ge=1, le=1000)] = 10
    query_vector: QueryVector | UnsetType = UNSET
    vector: QueryVector | UnsetType = UNSET
    filters: dict[str, Any] | None = None
    score_weights: ScoreWeights | None = None
    recency: dict[str, Any] | None = None
    recency_preset: str | None = None
    recency_field: str | None = None
    boosts: list[dict[str, Any]] | None = None
    relationship_boost: dict[str, Any] | None = None
    explain: bool = False
    exact: bool = False
    ef_search: Beam | None = None
    include_vectors: bool = False
    min_seq: Annotated[int, Meta(ge=0, le=INT64_MAX)] | None = None
    expected_epoch: Int64 | None = None
    timeout_s: Annotated[float, Meta(gt=0, le=600)] = 30.0


class PlainSearchRequest(SearchRequest, kw_only=True):
    """A search as Python sends it: its vectors are arrays, lists or strings, or these by the names of spaces."""

    query_vector: Any = UNSET
    vector: Any = UNSET


class Result(Struct):
    """One hit. The score is never negative, greater is nearer."""

    chunk: Chunk
    score: float
    source: Literal["fts", "semantic", "both"] = "semantic"


class SearchResponse(Struct, kw_only=True):
    """All hits come from the one space and epoch that are named."""

    results: list[Result]
    total: int
    took_us: int
    mode: str
    vector_space: str
    epoch: int
