"""What a dry run of a rebuild answers, as structs."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

TokensFrom = Literal["server", "characters"]


class Span(Struct):
    """A figure that is not certain: the best guess between a low and a high one."""

    low: float
    estimate: float
    high: float


class ChunkCounts(Struct, kw_only=True):
    """The chunks of the collection, and how many were sampled of those that lack a vector."""

    total: int
    without_text: int
    embedded: int
    missing: int
    sampled: int


class EndpointEstimate(Struct, kw_only=True):
    """What one endpoint did. `tokens_from`: whether the server counted them, or they are guessed from characters."""

    url: str
    docs: int
    refused: int
    docs_per_s: Span | None
    tokens_per_s: Span | None
    tokens_from: TokensFrom | None
    batch_size: int | None
    error: str | None


class TimeEstimate(Struct, kw_only=True):
    """Seconds. Embedding and building of the graph go on side by side."""

    embedding: Span | None
    building: Span | None
    total: Span | None


class DiskEstimate(Struct, kw_only=True):
    """Bytes of the whole space; `peak` while a graph is saved and files are merged."""

    vectors: int
    graph: int
    total: int
    peak: int


class MemoryEstimate(Struct, kw_only=True):
    """Bytes of the whole space in its index: the graph, and the rows that exact answers read.

    A graph that was loaded from its file has room for half as many rows again; that is taken as it is filled.
    """

    graph: int
    rows: int
    total: int


class RefusedChunk(Struct, kw_only=True):
    """A sampled chunk that an endpoint refuses for itself."""

    id: int
    file_id: str
    chunk_index: int
    reason: str


class Failure(Struct, kw_only=True):
    """Something that would fail. `ends_run`: whether the rebuild would not start, or not end well, because of it.

    `count` and `chunks` are of `chunks-refused`: how many of all, and the first of the sample. `recorded` and `found`
    are the fingerprints of a `fingerprint-mismatch`; bytes and node are of `insufficient-memory`.
    """

    type: str
    detail: str
    ends_run: bool
    endpoint: str | UnsetType = UNSET
    count: Span | UnsetType = UNSET
    chunks: list[RefusedChunk] | UnsetType = UNSET
    recorded: dict[str, Any] | UnsetType = UNSET
    found: dict[str, Any] | UnsetType = UNSET
    needed_bytes: int | UnsetType = UNSET
    free_bytes: int | UnsetType = UNSET
    node: str | UnsetType = UNSET


class RebuildEstimate(Struct, kw_only=True):
    """What a rebuild would take and cost, and what of it would fail. Nothing was changed.

    Null where nothing is known to go by: no endpoint answers, or the order names no price. `rests_on` says what the
    figures come from.
    """

    chunks: ChunkCounts
    endpoints: list[EndpointEstimate]
    docs_per_s: Span | None
    tokens: Span | None
    tokens_from: TokensFrom | None
    time_s: TimeEstimate
    disk_bytes: DiskEstimate
    memory_bytes: MemoryEstimate
    cost: Span | None
    budget: float | None
    failures: list[Failure]
    rests_on: str
    took_s: float
