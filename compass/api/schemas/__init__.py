"""What travels, as structs: bodies are decoded straight into them, and OpenAPI is made of them."""

from __future__ import annotations

from compass.api.schemas.base import MetaValue, Request, Status
from compass.api.schemas.chunks import Chunk, ChunkPage, DeleteAnswer, DeleteRequest, PageQuery
from compass.api.schemas.collections import CollectionConfig, CollectionInfo, NewCollection
from compass.api.schemas.estimates import RebuildEstimate
from compass.api.schemas.ingest import (
    ChunkIn,
    IngestAnswer,
    IngestRequest,
    PlainChunkIn,
    PlainIngestRequest,
    PlainRawIngestRequest,
    RawIngestRequest,
)
from compass.api.schemas.rebuilds import (
    CancelQuery,
    Cost,
    EndpointStatus,
    Quarantine,
    QuarantinedChunk,
    RebuildCancelled,
    RebuildRequest,
    RebuildRun,
    RebuildStarted,
    RebuildStatus,
)
from compass.api.schemas.search import PlainSearchRequest, Result, ScoreWeights, SearchRequest, SearchResponse
from compass.api.schemas.service import Health, NotYet, Ready
from compass.api.schemas.spaces import (
    DropQuery,
    Event,
    History,
    Hnsw,
    HnswPatch,
    NewSpace,
    SpaceAdded,
    SpaceConfig,
    SpaceInfo,
    SpacePatch,
    Swapped,
    SwapRequest,
)

__all__ = [
    "CancelQuery",
    "Chunk",
    "ChunkIn",
    "ChunkPage",
    "CollectionConfig",
    "CollectionInfo",
    "Cost",
    "DeleteAnswer",
    "DeleteRequest",
    "DropQuery",
    "EndpointStatus",
    "Event",
    "Health",
    "History",
    "Hnsw",
    "HnswPatch",
    "IngestAnswer",
    "IngestRequest",
    "MetaValue",
    "NewCollection",
    "NewSpace",
    "NotYet",
    "PageQuery",
    "PlainChunkIn",
    "PlainIngestRequest",
    "PlainRawIngestRequest",
    "PlainSearchRequest",
    "Quarantine",
    "QuarantinedChunk",
    "RawIngestRequest",
    "Ready",
    "RebuildCancelled",
    "RebuildEstimate",
    "RebuildRequest",
    "RebuildRun",
    "RebuildStarted",
    "RebuildStatus",
    "Request",
    "Result",
    "ScoreWeights",
    "SearchRequest",
    "SearchResponse",
    "SpaceAdded",
    "SpaceConfig",
    "SpaceInfo",
    "SpacePatch",
    "Status",
    "SwapRequest",
    "Swapped",
]
