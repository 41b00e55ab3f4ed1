"""A collection as it is asked for and shown."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from compass.api.schemas.base import Dims, Name, Request
from compass.api.schemas.spaces import SpaceConfig, SpaceInfo


class CollectionConfig(Request):
    """Settings of a collection."""

    bare_vectors: Literal["follow-default"] | None = None
    embed_model: str | None = None  # of the reference's clients; without effect


class NewCollection(Request):
    """A collection to create."""

    name: Name
    vector_spaces: dict[str, SpaceConfig] | None = None
    default_vector_space: str | None = None
    embedding_dims: Dims | None = None
    config: CollectionConfig | None = None


class CollectionInfo(Struct, kw_only=True):
    """A collection as it is now."""

    name: str
    created_at: str
    embedding_dims: int
    chunk_count: int
    vector_spaces: dict[str, SpaceInfo]
    default_vector_space: str
    epoch: int
    seq: int
