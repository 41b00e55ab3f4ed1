"""Chunks as they are sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from compass.api.schemas.base import Int64, MetaValue, Request, Text, Vector
from compass.domain.ingest import INT64_MAX


class ChunkIn(Request):
    """A chunk as it is sent. `(file_id, chunk_index)` is its key."""

    file_id: Text
    chunk_index: Annotated[int, Meta(ge=0, le=INT64_MAX)]
    text: str
    client_id: str | int | None = None
    page: Int64 | None = None
    metadata: dict[str, MetaValue] = msgspec.field(default_factory=dict)
    doc_type: str = "chunk"
    parent_id: Int64 | None = None
    parent_ref: str | None = None
    group_id: str | None = None
    embeddings: dict[str, Vector] | None = None
    embedding: Vector | UnsetType = UNSET


class IngestRequest(Request):
    """Chunks to write."""

    chunks: Annotated[Sequence[ChunkIn], Meta(min_length=1)]
    wait_s: Annotated[float, Meta(ge=0, le=600)] = 10.0
    expected_epoch: Int64 | None = None


class RawIngestRequest(Request):
    """The same with undecoded chunks: read again like this to find every bad one."""

    chunks: list[msgspec.Raw]
    wait_s: float = 10.0
    expected_epoch: int | None = None


class PlainChunkIn(ChunkIn, kw_only=True):
    """A chunk as Python sends it: its vectors are arrays, lists or strings."""

    embeddings: dict[str, Any] | None = None
    embedding: Any = UNSET


class PlainIngestRequest(IngestRequest, kw_only=True):
    """Chunks to write, as Python sends them."""

    chunks: Annotated[Sequence[PlainChunkIn], Meta(min_length=1)]


class PlainRawIngestRequest(RawIngestRequest, kw_only=True):
    """The same with chunks that are not looked at."""

    chunks: list[Any]


class IngestAnswer(Struct, kw_only=True):
    """Durable. `pending`: by space, how many live chunks it cannot find yet."""

    indexed: int
    id_map: dict[str, int]
    took_ms: float
    seq: int
    pending: dict[str, int]
