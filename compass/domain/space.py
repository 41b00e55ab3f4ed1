"""A vector space: one model's view of a collection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from typing import Any, Literal

import numpy as np

from compass.domain.chunk import FloatMatrix, FloatVector
from compass.domain.names import check_dims, check_key_variable
from compass.domain.template import check_template, render
from compass.errors import InvalidRequestError

Metric = Literal["cosine", "dot", "l2"]
Status = Literal["building", "active", "failed"]

BUILTIN = "builtin"  # the `embed_endpoint` of the built-in embedder: no URL, no network


@dataclass(frozen=True, slots=True)
class HnswConfig:
    """Parameters of the graph (Malkov and Yashunin 2016): M links a node, two beam widths."""

    m: int = 16
    ef_construction: int = 200
    ef_search: int = 64


@dataclass(frozen=True, slots=True)
class SpaceConfig:
    """What a user says of a space.

    Attributes:
        dims: Numbers in a vector, 1..16384.
        model: A label for people; the built-in embedder also salts its hashes with it.
        embed_endpoint: A URL, `builtin`, or None for a space fed by callers (or set by its first rebuild).
        api_key_env: The variable that holds the endpoint's key, `COMPASS_EMBED_KEY_*`.
        query_prompt_name, document_prompt_name: Prompts that the server knows by name (`prompt_name` of TEI).
        query_prompt, document_prompt: Put before each query and each document by Compass, for any server.
        template: What of a chunk is embedded, see `domain.template`; None: its text.
        normalize, truncate, dimensions: Sent to the endpoint where set.
    """

    dims: int
    model: str
    embed_endpoint: str | None = None
    api_key_env: str | None = None
    query_prompt_name: str | None = None
    document_prompt_name: str | None = None
    normalize: bool | None = None
    metric: Metric = "cosine"
    hnsw: HnswConfig = field(default_factory=HnswConfig)
    query_prompt: str | None = None
    document_prompt: str | None = None
    template: str | None = None
    truncate: bool | None = None
    dimensions: int | None = None

    def __post_init__(self) -> None:
        check_dims(self.dims)
        if self.api_key_env is not None:
            check_key_variable(self.api_key_env)
        if self.metric not in ("cosine", "dot", "l2"):
            raise InvalidRequestError(f"metric {self.metric!r} is not one of cosine, dot, l2")
        if self.template is not None:
            check_template(self.template)
        if self.dimensions not in (None, self.dims):
            why = f"{self.dimensions} is not the {self.dims} dims of the space"
            raise InvalidRequestError(f"dimensions: {why}", {"errors": [{"field": "dimensions", "detail": why}]})

    def query_text(self, query: str) -> str:
        """What is embedded of a query."""
        return (self.query_prompt or "") + query

    def document_text(self, values: Mapping[str, Any], metadata: Mapping[str, Any]) -> str:
        """What is embedded of a chunk: its built-in fields by name, and its metadata."""
        text = values["text"] if self.template is None else render(self.template, values, metadata)
        return (self.document_prompt or "") + text


@dataclass(frozen=True, slots=True)
class BuiltBy:
    """The model that built a space's vectors, in its server's words; None where it does not say."""

    model_id: str | None = None
    model_sha: str | None = None
    pooling: str | None = None


@dataclass(frozen=True, slots=True)
class Space:
    """A space of a collection, as the log records it.

    Attributes:
        id: Never reused; a dropped and re-added name is another id.
        follows: Whether it embeds what is written; False until a rebuild is started or callers feed it.
        created_at: Unix time, seconds.
        built_by: None until an endpoint has been asked.
    """

    id: str
    name: str
    config: SpaceConfig
    status: Status
    created_at: float
    follows: bool = False
    error: str | None = None
    built_by: BuiltBy | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Space:
        """The inverse of `to_json`."""
        config = dict(data["config"])
        config["hnsw"] = HnswConfig(**config["hnsw"])
        built_by = data.get("built_by")
        named = {"config": SpaceConfig(**config), "built_by": None if built_by is None else BuiltBy(**built_by)}
        return Space(**{**data, **named})

    def with_config(self, **changes: Any) -> Space:
        """The same space with some fields of its config replaced."""
        return replace(self, config=replace(self.config, **changes))

    def built(self, by: BuiltBy) -> Space:
        """The same space with its builder on record."""
        return replace(self, built_by=by)


def prepare_vectors(vectors: FloatMatrix, metric: Metric) -> FloatMatrix:
    """Vectors as they are stored: float32 rows, of length 1 for cosine. shape (n, dims) in and out."""
    rows = np.ascontiguousarray(vectors, np.float32)
    if metric != "cosine":
        return rows
    norms = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    return np.asarray(rows / np.where(norms == 0.0, 1.0, norms), np.float32)


def why_unfit(vectors: FloatMatrix, dims: int) -> str | None:
    """Why these rows must not be stored in a space, or None: wrong dims, NaN, infinity, zero vectors."""
    if vectors.ndim != 2 or vectors.shape[1] != dims:
        return f"expected {dims} dims, got {vectors.shape[-1] if vectors.ndim else 0}"
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        return f"row {int(np.argmin(finite))} holds NaN or infinity"
    nonzero = vectors.any(axis=1)
    if not nonzero.all():
        return f"row {int(np.argmin(nonzero))} is a zero vector"
    return None


def cosine(a: FloatVector, b: FloatVector) -> float:
    """The cosine of the angle between two vectors that are not zero: -1..1."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    return float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))


@dataclass(frozen=True, slots=True)
class Lag:
    """What a space does without.

    Attributes:
        lag: Live chunks that it cannot find yet.
        quarantined: Chunks whose text its endpoint refuses.
        accepted: How many of those the order of its last run allowed.
    """

    lag: int
    quarantined: int
    accepted: int


@dataclass(frozen=True, slots=True)
class SpaceStats:
    """What a space's index knows of it; `error`: why it lags, while it does."""

    vectors: int
    lag: int
    quarantined: int
    accepted: int
    bytes_on_disk: int
    error: str | None = None


class Unchanged(Enum):
    """The value of a field that a change leaves alone, where None is a value of its own."""

    UNCHANGED = "unchanged"


UNCHANGED = Unchanged.UNCHANGED


@dataclass(frozen=True, slots=True)
class SpaceChanges:
    """Fields of a space's config to change; those left out stay.

    `accept_new_fingerprint`: take an endpoint that names its model otherwise, if its vectors of stored texts agree.
    """

    embed_endpoint: str | None = None
    query_prompt_name: str | Unchanged | None = UNCHANGED
    ef_search: int | None = None
    accept_new_fingerprint: bool = False

    def names(self) -> list[str]:
        """What is to change, sorted."""
        named = {
            "embed_endpoint": self.embed_endpoint is not None,
            "query_prompt_name": self.query_prompt_name is not UNCHANGED,
            "ef_search": self.ef_search is not None,
            "accept_new_fingerprint": self.accept_new_fingerprint,
        }
        return sorted(name for name, is_named in named.items() if is_named)

    def of_config(self, config: SpaceConfig) -> dict[str, Any]:
        """The fields of a space's config that change, with their new values."""
        changed: dict[str, Any] = {}
        if self.embed_endpoint is not None:
            changed["embed_endpoint"] = self.embed_endpoint
        if self.query_prompt_name is not UNCHANGED:
            changed["query_prompt_name"] = self.query_prompt_name
        if self.ef_search is not None:
            changed["hnsw"] = replace(config.hnsw, ef_search=self.ef_search)
        return changed


@dataclass(frozen=True, slots=True)
class NewSpace:
    """A space to add."""

    name: str
    config: SpaceConfig
