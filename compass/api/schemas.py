"""What travels over HTTP, as structs: bodies are decoded straight into them, and OpenAPI is made of them.

Vectors stay undecoded (`msgspec.Raw`) until `incoming.read_vector`: a float object per number would cost
twice the time, and a bad one must be reported with the index of its chunk.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

INT64_MAX = 2**63 - 1
INT64_MIN = -(2**63)

Int64 = Annotated[int, Meta(ge=INT64_MIN, le=INT64_MAX)]
Beam = Annotated[int, Meta(ge=1, le=10_000)]
Dims = Annotated[int, Meta(extra_json_schema={"minimum": 1, "maximum": 16_384})]
Name = Annotated[str, Meta(extra_json_schema={"pattern": "^[a-z0-9][a-z0-9_-]{0,62}$"})]
Text = Annotated[str, Meta(min_length=1)]
Prompt = Annotated[str, Meta(max_length=4_000, description="Put before each text.")] | None
Reason = Annotated[str, Meta(max_length=1000, description="Why, for the history.")] | None
MetaValue = bool | int | float | str | list[str]
Status = Literal["building", "active", "failed"]

_NUMBERS = {"type": "array", "items": {"type": "number"}}
_BASE64 = {"type": "string", "contentEncoding": "base64", "description": "Little-endian float32, base64."}
_ROW = {"oneOf": [_NUMBERS, _BASE64]}
_ROWS = {"type": "object", "description": "By space.", "additionalProperties": _ROW}
Vector = Annotated[msgspec.Raw, Meta(extra_json_schema=_ROW)]
QueryVector = Annotated[msgspec.Raw, Meta(extra_json_schema={"oneOf": [_NUMBERS, _BASE64, _ROWS]})]


class Request(Struct, forbid_unknown_fields=True, kw_only=True):
    """A body that callers send: a field that nobody knows is refused, never ignored."""


# ---- collections and spaces, as asked


class Hnsw(Request):
    """Parameters of a space's graph."""

    m: Annotated[int, Meta(ge=2, le=256)] = 16
    ef_construction: Beam = 200
    ef_search: Beam = 64


class SpaceConfig(Request):
    """What a user says of a vector space."""

    dims: Dims
    model: Text
    embed_endpoint: str | None = None
    api_key_env: str | None = None
    query_prompt_name: str | None = None
    document_prompt_name: str | None = None
    query_prompt: Prompt = None
    document_prompt: Prompt = None
    template: Annotated[str, Meta(max_length=4_000, description="Such as {title}\\n{text}.")] | None = None
    normalize: bool | None = None
    truncate: bool | None = None
    dimensions: Dims | None = None
    metric: Literal["cosine", "dot", "l2"] = "cosine"
    hnsw: Hnsw | None = None
    status: str | None = None  # of the reference's clients; without effect


class NewSpace(SpaceConfig, kw_only=True):
    """A vector space to add."""

    name: Name
    reason: Reason = None


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


class HnswPatch(Request):
    """What of a graph can change while it answers."""

    ef_search: Beam


class SpacePatch(Request):
    """What of a space can change while it answers."""

    embed_endpoint: str | UnsetType = UNSET
    query_prompt_name: str | UnsetType | None = UNSET
    hnsw: HnswPatch | UnsetType = UNSET
    accept_new_fingerprint: bool = False
    reason: Reason = None


class RebuildRequest(Request):
    """A rebuild to start; everything is optional."""

    embed_endpoint: str | list[str] | None = None
    batch_size: Annotated[int, Meta(ge=1, le=100_000)] | None = None
    api_key_env: str | None = None
    concurrency: Annotated[int, Meta(ge=1, le=10_000)] | None = None
    max_docs_per_s: Annotated[float, Meta(gt=0)] | None = None
    restart: bool = False
    endpoint_timeout_s: Annotated[float, Meta(gt=0, le=1e6)] = 900.0
    max_failed: Annotated[int, Meta(ge=0, le=INT64_MAX)] = 0
    accept_new_fingerprint: bool = False
    dry_run: Annotated[bool, Meta(description="Estimate it, and change nothing: answers 200.")] = False
    cost_per_million_tokens: Annotated[float, Meta(gt=0, description="Of the endpoints.")] | None = None
    cost_per_hour: Annotated[float, Meta(gt=0, description="Of each endpoint.")] | None = None
    budget: Annotated[float, Meta(gt=0, description="The most to spend; wants a price.")] | None = None
    reason: Reason = None


class SwapRequest(Request):
    """The space that becomes the default; with `rollback` and no name, the one that was it before."""

    name: str | None = None
    rollback: bool = False
    force: bool = False
    expected_epoch: Int64 | None = None
    wait_s: Annotated[float, Meta(ge=0, le=600)] = 5.0
    reason: Reason = None


class DropQuery(Request):
    """How a space is dropped; `confirm` is its name, wanted while it was the default a short while ago."""

    confirm: str | None = None
    reason: Reason = None


class CancelQuery(Request):
    """Why a rebuild is cancelled."""

    reason: Reason = None


# ---- chunks and searches, as asked


