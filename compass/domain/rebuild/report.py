"""The report of a dry run: what a rebuild would take and cost, and what of it would fail."""

from __future__ import annotations

from dataclasses import dataclass

from compass.domain.rebuild.estimate import Span, TokensFrom
from compass.domain.rebuild.status import QuarantinedChunk

FingerprintFields = dict[str, str | int | bool]  # see `Fingerprint.to_json`


@dataclass(frozen=True, slots=True)
class ChunkCounts:
    """The chunks of the collection, and how many were sampled of those that lack a vector."""

    total: int
    without_text: int
    embedded: int
    missing: int
    sampled: int


@dataclass(frozen=True, slots=True)
class EndpointEstimate:
    """What one endpoint did. `tokens_from`: whether the server counted them, or they are guessed from characters."""

    url: str
    docs: int
    refused: int
    docs_per_s: Span | None
    tokens_per_s: Span | None
    tokens_from: TokensFrom | None
    batch_size: int | None
    error: str | None


@dataclass(frozen=True, slots=True)
class TimeEstimate:
    """Seconds. Embedding and building of the graph go on side by side."""

    embedding: Span | None
    building: Span | None
    total: Span | None


@dataclass(frozen=True, slots=True)
class DiskEstimate:
    """Bytes of the whole space; `peak` while a graph is saved and files are merged."""

    vectors: int
    graph: int
    total: int
    peak: int


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes of the whole space in its index: the graph, and the rows that exact answers read."""

    graph: int
    rows: int
    total: int


@dataclass(frozen=True, slots=True)
class Failure:
    """Something that would fail. `ends_run`: whether the rebuild would not start, or not end well, because of it.

    Attributes:
        count: Of `chunks-refused`: how many of all.
        chunks: Of `chunks-refused`: the first of the sample.
        recorded: Of `fingerprint-mismatch`: what built the space; `found`: what the endpoint is.
        needed_bytes: Of `insufficient-memory`, as `free_bytes` and `node`.
    """

    type: str
    detail: str
    ends_run: bool
    endpoint: str | None = None
    count: Span | None = None
    chunks: tuple[QuarantinedChunk, ...] | None = None
    recorded: FingerprintFields | None = None
    found: FingerprintFields | None = None
    needed_bytes: int | None = None
    free_bytes: int | None = None
    node: str | None = None


@dataclass(frozen=True, slots=True)
class EstimateReport:
    """What a rebuild would take and cost, and what of it would fail. Nothing was changed.

    None where nothing is known to go by: no endpoint answers, or the order names no price. `rests_on` says what the
    figures come from.
    """

    chunks: ChunkCounts
    endpoints: tuple[EndpointEstimate, ...]
    docs_per_s: Span | None
    tokens: Span | None
    tokens_from: TokensFrom | None
    time_s: TimeEstimate
    disk_bytes: DiskEstimate
    memory_bytes: MemoryEstimate
    cost: Span | None
    budget: float | None
    failures: tuple[Failure, ...]
    rests_on: str
    took_s: float = 0.0
