"""Stored chunks: pages of them, one of them, and what deletes them."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType

from compass.api.schemas.base import Int64, MetaValue, Request


class PageQuery(Request):
    """Which chunks of a listing."""

    after: Int64 = -1
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


class DeleteRequest(Request):
    """What to delete: by ids or by filters, not both, not neither."""

    ids: list[Int64] | None = None
    filters: dict[str, Any] | None = None


class Chunk(Struct, kw_only=True):
    """A chunk as it is stored; `embeddings` only where asked for, as stored (normalised for cosine)."""

    id: int
    file_id: str
    chunk_index: int
    text: str
    metadata: dict[str, MetaValue]
    doc_type: str
    page: int | UnsetType = UNSET
    parent_id: int | UnsetType = UNSET
    parent_ref: str | UnsetType = UNSET
    group_id: str | UnsetType = UNSET
    embeddings: dict[str, list[float]] | UnsetType = UNSET


class ChunkPage(Struct):
    """A page of chunks; `next` is the `after` of the next page, null on the last."""

    chunks: list[Chunk]
    next: int | None


class DeleteAnswer(Struct):
    """Durable, and visible in every space."""

    deleted: int
    seq: int