class ChunkIn(Request):
    """A chunk as it is sent. `(file_id, chunk_index)` is its key."""

    file_id: Text
    chunk_index: Annotated[int, Meta(ge=0, le=INT64_MAX)]
    text: str
    client_id: str | int | None = None
    page: Int64 | None = None
    metadata: dict[str, MetaValue] = {}
    doc_type: str = "chunk"
    parent_id: Int64 | None = None
    parent_ref: str | None = None
    group_id: str | None = None
    embeddings: dict[str, Vector] | None = None
    embedding: Vector | UnsetType = UNSET


class IngestRequest(Request):
    """Chunks to write."""

    chunks: Annotated[list[ChunkIn], Meta(min_length=1)]
    wait_s: Annotated[float, Meta(ge=0, le=600)] = 10.0
    expected_epoch: Int64 | None = None


class RawIngestRequest(Request):
    """The same with undecoded chunks: read again like this to find every bad one."""

    chunks: list[msgspec.Raw]
    wait_s: float = 10.0
    expected_epoch: int | None = None


class DeleteRequest(Request):
    """What to delete: by ids or by filters, not both, not neither."""

    ids: list[Int64] | None = None
    filters: dict[str, Any] | None = None


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


class PageQuery(Request):
    """Which chunks of a listing."""

    after: Int64 = -1
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


# ---- answers


class Health(Struct):
    """The process lives."""

    status: str
    collections: int
    version: str


class Ready(Struct):
    """The gateway holds a valid routing table and every default space answers."""

    status: str


class SpaceInfo(Struct, kw_only=True):
    """A vector space as it is now. `lag`: live chunks that it cannot find yet."""

    name: str
    id: str
    dims: int
    model: str
    status: Status
    embed_endpoint: str | UnsetType = UNSET
    fingerprint: str | UnsetType = UNSET
    vectors: int = 0
    lag: int = 0
    quarantined: int = 0
    bytes_on_disk: int = 0
    created_at: str
    error: str | UnsetType = UNSET


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


class SpaceAdded(Struct, kw_only=True):
    """A vector space that was added; rebuild it or feed it."""

    name: str
    dims: int
    model: str
    status: Status


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


class IngestAnswer(Struct, kw_only=True):
    """Durable. `pending`: by space, how many live chunks it cannot find yet."""

    indexed: int
    id_map: dict[str, int]
    took_ms: float
    seq: int
    pending: dict[str, int]


class DeleteAnswer(Struct):
    """Durable, and visible in every space."""

    deleted: int
    seq: int


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


class RebuildStarted(Struct):
    """A rebuild runs, or an active space embeds what is missing."""

    status: Status
    job_id: str


class RebuildCancelled(Struct):
    """The rebuild was cancelled; what it embedded is kept for a resume."""

    status: Literal["cancelled"] = "cancelled"


class RebuildRun(Struct, kw_only=True):
    """The last run of a space's rebuild."""

    state: Literal["running", "done", "failed", "cancelled", "none"] = "none"
    job_id: str | None = None
    started_at: str | None = None
    ended_at: str | None = None


class EndpointStatus(Struct, kw_only=True):
    """How one endpoint of a run is doing.

    `window`: requests that it may have in flight now. `docs`, `tokens`: what it has embedded in this run.
    """

    url: str
    state: Literal["new", "up", "paused", "down", "refused"] = "up"
    in_flight: int = 0
    window: int = 0
    batch_size: int | None = None
    docs_per_s: float = 0.0
    docs: int = 0
    tokens: int = 0
    errors: int = 0
    last_error: str | None = None


class QuarantinedChunk(Struct, kw_only=True):
    """A chunk that the endpoint refuses for itself."""

    id: int
    file_id: str
    chunk_index: int
    reason: str


class Quarantine(Struct):
    """A page of the chunks that are quarantined; `next` is the `after` of the next page, null on the last."""

    chunks: list[QuarantinedChunk]
    next: int | None


class Cost(Struct, kw_only=True):
    """What a run has spent, at the price of its order."""

    spent: float
    budget: float | None = None


class RebuildStatus(Struct, kw_only=True):
    """How far a space is. `progress` never falls and is 1.0 exactly when the space turned active.

    `failed` counts the chunks that the endpoint refuses for themselves; `quarantined` lists the first 100.
    """

    status: Status
    progress: float = 0.0
    percent: float = 0.0
    embedded: int = 0
    total: int = 0
    failed: int = 0
    lag: int = 0
    docs_per_s: float = 0.0
    eta_s: float | None = None
    run: RebuildRun = msgspec.field(default_factory=RebuildRun)
    endpoints: list[EndpointStatus] = []
    quarantined: list[QuarantinedChunk] = []
    cost: Cost | UnsetType = UNSET
    error: str | UnsetType = UNSET


class Swapped(Struct):
    """The default after the call; the epoch is unchanged if it was the default already."""

    previous: str
    current: str
    epoch: int


class Event(Struct, kw_only=True):
    """What was done, in commit `seq`. `who`: the caller's key; null where the service did it by itself."""

    seq: int
    at: str
    epoch: int
    kind: str
    space: str | None
    who: str | None
    reason: str | None
    took_s: float
    details: dict[str, Any]


class History(Struct):
    """What was done to the spaces of a collection, oldest first."""

    events: list[Event]


class NotYet(Struct):
    """An answer that a later version defines."""
